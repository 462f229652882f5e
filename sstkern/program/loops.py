"""The text of a program's loops (`lower`), in whatever language an engine compiles: a walk over their windows, whose words a subclass has.

The text names no sizes: where a window begins in a row is an argument. Programs that differ in their sizes alone have the same text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sstkern.program.language import divisor
from sstkern.program.lower import Attached, Loop, Lowered, Memory
from sstkern.program.values import Node, Number, Value
from sstkern.program.windows import Window

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_OF_BOOLS = ("add", "mul", "maximum", "minimum")
"""Operations that give a bool of two, computed with 0 and 1."""
_ATTRIBUTES = ("softplus", "elu", "leaky_relu", "hardtanh", "clamp")
"""Operations whose attributes are numbers."""


class Row(NamedTuple):
    """A window of a slot's row from `starts[start]` on, or from 0 on where start is -1. one: one number, which all units take."""

    slot: int
    start: int
    one: bool
    boolean: bool
    written: bool


class Vector(NamedTuple):
    """A vector, described as in `Row`."""

    vector: int
    start: int
    one: bool


@dataclass
class Touched:
    """What a loop reads and writes."""

    rows: list[Row] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)


class Line(NamedTuple):
    """A statement: what `name` stands for, or, without a name, one that stores."""

    name: str
    text: str


class Arguments:
    """What the text of a program's loops names by its place.

    starts: where windows begin in their rows. vectors: the values without rows that loops read, or that products begin with, and the shape
    that each is spread to, None for one number.
    """

    def __init__(self, lowered: Lowered):
        self.lowered, self.values = lowered, lowered.values
        self.starts: list[int] = []
        self.vectors: list[tuple[Value, tuple[int, ...] | None]] = []
        self._start_of: dict[Memory | tuple, int] = {}

    def start(self, key: Memory | tuple, start: int) -> int:
        """The place in `starts` of where a window begins, or -1 for 0."""
        if start == 0:
            return -1
        if key not in self._start_of:
            self._start_of[key] = len(self.starts)
            self.starts.append(start)
        return self._start_of[key]

    def vector(self, value: Value, shape: tuple[int, ...] | None) -> int:
        if (value, shape) not in self.vectors:
            self.vectors.append((value, shape))
        return self.vectors.index((value, shape))

    def bias(self, attached: Attached) -> int:
        """The place among the vectors of what a product begins with; -1 without."""
        return -1 if attached.bias is None else self.vector(attached.bias, self.values.kinds[attached.bias].shape)


class LoopText(ABC):
    """One loop's lines."""

    def __init__(self, arguments: Arguments, loop: Loop):
        self.arguments, self.values, self.loop = arguments, arguments.values, loop
        self.names: dict[object, str] = {}
        self.lines: list[Line] = []
        self.touched = Touched()

    @abstractmethod
    def literal(self, value: float) -> str: ...

    @abstractmethod
    def number(self, place: int) -> str:
        """A number of the call."""

    @abstractmethod
    def size(self, start: int) -> str:
        """A start, as a number."""

    @abstractmethod
    def row(self, row: Row) -> str:
        """A window loaded."""

    @abstractmethod
    def sums(self, place: int, gate: int) -> str:
        """The sums of the loop's product number `place`."""

    @abstractmethod
    def vector(self, vector: Vector, boolean: bool) -> str: ...

    @abstractmethod
    def call(self, operation: str, arguments: list[str]) -> str: ...

    @abstractmethod
    def condition(self, number: str) -> str:
        """Whether one number is not 0."""

    @abstractmethod
    def truth(self, numbers: str) -> str:
        """Where they are not 0."""

    @abstractmethod
    def numbers(self, mask: str) -> str:
        """1 where it is true, else 0."""

    @abstractmethod
    def spread(self, argument: str, mask: bool) -> str:
        """What may be one number or bool, as one in every unit where the language needs that."""

    @abstractmethod
    def stored(self, row: Row, value: str) -> str:
        """The statement that stores a window."""

    def new_name(self) -> str:
        return f"v{len(self.names)}"

    def walk(self) -> None:
        for window in self.loop.windows:
            self._define(window, self._computed(window))
        self._store()

    def live(self) -> int:
        """The largest number of values that are alive at once, if each is computed as late as it stands."""
        last: dict[str, int] = {}
        for place, line in enumerate(self.lines):
            for word in (line.name, *_variables(line.text)):
                last[word] = place
        last.pop("", None)
        alive, most = 0, 0
        ends = [0] * (len(self.lines) + 1)
        for place in last.values():
            ends[place] += 1
        for place, line in enumerate(self.lines):
            alive += line.name != ""
            most = max(most, alive)
            alive -= ends[place]
        return most

    def _store(self) -> None:
        """Puts each value to memory as soon as it is there: fewer are alive then, and an LSTM's training step took 0.95 of the time.
        Numbers, and what goes into rows that the loop reads, come last."""
        stores = [(self._vectors(window), self._written(window, memory)) for window, memory in self.loop.stores]
        read = {row.slot for row in self.touched.rows if not row.written}
        early: dict[str, list[Line]] = {line.name: [] for line in self.lines}
        late: list[Line] = []
        for value, row in stores:
            (early[value] if value in early and row.slot not in read else late).append(Line("", self.stored(row, value)))
        self.lines = [one for line in self.lines for one in (line, *early[line.name])] + late

    def _written(self, window: Window, memory: Memory) -> Row:
        row = Row(memory.slot, self.arguments.start(memory, memory.start), False, self._is_mask(window), True)
        self.touched.rows.append(row)
        return row

    def _define(self, key: object, text: str) -> str:
        name = self.new_name()
        self.names[key] = name
        self.lines.append(Line(name, text))
        return name

    def _is_mask(self, window: Window) -> bool:
        return window.base is not None and self.values.kinds[window.base].dtype == torch.bool

    def _argument(self, window: Window) -> str:
        """A window as an operand: a variable or a number."""
        if window in self.names:
            return self.names[window]
        base = window.base
        if base is None:
            return self.literal(0.0)
        if self.values.is_constant(base):
            node = self.values.node(base)
            assert node is not None
            return self._constant(window, node)
        if self.values.is_vector(base):
            source = self.values.arguments(base)[0]
            return self._of_parameter(source, base, window)
        return self._define(window, self._loaded(window))

    def _constant(self, window: Window, node: Node) -> str:
        if node.operation == "count":
            return self._count(node)
        number = self._number(node.arguments[0] if node.operation == "full" else node.attributes[0])
        return self.condition(number) if self._is_mask(window) else number

    def _count(self, node: Node) -> str:
        """A width minus a number: a size, like those of windows."""
        (of,), (less,) = node.values(), node.attributes
        count = divisor(self.values.kinds[of].shape[-1], less)
        return self.size(self.arguments.start(("count", count), count))

    def _loaded(self, window: Window) -> str:
        attached = self._attached(window)
        if attached is not None:
            return self.sums(self.loop.attached.index(attached), window.start // window.width)
        memory = self.arguments.lowered.read_by(self.loop, window.base)  # type: ignore[arg-type]
        start = self.arguments.start((memory.slot, memory.start + window.start), memory.start + window.start)
        row = Row(memory.slot, start, window.width != self.loop.width, self._is_mask(window), False)
        self.touched.rows.append(row)
        return self.row(row)

    def _attached(self, window: Window) -> Attached | None:
        if window.width != self.loop.width:
            return None
        return next((part for part in self.loop.attached if part.value == window.base), None)

    def _of_parameter(self, value: Value, result: Value, window: Window) -> str:
        """A value without rows, as an operand of a window of `result`."""
        boolean = self.values.kinds[value].dtype == torch.bool
        if self.values.width(value) == 1:
            one = Vector(self.arguments.vector(value, None), -1, True)
            self.touched.vectors.append(one)
            return self.vector(one, boolean)
        place = self.arguments.vector(value, self.values.kinds[result].shape)
        key = ("vector", place, window.start)
        if key not in self.names:
            vector = Vector(place, self.arguments.start(key, window.start), False)
            self.touched.vectors.append(vector)
            self._define(key, self.vector(vector, boolean))
        return self.names[key]

    def _vectors(self, window: Window) -> str:
        """A window as vectors, if it is a number too."""
        return self.spread(self._argument(window), self._is_mask(window))

    def _number(self, part: object) -> str:
        return self.number(part.place) if isinstance(part, Number) else self.literal(float(part))  # type: ignore[arg-type]

    def _computed(self, window: Window) -> str:
        base = window.base
        assert base is not None
        node = self.values.node(base)
        assert node is not None
        if self.values.is_spread(base):
            return self._vectors(self._window(window, self.values.arguments(base)[0]))
        arguments, masks = [], []
        for part in node.arguments:
            if not isinstance(part, Value):
                arguments.append(self._number(part))
                masks.append(False)
                continue
            masks.append(self.values.kinds[part].dtype == torch.bool)
            if part in self.values.rows:
                arguments.append(self._argument(self._window(window, part)))
            else:
                arguments.append(self._of_parameter(part, base, window))
        return self._expression(node.operation, arguments, masks, node.attributes, self._is_mask(window))

    def _window(self, window: Window, part: Value) -> Window:
        if self.values.width(part) == self.values.width(window.base):  # type: ignore[arg-type]
            return self.values.window(part, window.start, window.width)
        return self.values.window(part, 0, 1)

    def _expression(self, operation: str, arguments: list[str], masks: list[bool], attributes: tuple, gives_mask: bool) -> str:
        if gives_mask and operation in _OF_BOOLS:
            return self.truth(self._expression(operation, arguments, masks, attributes, False))
        if operation == "cast":
            argument = self.spread(arguments[0], masks[0])
            return self.numbers(argument) if masks[0] else self.truth(argument)
        if operation == "where":
            condition, *values = arguments
            if not masks[0]:
                condition = self.truth(condition)
            keep = all(masks[1:])
            return self.call(operation, [self.spread(condition, True), *self._as_numbers(values, masks[1:], keep)])
        if operation in ("logical_and", "logical_or", "logical_not"):
            given = zip(arguments, masks, strict=True)
            return self.call(operation, [self.spread(argument, True) if mask else self.truth(argument) for argument, mask in given])
        numbers = self._as_numbers(arguments, masks)
        if operation == "gelu":
            return self.call(f"gelu{'_tanh' if attributes[0] == 'tanh' else ''}", numbers)
        return self.call(operation, numbers + ([self._number(part) for part in attributes] if operation in _ATTRIBUTES else []))

    def _as_numbers(self, arguments: list[str], masks: list[bool], keep: bool = False) -> list[str]:
        """Masks among numbers become 0 and 1. With `keep` all are masks, and stay so."""
        if keep:
            return [self.spread(argument, True) for argument in arguments]
        given = zip(arguments, masks, strict=True)
        return [self.numbers(self.spread(argument, True)) if mask else argument for argument, mask in given]


def _variables(line: str) -> Iterator[str]:
    word = ""
    for letter in [*line, " "]:
        if letter.isalnum() or letter == "_":
            word += letter
        else:
            if word[:1] == "v" and word[1:].isdigit():
                yield word
            word = ""
