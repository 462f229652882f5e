"""The language of one time step: a `Program` over rows, its text, and the `Builder` that makes one.

A *row* is what one sequence has at one time step: of an input, a state, or what follows from them. A value of the program is a tensor of
rows, (R, ...), R rows of any shape, or a *parameter*, the same for all rows, which has no dimension for them. Dimensions in attributes
count from the end, -1 the last.

The text has no sizes and no changing numbers: `#0`, `#1` stand for sizes and `$0`, `$1` for numbers that are arguments of a call. The text
of torch.nn.RNNCell:

    inputs 1
    states 1
    parameters 2 2 1 1
    v0 = product x0 p0
    v1 = add v0 p2
    v2 = product h0 p1
    v3 = add v2 p3
    v4 = add v1 v3
    v5 = tanh v4
    outputs v5
    states v5

The first three lines give the number of dimensions of each: those of a row for inputs and states, all of a parameter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from sstkern.program.language import OPERATIONS
from sstkern.program.values import Argument, Attribute, Node, Number, Size, Value


@dataclass(frozen=True, eq=False)
class Program:
    """One time step. Programs are equal if their texts are: 1, 1.0 and True are not the same.

    inputs, states, parameters: the numbers of dimensions of each, without that of the rows. outputs: what a step gives, the layer's output
    first. next_states: each state's value after the step. cell: the name of the class whose step it is, for messages only; a text has none.
    """

    inputs: tuple[int, ...]
    states: tuple[int, ...]
    parameters: tuple[int, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    next_states: tuple[Value, ...]

    text: str = field(init=False)
    cell: str = field(default="an own cell", kw_only=True)

    def __post_init__(self) -> None:
        _check(self)
        lines = [_words("inputs", self.inputs), _words("states", self.states), _words("parameters", self.parameters)]
        lines += [f"v{place} = {node}" for place, node in enumerate(self.nodes)]
        lines += [_words("outputs", self.outputs), _words("states", self.next_states)]
        object.__setattr__(self, "text", "\n".join(lines))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self.text == other.text)

    def __hash__(self) -> int:
        return hash(self.text)

    def cast(self, before: torch.dtype, after: torch.dtype) -> Program:
        """The program whose own tensors are of another dtype."""

        def changed(node: Node) -> Node:
            return replace(node, attributes=tuple(after if part is before else part for part in node.attributes))

        return replace(self, nodes=tuple(map(changed, self.nodes)))

    @staticmethod
    def parse(text: str) -> Program:
        """The program of a text. Raises ValueError, with the line, for what is none."""
        return _parse(text)


def _words(name: str, parts: Iterable[object]) -> str:
    return " ".join([name, *map(str, parts)])


_WORDS = {"True": True, "False": False, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_FLOATING = torch.float64, torch.float32, torch.bfloat16, torch.float16
_INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_FLOATING, *_INTEGERS)}
_REFERENCE = re.compile(r"([xhpv#$])(\d+)")
_INTEGER = re.compile(r"-?\d+")
_FLOAT = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def _read(word: str) -> Argument | Attribute:
    if match := _REFERENCE.fullmatch(word):
        kind, place = match[1], int(match[2])
        return Size(place) if kind == "#" else Number(place) if kind == "$" else Value(kind, place)
    if word in _WORDS:
        return _WORDS[word]
    if word in _DTYPES:
        return _DTYPES[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    if _FLOAT.fullmatch(word):
        return float(word)
    return word


@lru_cache(maxsize=256)
def _parse(text: str) -> Program:
    lines = text.split("\n")
    nodes: list[Node] = []
    try:
        inputs, states, parameters = (
            _read_counts(line, name) for line, name in zip(lines[:3], ("inputs", "states", "parameters"), strict=True)
        )
        for line in lines[3:-2]:
            name, equals, operation, *words = line.split(" ")
            if equals != "=" or name != f"v{len(nodes)}" or operation not in OPERATIONS:
                raise ValueError(f"'{line}'")
            parts, takes = [_read(word) for word in words], OPERATIONS[operation].takes(len(words))
            nodes.append(Node(operation, tuple(parts[:takes]), tuple(parts[takes:])))  # type: ignore[arg-type]
        outputs, after = (_read_values(line, name) for line, name in zip(lines[-2:], ("outputs", "states"), strict=True))
    except ValueError as error:
        raise ValueError(f"program: this text is none: {error}") from None
    return Program(inputs, states, parameters, tuple(nodes), outputs, after)


def _read_values(line: str, name: str) -> tuple[Value, ...]:
    first, *words = line.split(" ")
    values = tuple(value for value in map(_read, words) if isinstance(value, Value))
    if first != name or len(values) < len(words):
        raise ValueError(f"expected '{name}' and values, got '{line}'")
    return values


def _read_counts(line: str, name: str) -> tuple[int, ...]:
    first, *words = line.split(" ")
    if first != name or not all(_INTEGER.fullmatch(word) for word in words):
        raise ValueError(f"expected '{name}' and numbers of dimensions, got '{line}'")
    return tuple(map(int, words))


def _check(program: Program) -> None:
    """Every value exists before it is used, every operation has what it takes."""
    known = {"x": len(program.inputs), "h": len(program.states), "p": len(program.parameters)}
    for place, node in enumerate(program.nodes):
        operation = OPERATIONS.get(node.operation)
        if operation is None:
            raise ValueError(f"program: there is no operation '{node.operation}'")
        operation.check(node)
        for value in node.values():
            if value.place >= (place if value.kind == "v" else known[value.kind]):
                raise ValueError(f"program: v{place} = {node} takes {value}, which does not exist there")
    for value in (*program.outputs, *program.next_states):
        if value.place >= (len(program.nodes) if value.kind == "v" else known[value.kind]):
            raise ValueError(f"program: there is no value {value}")
    if len(program.next_states) != len(program.states):
        raise ValueError(f"program: {len(program.states)} states before the step and {len(program.next_states)} after it")


class Builder:
    """Makes a program node by node. What is written twice is one node."""

    def __init__(self) -> None:
        self.dimensions: dict[str, list[int]] = {"x": [], "h": [], "p": []}
        self.nodes: list[Node] = []
        self.sizes: list[int] = []
        self.numbers: list[float] = []
        self._known: dict[tuple, Value] = {}

    def input(self, dimensions: int) -> Value:
        return self._leaf("x", dimensions)

    def state(self, dimensions: int) -> Value:
        return self._leaf("h", dimensions)

    def parameter(self, dimensions: int) -> Value:
        return self._leaf("p", dimensions)

    def _leaf(self, kind: str, dimensions: int) -> Value:
        self.dimensions[kind].append(dimensions)
        return Value(kind, len(self.dimensions[kind]) - 1)

    def size(self, size: int) -> Size:
        """A size as an argument of the call."""
        if size not in self.sizes:
            self.sizes.append(size)
        return Size(self.sizes.index(size))

    def number(self, value: float) -> Number:
        """A number as an argument of the call."""
        self.numbers.append(value)
        return Number(len(self.numbers) - 1)

    def node(self, operation: str, *arguments: Argument, attributes: Sequence[Attribute] = ()) -> Value:
        node = Node(operation, arguments, tuple(attributes))
        key = (str(node), *(type(part) for part in (*arguments, *attributes)))  # 1, 1.0 and True are equal, and -0.0 and 0.0
        if key not in self._known:
            self.nodes.append(node)
            self._known[key] = Value("v", len(self.nodes) - 1)
        return self._known[key]

    def program(self, outputs: Sequence[Value], next_states: Sequence[Value]) -> Program:
        """The program, without nodes that neither an output nor a state needs."""
        inputs, states, parameters = (tuple(self.dimensions[kind]) for kind in "xhp")
        return Program(inputs, states, parameters, *rewritten(self.nodes, outputs, next_states, {}))


def rewritten(
    nodes: Sequence[Node], outputs: Sequence[Value], next_states: Sequence[Value], names: Mapping[Value, Value]
) -> tuple[tuple[Node, ...], tuple[Value, ...], tuple[Value, ...]]:
    """What the outputs and next states follow from, with other names for some values, which then need not be computed."""
    known: dict[Value, Value] = dict(names)
    kept: list[Node] = []
    for place in sorted(needed(nodes, (*outputs, *next_states), names)):
        node = nodes[place]
        arguments = tuple(known.get(part, part) if isinstance(part, Value) else part for part in node.arguments)
        known[Value("v", place)] = Value("v", len(kept))
        kept.append(Node(node.operation, arguments, node.attributes))
    given, after = (tuple(known.get(value, value) for value in values) for values in (outputs, next_states))
    return tuple(kept), given, after


def needed(nodes: Sequence[Node], values: Iterable[Value], there: Container[Value] = ()) -> set[int]:
    """The places of the nodes that the values follow from, where some are there."""
    found: set[int] = set()
    wanted = list(values)
    while wanted:
        value = wanted.pop()
        if value.kind == "v" and value not in there and value.place not in found:
            found.add(value.place)
            wanted += nodes[value.place].values()
    return found
