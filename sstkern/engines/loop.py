"""The time loop in plain PyTorch: any step over sequences, padded or packed, in either direction.

T time steps, B batch, N the valid steps of all sequences. States are tuples of tensors (B, ...), of any number of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Parts = Tensor | Tensors
"""A sequence of rows, (T, B, ...) or (N, ...), or several of them that go together; or what these have at one step, (rows, ...)."""
Step = Callable[[Any, Tensors], tuple[Tensors, Tensors]]
"""Of the rows of a step and the states before it: results, the output and perhaps more, and the states after it."""


def recurrence(step: Step, rows: Parts, states: MaskedStates | PackedStates, reverse: bool) -> Tensors:
    """Each result of every step, joined in the form of `rows`, in the input's order of time; `states` end as the last ones."""
    steps = list(enumerate(_each(rows, states.each_step)))
    found = []
    for t, given in reversed(steps) if reverse else steps:
        results, stepped = step(given, states.before(t))
        found.append(states.after(t, results, stepped))
    if not found:
        return _nothing(step, rows, states)
    return tuple(states.joined(list(parts)) for parts in zip(*(found[::-1] if reverse else found), strict=True))


def _nothing(step: Step, rows: Parts, states: MaskedStates | PackedStates) -> Tensors:
    """The results of no step at all: of a step without rows, so that they have its shapes and belong to its graph."""
    results, _ = step(_whole(rows, states.no_rows), tuple(state[:0] for state in states.states))
    return tuple(states.joined_without_steps(result) for result in results)


def _each(rows: Parts, each_step: Callable[[Tensor], Sequence[Tensor]]) -> Sequence[Parts]:
    return each_step(rows) if isinstance(rows, Tensor) else list(zip(*map(each_step, rows), strict=True))


def _whole(rows: Parts, change: Callable[[Tensor], Tensor]) -> Parts:
    return change(rows) if isinstance(rows, Tensor) else tuple(map(change, rows))


class MaskedStates:
    """Of all sequences at every step: one outside its steps keeps its own, so a reversed sequence starts at its own last step.

    valid: bool (T, B), the steps that sequences have.
    """

    def __init__(self, first: Tensors, valid: Tensor):
        self.states, self.valid = first, valid

    def each_step(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.unbind()

    def no_rows(self, rows: Tensor) -> Tensor:
        """Of no steps."""
        return rows.flatten(0, 1)

    def before(self, t: int) -> Tensors:
        return self.states

    def after(self, t: int, results: Tensors, stepped: Tensors) -> Tensors:
        """Takes the states after step t; returns its results, zero where a sequence has no such step."""
        valid = self.valid[t]
        self.states = tuple(_where(valid, new, old) for new, old in zip(stepped, self.states, strict=True))
        return tuple(_where(valid, result, 0) for result in results)

    def joined(self, results: list[Tensor]) -> Tensor:
        return torch.stack(results)

    def joined_without_steps(self, result: Tensor) -> Tensor:
        return result.unsqueeze(1).expand(0, self.valid.size(1), *result.shape[1:])

    def last(self) -> Tensors:
        return self.states


def _where(valid: Tensor, new: Tensor, old: Tensor | int) -> Tensor:
    """valid (B,), new and old (B, ...)."""
    return torch.where(valid.reshape(-1, *[1] * (new.dim() - 1)), new, old)


class PackedStates:
    """Of the sequences that have a step, which come first, so that neither time nor memory goes to the others.

    sizes: how many sequences have each step; they fall.
    """

    def __init__(self, first: Tensors, sizes: list[int], reverse: bool):
        self.first, self.sizes = first, sizes
        self.states = tuple(state[:0] for state in first) if reverse else first
        self.ended: list[Tensors] = []

    def each_step(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.split(self.sizes)

    def no_rows(self, rows: Tensor) -> Tensor:
        """Of no steps."""
        return rows

    def before(self, t: int) -> Tensors:
        there, wanted = len(self.states[0]), self.sizes[t]
        if wanted > there:
            self.states = tuple(torch.cat([now, first[there:wanted]]) for now, first in zip(self.states, self.first, strict=True))
        elif wanted < there:
            self.ended.append(tuple(state[wanted:] for state in self.states))
            self.states = tuple(state[:wanted] for state in self.states)
        return self.states

    def after(self, t: int, results: Tensors, stepped: Tensors) -> Tensors:
        """Takes the states after step t; returns its results."""
        self.states = stepped
        return results

    def joined(self, results: list[Tensor]) -> Tensor:
        return torch.cat(results)

    def joined_without_steps(self, result: Tensor) -> Tensor:
        return result

    def last(self) -> Tensors:
        there = sum(len(states[0]) for states in (self.states, *self.ended))
        never = tuple(state[there:] for state in self.first)
        return tuple(torch.cat(parts) for parts in zip(self.states, *reversed(self.ended), never, strict=True))
