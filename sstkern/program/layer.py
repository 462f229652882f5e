"""A cell as a program over sequences: its captures, kept while they hold, and a call of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sstkern import private
from sstkern.operators import autocasting
from sstkern.program import operator
from sstkern.program.capture import Captured, Spec, Unfused, capture
from sstkern.program.run import Call
from sstkern.structure import Returns, Structure, flatten, mapped, unflatten

KEPT = 16
"""Captures of a layer, of other structures, shapes, dtypes, modes and attributes of its cell."""


class Programs:
    """The captures of one cell."""

    def __init__(self) -> None:
        self._captures: list[tuple[Any, Captured]] = []
        self._refused: list[tuple[Any, str]] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy captures its own cell."""
        return {"_captures": [], "_refused": []}

    def find(self, cell: nn.Module, inputs: Structure, state: Structure | None, returns: Returns) -> Captured:
        """The program of a step of these Specs, captured if it is not there, or no longer holds.

        Raises Unfused, also for what was refused before, and NoDefault for a state that was not given and that the cell does not know.
        """
        key = _key(inputs), _key(state)
        for place, (known, captured) in enumerate(self._captures):
            if known == key and captured.holds():
                if place:
                    self._captures.insert(0, self._captures.pop(place))
                return captured
        refused = key, _modes(cell)
        for known, reason in self._refused:
            if known == refused:
                raise Unfused(reason)
        try:
            captured = capture(cell, inputs, state, returns)
        except Unfused as error:
            self._refused = [(refused, str(error)), *self._refused][:KEPT]
            raise
        self._captures = [(key, captured), *self._captures][:KEPT]
        return captured


def _key(specs: Structure) -> Any:
    """Structures that differ in the type of a sequence only are not equal."""
    if isinstance(specs, tuple | list):
        return type(specs), *map(_key, specs)
    return specs


def _modes(cell: nn.Module) -> tuple:
    """What may let a step be captured that was refused before: another mode, hooks that are gone."""
    return tuple((module.training, *(bool(vars(module)[hooks]) for hooks in private.HOOKS)) for module in cell.modules())


def specs(tensors: Structure, lead: int, cell: nn.Module) -> Structure:
    """Of a step's rows of each tensor, whose first `lead` dimensions count rows. Under autocast, which casts them, in the cell's dtype."""
    dtype = next((parameter.dtype for parameter in cell.parameters() if parameter.is_floating_point()), None)

    def spec(tensor: Tensor) -> Spec:
        cast = dtype is not None and tensor.is_floating_point() and autocasting(tensor)
        return Spec(tuple(tensor.shape[lead:]), dtype if cast and dtype else tensor.dtype, tensor.device)

    return mapped(tensors, spec)


def run(
    captured: Captured,
    inputs: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    *,
    padded: bool,
    reverse: bool,
    recompute: bool,
    every: bool,
) -> tuple[Tensor, Structure, Structure | None]:
    """The output, the last states and, if `every`, all states, from inputs (T, B, ...) or (N, ...) and states (B, ...)."""
    program = captured.program
    if every:
        program = replace(program, outputs=(*program.outputs, *program.next_states))
    call = Call(program, captured.sizes, tuple(captured.numbers()), reverse, padded, recompute)
    (output, *states), hx_n = operator.layer(call, inputs, captured.parameters(), hx, lengths)
    return output, unflatten(captured.state, hx_n), unflatten(captured.state, states) if every else None
