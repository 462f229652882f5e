"""The time loop in plain PyTorch: any step over sequences as rows, in either direction.

B batch, N rows: one for each step of each sequence, step by step. States are tuples of tensors (B, ...), of any number of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sstkern.engines.steps import cat, split

Tensors = tuple[Tensor, ...]
Parts = Tensor | Tensors
"""Rows (N, ...), or several of them that go together; or what these have at one step, (rows, ...)."""
Step = Callable[[Any, Tensors], tuple[Tensors, Tensors]]
"""One time step: takes the rows of a step and the states before it; gives results, the output first, and the states after it."""


def recurrence(step: Step, rows: Parts, states: States, reverse: bool) -> Tensors:
    """Each result of every step, as rows in the input's order of time; `states` end as the last ones."""
    if not states.sizes:
        # Of a step without rows, so that they have its shapes and belong to its graph, and so do the states.
        results, none = step(rows, tuple(state[:0] for state in states.states))
        states.states = tuple(torch.cat(parts) for parts in zip(states.states, none, strict=True))
        return results
    steps = list(enumerate(_each(rows, states.sizes)))
    found = []
    for t, given in reversed(steps) if reverse else steps:
        results, stepped = step(given, states.before(t))
        found.append(results)
        states.after(t, stepped)
    return tuple(states.joined(parts) for parts in zip(*(found[::-1] if reverse else found), strict=True))


def _each(rows: Parts, sizes: list[int]) -> Any:
    return split(rows, sizes) if isinstance(rows, Tensor) else list(zip(*(split(part, sizes) for part in rows), strict=True))


class MaskedStates:
    """The states of all sequences at every step. One outside its steps keeps its own, so a reversed sequence starts at its own last step.

    valid: bool (T, B), the steps that sequences have.
    """

    def __init__(self, first: Tensors, valid: Tensor):
        self.states, self.valid = first, valid
        self.sizes = [valid.size(1)] * valid.size(0)

    def before(self, t: int) -> Tensors:
        return self.states

    def after(self, t: int, stepped: Tensors) -> None:
        """Takes the states after step t."""
        valid = self.valid[t]
        self.states = tuple(_where(valid, new, old) for new, old in zip(stepped, self.states, strict=True))

    def joined(self, results: Tensors) -> Tensor:
        """The results of all steps, zero where a sequence has no such step."""
        return _where(self.valid.flatten(), cat(results), 0)

    def last(self) -> Tensors:
        return self.states


def _where(valid: Tensor, new: Tensor, old: Tensor | int) -> Tensor:
    """valid (N,), new and old (N, ...)."""
    return torch.where(valid.reshape(-1, *[1] * (new.dim() - 1)), new, old)


class PackedStates:
    """The states of the sequences that have a step. These come first, so that neither time nor memory goes to the others.

    sizes: how many sequences have each step; they fall.
    """

    def __init__(self, first: Tensors, sizes: list[int], reverse: bool):
        self.first, self.sizes = first, sizes
        self.states = tuple(state[:0] for state in first) if reverse else first
        self.ended: list[Tensors] = []

    def before(self, t: int) -> Tensors:
        there, wanted = self.states[0].size(0), self.sizes[t]  # len() takes 2 microseconds
        if wanted > there:
            self.states = tuple(torch.cat([now, first[there:wanted]]) for now, first in zip(self.states, self.first, strict=True))
        elif wanted < there:
            parts = [state.split([wanted, there - wanted]) for state in self.states]  # two slices have two gradients of all rows each
            self.states, ended = map(tuple, zip(*parts, strict=True))
            self.ended.append(ended)
        return self.states

    def after(self, t: int, stepped: Tensors) -> None:
        """Takes the states after step t."""
        self.states = stepped

    def joined(self, results: Tensors) -> Tensor:
        """The results of all steps."""
        return cat(results)

    def last(self) -> Tensors:
        there = sum(len(states[0]) for states in (self.states, *self.ended))
        never = tuple(state[there:] for state in self.first)
        return tuple(torch.cat(parts) for parts in zip(self.states, *reversed(self.ended), never, strict=True))


class CutStates:
    """Of sequences that begin anew at some steps: there, what they begin with is in the place of the states before.

    anew: what each sequence begins with, (B, ...). cuts: for every step which of its sequences begin anew, bool (rows,).
    """

    def __init__(self, whole: MaskedStates | PackedStates, anew: Tensors, cuts: Sequence[Tensor]):
        self.whole, self.anew, self.cuts = whole, anew, cuts
        self.sizes = whole.sizes

    @property
    def states(self) -> Tensors:
        return self.whole.states

    @states.setter
    def states(self, states: Tensors) -> None:
        self.whole.states = states

    def before(self, t: int) -> Tensors:
        # What is not taken has no part in a derivative either, whatever its values.
        cut = self.cuts[t].to(self.anew[0].device)
        return tuple(_where(cut, anew[: self.sizes[t]], old) for anew, old in zip(self.anew, self.whole.before(t), strict=True))

    def after(self, t: int, stepped: Tensors) -> None:
        """Takes the states after step t."""
        self.whole.after(t, stepped)

    def joined(self, results: Tensors) -> Tensor:
        """The results of all steps."""
        return self.whole.joined(results)

    def last(self) -> Tensors:
        return self.whole.last()


States = MaskedStates | PackedStates | CutStates
