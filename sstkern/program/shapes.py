"""Shapes and dtypes of a program's values, found by running it on a few rows of zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sstkern import private
from sstkern.program.graph import Node, Program, Value
from sstkern.program.language import OPERATIONS, resolved

ROWS = 3
"""Rows of the tensors that stand for any number of rows."""


@contextmanager
def on_examples() -> Iterator[None]:
    """A guard for what runs on Examples, in which nothing of the caller's sees or changes it: no trace, and no autocast, within which a
    backward may be called."""
    with private.untraced(), private.without_autocast(), torch.no_grad():
        yield


class Kind(NamedTuple):
    """shape: without the rows."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def row_kind(tensor: Tensor, lead: int) -> Kind:
    """The kind of a tensor of rows, whose first `lead` dimensions count the rows."""
    return Kind(tuple(map(int, tensor.shape[lead:])), tensor.dtype)


class Leaves(NamedTuple):
    """The kinds of a program's inputs, states and parameters, and the sizes among its arguments."""

    inputs: tuple[Kind, ...]
    states: tuple[Kind, ...]
    parameters: tuple[Kind, ...]
    sizes: tuple[int, ...]


class Examples:
    """A tensor for each value of a program."""

    def __init__(self, leaves: Leaves):
        self.sizes = leaves.sizes
        self.rows = example(Kind((), torch.bool))
        self.of: dict[Value, Tensor] = {}
        for letter, kinds in zip("xh", (leaves.inputs, leaves.states), strict=True):
            self.of |= {Value(letter, place): example(kind) for place, kind in enumerate(kinds)}
        self.of |= {Value("p", place): example(kind)[0] for place, kind in enumerate(leaves.parameters)}

    def add(self, value: Value, node: Node) -> None:
        """The value that the node computes. Raises what torch raises for shapes or dtypes that do not fit."""
        if value not in self.of:
            operation, given = OPERATIONS[node.operation], (*node.arguments, *node.attributes)
            parts = [self.of[part] if isinstance(part, Value) else resolved(part, self.sizes, _ANY_NUMBERS) for part in given]
            self.of[value] = operation.compute(*([self.rows] if operation.makes_rows else []), *parts)

    def add_leaf(self, value: Value, kind: Kind) -> None:
        self.of[value] = example(kind)

    def kind(self, value: Value) -> Kind:
        return row_kind(self.of[value], 1)


def example(kind: Kind) -> Tensor:
    """One zero, spread: it takes no memory. The meta device would do, but its first use imports torch's compiler: 2 seconds."""
    return torch.zeros((), dtype=kind.dtype, device="cpu").expand(ROWS, *kind.shape)


class _AnyNumbers(Sequence[float]):
    """Stands for a call's numbers: shapes and dtypes do not depend on them."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, place: Any) -> Any:
        return 0.5


_ANY_NUMBERS = _AnyNumbers()


@lru_cache(maxsize=1024)
def result_kinds(program: Program, leaves: Leaves) -> tuple[Kind, ...]:
    """The kinds of the outputs."""
    with on_examples():
        found = Examples(leaves)
        for place, node in enumerate(program.nodes):
            found.add(Value("v", place), node)
    return tuple(found.kind(value) for value in program.outputs)
