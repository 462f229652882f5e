"""A cell stepped in Python over sequences: what a layer does where no program holds its cell.

The cell sees the rows of those sequences that have a step, and clones: one that works in place leaves the caller's tensors, and the
results of other steps, as they are. T time steps, B batch, N the valid steps of all sequences.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sstkern.engines.loop import PackedStates, Parts, Tensors, recurrence
from sstkern.engines.rows import Rows
from sstkern.misfits import StepFailed, may_be
from sstkern.structure import Returns, Structure, described, flatten, names, split_first_result, split_result, unflatten


class Result(NamedTuple):
    output: Tensor
    """(T, B, ...) or (N, ...), as the inputs"""
    hx_n: Structure
    """(B, ...) each"""
    states: Structure | None
    """Every state after every step, in the form of the output, where they were asked for."""


def layer(
    cell: nn.Module,
    inputs: Structure,
    hx: Structure | None,
    lengths: Tensor | None,
    *,
    anew: Structure | None = None,
    padded: bool,
    returns: Returns,
    reverse: bool,
    every: bool,
) -> Result:
    """The sequences of one direction.

    inputs: one tensor, or a tuple of them, (T, B, ...), or (N, ...) with falling lengths. hx: the first states, (B, ...), or None: then the
    first step leaves them out. lengths: int64 (B,), or None where every sequence has T steps; where they say that
    sequences begin anew, as `sstkern.lengths` has it, that is with `anew`. every: whether to return all states.
    Parametrizations run once.

    Raises TypeError or ValueError where the cell returns no output or state, or a state of another shape, ValueError without `hx` where not
    all sequences begin at the same step, and StepFailed.
    """
    tensors = flatten(inputs)
    rows = Rows(tensors, lengths, padded)
    given = tuple(map(rows.of, tensors))
    step = _Step(cell, inputs, hx, returns, every)
    with parametrize.cached():
        if hx is None:
            found, last = _without_hx(step, rows, given, reverse)
        else:
            states = rows.states(flatten(hx), reverse, () if anew is None else flatten(anew))
            found, last = recurrence(step, given, states, reverse), states.last()
    output, *after = (rows.restored(result) for result in found)
    hx_n = step.structured([rows.back(state) for state in last])
    return Result(output, hx_n, step.structured(after) if every else None)


def _without_hx(step: _Step, rows: Rows, given: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    """The results of all steps and the last states, where the cell itself knows the first ones."""
    sizes, place = rows.sizes, -1 if reverse else 0
    if rows.beginnings is not None or rows.valid is not None or not sizes or sizes[place] != rows.batch:
        raise ValueError(
            "hx: while the cell is stepped in Python, the default of its state serves only where all sequences begin at the same step, and "
            "none has length 0 or begins anew; give hx, or initial_state to fuse"
        )
    rest = sizes[:-1] if reverse else sizes[1:]
    parts = [row.split([sum(rest), sizes[place]] if reverse else [sizes[place], sum(rest)]) for row in given]
    found, last = step.first(tuple(part[place] for part in parts))
    if not rest:
        return found, last
    states = PackedStates(last, rest, reverse)
    more = recurrence(step, tuple(part[1 + place] for part in parts), states, reverse)
    pairs = zip(more, found, strict=True) if reverse else zip(found, more, strict=True)
    return tuple(map(torch.cat, pairs)), states.last()


class _Step:
    """A step of the cell, of rows and flat states, as `recurrence` takes one."""

    def __init__(self, cell: nn.Module, inputs: Structure, hx: Structure | None, returns: Returns, every: bool):
        self.cell, self.inputs, self.state, self.returns, self.every = cell, inputs, hx, returns, every

    def structured(self, leaves: list[Tensor]) -> Structure:
        """The state's structure of other leaves."""
        return unflatten(self.state, leaves)

    def first(self, rows: Tensors) -> tuple[Tensors, Tensors]:
        """The first step, without a state before it."""
        output, self.state = split_first_result(self._called(rows), self.returns)
        return self._results(rows, output, flatten(self.state))

    def __call__(self, rows: Parts, states: Tensors) -> tuple[Tensors, Tensors]:
        before = self.structured([state.clone() for state in states])
        output, after = split_result(self._called(rows, before), self.state, self.returns)
        leaves = flatten(after)
        for name, old, new in zip(names(after, "state"), states, leaves, strict=True):
            if not isinstance(new, Tensor) or new.shape != old.shape:
                found = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else described(new)
                raise ValueError(f"cell: expected it to return {name} of shape {tuple(old.shape)}, as it was given, got {found}")
        return self._results(rows, output, leaves)

    def _called(self, rows: Parts, *state: Structure) -> Structure:
        input = unflatten(self.inputs, [row.clone() for row in rows])
        try:
            return self.cell(input, *state)
        except Exception as error:
            if not may_be(error):
                raise
            raise StepFailed(input, *(state or (None,))) from error

    def _results(self, rows: Parts, output: Tensor, leaves: list[Tensor]) -> tuple[Tensors, Tensors]:
        for name, tensor in [("an output", output), *(("a state", leaf) for leaf in leaves)]:
            if not isinstance(tensor, Tensor) or tensor.dim() == 0 or len(tensor) != len(rows[0]):
                found = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else described(tensor)
                raise ValueError(f"cell: expected {name} of {len(rows[0])} rows, one for each sequence, got {found}")
        return (output, *leaves) if self.every else (output,), tuple(leaves)
