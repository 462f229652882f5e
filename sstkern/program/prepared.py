"""What the engines have in common of a program that they run: which tensors its loops take, and the shapes of what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sstkern.program.graph import Program
from sstkern.program.language import OPERATIONS, resolved
from sstkern.program.loops import Arguments
from sstkern.program.lower import Lowered, Wanted, lowered
from sstkern.program.run import Call
from sstkern.program.shapes import Kind, Leaves
from sstkern.program.spread import spread
from sstkern.program.values import Number, Value


class Prepared:
    """A program for tensors of some kinds, as an engine runs it. rows_only: which inputs and outputs are (N, ...) where the call is padded.
    narrow: the 16-bit dtype that the tensors had before they were widened."""

    vectors: list[Vector]

    def __init__(
        self,
        program: Program,
        leaves: Leaves,
        outputs: tuple[Value, ...],
        sums: tuple[Wanted, ...],
        rows_only: tuple[set[int], set[int]],
        narrow: torch.dtype | None = None,
    ):
        program, new = spread(program, leaves)
        outputs, sums = tuple(new.get(value, value) for value in outputs), tuple(part.renamed(new) for part in sums)
        found = lowered(program, leaves, outputs, sums)
        self.program, self.fixed = program, found.fixed
        self.places = {value: place for place, value in enumerate(self._values())}
        self.weights = [self.places[value] for value in found.weights]
        self.numbers = 1 + max((part.place for node in program.nodes for part in _parts(node) if isinstance(part, Number)), default=-1)
        self.inputs, self.states = _dimensions(leaves.inputs), _dimensions(leaves.states)
        self.shapes = [found.values.kinds[value].shape for value in outputs]
        self.state_shapes = [kind.shape for kind in leaves.states]
        self.sum_shapes = [_sum_shape(found, part) for part in sums]
        # As most are: to look at each result's shape takes 5 microseconds a call.
        of_sums = zip(self.sum_shapes, sums, strict=True)
        self.vectors_only = all(len(shape) == 1 for shape in (*self.shapes, *self.state_shapes)) and all(
            len(shape) == (1 if part.right is None else 2) for shape, part in of_sums
        )
        self.outputs, self.narrow = len(outputs), narrow
        self.prepare(found, rows_only)

    def prepare(self, found: Lowered, rows_only: tuple[set[int], set[int]]) -> None:
        """Makes of the loops what the engine runs, and gives self.vectors."""
        raise NotImplementedError

    def vectors_of(self, found: Lowered, arguments: Arguments) -> list[Vector]:
        return [Vector(self.places[value], shape, found.values.kinds[value].shape) for value, shape in arguments.vectors]

    def __call__(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        states: Sequence[Tensor],
        lengths: Tensor | None,
        call: Call,
        reverse: bool,
        saved_rows: int | None = None,
        groups: int | None = None,
        backward: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The outputs, the states after the last step, and the sums, with groups (groups, ...): those of equal shares of the batch."""
        known = self._known(parameters, call) if self.fixed else parameters
        outputs, last, sums = self.run(
            inputs if self.inputs is None else _flat(inputs, self.inputs),
            [known[place] for place in self.weights],
            [known[vector.place] if vector.as_it_is else vector.spread(known[vector.place]) for vector in self.vectors],
            states if self.states is None else _flat(states, _for_all(self.states, states)),
            lengths,
            call.numbers[: self.numbers],
            reverse,
            call.padded,
            saved_rows,
            groups,
            backward,
        )
        if self.vectors_only:
            return outputs, last, sums
        return (
            _shaped(outputs, self.shapes),
            _shaped(last, _for_all(self.state_shapes, last)),
            _shaped(sums, self.sum_shapes, leading=0 if groups is None else 1),
        )

    def run(
        self,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        vectors: Sequence[Tensor],
        states: Sequence[Tensor],
        lengths: Tensor | None,
        numbers: Sequence[float],
        reverse: bool,
        padded: bool,
        saved_rows: int | None,
        groups: int | None,
        backward: bool,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As `__call__`, with rows that are vectors."""
        raise NotImplementedError

    def _values(self) -> list[Value]:
        """Parameters, and what follows from them only."""
        return [*(Value("p", place) for place in range(len(self.program.parameters))), *(Value("v", place) for place in self.fixed)]

    def _known(self, parameters: Sequence[Tensor], call: Call) -> list[Any]:
        """The values, in that order."""
        known: dict[Value, Any] = {Value("p", place): tensor for place, tensor in enumerate(parameters)}
        for place in self.fixed:
            node = self.program.nodes[place]
            given = [known[part] if isinstance(part, Value) else resolved(part, call.sizes, call.numbers) for part in _parts(node)]
            known[Value("v", place)] = OPERATIONS[node.operation].compute(*given)
        return [known[value] for value in self._values()]


class Vector:
    """A value without rows that loops read, spread to a shape, or one number. own: its shape."""

    def __init__(self, place: int, shape: tuple[int, ...] | None, own: tuple[int, ...]):
        self.place, self.shape = place, shape
        self.as_it_is = len(own) == 1 and shape in (None, own)

    def spread(self, vector: Any) -> Tensor:
        """Where it is not `as_it_is`."""
        tensor = torch.as_tensor(vector)
        return tensor.reshape(1) if self.shape is None else tensor.expand(self.shape).reshape(-1)


def _sum_shape(found: Lowered, part: Wanted) -> tuple[int, ...]:
    left = found.values.kinds[part.left].shape
    return left if part.right is None else (left[-1], found.values.kinds[part.right].shape[-1])


def _parts(node):
    return (*node.arguments, *node.attributes)


def _dimensions(kinds: Sequence[Kind]) -> list[int] | None:
    """How many dimensions each one's rows have; None where all are vectors, which need not be made flat."""
    found = [len(kind.shape) for kind in kinds]
    return None if all(count == 1 for count in found) else found


def _for_all(of_each: list, states: Sequence[Tensor]) -> list:
    """What holds for each of the program's states, for those too that sequences begin anew with, where they follow."""
    return of_each * (len(states) // max(1, len(of_each)))


def _flat(tensors: Sequence[Tensor], dimensions: Sequence[int]) -> list[Tensor]:
    """Rows of any shape as rows of numbers."""
    return [
        tensor if count == 1 else tensor.unsqueeze(-1) if count == 0 else tensor.flatten(-count)
        for tensor, count in zip(tensors, dimensions, strict=True)
    ]


def _shaped(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], leading: int | None = None) -> list[Tensor]:
    """The inverse of `_flat`. leading: how many dimensions stand before the row's; all but one by default."""
    return [
        tensor if tensor.dim() == len(shape) + (tensor.dim() - 1 if leading is None else leading) else _reshaped(tensor, shape, leading)
        for tensor, shape in zip(tensors, shapes, strict=True)
    ]


def _reshaped(tensor: Tensor, shape: tuple[int, ...], leading: int | None) -> Tensor:
    return tensor.reshape(*tensor.shape[: -1 if leading is None else leading], *shape)
