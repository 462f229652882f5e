import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layers import ENGINES, FUSED, assert_close, fused_runs
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import sstkern
from sstkern import autograd
from sstkern.cells import CELLS
from sstkern.engines import interpreting
from sstkern.lengths import batch_sizes, packed_rows
from sstkern.operators import saved_rows

T, B, I, H, P = 4, 3, 2, 3, 2  # noqa: E741
LENGTHS = {"full": None, "varied": [4, 0, 2], "packed": [4, 2, 0]}
"""Packed ones belong to an x (N, I)."""
CASES = [
    (cell, bidirectional, bias, projected, lengths)
    for cell in CELLS
    for bidirectional, bias, projected, lengths in [
        (False, True, False, "full"),
        (True, True, False, "varied"),
        (False, False, False, "varied"),
        (True, True, True, "varied"),
        (True, False, True, "full"),
        (True, True, False, "packed"),
        (True, True, True, "packed"),
    ]
    if not projected or CELLS[cell].projects
]
cases = pytest.mark.parametrize(("cell", "bidirectional", "bias", "projected", "lengths"), CASES)


class Call:
    """Arguments of one call, random, of which every floating one wants a gradient."""

    def __init__(self, cell, bidirectional, bias, projected, lengths, dtype=torch.float64, hidden_size=H, batch=B):
        torch.manual_seed(0)
        directions, output, definition = 1 + bidirectional, P if projected else hidden_size, CELLS[cell]
        shapes = definition.shapes(bias, projected, input_size=I, hidden_size=hidden_size, output_size=output).values()
        self.cell, self.bias, self.bidirectional = cell, bias, bidirectional
        self.lengths = None if LENGTHS[lengths] is None else torch.tensor(LENGTHS[lengths])
        self.x = self._random(*((sum(LENGTHS[lengths]),) if lengths == "packed" else (T, batch)), I, dtype=dtype)
        self.weights = [self._random(*shape, dtype=dtype) for _ in range(directions) for shape in shapes]
        self.hx = [self._random(directions, batch, size, dtype=dtype) for size in definition.state_sizes(hidden_size, output)]

    @staticmethod
    def _random(*shape, dtype) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    def of_sequence(self, sequence: int) -> "Call":
        call, one = copy.copy(self), slice(sequence, sequence + 1)
        call.hx = [state[:, one] for state in self.hx]
        call.lengths = None if self.lengths is None else self.lengths[one]
        packed = self.lengths is not None and self.x.dim() == 2
        call.x = self.x[packed_rows(batch_sizes(self.lengths))[1] == sequence] if packed else self.x[:, one]
        return call

    @property
    def inputs(self) -> list[Tensor]:
        return [self.x, *self.weights, *self.hx]

    def arguments(self, inputs: list[Tensor] | None = None) -> tuple:
        x, *rest = self.inputs if inputs is None else inputs
        count = len(self.weights)
        return self.cell, x, rest[:count], rest[count:], self.lengths, self.bias, self.bidirectional

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output, hx_n = autograd.layer(*self.arguments(inputs or None))
        return output, *hx_n

    def run_operator(self) -> tuple[Tensor, ...]:
        output, hx_n, _ = torch.ops.sstkern.layer(*self.arguments(), saved_rows(self.x.dim() == 2, self.lengths))
        return output, *hx_n

    def backward_arguments(self) -> tuple:
        detached = [tensor.detach() for tensor in self.inputs]
        output, hx_n, saved = torch.ops.sstkern.layer(*self.arguments(detached), saved_rows(self.x.dim() == 2, self.lengths))
        gradients = torch.ones_like(output), [torch.ones_like(state) for state in hx_n]
        return *self.arguments(detached), output, saved, *gradients, [True] * len(detached), None


@cases
def test_gradients_of_every_input(cell, bidirectional, bias, projected, lengths):
    call = Call(cell, bidirectional, bias, projected, lengths)
    before = fused_runs()
    assert gradcheck(call.run, call.inputs, fast_mode=interpreting())  # which takes 0.1 s for what takes C++ 0.1 ms
    after = fused_runs()
    assert after["forward"] > before["forward"]
    assert after["backward"] > before["backward"]


@cases
def test_second_derivatives_of_every_input(cell, bidirectional, bias, projected, lengths):
    call = Call(cell, bidirectional, bias, projected, lengths)
    before = fused_runs()["backward"]
    assert gradgradcheck(call.run, call.inputs, fast_mode=True)
    assert fused_runs()["backward"] > before


@cases
def test_an_eager_call_is_the_operator(cell, bidirectional, bias, projected, lengths):
    call = Call(cell, bidirectional, bias, projected, lengths)
    results = [run() for run in (call.run, call.run_operator)]
    gradients = [torch.autograd.grad([result.sin().sum() for result in one], call.inputs) for one in results]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_traced_layer_can_be_saved(tmp_path):
    torch.manual_seed(0)
    layer, x = sstkern.GRU(I, H), torch.randn(T, B, I)
    torch.jit.trace(layer, (x,), check_trace=False).save(tmp_path / "traced.pt")
    assert torch.equal(torch.jit.load(tmp_path / "traced.pt")(x)[0], layer(x)[0])


class OfPacked(torch.nn.Module):
    """A layer of a packed sequence, of whose parts a trace can be made."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *packed: Tensor) -> Tensor:
        return self.layer(PackedSequence(*packed))[0].data


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_takes_other_sizes(packed):
    torch.manual_seed(0)
    layer = sstkern.LSTM(I, H)
    layer = OfPacked(layer) if packed else layer

    def given(*lengths: int) -> tuple[Tensor, ...]:
        x = torch.randn(max(lengths), len(lengths), I)
        return tuple(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)) if packed else (x,)

    traced = torch.jit.trace(layer, given(4, 2, 3), check_trace=False)
    for inputs in (given(2, 1, 1), given(5, 9, 7)):
        found = [function(*inputs) if packed else function(*inputs)[0] for function in (traced, layer)]
        assert torch.equal(*found)
        ours, expected = (
            torch.autograd.grad(output.sum(), list(module.parameters())) for output, module in zip(found, (traced, layer), strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


CHECKED = [(*case, torch.float32) for case in CASES] + [(*case, torch.bfloat16) for case in CASES if case[-1] == "full"]
"""A call has a second of this; 16 bits are no other path where there are lengths."""


@pytest.mark.parametrize(("cell", "bidirectional", "bias", "projected", "lengths", "dtype"), CHECKED)
def test_opcheck(cell, bidirectional, bias, projected, lengths, dtype):
    call = Call(cell, bidirectional, bias, projected, lengths, dtype)
    detached = [tensor.detach() for tensor in call.inputs]
    opcheck(torch.ops.sstkern.layer.default, (*call.arguments(), saved_rows(call.x.dim() == 2, call.lengths)))
    opcheck(torch.ops.sstkern.layer.default, (*call.arguments(detached), None))
    opcheck(torch.ops.sstkern.layer_backward.default, call.backward_arguments())


WITHOUT_EXTENSION = """
import pathlib, sys
exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: path.name != "_cpu.so" and exists(path)
sys.path.insert(0, sys.argv[1])
import torch
from torch.autograd import gradcheck, gradgradcheck
from test_operators import CASES, Call
for case in CASES:
    call = Call(*case)
    assert torch.ops.sstkern.layer(*call.arguments(), 12)[2] == []
    assert gradcheck(call.run, call.inputs, fast_mode=True)
    assert gradgradcheck(call.run, call.inputs, fast_mode=True)
print(len(CASES), "cases right")
"""


def test_every_operator_works_without_the_extension():
    command = [sys.executable, "-c", WITHOUT_EXTENSION, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == f"{len(CASES)} cases right\n", run.stderr


def test_only_the_gradients_asked_for_come_back():
    call = Call("lstm", True, True, True, "varied")
    *arguments, needs, _ = call.backward_arguments()
    everything = torch.ops.sstkern.layer_backward(*arguments, needs, None)
    for wanted in range(len(needs)):
        (gradient,) = torch.ops.sstkern.layer_backward(*arguments, [i == wanted for i in range(len(needs))], None)
        assert torch.equal(gradient, everything[wanted])


def test_nothing_is_modified_in_place():
    call = Call("gru", True, True, False, "varied")
    before = [tensor.detach().clone() for tensor in call.inputs]
    torch.autograd.grad(call.run(), call.inputs, [torch.ones_like(result) for result in call.run()])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(call.inputs, before, strict=True))


def test_non_contiguous_and_expanded_inputs_equal_their_copies():
    call = Call("lstm", False, True, False, "varied")

    def strided(tensor: Tensor) -> Tensor:
        return tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()

    odd = [strided(tensor) for tensor in call.inputs]
    odd[0] = call.x.detach()[:, :1].expand(-1, B, -1).requires_grad_()
    plain = [tensor.detach().contiguous().requires_grad_() for tensor in odd]
    ours, expected = call.run(*odd), call.run(*plain)
    ones = [torch.ones(()).expand_as(result).to(result) for result in expected]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert_close(list(torch.autograd.grad(ours, odd, ones)), list(torch.autograd.grad(expected, plain, ones)), 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("lengths", "position"), [([4, -1, 2], 1), ([4, 3, 5], 2)])
def test_lengths_outside_the_sequence_are_refused(engine, lengths, position):
    call = Call("gru", False, True, False, "full")
    layer = sstkern.GRU(I, H, dtype=torch.float64)
    with sstkern.backend(engine), pytest.raises(ValueError, match=rf"lengths\[{position}\] is {lengths[position]}; allowed are 0 to 4"):
        layer(call.x, lengths=lengths)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (T, B, I + 1), "weight_ih"),
        (1, (4 * H - 1, I), "weight_ih"),
        (2, (4 * H, H + 1), "weight_hh"),
        (3, (4 * H + 1,), "bias_ih"),
        (4, (1,), "bias_hh"),
        (5, (1, B + 1, H), "h_0"),
        (6, (1, B, H - 1), "c_0"),
    ],
)
def test_wrong_shapes_are_refused_before_memory_is_touched(position, shape, message):
    call = Call("lstm", False, True, False, "full")
    inputs = [tensor.detach() for tensor in call.inputs]
    inputs[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sstkern.layer(*call.arguments(inputs), None)


@cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weight_gradients_of_groups_are_those_of_each_alone(cell, bidirectional, bias, projected, lengths, dtype):
    call = Call(cell, bidirectional, bias, projected, lengths, dtype)
    *arguments, _ = call.backward_arguments()
    found = torch.ops.sstkern.layer_backward(*arguments, B)
    together = torch.ops.sstkern.layer_backward(*arguments, None)
    weights = slice(1, 1 + len(call.weights))
    assert all(torch.equal(a, b) for a, b in zip(found[:1] + found[weights.stop :], together[:1] + together[weights.stop :], strict=True))
    for weight, gradient in zip(call.weights, found[weights], strict=True):
        assert gradient.shape == (B, *weight.shape)
    for sequence in range(B):
        alone = torch.ops.sstkern.layer_backward(*call.of_sequence(sequence).backward_arguments())
        for grouped, gradient in zip(found[weights], alone[weights], strict=True):
            torch.testing.assert_close(grouped[sequence], gradient)


def test_groups_share_the_batch_equally():
    *arguments, _ = Call("gru", False, True, False, "full").backward_arguments()
    with pytest.raises(ValueError, match=f"groups: {B + 1} do not share {B} sequences equally"):
        torch.ops.sstkern.layer_backward(*arguments, B + 1)


@pytest.mark.parametrize("damage", ["saved", "output", "grad_output", "needs"])
def test_the_backward_checks_its_arguments(damage):
    *layer, output, saved, grad_output, grad_hx, needs, _ = Call("lstm", False, True, False, "full").backward_arguments()
    if damage == "saved":
        saved = [tensor[:-1] for tensor in saved]
    elif damage == "output":
        output = output[:-1]
    elif damage == "grad_output":
        grad_output = grad_output[..., :-1]
    else:
        needs = needs[:-1]
    with pytest.raises(RuntimeError, match=damage):
        torch.ops.sstkern.layer_backward(*layer, output, saved, grad_output, grad_hx, needs, None)


def test_a_backward_without_saved_tensors_says_so():
    call = Call("lstm", False, True, False, "full")
    output, *_ = torch.ops.sstkern.layer(*call.arguments(), None)
    with pytest.raises(RuntimeError, match="saved_rows"):
        output.sum().backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_casts_as_torch_does(engine):
    torch.manual_seed(0)
    layer = sstkern.LSTM(I, H)
    x = torch.randn(T, B, I)
    with sstkern.backend(engine), torch.autocast("cpu", dtype=torch.bfloat16):
        output, (h_n, c_n) = layer(x)
    assert [output.dtype, h_n.dtype, c_n.dtype] == [torch.bfloat16] * 3
    output.float().sum().backward()
    assert layer.weight_ih_l0.grad.dtype == torch.float32
    torch.testing.assert_close(output.float(), layer(x)[0], rtol=0.02, atol=0.02)


def test_autocast_leaves_float64_alone():
    layer = sstkern.GRU(I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = layer(x)
    assert torch.equal(output, layer(x)[0])


def test_a_compiled_graph_is_whole_and_equal():
    torch.manual_seed(0)
    layer = sstkern.LSTM(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outputs = [run(x)[0] for run in (layer, compiled)]
    assert torch.equal(*outputs)
    assert torch.equal(*(torch.autograd.grad(output.sum(), x)[0] for output in outputs))


@pytest.mark.parametrize("make", [sstkern.LSTMCell, sstkern.GRUCell, sstkern.RNNCell, sstkern.GRU])
def test_second_derivatives_of_a_loss_on_the_final_state_alone(make):
    torch.manual_seed(0)
    layer = make(I, H, dtype=torch.float64)

    def final(x: Tensor) -> Tensor:
        states = layer(x)
        return states if isinstance(states, Tensor) else states[1]

    shape = (T, B, I) if make is sstkern.GRU else (B, I)
    before = fused_runs()["backward"]
    assert gradgradcheck(final, torch.randn(*shape, dtype=torch.float64, requires_grad=True))
    assert fused_runs()["backward"] > before


@pytest.mark.parametrize("recompute", [False, True])
def test_a_backward_inside_autocast_is_the_one_outside(recompute):
    torch.manual_seed(0)
    layer = sstkern.LSTM(I, H, bidirectional=True, recompute=recompute)
    x = torch.randn(T, B, I, requires_grad=True)
    output = layer(x)[0].sum()
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(output, inputs, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(output, inputs)
    assert all(torch.equal(a, b) for a, b in zip(inside, expected, strict=True))


def test_forward_mode_runs_on_the_reference_engine_or_is_refused():
    torch.manual_seed(0)
    layer = sstkern.LSTM(I, H, dtype=torch.float64)
    x, direction = torch.randn(2, T, B, I, dtype=torch.float64)

    def output(x: Tensor) -> Tensor:
        return layer(x)[0]

    _, tangent = torch.func.jvp(output, (x,), (direction,))
    difference = (output(x + 1e-6 * direction) - output(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(tangent, difference, rtol=1e-7, atol=1e-8)
    with torch.autograd.forward_ad.dual_level():
        dual = output(torch.autograd.forward_ad.make_dual(x, direction))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    with sstkern.backend(FUSED), pytest.raises(RuntimeError, match=r"it has no forward mode \(torch\.func\.jvp"):
        torch.func.jvp(output, (x,), (direction,))


def test_an_infinite_gradient_of_a_relu_unit_at_zero_is_dropped():
    weights = [torch.eye(2), torch.zeros(2, 2)]
    x = torch.tensor([[[-1.0, 1.0]]], requires_grad=True)
    output, _ = sstkern.functional.rnn_relu(x, weights, bias=False)
    (gradient,) = torch.autograd.grad(output, x, torch.tensor([[[float("inf"), 1.0]]]))
    assert gradient.tolist() == [[[0.0, 1.0]]]


def test_a_weight_on_another_device_is_refused():
    layer = sstkern.GRU(I, H)
    layer.weight_hh_l0 = torch.nn.Parameter(layer.weight_hh_l0.to("meta"))
    with pytest.raises(RuntimeError, match="expected all tensors on cpu like x, got one on meta"):
        layer(torch.zeros(T, B, I))
