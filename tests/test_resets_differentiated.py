"""Sequences that begin anew: recompute, transforms, derivatives of any order, compiled and exported."""

import pytest
import torch
from layers import assert_close, gradients, states_of
from pieces import check_pieces, of_cell, of_layer, random_states
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import sstkern
from sstkern.engines import interpreting
from sstkern.recompute import SHORTEST
from sstkern.testing import assert_gradients

KINDS = {
    "lstm": lambda **options: sstkern.LSTM(3, 4, dtype=torch.float64, **options),
    "gru": lambda **options: sstkern.GRU(3, 4, dtype=torch.float64, **options),
    "own": lambda **options: sstkern.fuse(nn.LSTMCell(3, 4, dtype=torch.float64)),
}


def drawn(steps: int = 6, batch: int = 3):
    torch.manual_seed(0)
    x = torch.randn(steps, batch, 3, dtype=torch.float64)
    resets = torch.rand(steps, batch) < 0.4
    return x, resets


def call_of(kind: str, layer, anew):
    """Of x and resets the results as a list."""
    reset_to = (anew, anew * 2) if kind != "gru" else anew

    def call(x, resets, **options):
        output, hx_n = layer(x, resets=resets, reset_to=reset_to, **options)
        return [output, *(hx_n if isinstance(hx_n, tuple) else [hx_n])]

    return call


def anew_of(kind: str) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn((1, 4) if kind == "own" else (1, 1, 4), dtype=torch.float64)


@pytest.mark.skipif(interpreting(), reason="bits are the C++ engine's")
@pytest.mark.parametrize("lengths", [None, [3 * SHORTEST + 5, SHORTEST, 0, 1, 2 * SHORTEST + 1]])
@pytest.mark.parametrize("kind", [sstkern.LSTM, sstkern.GRU])
def test_recompute_has_the_same_bits(kind, lengths):
    torch.manual_seed(0)
    layer = kind(3, 4, bidirectional=True)
    other = kind(3, 4, bidirectional=True, recompute=True)
    other.load_state_dict(layer.state_dict())
    steps, batch = 3 * SHORTEST + 5, 5
    x, resets = torch.randn(steps, batch, 3, requires_grad=True), torch.rand(steps, batch) < 0.1
    resets[SHORTEST, 0] = resets[SHORTEST - 1, 1] = resets[SHORTEST + 1, 2] = True  # beside where a chunk ends
    hx, anew = (states_of(layer, batch, torch.float32) for _ in range(2))
    given = (hx, anew) if len(hx) > 1 else (hx[0], anew[0])
    found = []
    for each in (layer, other):
        options = {} if lengths is None else {"lengths": torch.tensor(lengths)}
        output, hx_n = each(x, given[0], resets=resets, reset_to=given[1], **options)
        results = [output, *(hx_n if len(hx) > 1 else [hx_n])]
        grads = gradients(results, [x, *hx, *anew, *each.parameters()])
        found.append((results, grads[: 1 + len(hx)], grads[1 + len(hx) :]))
    for a, b in zip((*found[0][0], *found[0][1]), (*found[1][0], *found[1][1]), strict=True):
        assert torch.equal(a, b)
    assert_close(found[0][2], found[1][2], 1e-5)


def test_recompute_of_a_packed_input():
    torch.manual_seed(0)
    layer, other = (sstkern.LSTM(3, 4, bidirectional=True, recompute=flag) for flag in (False, True))
    other.load_state_dict(layer.state_dict())
    lengths = torch.tensor([2 * SHORTEST + 1, SHORTEST + 3, 2])
    x, resets = torch.randn(2 * SHORTEST + 1, 3, 3), torch.rand(2 * SHORTEST + 1, 3) < 0.1
    packed, marks = (nn.utils.rnn.pack_padded_sequence(part, lengths) for part in (x, resets))
    found = []
    for each in (layer, other):
        data = packed.data.clone().requires_grad_()
        output, hx_n = each(packed._replace(data=data), resets=marks)
        found.append([output.data, *hx_n, *gradients([output.data, *hx_n], [data])])
    if interpreting():  # bits are the C++ engine's
        assert_close(*found, 1e-5)
    else:
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "own"])
def test_derivatives_of_first_and_second_order(kind, recompute):
    x, resets = drawn()
    layer, anew = KINDS[kind](**({} if kind == "own" else {"recompute": recompute})), anew_of(kind).requires_grad_()
    inputs = [x.requires_grad_(), anew, *layer.parameters()]
    lengths = torch.tensor([6, 2, 5])

    def function(x, anew, *parameters):
        return torch.stack([result.square().sum() for result in call_of(kind, layer, anew)(x, resets, lengths=lengths)]).sum()

    torch.autograd.gradcheck(function, inputs)
    torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_and_vmap_are_the_reference_engines(kind):
    x, resets = drawn()
    layer, anew = KINDS[kind](), anew_of(kind)
    call = call_of(kind, layer, anew)
    tangent = torch.randn_like(x)
    (results, along) = torch.func.jvp(lambda x: tuple(call(x, resets)), (x,), (tangent,))
    given = x.clone().requires_grad_()
    found = call(given, resets)
    for place, (result, mine) in enumerate(zip(found, along, strict=True)):
        weight = torch.randn_like(result)
        (gradient,) = torch.autograd.grad(result, given, weight, retain_graph=True)
        torch.testing.assert_close((mine * weight).sum(), (gradient * tangent).sum())
        torch.testing.assert_close(results[place], result)
    xs, all_resets = torch.stack([x, -x, 2 * x]), torch.stack([resets, resets.flip(0), torch.zeros_like(resets)])
    mapped = torch.vmap(lambda x, resets: tuple(call(x, resets)))(xs, all_resets)
    shared = torch.vmap(lambda x: tuple(call(x, resets)))(xs)
    for i in range(3):
        assert_close([part[i] for part in mapped], call(xs[i], all_resets[i]), 1e-12)
        assert_close([part[i] for part in shared], call(xs[i], resets), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample(kind):
    x, resets = drawn()
    layer, anew = KINDS[kind](), anew_of(kind)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters, anew, x, resets):
        reset_to = (anew, anew * 2) if kind != "gru" else anew
        given = (x[:, None], None)
        output, _ = torch.func.functional_call(layer, parameters, given, {"resets": resets[:, None], "reset_to": reset_to})
        return output.square().sum()

    found, of_anew = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, None, 1, 1))(parameters, anew, x, resets)
    for b in range(x.size(1)):
        one, one_anew = torch.func.grad(loss, argnums=(0, 1))(parameters, anew, x[:, b], resets[:, b])
        assert_close([found[name][b] for name in parameters], [one[name] for name in parameters], 1e-12)
        torch.testing.assert_close(of_anew[b], one_anew)


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_for_all_resets(kind):
    x, resets = drawn()
    layer, anew = KINDS[kind](), anew_of(kind).requires_grad_()
    counter = CompileCounterWithBackend("aot_eager")
    lengths = torch.tensor([6, 0, 4])

    def train(x, resets):
        results = call_of(kind, layer, anew)(x, resets, lengths=lengths)
        return results, [*gradients(results, [x, anew, *layer.parameters()])]

    compiled = torch.compile(lambda x, resets: call_of(kind, layer, anew)(x, resets, lengths=lengths), fullgraph=True, backend=counter)
    for flags in (resets, resets.flip(0), torch.zeros_like(resets)):
        given = x.clone().requires_grad_()
        results, expected = compiled(given, flags), train(given, flags)
        assert_close(results, expected[0], 1e-12)
        assert_close(gradients(results, [given, anew, *layer.parameters()]), expected[1], 1e-12)
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_takes_other_resets(kind):
    x, resets = drawn()
    layer = KINDS[kind]().eval()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, resets):
            return self.layer(x, resets=resets)[0]

    program = torch.export.export(Model(), (x, resets)).module()
    for flags in (resets, resets.flip(0)):
        torch.testing.assert_close(program(x, flags), layer(x, resets=flags)[0])


def test_a_batch_of_gradients_of_an_own_cell_that_cannot_be_compiled():
    # In plain PyTorch the gradients are those of the layer, differentiated.
    x, resets = drawn()
    case = of_cell(nn.GRUCell(3, 4, dtype=torch.float64), (4,))
    x.requires_grad_()
    with sstkern.backend("reference"):
        check_pieces(case, x, resets, [6, 3, 5], random_states(case, 3, x.dtype), random_states(case, 3, x.dtype), False, 1e-12)
        output = case.run(x, None, resets=resets)[0]
        grads = torch.randn(2, *output.shape, dtype=x.dtype)
        (batched,) = torch.autograd.grad(output, x, grads, is_grads_batched=True, retain_graph=True)
        for one, grad in zip(batched, grads, strict=True):
            torch.testing.assert_close(torch.autograd.grad(output, x, grad, retain_graph=True)[0], one)


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
def test_threads_that_share_units_and_rows():
    # Few rows, many units: threads share the units of a row and meet at each step, also where pieces end.
    torch.manual_seed(0)
    before = torch.get_num_threads()
    for case in (of_layer(sstkern.LSTM(3, 256)), of_layer(sstkern.GRU(3, 256)), of_cell(nn.LSTMCell(3, 256), (256, 256))):
        x, resets = torch.randn(40, 3, 3, requires_grad=True), torch.rand(40, 3) < 0.2
        hx, anew = random_states(case, 3, torch.float32), random_states(case, 3, torch.float32)
        try:
            torch.set_num_threads(2)
            check_pieces(case, x, resets, [40, 17, 0], hx, anew, True, 1e-4)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_has_cases_with_resets(kind):
    assert_gradients(KINDS[kind]())
