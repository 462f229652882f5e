"""The number of sequences as a cell sees it while its step is captured: a size that cannot be calculated with."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any, NoReturn, overload

from sstkern.program.capture.reasons import Mixed, refuse


def _number(self: Any, *_: Any) -> NoReturn:
    refuse("the number of sequences, x.size(0), is used as a number", "a step may use it as a size of new tensors only", Mixed)


def _compared(name: str) -> Any:
    def compare(self: Batch, other: object) -> bool:
        return getattr(int, name)(self, other) if isinstance(other, Batch) else _number(self)

    return compare


def _times(self: Any, count: object) -> Any:
    """The first dimension of a tensor that has the sequences and another dimension as one."""
    return Batch(int.__mul__(self, count)) if type(count) is int and count > 0 else _number(self)


class Batch(int):
    """The number of sequences, or a multiple of it.

    torch takes it for the size of a tensor. Calculating with it, but for a multiple, or comparing it with a number is refused: a program
    has no such number.
    """

    __hash__ = int.__hash__


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Batch, f"__{_name}__", _compared(f"__{_name}__"))
for _name in ("add", "sub", "truediv", "floordiv", "mod", "divmod", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(Batch, f"__{_name}__", _number)
    setattr(Batch, f"__r{_name}__", _number)
for _name in ("mul", "rmul"):
    setattr(Batch, f"__{_name}__", _times)
for _name in ("neg", "pos", "abs", "invert", "float", "int", "bool", "round", "trunc", "floor", "ceil"):
    setattr(Batch, f"__{_name}__", _number)


class Shape(tuple[int, ...]):
    """A torch.Size that keeps a `Batch` what it is."""

    @overload  # type: ignore[override]
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Shape: ...
    def __getitem__(self, place: Any) -> Any:
        found = tuple.__getitem__(self, place)
        return Shape(found) if isinstance(place, slice) else found

    def __add__(self, other: Iterable[int]) -> Shape:  # type: ignore[override]
        return Shape((*self, *other))

    def numel(self) -> int:
        return known(prod(map(int.__index__, self)), any(isinstance(size, Batch) for size in self))


def known(size: int, rows: bool) -> int:
    return Batch(size) if rows else size


def shape(sizes: Iterable[int], batch: int) -> Shape:
    """Sizes as a cell may see them, `batch` being the number of sequences: no other size is a multiple of it."""
    return Shape(known(size, size > 0 and size % batch == 0) for size in sizes)
