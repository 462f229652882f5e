"""What a step computes from parameters only: plain PyTorch, once a call, before the loop, with autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sstkern.program.capture.numbers import Formula, value


@dataclass(frozen=True)
class Ref:
    """An entry of the prelude, among the arguments of a later one."""

    place: int


@dataclass(frozen=True)
class Leaf:
    """A tensor that is read from the cell at each call; place: which."""

    place: int


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the step makes of numbers."""

    tensor: Tensor


@dataclass(frozen=True)
class Call:
    """function(*arguments, **options)."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Pick:
    """One of the results of a call."""

    source: Ref
    index: int


Entry = Leaf | Constant | Call | Pick


def changed(argument: Any, change: Callable[[Any], Any]) -> Any:
    """Applies a function to an argument, or to each one of a list."""
    if isinstance(argument, tuple):
        return tuple(changed(part, change) for part in argument)
    return change(argument)


class Prelude:
    """Entries in order; one that is written twice is one."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._known: dict[tuple, int] = {}

    def leaf(self, place: int) -> int:
        return self._add(Leaf(place), ("leaf", place))

    def constant(self, tensor: Tensor) -> int:
        self.entries.append(Constant(tensor))
        return len(self.entries) - 1

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
        """Lists among the arguments are given as tuples."""
        call = Call(function, arguments, tuple(sorted(options.items())))
        return self._add(call, ("call", function, repr(arguments), repr(call.options)))

    def pick(self, at: int, index: int) -> int:
        """One of several results."""
        return self._add(Pick(Ref(at), index), ("pick", at, index))

    def _add(self, entry: Entry, key: tuple) -> int:
        if key not in self._known:
            self.entries.append(entry)
            self._known[key] = len(self.entries) - 1
        return self._known[key]

    def only(self, wanted: Sequence[int], formulas: Mapping[float, Formula]) -> Replay:
        """What computes the wanted entries; formulas: of the numbers that stand for some."""
        used: set[int] = set()
        waiting = list(wanted)
        while waiting:
            place = waiting.pop()
            if place not in used:
                used.add(place)
                waiting += references(self.entries[place])
        order = {place: position for position, place in enumerate(sorted(used))}

        def renamed(part: Any) -> Any:
            if isinstance(part, Ref):
                return Ref(order[part.place])
            return formulas.get(part, part) if isinstance(part, float) else part

        entries = tuple(_with(self.entries[place], renamed) for place in order)
        return Replay(entries, tuple(order[place] for place in wanted))


def references(entry: Entry) -> list[int]:
    """The places of the entries that one follows from."""
    found: list[int] = []

    def note(part: Any) -> Any:
        if isinstance(part, Ref):
            found.append(part.place)
        return part

    _with(entry, note)
    return found


def _with(entry: Entry, change: Callable[[Any], Any]) -> Entry:
    """An entry with other arguments."""
    if isinstance(entry, Pick):
        return Pick(change(entry.source), entry.index)
    if isinstance(entry, Call):
        options = tuple((name, change(part)) for name, part in entry.options)
        return Call(entry.function, changed(entry.arguments, change), options)
    return entry


@dataclass(frozen=True, eq=False)
class Replay:
    """entries, in order, and which of them are wanted."""

    entries: tuple[Entry, ...]
    wanted: tuple[int, ...]

    @cached_property
    def leaves(self) -> list[int]:
        """The places of the leaves that it reads, in the order in which `run` takes them."""
        return [entry.place for entry in self.entries if isinstance(entry, Leaf)]

    def name(self, place: int, leaves: Sequence[str]) -> str:
        """The name of a wanted tensor, made of the leaves' names."""
        used, waiting = set(), [self.wanted[place]]
        while waiting:
            used.add(at := waiting.pop())
            waiting += references(self.entries[at])
        order = [at for at, entry in enumerate(self.entries) if isinstance(entry, Leaf)]
        found = [leaves[order.index(at)] for at in sorted(used) if at in order]
        alone = isinstance(self.entries[self.wanted[place]], Leaf)
        return found[0] if alone else f"p{place}" + (f" of {', '.join(found)}" if found else "")

    def run(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The wanted tensors, from those of its leaves."""
        if len(self.leaves) == len(self.entries):  # as in most cells
            return [leaves[place] for place in self.wanted]
        rest = iter(leaves)
        found: list[Any] = []
        for entry in self.entries:
            if isinstance(entry, Leaf):
                found.append(next(rest))
            elif isinstance(entry, Constant):
                found.append(entry.tensor)
            elif isinstance(entry, Pick):
                found.append(found[entry.source.place][entry.index])
            else:
                found.append(_result(entry, found))
        return [found[place] for place in self.wanted]

    def settled(self) -> Replay:
        """The prelude with the numbers that its formulas give now."""
        return Replay(tuple(_with(entry, value) for entry in self.entries), self.wanted)

    def differs(self, other: Replay) -> bool:
        """Whether two replays do not compute the same."""
        return self.wanted != other.wanted or len(self.entries) != len(other.entries) or not all(map(_same, self.entries, other.entries))


def _result(call: Call, found: list[Any]) -> Any:
    def given(part: Any) -> Any:
        return found[part.place] if isinstance(part, Ref) else value(part)

    return call.function(*changed(call.arguments, given), **{name: value(part) for name, part in call.options})


def _same(a: Entry, b: Entry) -> bool:
    if isinstance(a, Constant) and isinstance(b, Constant):
        alike = a.tensor.dtype == b.tensor.dtype and a.tensor.shape == b.tensor.shape
        return alike and bool(torch.isclose(a.tensor, b.tensor, rtol=0, atol=0, equal_nan=True).all())
    return repr(a) == repr(b)
