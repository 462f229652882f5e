"""Somebody's own cell in a Python loop over time steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sstkern import first_states
from sstkern.program.capture import Unfused
from sstkern.program.layer import Programs
from sstkern.structure import Structure, flatten, mapped, split_first_result, split_result

Read = Callable[[Any], tuple[Tensor, Structure]]
"""Takes what a cell returned, and gives its output and its new state."""


class Loop:
    """A cell with what a loop needs to know of it, found as sstkern.fuse finds it. x: (T, B, ...), an example."""

    def __init__(self, cell: nn.Module, x: Tensor):
        self.cell, self._x = cell, x[0]
        self._state = self._found()
        with torch.no_grad():
            self.read = self._reader()

    def first(self) -> Structure | None:
        """The state before the first step, new tensors; None where only the cell knows it, by the default of its state."""
        if self._state is None:
            return None
        learned = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in flatten(self._state))
        if learned:
            return mapped(self._found(), torch.Tensor.contiguous)
        return mapped(self._state, lambda leaf: leaf.detach().clone(memory_format=torch.contiguous_format))

    def _found(self) -> Structure | None:
        state = first_states.first_state(self.cell, None, len(self._x), self._x)
        if state is not None:
            return state
        try:
            captured = Programs().of_call(self.cell, self._x, None, 1, "auto")
        except Unfused:
            return None
        return captured.first_state(captured.leaves(), len(self._x))

    def _reader(self) -> Read:
        state = self.first()
        result = self.cell(self._x) if state is None else self.cell(self._x, state)
        _, after = split_first_result(result, "auto") if state is None else split_result(result, state, "auto")
        return read_state if after is result else read_pair


def read_state(result: Structure) -> tuple[Tensor, Structure]:
    """The output and state of a cell that returns its new state, whose first tensor is the output."""
    output = result
    while not isinstance(output, Tensor):
        output = output[0]
    return output, result


def read_pair(result: tuple[Tensor, Structure]) -> tuple[Tensor, Structure]:
    """The output and state of a cell that returns both."""
    output, state = result
    return output, state


def unrolled(step: Callable[..., Any], read: Read, x: Tensor, state: Structure | None) -> Tensor:
    """The outputs of all steps, (T, B, ...)."""
    outputs = []
    for row in x.unbind(0):
        output, state = read(step(row) if state is None else step(row, state))
        outputs.append(output)
    return torch.stack(outputs)
