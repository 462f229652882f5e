"""Gradient checks: sound layers and cells pass, and of each planted fault the report names the gradient and the place."""

import copy
import itertools
import re
from typing import NamedTuple

import pytest
import torch
from plain_cells import MGU, Memory
from torch import Tensor, nn

import sstkern
from sstkern import functional
from sstkern.testing import Report, assert_gradients, gradcheck

LOW = (torch.float64, torch.float32, torch.bfloat16)


class Layer(nn.Module):
    """A GRU of somebody's own, with a fault."""

    def __init__(self, fault: str = "", batch_first: bool = False):
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers, self.mode, self.fault = 2, 3, 1, "GRU", fault
        self.batch_first = batch_first
        self.inner = sstkern.GRU(2, 3, batch_first=batch_first)
        self.calls = 0

    def forward(self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weights = [weight.detach() if name == self.fault else weight for name, weight in self.inner.named_parameters()]
        match self.fault:
            case "gate order":
                weights = [torch.cat([weight[3:6], weight[:3], weight[6:]]) for weight in weights]
            case "dhx" if hx is not None:
                hx = hx.detach()
            case "lengths" if lengths is not None:
                lengths = (lengths + 1).clamp(max=input.size(0))
            case "padding":
                input = input + 0 * input.sum()
            case "truncated" if lengths is None and input.size(0) > 2:
                first, hx = self.run(input[:2], weights, hx, None)
                rest, hx_n = self.run(input[2:], weights, hx.detach(), None)
                return torch.cat([first, rest]), hx_n
            case "random":
                self.calls += 1
                input = input + 1e-9 * self.calls
        return self.run(input, weights, hx, lengths)

    def run(self, input: Tensor, weights: list[Tensor], hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        return functional.gru(input, weights, hx, lengths=lengths, batch_first=self.batch_first)


def sound(layer: Layer) -> Layer:
    """The same without its fault."""
    twin = Layer(batch_first=layer.batch_first)
    twin.load_state_dict(layer.state_dict())
    return twin


def wrong(report: Report) -> set[str]:
    return {row.tensor for row in report.wrong}


@pytest.mark.parametrize(
    "layer",
    [
        lambda: sstkern.LSTM(2, 3, 2, bidirectional=True, proj_size=2, batch_first=True),
        lambda: sstkern.GRU(2, 3, bias=False),
        lambda: sstkern.RNN(2, 3, nonlinearity="relu"),
        lambda: nn.LSTM(2, 3),
        Layer,
    ],
    ids=["LSTM", "GRU", "RNN", "torch's LSTM", "somebody's"],
)
def test_sound_layers_pass(layer):
    torch.manual_seed(0)
    assert_gradients(layer(), dtypes=LOW, elements=10)  # of each tensor: the LSTM has 360 in 20


def test_dropout_is_the_same_in_every_call():
    torch.manual_seed(0)
    assert_gradients(sstkern.GRU(2, 3, 2, dropout=0.5), elements=10)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_sound_cells_pass(name):
    torch.manual_seed(0)
    report = gradcheck(getattr(sstkern, name)(2, 3), dtypes=LOW)
    assert report.ok, report.table()
    assert {row.against for row in report.rows} == {"numerical", "reference", "float64"}
    assert {"d input", "d weight_hh", "d bias_ih"} < {row.tensor for row in report.rows}


@pytest.mark.parametrize(
    ("fault", "tensors", "against"),
    [
        ("bias_hh_l0", {"d inner.bias_hh_l0"}, "numerical"),
        ("weight_hh_l0", {"d inner.weight_hh_l0"}, "numerical"),
        ("dhx", {"d hx"}, "numerical"),
        ("truncated", {"d input", "d hx"}, "numerical"),
        ("padding", {"result 0"}, "itself"),
        ("random", {"result 0"}, "itself"),
        ("gate order", {"result 0", "d inner.weight_ih_l0"}, "reference"),
        ("lengths", {"result 0", "d input"}, "reference"),
    ],
)
def test_a_planted_fault_is_found_and_named(fault, tensors, against):
    torch.manual_seed(0)
    layer = Layer(fault)
    report = gradcheck(layer, reference=sound(layer), shapes=[(3, 2)])
    found = {row.tensor for row in report.wrong if row.against == against}
    assert tensors <= found
    if fault in ("bias_hh_l0", "weight_hh_l0", "dhx"):
        assert wrong(report) == tensors  # no other gradient is blamed
    with pytest.raises(AssertionError, match=f"wrong: .*{next(iter(tensors))}"):
        assert_gradients(layer, reference=sound(layer), shapes=[(3, 2)], elements=3)


def test_the_place_of_an_error_is_that_of_the_fault():
    torch.manual_seed(0)
    truncated = gradcheck(Layer("truncated"), shapes=[(5, 3)])
    (row,) = (row for row in truncated.wrong if row.tensor == "d input" and "hx" not in row.case)
    assert max(row.by_step[2:]) < 1e-6  # the gradient stops before step 2
    assert min(row.by_step[:2]) > 1e-6
    assert row.where.startswith(("step 0,", "step 1,"))
    lengths = gradcheck(Layer("lengths"), reference=Layer(), shapes=[(5, 3)])
    assert all("lengths [5, 0, 2]" in row.case for row in lengths.wrong if row.against == "itself")
    layer = Layer("lengths")
    outputs = [row for row in gradcheck(layer, reference=sound(layer), shapes=[(5, 3)]).wrong if row.tensor == "result 0"]
    assert {row.where.split(", feature")[0] for row in outputs} <= {"step 0, sequence 1", "step 2, sequence 2"}
    dropped = gradcheck(Layer("bias_hh_l0"), shapes=[(5, 3)])
    assert dropped.wrong
    assert all(row.error == pytest.approx(1) for row in dropped.wrong)


class Fault:
    """One row of bias_ih gets a wrong gradient."""

    def _weights(self) -> list[Tensor]:
        weights = super()._weights()
        weights[2] = weights[2].view_as(weights[2])
        weights[2].register_hook(lambda gradient: gradient + (torch.arange(len(gradient)) == self.row))
        return weights


def with_fault(layer: nn.Module, row: int) -> nn.Module:
    layer.__class__, layer.row = type("Faulty", (Fault, type(layer)), {}), row
    return layer


@pytest.mark.parametrize(
    ("name", "row", "place"),
    [
        ("LSTM", 4, "gate f, unit 1"),
        ("LSTM", 11, "gate o, unit 2"),
        ("GRU", 3, "gate z, unit 0"),
        ("RNN", 1, "gate h, unit 1"),
        ("LSTMCell", 7, "gate g, unit 1"),
        ("GRUCell", 8, "gate n, unit 2"),
        ("RNNCell", 0, "gate h, unit 0"),
    ],
)
def test_a_wrong_row_is_told_by_its_gate_and_unit(name, row, place):
    torch.manual_seed(0)
    tensor = "d bias_ih" if name.endswith("Cell") else "d bias_ih_l0"
    ours, theirs = getattr(sstkern, name)(2, 3), getattr(nn, name)(2, 3)
    theirs.load_state_dict(ours.state_dict())
    faulty = with_fault(copy.deepcopy(ours), row)
    with pytest.raises(AssertionError, match=f"^wrong: {tensor}\n") as told:
        assert_gradients(faulty, reference=ours, shapes=[(2, 2)])
    for against in ("numerical", "reference"):
        assert re.search(rf"WRONG {tensor} .* {against} +float64   {place}; ", str(told.value))
    with pytest.raises(AssertionError, match=rf"^wrong: {tensor}\nWRONG {tensor} .* reference +float64   {place}; "):
        assert_gradients(theirs, reference=faulty, shapes=[(2, 2)], elements=0)


def test_batch_first_swaps_the_place():
    torch.manual_seed(0)

    class Displaced(sstkern.GRU):
        def forward(self, *arguments, **keywords):
            output, h_n = super().forward(*arguments, **keywords)
            shift = torch.zeros_like(output)
            shift[1, 4] = 1
            return output + shift, h_n

    layer = Displaced(2, 2, batch_first=True)
    reference = sstkern.GRU(2, 2, batch_first=True)
    reference.load_state_dict(layer.state_dict())
    (row, *_) = gradcheck(layer, reference=reference, shapes=[(5, 3)]).wrong
    assert row.where.startswith("step 4, sequence 1,")
    rows = gradcheck(sstkern.GRU(2, 3, batch_first=True), shapes=[(5, 3)]).rows
    assert all(len(row.by_step) == 5 for row in rows if row.tensor in ("d input", "result 0"))
    assert not any(row.by_step for row in rows if row.tensor not in ("d input", "result 0"))


def test_a_plain_function_and_its_tuples():
    def cell(x: Tensor, states: tuple[Tensor, Tensor], scale: float) -> dict | tuple:
        h, c = states
        return scale * torch.tanh(x + h), c * x

    x, h, c = (torch.randn(2, 3) for _ in range(3))
    report = gradcheck(cell, x, (h, c), scale=2.0)
    assert report.ok
    assert {row.tensor for row in report.rows} == {"d x", "d states[0]", "d states[1]"}
    other = gradcheck(cell, x, (h, c), scale=2.0, reference=lambda x, states, scale: cell(x, (states[1], states[0]), scale))
    assert "d x" in wrong(other)


def test_a_gradient_that_is_no_number_is_wrong():
    report = gradcheck(lambda x: (x - x).sqrt(), torch.ones(2))
    assert {(row.tensor, row.error) for row in report.wrong} == {("d x", float("inf"))}


def test_an_error_that_grows_in_float32_is_wrong():
    def cancelled(x: Tensor) -> Tensor:
        return (x + 1e4) - 1e4

    assert gradcheck(cancelled, torch.randn(3)).ok
    (row,) = gradcheck(cancelled, torch.randn(3), dtypes=(torch.float32,)).wrong
    assert (row.tensor, row.dtype, row.against) == ("result 0", torch.float32, "float64")


def test_sums_that_nearly_cancel_are_no_error_of_the_function():
    torch.manual_seed(5)
    report = gradcheck(lambda x, w: (x * w).sum(), torch.randn(2000), torch.randn(2000), dtypes=(torch.float32,))
    assert report.ok
    x = torch.randn(2000)
    x[-1] -= x.double().sum().float()  # the sum is about 1e-6, its terms are about 1
    row = next(row for row in gradcheck(torch.sum, x, dtypes=(torch.float32,)).rows if row.dtype == torch.float32)
    assert row.ok
    assert row.bound > 1e3 * torch.finfo(torch.float32).eps


def test_a_gradient_that_has_nearly_vanished_is_right():
    torch.manual_seed(0)
    layer = nn.GRU(3, 4, dtype=torch.float64)
    assert_gradients(lambda x: layer(x)[1], torch.randn(60, 2, 3))  # of the last state: 1e-12 of it at the first steps
    assert_gradients(lambda x: x + 1e6, torch.randn(3))


def test_two_calls_have_to_agree():
    scales = itertools.count(1)
    report = gradcheck(lambda x: x * next(scales), torch.randn(3))
    assert {row.tensor for row in report.wrong if row.against == "itself"} == {"result 0", "d x"}


def test_low_precision_implies_float64():
    layer = Layer("bias_hh_l0")
    assert wrong(gradcheck(layer, dtypes=[torch.float32])) == {"d inner.bias_hh_l0"}


def test_results_that_have_no_gradient_and_named_tuples():
    class State(NamedTuple):
        h: Tensor
        c: Tensor

    def cell(x: Tensor, state: State) -> tuple[Tensor, ...]:
        return x * state.h.tanh() + state.c, x.argmax(), x > 0

    assert_gradients(cell, torch.randn(3), State(torch.randn(3), torch.randn(3)))
    assert wrong(gradcheck(lambda x: (x.sin(), x.cos().detach()), torch.randn(3))) == {"d x"}


def test_only_some_elements_of_a_large_tensor_are_varied():
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(0)
        return x.sin()

    assert gradcheck(function, torch.randn(40, 40), elements=10).ok
    assert len(calls) == 3 + 2 * 10


def test_the_module_is_left_as_it_was():
    layer = sstkern.GRU(2, 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    gradcheck(layer, shapes=[(2, 2)])
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None and parameter.dtype == torch.float32 for parameter in layer.parameters())


def test_an_engine_is_forced(monkeypatch):
    from sstkern.engines import cpu_runs

    before = cpu_runs()["backward"]
    gradcheck(sstkern.GRU(2, 3), engine="reference", shapes=[(2, 2)])
    assert cpu_runs()["backward"] == before
    gradcheck(sstkern.GRU(2, 3), engine="cpu", shapes=[(2, 2)])
    assert cpu_runs()["backward"] > before
    with pytest.raises(RuntimeError, match="'triton' cannot run here"):
        gradcheck(sstkern.GRU(2, 3), engine="triton")


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (3, (), "function: expected a module or another callable, got int"),
        (torch.tanh, (), "inputs: none were given"),
        (nn.Linear(2, 2), (), "inputs: none were given"),
        (lambda n: torch.ones(2) * n, (1,), "inputs: no floating-point tensor and no parameter"),
        (lambda x: {"y": x}, (torch.ones(2),), "function: expected it to return a tensor or nested tuples of tensors, got dict"),
    ],
)
def test_what_cannot_be_checked_is_told(function, inputs, message):
    with pytest.raises(TypeError, match=message):
        gradcheck(function, *inputs)


def test_nothing_to_compare_is_told():
    layer = sstkern.GRU(2, 3)
    with pytest.raises(ValueError, match="dtypes: expected at least one"):
        gradcheck(layer, dtypes=[])
    with pytest.raises(ValueError, match="shapes: expected at least one"):
        gradcheck(layer, shapes=[])
    with pytest.raises(ValueError, match=r"reference: .* only one of the two has \['d bias_hh_l0', 'd bias_ih_l0'\]"):
        gradcheck(layer, reference=sstkern.GRU(2, 3, bias=False), shapes=[(2, 2)])
    with pytest.raises(TypeError, match="expected it to return a tensor, got none"):
        gradcheck(lambda x: (), torch.ones(2))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_are_checked_where_they_are_switched_off(off):
    with off():
        assert_gradients(sstkern.GRU(2, 3), dtypes=[torch.float32], shapes=[(3, 2)])
        assert_gradients(nn.LSTMCell(2, 3))
        assert_gradients(torch.mul, torch.randn(2), torch.randn(2))
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: sstkern.fuse(MGU()),
        lambda: sstkern.fuse(nn.LSTMCell(3, 4), batch_first=True, reverse=True),
        lambda: sstkern.fuse(MGU(3, 2), nn.LSTMCell(3, 4)),
    ],
    ids=["one way", "reversed, batch first", "both ways"],
)
def test_a_fused_layer_is_checked_without_inputs(layer):
    report = gradcheck(layer(), shapes=[(4, 3)])
    assert report.ok, report.table()
    cases = {"T 4, B 3", "T 4, B 3, hx", "T 4, B 3, hx, lengths [4, 0, 2]", "T 4, B 3, hx, resets"}
    assert {row.case for row in report.rows} == cases
    assert any(row.tensor.startswith("d hx") for row in report.rows)


class Detached(MGU):
    """A gradient is left out."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return super().forward(x, h.detach())


def test_a_fused_layer_s_fault_is_found():
    report = gradcheck(sstkern.fuse(Detached()), shapes=[(4, 3)])
    assert not report.ok
    assert {"d hx", "d x_f.weight"} <= {row.tensor for row in report.wrong}


def test_a_fused_cell_without_a_size_needs_inputs():
    layer = sstkern.fuse(Memory())
    with pytest.raises(TypeError, match="inputs: none were given"):
        gradcheck(layer)
    x, score = torch.randn(3, 2, 3), torch.rand(3, 2)
    hx = torch.randn(2, 4), [torch.randn(2, 4, 3)]
    assert_gradients(layer, (x, score), hx)
