"""recompute=True: the same results and gradients of the input, weights' gradients to rounding, a fraction of the memory."""

import copy

import pytest
import torch
from layers import fused_runs
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import sstkern
from sstkern import recompute
from sstkern.engines import interpreting

LENGTHS = torch.tensor([70, 0, 33, 16])
LAYERS = {
    "LSTM": lambda **options: sstkern.LSTM(5, 7, 2, proj_size=3, **options),
    "GRU": lambda **options: sstkern.GRU(5, 7, 2, bias=False, batch_first=True, **options),
    "RNN": lambda **options: sstkern.RNN(5, 7, nonlinearity="relu", **options),
}


def step(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> dict[str, list[Tensor]]:
    """Results, the gradients of the inputs, and those of the weights."""
    torch.manual_seed(5)
    rows = layer.num_layers * (1 + layer.bidirectional)
    sizes = layer.cell.state_sizes(7, layer.proj_size or 7)
    hx = [torch.randn(rows, 4, size, dtype=x.dtype, requires_grad=True) for size in sizes]
    x = x.clone().requires_grad_()
    output, hx_n = layer(x, tuple(hx) if len(hx) == 2 else hx[0], lengths=lengths)
    results = [output, *(hx_n if isinstance(hx_n, tuple) else [hx_n])]
    grads = torch.autograd.grad(results, [x, *hx, *layer.parameters()], [torch.randn_like(result) for result in results])
    return {"results": results, "inputs": list(grads[: 1 + len(hx)]), "weights": list(grads[1 + len(hx) :])}


def pair(name: str, dtype: torch.dtype, bidirectional: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    """The same layer both ways, and an input of a number of steps that no chunk divides."""
    torch.manual_seed(0)
    plain = LAYERS[name](bidirectional=bidirectional, dtype=dtype)
    sparing = copy.deepcopy(plain)
    sparing.recompute = True
    return plain, sparing, torch.randn(*((4, 70) if plain.batch_first else (70, 4)), 5, dtype=dtype)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Bit for bit on the C++ engine, which promises that.

    Interpreted kernels take PyTorch's own products, whose bits may change with the number of rows, as they do with AVX2. There they are
    equal up to rounding: 2 eps were measured, in values of up to 3.
    """
    tolerance = 8 * torch.finfo(expected[0].dtype).eps if interpreting() else 0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_bits_of_a_layer_whose_sums_take_several_blocks():
    """384 gates in each direction: dx is the sum of both directions' however it is computed."""
    torch.manual_seed(0)
    layer, x = sstkern.GRU(128, 128, bidirectional=True), torch.randn(33, 2, 128, requires_grad=True)
    found = []
    for layer.recompute in (False, True):
        output, _ = layer(x)
        found.append([output, *torch.autograd.grad(output.square().sum(), x)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_results_and_gradients_of_inputs_keep_their_bits(name, dtype, bidirectional, lengths):
    plain, sparing, x = pair(name, dtype, bidirectional)
    before = fused_runs()
    expected = step(plain, x, lengths)
    between = fused_runs()
    found = step(sparing, x, lengths)
    after = fused_runs()
    chunks = -(-70 // recompute.SHORTEST)
    assert between["forward"] - before["forward"] == plain.num_layers
    assert after["forward"] - between["forward"] == 2 * chunks * plain.num_layers * (1 + bidirectional)
    for part in ("results", "inputs"):
        assert_same(found[part], expected[part])
    torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_short_formats_round_the_states_between_chunks(name, dtype):
    plain, sparing, x = pair(name, dtype, True)
    found, expected = step(sparing, x, LENGTHS), step(plain, x, LENGTHS)
    for part in found:
        for value, of_plain in zip(found[part], expected[part], strict=True):
            assert value.dtype == dtype
            error = (value.double() - of_plain.double()).norm() / of_plain.double().norm()
            assert error < 2 * torch.finfo(dtype).eps


def test_saved_memory_is_a_fraction():
    def saved(layer: nn.Module, x: Tensor) -> int:
        held: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(x)[0].sum()
        return sum(held.values()) - held[x.untyped_storage().data_ptr()] - sum(w.nbytes for w in layer.parameters())

    for kind in (sstkern.LSTM, sstkern.GRU):
        x = torch.randn(1024, 2, 16, requires_grad=True)
        plain, sparing = kind(16, 16), kind(16, 16, recompute=True)
        # Only the states between 32 chunks, with those before the first.
        states = 2 if kind is sstkern.LSTM else 1
        assert saved(sparing, x) <= (1024 // 32 + 1) * states * 2 * 16 * 4
        assert saved(plain, x) > 50 * saved(sparing, x)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_any_order(name, monkeypatch):
    monkeypatch.setattr(recompute, "SHORTEST", 2)
    torch.manual_seed(0)
    layer = LAYERS[name](bidirectional=True, dtype=torch.float64, recompute=True)
    shape = (3, 5) if layer.batch_first else (5, 3)
    x, lengths = torch.randn(*shape, 5, dtype=torch.float64, requires_grad=True), torch.tensor([5, 0, 3])
    weights = list(layer.parameters())[:2]

    def output(x: Tensor, *_: Tensor) -> Tensor:
        return layer(x, lengths=lengths)[0]

    before = fused_runs()["forward"]
    output(x)
    assert fused_runs()["forward"] - before == 3 * 2 * layer.num_layers  # chunks, directions
    assert gradcheck(output, (x, *weights))
    assert gradgradcheck(output, (x, *weights), fast_mode=True)


def dependent(case: str, layer: sstkern.LSTM) -> tuple[Tensor, list[Tensor]]:
    """A result, and what it depends on in more than one way."""
    x = torch.randn(20, 2, 7, dtype=torch.float64, requires_grad=True)
    match case:
        case "states go on":
            _, hx = layer(x)
            output, _ = layer(x, hx)
        case "applied twice":
            output, _ = layer(layer(x)[0])
        case "states of the input":
            output, _ = layer(x, (x.mean(0, keepdim=True), x[:1].tanh()))
        case "tied weights":
            ih, _, bias, _ = layer._weights()
            output, _ = sstkern.functional.lstm(x, [ih, ih, bias, bias], recompute=layer.recompute)
            return output, [x, ih, bias]
    return output, [x, *layer.parameters()]


@pytest.mark.parametrize("case", ["states go on", "applied twice", "states of the input", "tied weights"])
def test_gradients_to_differentiate_where_inputs_depend_on_each_other(case):
    found = []
    for sparing in (False, True):
        torch.manual_seed(0)
        output, inputs = dependent(case, sstkern.LSTM(7, 7, dtype=torch.float64, recompute=sparing))
        first = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)
        found.append([*first, *second])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_without_a_backward_a_layer_runs_as_without_it(tmp_path):
    layer = sstkern.LSTM(5, 7, recompute=True)
    x = torch.randn(70, 3, 5)
    before = fused_runs()["forward"]
    torch.jit.trace(layer, (x,), check_trace=False).save(tmp_path / "traced.pt")
    layer.requires_grad_(False)(x)
    assert fused_runs()["forward"] - before == 2


def test_a_compiled_layer_has_one_operator():
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = sstkern.GRU(5, 7, recompute=True), torch.randn(70, 3, 5)
    before = fused_runs()["forward"]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0]
    assert fused_runs()["forward"] - before == 1
    assert torch.equal(compiled, layer(x)[0])


def test_results_share_no_memory_with_the_first_states():
    hx = torch.randn(1, 3, 7, requires_grad=True)
    _, h_n = sstkern.GRU(5, 7, recompute=True)(torch.randn(0, 3, 5), hx)
    assert h_n.data_ptr() != hx.data_ptr()
    assert torch.equal(h_n, hx)


def test_weights_gradients_of_many_chunks_are_summed_in_float32():
    errors = []
    for sparing in (False, True):
        torch.manual_seed(0)
        layer = sstkern.GRU(5, 7, dtype=torch.bfloat16, recompute=sparing)
        x = torch.randn(1600, 3, 5, dtype=torch.bfloat16)  # 40 chunks
        exact = copy.deepcopy(layer).double()
        (found,) = torch.autograd.grad(layer(x)[0].sum(), layer.weight_ih_l0)
        (expected,) = torch.autograd.grad(exact(x.double())[0].sum(), exact.weight_ih_l0)
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors[1] < 1.5 * errors[0]


def test_dropout_nothing_to_differentiate_and_empty_sizes():
    torch.manual_seed(0)
    plain, sparing = sstkern.GRU(5, 7, 2, dropout=0.5), sstkern.GRU(5, 7, 2, dropout=0.5, recompute=True)
    sparing.load_state_dict(plain.state_dict())
    x = torch.randn(40, 3, 5)
    found = []
    for layer in (plain, sparing):
        torch.manual_seed(1)
        found.append(layer(x)[0])
    assert torch.equal(*found)
    with torch.no_grad():
        assert torch.equal(sparing.eval()(x)[0], plain.eval()(x)[0])
    for shape in ((0, 3, 5), (4, 0, 5)):
        output, h_n = sparing(torch.randn(shape, requires_grad=True))
        assert (output.shape, h_n.shape) == ((*shape[:2], 7), (2, shape[1], 7))
        (output.sum() + h_n.sum()).backward()
    frozen = sstkern.GRU(5, 7, recompute=True).requires_grad_(False)
    (gradient,) = torch.autograd.grad(frozen(given := x.clone().requires_grad_())[0].sum(), given)
    assert gradient.abs().max() > 0


def test_autocast_and_compiled_graphs():
    torch.manual_seed(0)
    plain, sparing = sstkern.LSTM(5, 7), sstkern.LSTM(5, 7, recompute=True)
    sparing.load_state_dict(plain.state_dict())
    x = torch.randn(40, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = sparing(x)[0], plain(x)[0]
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=torch.finfo(torch.bfloat16).eps)
    found.float().sum().backward()
    assert sparing.weight_hh_l0.grad.dtype == torch.float32
    compiled = torch.compile(sparing, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x)[0], plain(x)[0])


@pytest.mark.parametrize("wrong", [-1, 41])
def test_wrong_lengths_are_refused(wrong):
    layer, x = sstkern.GRU(5, 7, recompute=True), torch.randn(40, 2, 5)
    with pytest.raises(ValueError, match=rf"lengths\[1\] is {wrong}; allowed are 0 to 40"):
        layer(x, lengths=[40, wrong])


def test_the_setting_of_a_layer():
    assert "recompute=True" in repr(sstkern.LSTM(2, 3, recompute=True))
    assert "recompute" not in repr(sstkern.LSTM(2, 3))
    converted = sstkern.convert(nn.LSTM(2, 3))
    assert converted.recompute is False
    converted.recompute = True
    assert copy.deepcopy(converted).recompute is True
    with pytest.raises(ValueError, match="recompute: expected True or False, got 'yes'"):
        sstkern.GRU(2, 3, recompute="yes")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_vmap_over_autograds_gradients(bidirectional):
    torch.manual_seed(0)
    plain, sparing, x = pair("LSTM", torch.float64, bidirectional)
    x.requires_grad_()
    found = []
    for layer in (plain, sparing):
        output, _ = layer(x, lengths=LENGTHS)
        grads = torch.randn(3, *output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        inputs = [x, *layer.parameters()]
        found.append(torch.vmap(lambda grad, o=output, i=inputs: torch.autograd.grad(o, i, grad, retain_graph=True))(grads))
    torch.testing.assert_close(*found)
