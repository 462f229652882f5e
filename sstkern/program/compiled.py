"""A fused layer within torch.compile: one graph, in which the cell is its program's text and not traced step by step.

While it traces, torch.compile asks the functions that are marked constant; these return numbers and strings. Tensors of the cell, and the
numbers and strings that its step reads, are read from the cell by their names: the graph has the tensors as inputs, and is made anew when
the rest has changed. Imported while that traces: `allow_in_graph` imports the compiler.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol
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
    options: layer.Options,
    anew: Structure | None,
) -> tuple[Tensor, Structure, Structure | None] | None:
    """As `layer.run`; None where no program holds the cell, or a graph cannot read what it rests on."""
    key = _found(direction, cell, _kinds(inputs, 2 if options.padded else 1), None if hx is None else _kinds(hx, 1))
    if key == _NONE:
        return None
    _read(cell, key)
    leaves = [_at(cell, _leaf(key, place, cell)) for place in range(_leaves(key))]
    states = None if hx is None else flatten(hx)
    others = None if anew is None else flatten(anew)
    found = _in_graph(key, leaves, flatten(inputs), states, lengths, tuple(options), others)
    return layer.results(found, _structure(_form(key)) if hx is None else hx)


def _kinds(tensors: Structure, lead: int) -> Structure:
    """The Specs of a step's rows, as a constant function can be given them. len(range(size)) makes a dynamic size the number it is now."""

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
        if None in _paths(captured, cell):
            raise Unfused("torch.compile cannot follow a tensor of the cell that is in a list or dict: make it an attribute or a buffer")
        list(_reads(captured, cell))
    except Unfused as error:
        direction.refused(cell, str(error))
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
    """The inverse of `_form`, with None in place of tensors."""
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


class _Read(NamedTuple):
    """Something that a step has read of the cell. name: of the attribute, with those of the modules around it. steps: indices into what it
    holds. kind: "value" where it is compared, "there" where it is only looked at, which is enough for torch.compile to watch a function,
    "absent" for what was not there."""

    name: str
    kind: str
    steps: tuple[int | str, ...] = ()
    value: Any = None


def _reads(captured: Captured, cell: nn.Module) -> Iterator[_Read]:
    """Raises Unfused for what a graph cannot watch."""
    prefixes = {id(module): f"{name}." if name else "" for name, module in cell.named_modules()}
    for watch in captured.watches:
        if not watch.read:
            continue
        if id(watch.module) not in prefixes:
            raise Unfused(
                f"torch.compile cannot watch a {type(watch.module).__name__} in a list or dict: use nn.ModuleList or nn.ModuleDict"
            )
        prefix = prefixes[id(watch.module)]
        yield _Read(f"{prefix}training", "value", value=watch.module.training)
        yield from (_Read(f"{prefix}{name}", "absent") for name in sorted(watch.absent))
        for name in sorted(watch.read):
            yield from _within(f"{prefix}{name}", (), getattr(watch.module, name))


def _within(name: str, steps: tuple[int | str, ...], value: Any) -> Iterator[_Read]:
    if isinstance(value, _PLAIN):
        yield _Read(name, "value", steps, value)
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _within(name, (*steps, place), part)
    elif type(value) is dict and all(isinstance(key, str) for key in value):
        for key, part in value.items():
            yield from _within(name, (*steps, key), part)
    elif isinstance(value, types.FunctionType | types.BuiltinFunctionType | torch.dtype):
        yield _Read(name, "there", steps)
    elif not isinstance(value, Tensor | nn.Module | types.MethodType):
        raise Unfused(f"torch.compile cannot watch self.{name}, a {type(value).__name__}: keep numbers, strings, lists or functions")


@private.constant
def _count(key: int, cell: nn.Module) -> int:
    return len(list(_reads(_known[key], cell)))


@private.constant
def _name(key: int, cell: nn.Module, place: int) -> str:
    return list(_reads(_known[key], cell))[place].name


@private.constant
def _kind(key: int, cell: nn.Module, place: int) -> str:
    return list(_reads(_known[key], cell))[place].kind


@private.constant
def _depth(key: int, cell: nn.Module, place: int) -> int:
    return len(list(_reads(_known[key], cell))[place].steps)


@private.constant
def _step(key: int, cell: nn.Module, place: int, at: int) -> int | str:
    return list(_reads(_known[key], cell))[place].steps[at]


@private.constant
def _value(key: int, cell: nn.Module, place: int) -> bool | int | float | str | None:
    return list(_reads(_known[key], cell))[place].value


def _read(cell: nn.Module, key: int) -> None:
    """Reads it, for the graph to depend on it."""
    for place in range(_count(key, cell)):
        path, _, name = _name(key, cell, place).rpartition(".")
        module, kind = _at(cell, path), _kind(key, cell, place)
        if kind == "absent":
            same = not hasattr(module, name)
        else:
            found = getattr(module, name)
            for at in range(_depth(key, cell, place)):
                found = found[_step(key, cell, place, at)]
            same = found is not None if kind == "there" else found == _value(key, cell, place)
        if not same:
            raise AssertionError("the cell changed while it was traced")


def _at(cell: nn.Module, name: str):
    found = cell
    for part in name.split(".") if name else ():
        found = getattr(found, part)
    return found


@torch.compiler.allow_in_graph  # what torch.compile traces is then what `layer.run` does, the operators
def _in_graph(
    key: int,
    leaves: list[Tensor],
    inputs: list[Tensor],
    hx: list[Tensor] | None,
    lengths: Tensor | None,
    options: tuple[bool, ...],
    anew: list[Tensor] | None,
) -> list[Tensor]:
    return layer.run(_known[key], leaves, inputs, hx, lengths, layer.Options(*options), anew)
