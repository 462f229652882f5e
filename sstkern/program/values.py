"""What a program is made of: values, numbers and sizes, and the nodes that take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Value:
    """What a node takes and gives. kind: "x" an input, "h" a state, "p" a parameter, "v" a node's result; place: which of these."""

    kind: str
    place: int

    def __str__(self) -> str:
        return f"{self.kind}{self.place}"


@dataclass(frozen=True)
class Size:
    """An int among the arguments of a call."""

    place: int

    def __str__(self) -> str:
        return f"#{self.place}"


@dataclass(frozen=True)
class Number:
    """A float among the arguments of a call."""

    place: int

    def __str__(self) -> str:
        return f"${self.place}"


Literal = bool | int | float
Argument = Value | Number | Literal
Attribute = Size | Number | Literal | str | torch.dtype


@dataclass(frozen=True)
class Node:
    """An operation of `language.OPERATIONS`."""

    operation: str
    arguments: tuple[Argument, ...]
    attributes: tuple[Attribute, ...] = ()

    def values(self) -> list[Value]:
        return [argument for argument in self.arguments if isinstance(argument, Value)]

    def __str__(self) -> str:
        return " ".join([self.operation, *map(_word, self.arguments), *map(_word, self.attributes)])


def _word(part: Argument | Attribute) -> str:
    """An argument or attribute as the text has it."""
    if isinstance(part, torch.dtype):
        return str(part).removeprefix("torch.")
    return repr(part) if isinstance(part, bool | int | float) else str(part)
