"""Time and memory are linear in the number of time steps, whatever a layer is asked for."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from layers import FUSED
from linear import MORE_STEPS, STEPS, assert_linear, differentiate
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import sstkern
from sstkern.engines import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="hundreds of time steps take Triton's interpreter minutes")

BATCH, INPUT, HIDDEN = 3, 2, 4
KINDS: dict[str, Callable[..., nn.Module]] = {
    "LSTM, projected": lambda **options: sstkern.LSTM(INPUT, HIDDEN, proj_size=2, **options),
    "GRU": lambda **options: sstkern.GRU(INPUT, HIDDEN, **options),
    "RNN": lambda **options: sstkern.RNN(INPUT, HIDDEN, **options),
}


class Given(NamedTuple):
    input: Any
    lengths: Tensor | None
    values: Tensor
    """The input's, which may have a gradient."""


def full(steps: int) -> Given:
    x = torch.randn(steps, BATCH, INPUT, requires_grad=True)
    return Given(x, None, x)


def with_lengths(steps: int) -> Given:
    return full(steps)._replace(lengths=torch.tensor([steps, 0, steps // 2]))


def packed(steps: int) -> Given:
    sequences = pack_padded_sequence(torch.randn(steps, BATCH, INPUT), torch.tensor([steps, 1, steps // 2]), enforce_sorted=False)
    data = sequences.data.requires_grad_()
    return Given(PackedSequence(data, *sequences[1:]), None, data)


def nested(steps: int) -> Given:
    values = torch.randn(3 * steps, INPUT, requires_grad=True)
    return Given(torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, steps, steps, 3 * steps])), None, values)


FORMS = {"full": full, "lengths": with_lengths, "packed": packed, "nested": nested}


def value_of(layer: nn.Module, given: Given) -> Tensor:
    output = layer(given.input, lengths=given.lengths)[0]
    found = output.data if isinstance(output, PackedSequence) else output.values() if output.is_nested else output
    return found.square().sum()


def differentiated(layer: nn.Module, order: int = 2) -> Callable[[Given], None]:
    return lambda given: differentiate(value_of(layer, given), [given.values, *layer.parameters()], order)


def engine(name: str) -> AbstractContextManager:
    return sstkern.backend("reference") if name == "reference" else nullcontext()


engines = pytest.mark.parametrize("name", ["reference", FUSED])


@engines
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_of_each_cell(kind, name):
    with engine(name):
        assert_linear(differentiated(KINDS[kind]()), full, MORE_STEPS if kind == "RNN" else STEPS)  # the one with the fewest operators


@engines
@pytest.mark.parametrize(("form", "order"), [("lengths", 2), ("packed", 2), ("nested", 1)])  # PyTorch's nested tensors have no second ones
def test_derivatives_of_each_form(form, order, name):
    with engine(name):
        assert_linear(differentiated(KINDS["RNN"](), order), FORMS[form])


@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives_of_a_stack_with_both_directions(recompute):
    layer = KINDS["RNN"](num_layers=2, bidirectional=True, recompute=recompute)
    assert_linear(differentiated(layer), with_lengths, MORE_STEPS if recompute else STEPS)  # of few steps the chunks are uneven


def test_third_derivatives():
    assert_linear(differentiated(KINDS["RNN"](nonlinearity="relu"), 3), full)


@pytest.mark.parametrize(("kind", "form"), [("LSTM, projected", "full"), ("GRU", "full"), ("RNN", "lengths")])
def test_forward_mode(kind, form):
    layer = KINDS[kind]()

    def tangent(given: Given) -> None:
        with forward_ad.dual_level():
            x = forward_ad.make_dual(given.values, torch.ones_like(given.values))
            forward_ad.unpack_dual(value_of(layer, given._replace(input=x)))

    assert_linear(tangent, FORMS[form])


class Stepped(nn.RNNCell):
    """No program: what its step does goes by the values."""

    def forward(self, input, state):
        return super().forward(input, state if state.sum() < 1e9 else -state)


@pytest.mark.parametrize("kind", [nn.RNNCell, Stepped])
def test_second_derivatives_of_own_cells(kind):
    layer = sstkern.fuse(kind(INPUT, HIDDEN))
    with nullcontext() if kind is nn.RNNCell else pytest.warns(UserWarning, match="steps Stepped in Python"):
        assert_linear(differentiated(layer), with_lengths)
    assert layer.fused == (kind is nn.RNNCell)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad of jvp": lambda loss, x: grad(lambda x: jvp(loss, (x,), (torch.ones_like(x),))[1])(x),
    "jvp of grad": lambda loss, x: jvp(grad(loss), (x,), (torch.ones_like(x),)),
    "grad of grad": lambda loss, x: grad(lambda x: grad(loss)(x).square().sum())(x),
    "grad of each sample": lambda loss, x: vmap(grad(loss), 1)(x.unsqueeze(2)),
    "jvp of each sample": lambda loss, x: vmap(lambda x: jvp(loss, (x,), (torch.ones_like(x),)), 1)(x.unsqueeze(2)),
    "grad of each sample's grad": lambda loss, x: vmap(grad(lambda x: grad(loss)(x).square().sum()), 1)(x.unsqueeze(2)),
}


@engines
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, name):
    layer = KINDS["RNN"]()
    with engine(name):
        assert_linear(
            lambda x: TRANSFORMS[transform](lambda x: layer(x)[0].square().sum(), x), lambda steps: torch.randn(steps, BATCH, INPUT)
        )


def test_cells_in_a_loop():
    cell = sstkern.RNNCell(INPUT, HIDDEN)

    def twice(inputs: list[Tensor]) -> None:
        h, value = None, torch.zeros(())
        for x in inputs:
            h = cell(x, h)
            value = value + h.square().sum()
        differentiate(value, [*inputs, *cell.parameters()], 2)

    assert_linear(twice, lambda steps: [torch.randn(BATCH, INPUT, requires_grad=True) for _ in range(steps)])


def test_graphs_of_plain_pytorch():
    """With the time loop unrolled."""
    layer = KINDS["GRU"](bidirectional=True)
    sizes = []
    with sstkern.backend("reference"):
        for steps in (4, 8, 16):
            program = torch.export.export(layer, (torch.randn(steps, BATCH, INPUT), None, torch.tensor([steps, 0, 2])))
            sizes.append(len(program.graph.nodes))
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])
