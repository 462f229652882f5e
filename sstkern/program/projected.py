"""Layers with a projection on the Triton engine: a built-in cell and its projection as one program, whose second product that is.

T time steps, B batch, I input_size, H hidden_size, P proj_size, D directions, S states, N rows of valid steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sstkern.cells import CELLS, Cell
from sstkern.engines import reference
from sstkern.engines.triton import layer as layers
from sstkern.lengths import beginnings, check_packed
from sstkern.program import engine, on_gpu
from sstkern.program.capture import Spec, Unfused, capture
from sstkern.program.capture.runs import undisturbed
from sstkern.program.run import Call, kept_kinds
from sstkern.program.shapes import Kind, Leaves, row_kind
from sstkern.weights import Weights, by_direction

_CPU = torch.device("cpu")


def forward(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    saved_rows: int | None,
    every: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """`sstkern::layer`. Its `saved` is what `saved_like` says."""
    directions = _directions(cell, x, weights, hx, lengths, has_bias, bidirectional, every)
    layers.runs["forward"] += 1
    outputs, finals, kept = [], [], []
    for direction in directions:
        found, last, saved = direction.forward(saved_rows)
        outputs.append(found)
        finals.append(last)
        kept += saved
    output, *others = [torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] for parts in zip(*outputs, strict=True)]
    return output, [*(torch.stack(parts) for parts in zip(*finals, strict=True)), *others], kept


def backward(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    output: Tensor,
    saved: Sequence[Tensor],
    grad_output: Tensor | None,
    grad_hx: Sequence[Tensor],
    needs: Sequence[bool],
    groups: int | None = None,
) -> list[Tensor]:
    """`sstkern::layer_backward`."""
    layers.check_backward(weights, hx, saved, needs)
    count = len(CELLS[cell].states)
    directions = _directions(cell, x, weights, hx, lengths, has_bias, bidirectional, len(grad_hx) > count)
    layers.runs["backward"] += 1
    grad_outputs = [torch.zeros_like(output) if grad_output is None else grad_output, *grad_hx[count:]]
    kept = _shared(saved, len(directions))
    dx: list[Tensor] = []
    dweights: list[Tensor] = []
    dhx: list[list[Tensor]] = []
    of_hx = needs[1 + len(weights) :]
    for d, direction in enumerate(directions):
        of_weights = _shared(needs[1 : 1 + len(weights)], len(directions))[d]
        order = direction.program.order
        wanted = [needs[0], *(of_weights[place] for place in order), *of_hx]
        of_outputs = [gradient.chunk(len(directions), -1)[d] for gradient in grad_outputs]
        of_states = [gradient[d] for gradient in grad_hx[:count]]
        of_x, *found = direction.backward(kept[d], of_outputs, of_states, wanted, groups)
        in_program = dict(zip(order, found, strict=False))
        dx += _there([of_x])
        dweights += _there(in_program[place] for place in range(len(of_weights)))
        dhx.append(_there(found[len(of_weights) :]))
    total = [reduce(torch.add, dx)] if dx else []
    return [*total, *dweights, *(torch.stack(parts) for parts in zip(*dhx, strict=True))]


def saved_like(cell: str, x: Tensor, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool, rows: int) -> list[Tensor]:
    """What the program saves, empty: rows of several widths, for one direction after the other."""
    directions = by_direction(CELLS[cell], weights, has_bias, bidirectional)
    found = [_Program.of(CELLS[cell], x.dtype, w) for w in directions]
    kinds = [kind for program in found for kind in kept_kinds(program.call, program.kinds)]
    return [x.new_empty((rows, *kind.shape), dtype=kind.dtype) for kind in kinds]


@lru_cache(maxsize=64)
def problem(cell: Cell) -> str | None:
    """Why a cell has no projection on the Triton engine, or None."""
    try:
        _program(cell, torch.float32, True, 3, 4, 2, False)
    except Unfused as error:
        return f"with a projection its step is no program: {error}"
    return None


class _Step(nn.Module):
    """One time step of a cell with a projection, as the reference engine does it."""

    def __init__(self, cell: Cell, shapes: dict[str, tuple[int, ...]], has_bias: bool, dtype: torch.dtype):
        super().__init__()
        self.step, self.has_bias = cell, has_bias
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device="cpu"))
        self.names = tuple(shapes)

    def forward(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        (w,) = by_direction(self.step, [getattr(self, name) for name in self.names], self.has_bias, False)
        after = reference.step_of(self.step, nn.functional.linear(x, w.weight_ih, w.bias_ih), states, w)
        return after[0], tuple(after)


class _Layer(engine.Layer):
    def __init__(self, call: Call, kinds: Leaves):
        super().__init__("triton", call, kinds)
        self.prepared = on_gpu.CompiledLayer


class _Program(NamedTuple):
    """A direction of layers of some widths. order: which of a direction's weights each of the program's parameters is."""

    call: Call
    kinds: Leaves
    order: tuple[int, ...]
    layer: _Layer

    @staticmethod
    def of(cell: Cell, dtype: torch.dtype, w: Weights, every: bool = False) -> _Program:
        assert w.weight_hr is not None
        width, hidden_size = w.weight_hr.shape
        return _program(cell, dtype, w.bias_ih is not None, w.weight_ih.size(1), hidden_size, width, every)


@lru_cache(maxsize=64)
def _program(cell: Cell, dtype: torch.dtype, has_bias: bool, input_size: int, hidden_size: int, width: int, every: bool) -> _Program:
    shapes = cell.shapes(has_bias, True, input_size=input_size, hidden_size=hidden_size, output_size=width)
    sizes = cell.state_sizes(hidden_size, width)
    with undisturbed(_CPU):
        step = _Step(cell, shapes, has_bias, dtype)
        states = tuple(Spec((size,), dtype, _CPU) for size in sizes)
        found = capture(step, Spec((input_size,), dtype, _CPU), states, "output_and_state")
        taken = found.parameters(found.leaves())
    given = list(step.buffers())
    order = tuple(next(place for place, tensor in enumerate(given) if tensor is one) for one in taken)
    if len(order) != len(shapes):
        raise Unfused("it does not use all of its weights")
    program = found.program
    if every:
        program = replace(program, outputs=(*program.outputs, *program.next_states[1:]))
    call = Call(program, found.sizes, tuple(found.numbers()), False, True)
    kinds = Leaves(
        (Kind((input_size,), dtype),), tuple(Kind((size,), dtype) for size in sizes), tuple(row_kind(one, 0) for one in taken), found.sizes
    )
    return _Program(call, kinds, order, _Layer(call, kinds))


class _Direction(NamedTuple):
    """One direction of a call."""

    program: _Program
    call: Call
    x: Tensor
    parameters: list[Tensor]
    hx: list[Tensor]
    lengths: Tensor | None

    def forward(self, saved_rows: int | None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As `engine.Layer.forward`."""
        return self.program.layer.forward(self.call, [self.x], self.parameters, self.hx, self.lengths, saved_rows)

    def backward(
        self,
        saved: Sequence[Tensor],
        grad_outputs: Sequence[Tensor],
        grad_hx: Sequence[Tensor],
        needs: Sequence[bool],
        groups: int | None,
    ) -> list[Tensor | None]:
        """As `engine.Layer.backward`."""
        _check_saved(self.program, saved)
        given = [self.x], self.parameters, self.hx, self.lengths
        return self.program.layer.backward(self.call, *given, saved, grad_outputs, grad_hx, needs, groups)


def _directions(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    every: bool,
) -> list[_Direction]:
    """Raises RuntimeError for sizes that do not fit."""
    of_each, padded = by_direction(CELLS[cell], weights, has_bias, bidirectional), x.dim() == 3
    batch = x.size(1) if padded else len(check_packed(lengths, x.size(0)))
    layers.check(CELLS[cell], x, of_each, hx, batch, beginnings(lengths) is not None)
    found = []
    for d, (w, tensors) in enumerate(zip(of_each, _shared(weights, len(of_each)), strict=True)):
        program = _Program.of(CELLS[cell], x.dtype, w, every)
        call = program.call._replace(reverse=d == 1, padded=padded)
        parameters, states = [tensors[place] for place in program.order], [state[d] for state in hx]
        found.append(_Direction(program, call, x, parameters, states, lengths))
    return found


def _check_saved(program: _Program, saved: Sequence[Tensor]) -> None:
    expected = kept_kinds(program.call, program.kinds)
    if [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in saved] != [tuple(kind) for kind in expected]:
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in saved]
        raise RuntimeError(f"sstkern::layer_backward: expected rows of {list(map(tuple, expected))} in saved, got {shapes}")


def _there(gradients: Iterable[Tensor | None]) -> list[Tensor]:
    """The gradients that are needed."""
    return [gradient for gradient in gradients if gradient is not None]


def _shared(values: Sequence, directions: int) -> list[Sequence]:
    """Equal parts, one for each direction."""
    count = len(values) // directions
    return [values[d * count : (d + 1) * count] for d in range(directions)]
