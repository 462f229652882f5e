"""A fused layer within torch.compile: one graph, in which the cell is its program's text and not traced step by step.

While it traces, torch.compile asks the functions that are marked constant; these return numbers and strings. Tensors of the cell, and the
numbers and strings that its step reads, are read from the cell by their names: the graph has the tensors as inputs, and is made anew when
the rest has changed. Imported while that traces: `allow_in_graph` imports the compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sstkern import private
from sstkern.program import layer
from sstkern.program.capture import Captured, Spec, Unfused
from sstkern.structure import Returns, Structure, flatten, mapped

_NONE = -1
_PLAIN = (bool, int, float, str, type(None))
_known: WeakValueDictionary[int, Captured] = WeakValueDictionary()


class Direction(Protocol):
    """What a program is looked for in, and told why there is none."""

    programs: layer.Programs
    returns: Returns

    def refused(self, cell: nn.Module, reason: str) -> None: ...


def run(
    direction: Direction,
    cell: nn.Module,
    inputs: Structure,
    hx: Structure | None,
    lengths: Tensor | None,
    *,
    padded: bool,
    reverse: bool,
    recompute: bool,
    every: bool,
) -> tuple[Tensor, Structure, Structure | None] | None:
    """As `layer.run`; None where no program holds the cell, or a graph cannot read what it rests on."""
    key = _found(direction, cell, _kinds(inputs, 2 if padded else 1), None if hx is None else _kinds(hx, 1))
    if key == _NONE:
        return None
    _read(cell, key)
    leaves = [_at(cell, _leaf(key, place, cell)) for place in range(_leaves(key))]
    states = None if hx is None else flatten(hx)
    found = _in_graph(key, leaves, flatten(inputs), states, lengths, padded, reverse, recompute, every)
    return layer.results(found, _structure(_form(key)) if hx is None else hx)


def _kinds(tensors: Structure, lead: int) -> Structure:
    """Of a step's rows of each, in what a constant function can be given. len(range(size)) has a dynamic size for what it is now."""

    def kind(tensor: Tensor) -> dict:
        shape = tuple([len(range(size)) for size in tensor.shape[lead:]])
        return {"shape": shape, "dtype": tensor.dtype, "device": str(tensor.device), "cast": layer.is_cast(tensor)}

    return mapped(tensors, kind)


def _specs(kinds: Structure, cell: nn.Module) -> Structure:
    dtype = layer.cast_dtype(cell)

    def spec(kind: dict) -> Spec:
        return Spec(kind["shape"], dtype if kind["cast"] and dtype else kind["dtype"], torch.device(kind["device"]))

    return mapped(kinds, spec)


@private.constant
def _found(direction: Direction, cell: nn.Module, inputs: Structure, state: Structure | None) -> int:
    """A program's number, for the functions below."""
    try:
        given = None if state is None else _specs(state, cell)
        captured = direction.programs.find(cell, _specs(inputs, cell), given, direction.returns)
    except Unfused as error:
        direction.refused(cell, str(error))
        return _NONE
    if None in _paths(captured, cell):
        direction.refused(
            cell, "torch.compile cannot follow a tensor of the cell that is in a list or dict: make it an attribute or a buffer"
        )
        return _NONE
    direction.programs.in_graphs.append(captured)
    _known[id(captured)] = captured
    return id(captured)


def _paths(captured: Captured, cell: nn.Module) -> list[str | None]:
    """The names of the tensors; None for one in a container, or in a module that is in one."""
    names = {id(module): f"{name}." if name else "" for name, module in cell.named_modules()}
    return [
        None if source.steps or id(source.owner) not in names else f"{names[id(source.owner)]}{source.name}" for source in captured.sources
    ]


@private.constant
def _form(key: int) -> str:
    """The structure of the state: `(.[..])`."""
    return "".join(_characters(_known[key].state))


def _characters(structure: Structure) -> Iterator[str]:
    if isinstance(structure, tuple | list):
        first, last = "()" if isinstance(structure, tuple) else "[]"
        yield first
        for part in structure:
            yield from _characters(part)
        yield last
    else:
        yield "."


def _structure(form: str) -> Structure:
    """The way back, with None in place of tensors."""
    open_ones: list[list] = [[]]
    for character in form:
        if character in "([":
            open_ones.append([])
        elif character == ".":
            open_ones[-1].append(None)
        else:
            parts = open_ones.pop()
            open_ones[-1].append(tuple(parts) if character == ")" else parts)
    return open_ones[0][0]


@private.constant
def _leaves(key: int) -> int:
    """How many tensors of the cell the program reads."""
    return len(_known[key].sources)


@private.constant
def _leaf(key: int, place: int, cell: nn.Module) -> str:
    """The name of one."""
    name = _paths(_known[key], cell)[place]
    assert name is not None
    return name


def _reads(key: int, cell: nn.Module) -> list[tuple[str, bool | int | float | str | None]]:
    """What else the step reads of the cell: names and values."""
    prefixes = {id(module): f"{name}." if name else "" for name, module in cell.named_modules()}
    found = [
        (f"{prefixes[id(watch.module)]}{name}", getattr(watch.module, name))
        for watch in _known[key].watches
        if id(watch.module) in prefixes
        for name in (*sorted(watch.read), "training")
    ]
    return [(name, value) for name, value in found if isinstance(value, _PLAIN)]


@private.constant
def _count(key: int, cell: nn.Module) -> int:
    return len(_reads(key, cell))


@private.constant
def _name(key: int, cell: nn.Module, place: int) -> str:
    return _reads(key, cell)[place][0]


@private.constant
def _value(key: int, cell: nn.Module, place: int) -> bool | int | float | str | None:
    return _reads(key, cell)[place][1]


def _read(cell: nn.Module, key: int) -> None:
    """Reads it, for the graph to depend on it."""
    for place in range(_count(key, cell)):
        if _at(cell, _name(key, cell, place)) != _value(key, cell, place):
            raise AssertionError("the cell changed while it was traced")


def _at(cell: nn.Module, name: str):
    found = cell
    for part in name.split("."):
        found = getattr(found, part)
    return found


@torch.compiler.allow_in_graph  # what torch.compile traces is then what `layer.run` does, the operators
def _in_graph(
    key: int,
    leaves: list[Tensor],
    inputs: list[Tensor],
    hx: list[Tensor] | None,
    lengths: Tensor | None,
    padded: bool,
    reverse: bool,
    recompute: bool,
    every: bool,
) -> list[Tensor]:
    options = {"padded": padded, "reverse": reverse, "recompute": recompute, "every": every}
    return layer.run(_known[key], leaves, inputs, hx, lengths, **options)
