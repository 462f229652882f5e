"""Layers of own cells at the edges: memory, widths, what wants a gradient, nothing to do, padding, ties, NaN, and rounding."""

import copy
import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import zoo_cells
from each_alone import assert_is_the_loop, gradients_of, loop, step, wanted
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import ASKED_FOR_STATES, ZOO, Entry

import sstkern
from sstkern import engines
from sstkern.structure import flatten, mapped

SOME = [
    "LSTMCell",
    "MultiplicativeLSTM",
    "KerasGRU reset before",
    "TutorialLSTM",
    "SRU",
    "Heads",
    "GRUD",
    "LowRank",
    "coRNNCell",
    "Competing",
]
"""One of each kind: stages, parts of products, no product with a state, rows of two dimensions, several inputs, vectors, reductions."""
LENGTHS = [4, 0, 2]


def layer_of(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return sstkern.fuse(ZOO[name].cell(), strict=True, **options)


# Memory


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dimensions in the other order": lambda t: t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim()))),
    "with gaps": lambda t: torch.stack([t, t], -1)[..., 1],
    "all rows the same memory": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SOME)
def test_tensors_of_any_layout(name: str, layout: str):
    layer = layer_of(name)
    x, hx = (mapped(given, LAYOUTS[layout]) for given in ZOO[name].drawn(4, 3))
    assert_is_the_loop(layer, x, hx, LENGTHS, returns=ZOO[name].returns)


@pytest.mark.parametrize("name", ["LSTMCell", "Swapped", "SLSTM"])
def test_states_that_are_one_tensor(name: str):
    layer = layer_of(name)
    x, hx = ZOO[name].drawn(4, 3)
    h = flatten(hx)[0]
    assert_is_the_loop(layer, x, mapped(hx, lambda _: h), LENGTHS)


def test_a_state_that_is_a_part_of_the_input():
    torch.manual_seed(0)
    layer = sstkern.fuse(ZOO["GRUCell"].cell(5, 5), strict=True)
    x, _ = ZOO["GRUCell"].drawn(4, 3, 5, 5)
    assert_is_the_loop(layer, x, x[0], LENGTHS)


def test_a_state_that_is_a_parameter():
    layer = layer_of("LearnedStart")
    x, _ = ZOO["LearnedStart"].drawn(4, 3)
    assert_is_the_loop(layer, x, layer.cell.h0.expand(3, -1), LENGTHS)


def test_inputs_that_are_one_tensor():
    class Both(nn.Module):
        def forward(self, inputs: tuple[Tensor, Tensor], h: Tensor) -> Tensor:
            return torch.sigmoid(inputs[0]) * h + inputs[1]

    torch.manual_seed(0)
    x, h = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, dtype=torch.float64)
    assert_is_the_loop(sstkern.fuse(Both(), strict=True), (x, x), h, LENGTHS)


@pytest.mark.parametrize("name", ["LSTMCell", "Delay", "Swapped", "InPlaceLSTM", "NamedStates"])
def test_what_is_given_stays_as_it_was_and_what_is_returned_is_the_callers(name: str):
    layer, entry = layer_of(name), ZOO[name]
    x, hx = (mapped(given, torch.detach) for given in entry.drawn(4, 3))
    given = [*flatten(x), *flatten(hx), *layer.parameters()]
    before = [tensor.clone() for tensor in given]
    with torch.no_grad():
        output, hx_n = layer(x, hx, lengths=[4, 1, 2])
        assert all(map(torch.equal, given, before))
        expected = output.clone()
        for state in flatten(hx_n):
            state.add_(1)
        assert torch.equal(output, expected)
        assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("name", SOME)
def test_what_was_changed_in_place_since_the_last_call_is_seen(name: str):
    layer, entry = layer_of(name), ZOO[name]
    x, hx = entry.drawn(4, 3)
    layer(x, hx)
    with torch.no_grad():
        for tensor in wanted(layer.cell, x, hx):
            tensor.mul_(0.5)
    assert_is_the_loop(layer, x, hx, LENGTHS, returns=entry.returns)


# Sizes


@pytest.mark.parametrize("input_of", ["H", "2 H"])
@pytest.mark.parametrize("hidden_size", [1, 2, 7, 8, 9, 11, 16, 17, 33])
@pytest.mark.parametrize("name", SOME)
def test_widths(name: str, hidden_size: int, input_of: str):
    torch.manual_seed(0)
    entry, sizes = ZOO[name], (hidden_size * (1 + (input_of == "2 H")), hidden_size)
    assert_is_the_loop(sstkern.fuse(entry.cell(*sizes), strict=True), *entry.drawn(2, 2, *sizes), [2, 1], returns=entry.returns)


@pytest.mark.parametrize("name", SOME)
def test_one_sequence_and_one_step(name: str):
    layer, entry = layer_of(name), ZOO[name]
    for steps, batch in ((1, 1), (1, 4), (5, 1)):
        assert_is_the_loop(layer, *entry.drawn(steps, batch), [steps] * batch, returns=entry.returns)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", SOME)
def test_no_step_at_all(name: str, steps: int):
    layer, entry = layer_of(name), ZOO[name]
    x, hx = entry.drawn(steps, 2)
    output, hx_n, states = layer(x, hx, lengths=[0, 0], return_states=True)
    width = layer(*entry.drawn(1, 2))[0].shape[1:]
    assert output.shape == (steps, *width)
    assert not output.any()
    assert [tuple(state.shape) for state in flatten(states)] == [(steps, *h.shape) for h in flatten(hx)]
    assert all(map(torch.equal, flatten(hx_n), flatten(hx)))
    gradients = gradients_of([output, *flatten(hx_n)], wanted(layer.cell, x, hx))
    of_states = len(flatten(hx))
    place = len([tensor for tensor in flatten(x) if tensor.requires_grad])
    assert all(gradient.any() for gradient in gradients[place : place + of_states])
    assert not any(gradient.any() for gradient in gradients[:place] + gradients[place + of_states :])


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", SOME)
def test_no_sequence_at_all(name: str, steps: int):
    layer, entry = layer_of(name), ZOO[name]
    x, hx = entry.drawn(steps, 0)
    output, hx_n = layer(x, hx)
    assert output.shape == (steps, 0, *layer(*entry.drawn(1, 2))[0].shape[2:])
    assert [state.shape for state in flatten(hx_n)] == [h.shape for h in flatten(hx)]
    assert not any(gradient.any() for gradient in gradients_of([output, *flatten(hx_n)], wanted(layer.cell, x, hx)))


# What wants a gradient


@pytest.mark.parametrize("name", SOME)
def test_each_tensor_alone_wants_a_gradient(name: str):
    layer, entry = layer_of(name), ZOO[name]
    x, hx = entry.drawn(4, 3)
    tensors = wanted(layer.cell, x, hx)
    for alone in tensors:
        for tensor in tensors:
            tensor.requires_grad_(tensor is alone)
        assert_is_the_loop(layer, x, hx, LENGTHS, returns=entry.returns)
        assert layer.fused


@pytest.mark.parametrize("name", SOME)
def test_nothing_wants_a_gradient(name: str):
    layer, entry = layer_of(name), ZOO[name]
    x, hx = entry.drawn(4, 3)
    with_gradient = layer(x, hx, lengths=LENGTHS)
    layer.requires_grad_(False)
    without = layer(*(mapped(given, torch.detach) for given in (x, hx)), lengths=LENGTHS)
    assert not any(result.requires_grad for result in flatten(without))
    assert all(map(torch.equal, flatten(with_gradient), flatten(without)))


# Padding


def padded_with(x: Tensor, value: float) -> Tensor:
    """With the value past each length, where that can hold it."""
    if not x.is_floating_point():
        return x
    past = torch.arange(x.size(0))[:, None] >= torch.tensor(LENGTHS)
    return x.detach().masked_fill(past.view(*past.shape, *[1] * (x.dim() - 2)), value).requires_grad_()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.unfused is None])
def test_nan_in_the_padding_reaches_nothing(name: str, reverse: bool):
    layer, entry = layer_of(name, reverse=reverse), ZOO[name]
    x, hx = entry.drawn(4, 3)

    def results(value: float) -> list[Tensor]:
        given = mapped(x, lambda tensor: padded_with(tensor, value))
        found = flatten(layer(given, hx, lengths=LENGTHS, return_states=name in ASKED_FOR_STATES))
        return [*found, *gradients_of(found, wanted(layer.cell, given, hx))]

    found, expected = results(math.nan), results(0.5)
    assert all(tensor.isfinite().all() for tensor in found)
    assert all(map(torch.equal, found, expected))


# Ties and edges


SPECIAL = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 20.0, 6.0, 0.5, math.inf, -math.inf, math.nan, 1e300, -1e300, 5e-324, 100.0, -800.0]
F = nn.functional
OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardshrink": F.hardshrink,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sign": torch.sign,
    "floor": lambda v: v - v.floor(),
    "square": torch.square,
    "cube": lambda v: v**3,
    "root": lambda v: v**0.5,
    "power of two": lambda v: 2.0**v,
    "atan": torch.atan,
    "erf": torch.erf,
    "clamp": lambda v: v.clamp(-1.0, 3.0),
    "clamp from below": lambda v: v.clamp(min=0.0),
    "clamp from above": lambda v: v.clamp_max(1.0),
    "threshold": lambda v: F.threshold(v, 1.0, 20.0),
    "masked_fill": lambda v: (1 / v).masked_fill(v == 0, 0.0),
    "unselected NaN": lambda v: torch.where(v > 0, v.sqrt(), 0.0),
    "condition": lambda v: v * (v >= 0.5),
    "isnan": lambda v: torch.where(v.isnan(), 0.0, v),
    "normed": lambda v: v / v.abs().sqrt(),
    "times zero": lambda v: v * 0.0,
    "itself": lambda v: torch.maximum(v, v) + torch.min(v, -v),
}
OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "max": torch.max,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "where": lambda a, b: torch.where(a < b, a, b),
    "equal": lambda a, b: torch.where(a == b, 2 * a, b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp by a half": lambda a, b: torch.lerp(a, b, 0.5),
    "lerp by a tensor": lambda a, b: torch.lerp(a, b, a),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=2.0),
    "addcdiv": lambda a, b: torch.addcdiv(a, a, b),
    "prelu": lambda a, b: torch.where(a > 0, a, a * b),
}


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: lambda a, b, function=function: function(a) for name, function in OF_ONE.items()},
    **OF_TWO,
}


class Edges(nn.Module):
    """Functions of a state and an input each, nothing else."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.names = names

    def forward(self, x: tuple[Tensor, ...], h: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(FUNCTIONS[name](*given) for name, *given in zip(self.names, h, x, strict=True))


ROUNDED = ["lerp", "lerp by a half", "lerp by a tensor", "addcmul", "addcdiv"]
"""PyTorch rounds these once where the program, which writes them with others, rounds twice; they are tried with tame numbers."""


@cache
def through_a_step(rounded: bool, dtype: torch.dtype) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """For every pair of special numbers each function's result and gradients: of a layer of one step, and of PyTorch's function.

    One layer has all functions, each with a state and an input of its own: to compile a cell for each took 40 seconds.
    """
    names = [name for name in FUNCTIONS if (name in ROUNDED) == rounded]
    special = torch.tensor(SPECIAL, dtype=dtype)
    special = special[(special.abs() < 1e3) & (special != 5e-324)] if rounded else special
    x, h = (tuple(row.clone().requires_grad_() for _ in names) for row in torch.cartesian_prod(special, special).T[:, None])
    cell = Edges(names)
    _, ours = sstkern.fuse(cell, strict=True)(mapped(x, lambda row: row[None]), h)
    theirs = cell(x, h)
    if not rounded and dtype == torch.float32:  # on AVX-512 PyTorch's float32 vectors make NaN of an infinite x, alone among its ways
        at = names.index("gelu")
        theirs = (*theirs[:at], F.gelu(h[at].double()).float(), *theirs[at + 1 :])
    found = []
    for results in (ours, theirs):
        gradients = torch.autograd.grad(results, [*h, *x], [torch.ones_like(y) for y in results], materialize_grads=True)
        found.append([[result.detach(), *parts] for result, *parts in zip(results, gradients[: len(h)], gradients[len(h) :], strict=True)])
    return dict(zip(names, zip(*found, strict=True), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges_are_pytorchs(name: str, dtype: torch.dtype):
    """The signs of zeros too. The C++ engine has functions of its own, which round otherwise.

    The derivatives of hardtanh, hardshrink, elu and their like at NaN are other ones in PyTorch's vectors than in what is left over at a
    tensor's end, 0 or NaN and 1. Ours are those of vectors; 289 numbers end in one that is no NaN.
    """
    (output, *gradients), (expected, *theirs) = through_a_step(name in ROUNDED, dtype)[name]
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    cancels = name in ROUNDED or name == "gelu"  # as x / 2 (1 + erf) does at -3
    torch.testing.assert_close(output, expected, rtol=4 * eps, atol=4 * eps * (1.0 if cancels else tiny), equal_nan=True)
    numbers = ~expected.isnan()
    assert cancels or torch.equal(output.signbit()[numbers], expected.signbit()[numbers])
    torch.testing.assert_close(gradients, theirs, rtol=8 * eps, atol=eps, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_goes_as_far_as_in_the_loop(value: float):
    """In one sequence, from its step on."""
    layer = layer_of("ChoGRU")
    x, hx = (given.detach() for given in ZOO["ChoGRU"].drawn(4, 3))
    x[2, 1, 0] = value
    output, h_n = layer(x, hx)
    state, expected = hx, []
    for t in range(4):
        state = layer.cell(x[t], state)
        expected.append(state)
    torch.testing.assert_close(output, torch.stack(expected), rtol=1e-12, atol=1e-12, equal_nan=True)
    assert not output[:, [0, 2]].isnan().any()
    assert not output[:2].isnan().any()
    torch.testing.assert_close(h_n, state, rtol=1e-12, atol=1e-12, equal_nan=True)


# Rounding


def eager(cell: nn.Module, x: Any, state: Any, returns: str) -> list[Tensor]:
    """The cell stepped in Python, all sequences at once."""
    outputs = []
    for t in range(len(flatten(x)[0])):
        output, state = step(cell, mapped(x, lambda tensor, t=t: tensor[t]), state, returns)
        outputs.append(output)
    return [torch.stack(outputs), *flatten(state)]


def errors(entry: Entry, seed: int, rounded: torch.dtype) -> tuple[list[float], list[float]]:
    """Of the layer's and of the eager loop's rounded results and gradients, relative to each tensor's norm."""
    torch.manual_seed(seed)
    cell, (x, hx) = entry.cell(16, 24), entry.drawn(12, 8, 16, 24)

    def results(run: Callable[[Any, Any], list[Tensor]], dtype: torch.dtype) -> list[Tensor]:
        cell.to(dtype)
        given = [
            mapped(
                part,
                lambda tensor: tensor.detach().to(dtype).requires_grad_(),
            )
            for part in (x, hx)
        ]
        found = run(*given)
        return [tensor.double() for tensor in (*found, *gradients_of(found, wanted(cell, *given)))]

    with torch.no_grad():  # numbers that the dtype holds exactly
        for tensor in wanted(cell, x, hx):
            tensor.copy_(tensor.to(rounded))
    exact = results(lambda x, hx: eager(cell, x, hx, entry.returns), torch.float64)
    loop = results(lambda x, hx: eager(cell, x, hx, entry.returns), rounded)
    layer = sstkern.fuse(cell, strict=True)
    with sstkern.backend("cpu" if engines.extension_problem() is None else "reference"):
        ours = results(lambda x, hx: flatten(layer(x, hx)), rounded)

    def relative(found: list[Tensor]) -> list[float]:
        return [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]

    return relative(ours), relative(loop)


ROUNDED_CELLS = [
    "LSTMCell",
    "GRUCell",
    "MGU",
    "MultiplicativeLSTM",
    "RecurrentHighway",
    "SLSTM",
    "TutorialLSTM",
    "NASCell",
    "LayerNormLSTM",
    "NormalisedGRU",
    "Ordered",
]


# A difference of sums that cancel: over 12 seeds its error in float32 is 0.7 to 1.2 of the loop's, over 48 seeds 0.9.
SEEDS = {"Ordered": 48}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ROUNDED_CELLS)
def test_rounding_is_no_larger_than_the_loops(name: str, dtype: torch.dtype):
    found = [errors(ZOO[name], seed, dtype) for seed in range(SEEDS.get(name, 12))]
    ours, loops = (torch.tensor(each).mean(0) for each in zip(*found, strict=True))
    assert (ours <= 1.1 * loops + 1e-8).all(), (ours / loops).tolist()


@pytest.mark.parametrize("name", SOME)
def test_the_same_input_has_the_same_bits(name: str):
    layer, entry = layer_of(name), ZOO[name]
    x, hx = entry.drawn(4, 3)

    def results() -> list[Tensor]:
        found = flatten(layer(x, hx, lengths=LENGTHS))
        return [*found, *gradients_of(found, wanted(layer.cell, x, hx))]

    assert all(map(torch.equal, results(), results()))


def test_a_named_tuple_comes_back():
    layer = layer_of("NamedStates")
    x, hx = ZOO["NamedStates"].drawn(4, 3)
    _, hx_n, states = layer(x, hx, return_states=True)
    assert isinstance(hx_n, zoo_cells.State)
    assert isinstance(states, zoo_cells.State)
    assert states.c.shape == (4, 3, 5)


# Steps of few lines


STEPS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    **{
        f"permute {order}": lambda cell, x, h, order=order: torch.tanh(x.view(-1, 2, 3, 4).permute(0, *order).reshape(h.shape) + h)
        for order in itertools.permutations((1, 2, 3))
    },
    "movedim": lambda cell, x, h: (x + h).view(-1, 2, 3, 4).movedim(3, 1).flatten(1).tanh(),
    "einsum": lambda cell, x, h: torch.einsum("bi,ijk->bjk", h[:, :2], cell.kernel).flatten(1).tanh() + x,
    "expand": lambda cell, x, h: torch.tanh(h[:, :1].expand(-1, 24) + x),
    "expand as": lambda cell, x, h: torch.tanh(x + h[:, 5:6].expand_as(x)),
    "a state and a part of it": lambda cell, x, h: torch.tanh(h * h[:, :1] + x * h[:, 5:6]),
    "parts that overlap": lambda cell, x, h: torch.tanh(torch.cat([h[:, :16], h[:, 8:16]], 1) + x),
    "repeat": lambda cell, x, h: torch.tanh(h[:, :12].repeat(1, 2) + x),
    "a parameter as a power": lambda cell, x, h: (h.abs() + 0.1) ** cell.power + 0.1 * x,
    "a row to a parameter's power": lambda cell, x, h: torch.tanh((x.abs() + 0.1) ** cell.power) + 0.1 * h,
    "a parameter as the output": lambda cell, x, h: cell.power.expand(x.size(0), 24),
    "a parameter behind detach": lambda cell, x, h: torch.tanh(x + h * cell.power.detach()),
}


class OfAStep(nn.Module):
    def __init__(self, step: Callable):
        super().__init__()
        self.step, self.kernel, self.power = step, nn.Parameter(torch.randn(2, 6, 4)), nn.Parameter(torch.rand(24) + 1)
        self.joined = nn.Parameter(torch.randn(24, 48) / 7)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step(self, x, h)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_few_lines(name: str):
    torch.manual_seed(0)
    layer = sstkern.fuse(OfAStep(STEPS[name]).double(), strict=True)
    x, h = (torch.randn(*shape, 24, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (3,)))
    assert_is_the_loop(layer, x, h, [4, 0, 1])


@pytest.mark.parametrize("name", ["a parameter as the output", "expand"])
def test_an_output_is_the_callers_own(name: str):
    layer = sstkern.fuse(OfAStep(STEPS[name]), strict=True)
    before = layer.cell.power.detach().clone()
    output, h_n = layer(torch.ones(1, 1, 24), torch.ones(1, 24, requires_grad=True))
    output.mul_(2.0)  # as an in-place activation does
    h_n.mul_(3.0)
    assert torch.equal(layer.cell.power, before)
    (output.sum() + h_n.sum()).backward()


def test_a_parameter_that_no_gradient_reaches_has_none():
    layer = sstkern.fuse(OfAStep(STEPS["a parameter behind detach"]), strict=True)
    layer(torch.ones(2, 1, 24), torch.ones(1, 24, requires_grad=True))[0].sum().backward()
    assert layer.cell.power.grad is None


def test_our_own_cells_are_steps_too():
    torch.manual_seed(0)
    for cell in (sstkern.LSTMCell(3, 4), sstkern.GRUCell(3, 4), sstkern.RNNCell(3, 4, nonlinearity="relu")):
        layer, x = sstkern.fuse(cell.double(), strict=True), torch.randn(4, 2, 3, dtype=torch.float64)
        h = torch.randn(2, 4, dtype=torch.float64)
        assert_is_the_loop(layer, x, (h, h + 1) if isinstance(cell, nn.LSTMCell) else h, [4, 2])


def test_checkpoint_captures_within():
    layer, (x, hx) = layer_of("MGU"), ZOO["MGU"].drawn(4, 3)
    for _ in range(2):
        output, _ = checkpoint(layer, x, hx, use_reentrant=False)
        found = torch.autograd.grad(output.sum(), list(layer.parameters()))
        assert all(map(torch.equal, found, torch.autograd.grad(layer(x, hx)[0].sum(), list(layer.parameters()))))
        layer.eval()


BFLOAT16 = {
    "cat": lambda cell, x, h: torch.tanh(nn.functional.linear(torch.cat([x, h], 1), cell.joined)),
    "lerp": lambda cell, x, h: torch.lerp(h, x, 0.3),
    "addcmul": lambda cell, x, h: torch.addcmul(x, h, cell.power, value=0.3),
}


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_rounds_no_more_than_the_loop(name: str):
    """Within a call it is float32."""
    torch.manual_seed(0)
    cell = OfAStep(BFLOAT16[name]).bfloat16()
    x, h = torch.randn(20, 8, 24).bfloat16(), torch.randn(8, 24).bfloat16()
    exact = loop(copy.deepcopy(cell).double(), x.double(), h.double(), [20] * 8)[0]
    rounded = loop(cell, x, h, [20] * 8)[0].double()
    ours = sstkern.fuse(cell, strict=True)(x, h)[0]
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() <= 1.1 * (rounded - exact).norm()
