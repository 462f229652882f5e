"""What a step did, as nodes over rows and a prelude over parameters, and the program that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sstkern.program.capture.draws import Draw
from sstkern.program.capture.numbers import Formula
from sstkern.program.capture.prelude import Call, Constant, Prelude, Ref, Replay, references
from sstkern.program.capture.reasons import place, refuse, refuse_mixing
from sstkern.program.graph import Builder, Program, needed
from sstkern.program.values import Argument, Attribute, Node, Number, Value

aten = torch.ops.aten
Literal = bool | int | float

_COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not", "isnan"}
_NUMBERED = {"add", "sub", "mul", "div", "lt", "le", "gt", "ge", "eq", "ne", "where", "full"}
"""Operations whose numbers may be arguments of the call."""
_OF_TENSORS = {"maximum", "minimum", "atan2", "logical_and", "logical_or"}
"""Operations that take no numbers."""
_STOPS = {*_COMPARISONS, "detach", "full", "count"}
_SIZES = {"slice": 1, "reshape": 0, "expand": 0, "full": 1}
"""Operations with sizes among their attributes, and the first of these."""


@dataclass(frozen=True)
class Operand:
    """A tensor of the step.

    value: what it is; of kind "p" where it follows from parameters only, an entry of the prelude, of kind "r" where it is drawn. shape: as
    the cell sees it. gradient: whether a gradient goes through it. merged: how many dimensions after the first the cell sees as one with
    it. rows: whether it has a row for each sequence.
    """

    value: Value
    shape: tuple[int, ...]
    dtype: torch.dtype
    gradient: bool
    merged: int = 0

    @property
    def rows(self) -> bool:
        return self.value.kind != "p"


class Recording:
    """Of one run with `batch` sequences, a size that no other is a multiple of.

    result: what the operator that is being written down gave, or the first of that. joined: the parts of a `cat` along the last dimension
    of rows. formulas: of the numbers that stand for one. gradients: the values that take a gradient, without those within what is one of
    PyTorch's operators.
    """

    result: Tensor

    def __init__(self, batch: int, device: torch.device) -> None:
        self.batch = batch
        self.device = device
        self.formulas: dict[float, Formula] = {}
        self.joined: dict[Value, tuple[Operand, ...]] = {}
        self.prelude = Prelude()
        self.nodes: list[Node] = []
        self.draws: list[Draw] = []
        self.places: list[str] = []
        self.gradients: set[Value] = set()
        self._ranks: dict[Value, int] = {}
        self._known: dict[tuple, Value] = {}

    # Values.

    def entry(self, at: int, shape: Sequence[int]) -> Value:
        """An entry of the prelude as a value."""
        value = Value("p", at)
        self._ranks[value] = len(shape)
        return value

    def node(self, operation: str, *arguments: Argument, attributes: Sequence[Attribute] = ()) -> Value:
        node = Node(operation, arguments, tuple(attributes))
        key = (str(node), *(type(part) for part in (*arguments, *attributes)))
        if key not in self._known:
            self.nodes.append(node)
            self.places.append(place())
            self._known[key] = Value("v", len(self.nodes) - 1)
        return self._known[key]

    def draw(self, method: str, arguments: Sequence[Any], shape: tuple[int, ...], dtype: torch.dtype, compared: bool) -> Value:
        """Notes a random draw; the arguments are as `Draw` has them."""
        numbers = tuple(self.formulas.get(part, part) for part in arguments)
        self.draws.append(Draw(method, numbers, shape, dtype, compared))
        return Value("r", len(self.draws) - 1)

    def call(
        self, function: Callable[..., Any], *arguments: Any, like: Operand, shape: Sequence[int] | None = None, **options: Any
    ) -> Operand:
        """Notes a call on parameters only, with one result, which is as `like` in what is not given."""
        given = tuple(Ref(part.value.place) if isinstance(part, Operand) else part for part in arguments)
        gradient = any(part.gradient for part in arguments if isinstance(part, Operand))
        shape = like.shape if shape is None else tuple(shape)
        value = self.entry(self.prelude.call(function, *given, **options), shape)
        return self.noted(replace(like, value=value, shape=shape, gradient=gradient))

    def noted(self, operand: Operand) -> Operand:
        if operand.gradient:
            self.gradients.add(operand.value)
        return operand

    def before(self, value: Value) -> list[Value]:
        """What a value follows from."""
        if value.kind == "v":
            return self.nodes[value.place].values()
        return [Value("p", at) for at in references(self.prelude.entries[value.place])] if value.kind == "p" else []

    def passes(self, value: Value) -> bool:
        """Whether a gradient goes through a value."""
        if value.kind != "v":
            return value in self.gradients
        node = self.nodes[value.place]
        return node.operation not in _STOPS and not any(
            isinstance(part, torch.dtype) and not part.is_floating_point for part in node.attributes
        )

    def detached(self, operand: Operand) -> Operand:
        if operand.rows:
            return replace(operand, value=self.node("detach", operand.value), gradient=False)
        found = self.call(aten.detach.default, operand, like=operand)
        self.gradients.discard(found.value)
        return replace(found, gradient=False)

    # Rows.

    def has_rows(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has a dimension of sequences."""
        return any(size and size % self.batch == 0 for size in shape)

    def batch_dim(self, shape: Sequence[int]) -> int:
        """Which dimension is that of the sequences."""
        if shape.count(self.batch) != 1 or any(size and size % self.batch == 0 for size in shape if size != self.batch):
            refuse_mixing()
        return shape.index(self.batch)

    def merges(self, shape: Sequence[int], result: Sequence[int]) -> bool:
        """Whether the result has the first dimensions, of which the sequences are the first, as one, and more rows than sequences."""
        merged = len(shape) - len(result) + 1
        return shape[0] == self.batch and math.prod(shape[1:merged]) > 1 and (math.prod(shape[:merged]), *shape[merged:]) == tuple(result)

    def own(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A row's dimensions."""
        dim = self.batch_dim(shape)
        return (*shape[:dim], *shape[dim + 1 :])

    def own_dim(self, shape: Sequence[int], dim: int) -> int:
        """A dimension of the tensor as one of a row, negative."""
        dim %= len(shape)
        batch = self.batch_dim(shape)
        if dim == batch:
            refuse_mixing()
        return (dim if dim < batch else dim - 1) - (len(shape) - 1)

    def reshaped(self, operand: Operand, shape: Sequence[int]) -> Operand:
        """Rows in another shape, the sequences where they were: as many elements stand before them as did."""
        value, before, after = operand.value, self.own(operand.shape), self.own(shape)
        if math.prod(operand.shape[: self.batch_dim(operand.shape)]) != math.prod(shape[: self.batch_dim(shape)]):
            refuse_mixing()
        if before != after:
            value = self.node("reshape", value, attributes=after)
        return replace(operand, value=value, shape=tuple(shape))

    def repeated(self, operand: Operand, shape: Sequence[int]) -> Operand:
        """A parameter as rows, the same in each."""
        value = self.node("expand", self._aligned(operand, shape), attributes=self.own(shape))
        return replace(operand, value=value, shape=tuple(shape))

    # Pointwise.

    def pointwise(self, operation: str, *operands: Operand | Literal, attributes: Sequence[Attribute] = ()) -> Operand:
        """An operation on tensors and numbers, broadcast as torch does."""
        tensors = [operand for operand in operands if isinstance(operand, Operand)]
        shape = broadcast([operand.shape for operand in tensors])
        dtype = torch.bool if operation in _COMPARISONS else _promoted(tensors if operation != "where" else tensors[1:] or tensors)
        gradient = any(operand.gradient for operand in tensors) and dtype.is_floating_point
        like = Operand(tensors[0].value, shape, dtype, gradient, max(operand.merged for operand in tensors))
        if not any(operand.rows for operand in tensors):
            return self.call(getattr(aten, operation), *operands, *attributes, like=like)
        dtypes = [operand.dtype for operand in tensors if operand.rows]
        arguments = [self._argument(operation, operand, shape, dtypes) if isinstance(operand, Operand) else operand for operand in operands]
        return replace(like, value=self.node(operation, *arguments, attributes=attributes))

    def _argument(self, operation: str, operand: Operand, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> Argument:
        if operand.shape == () and any(dtype.is_floating_point or not operand.dtype.is_floating_point for dtype in dtypes):
            number = self.number(operand)
            if number is not None and not isinstance(number, bool) and operation not in _OF_TENSORS:
                return number
            if operand.dtype.is_floating_point and operand.dtype not in dtypes:
                operand = self.cast(operand, next(dtype for dtype in dtypes if dtype.is_floating_point))
        one = not operand.rows and operand.shape != () and math.prod(operand.shape) == 1
        if one and operand.dtype.is_floating_point and operand.dtype not in dtypes:
            refuse(f"a parameter of {operand.dtype} with a row of {dtypes[0]}", "use one dtype")
        return self._aligned(operand, shape)

    def cast(self, operand: Operand, dtype: torch.dtype) -> Operand:
        if operand.dtype == dtype:
            return operand
        like = replace(operand, dtype=dtype, gradient=operand.gradient and dtype.is_floating_point)
        if not operand.rows:
            return self.call(aten._to_copy.default, operand, like=like, dtype=dtype)
        return replace(like, value=self.node("cast", operand.value, attributes=(dtype,)))

    def number(self, operand: Operand) -> Literal | None:
        """The value of a tensor without dimensions that the step made of a number."""
        entry = None if operand.rows else self.prelude.entries[operand.value.place]
        if isinstance(entry, Constant) and entry.tensor.dim() == 0:
            return entry.tensor.item()
        if isinstance(entry, Call) and entry.function is aten.scalar_tensor.default:
            return torch.tensor(entry.arguments[0], dtype=operand.dtype).item()
        return None

    def filling(self, operand: Operand) -> Operand | Literal:
        """The number that stands everywhere in rows that the step made of one; others as they are."""
        node = self.nodes[operand.value.place] if operand.value.kind == "v" else None
        return node.arguments[0] if node is not None and node.operation == "full" else operand  # type: ignore[return-value]

    def _aligned(self, operand: Operand, shape: Sequence[int]) -> Value:
        """An operand's value where the result has the shape: rows of as many dimensions, parameters without that of the sequences."""
        right = len(shape) - 1 - self.batch_dim(shape)
        if operand.rows:
            if len(operand.shape) - 1 - self.batch_dim(operand.shape) != right:
                refuse_mixing()
            missing = len(shape) - len(operand.shape)
            return self.reshaped(operand, (*([1] * missing), *operand.shape)).value if missing else operand.value
        extra = len(operand.shape) - 1 - right
        if extra < 0:
            return operand.value
        kept = (*operand.shape[:extra], *operand.shape[extra + 1 :])
        return self.call(aten.squeeze.dim, operand, extra, like=operand, shape=kept).value

    # The program.

    def program(self, inputs: Sequence[int], states: Sequence[int], outputs: Sequence[Value], after: Sequence[Value]) -> Recorded:
        """The program of what the results need. inputs, states: the numbers of dimensions of their rows."""
        builder = Builder()
        known: dict[Value, Value] = {Value("x", at): builder.input(count) for at, count in enumerate(inputs)}
        known |= {Value("h", at): builder.state(count) for at, count in enumerate(states)}
        wanted: list[int] = []
        draws: list[Draw] = []
        places: list[str] = []

        def value(part: Value) -> Value:
            if part not in known and part.kind == "r":
                draws.append(self.draws[part.place])
                known[part] = builder.input(len(draws[-1].shape))
            elif part not in known:
                wanted.append(part.place)
                known[part] = builder.parameter(self._ranks[part])
            return known[part]

        numbers: list[Formula] = []

        def argument(part: Argument, operation: str) -> Argument:
            if isinstance(part, Value):
                return value(part)
            if isinstance(part, float) and part in self.formulas and operation in _NUMBERED:
                formula = self.formulas[part]
                if formula not in numbers:
                    numbers.append(formula)
                    return builder.number(formula.value())
                return Number(numbers.index(formula))
            return part

        for at in sorted(needed(self.nodes, (*outputs, *after))):
            node = self.nodes[at]
            first = _SIZES.get(node.operation, len(node.attributes))
            sizes = [builder.size(size) for size in node.attributes[first:]]  # type: ignore[arg-type]
            arguments = [argument(part, node.operation) for part in node.arguments]
            known[Value("v", at)] = builder.node(node.operation, *arguments, attributes=(*node.attributes[:first], *sizes))
            places.append(self.places[at])
        program = builder.program(list(map(value, outputs)), list(map(value, after)))
        replay = self.prelude.only(wanted, self.formulas)
        return Recorded(program, tuple(builder.sizes), tuple(numbers), replay, tuple(places), tuple(draws))


@dataclass(frozen=True, eq=False)
class Recorded:
    """numbers: those among the program's arguments. replay: what computes its parameters. places: the user's line of each node. draws: the
    program's last inputs."""

    program: Program
    sizes: tuple[int, ...]
    numbers: tuple[Formula, ...]
    replay: Replay
    places: tuple[str, ...]
    draws: tuple[Draw, ...]

    def settled(self) -> Recorded:
        """The recorded step with its numbers as they are now in place of arguments."""

        def number(part: Any) -> Any:
            return self.numbers[part.place].value() if isinstance(part, Number) else part

        nodes = tuple(replace(node, arguments=tuple(map(number, node.arguments))) for node in self.program.nodes)
        program, draws = replace(self.program, nodes=nodes), tuple(draw.settled() for draw in self.draws)
        return replace(self, program=program, numbers=(), replay=self.replay.settled(), draws=draws)


def broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    result = [1] * max(map(len, shapes))
    for shape in shapes:
        for at, size in enumerate(shape, len(result) - len(shape)):
            if size != 1 and result[at] not in (1, size):  # of what the cell sees flattened, each in another way
                refuse_mixing()
            result[at] = size if result[at] == 1 else result[at]
    return tuple(result)


def _promoted(operands: Sequence[Operand]) -> torch.dtype:
    """The dtype of a result; a tensor without dimensions counts where it is of a higher kind only."""
    with_dims = [operand.dtype for operand in operands if operand.shape]
    dtypes = with_dims or [operand.dtype for operand in operands]
    result = dtypes[0]
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result
