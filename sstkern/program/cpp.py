"""The C++ of a program's loops (`lower`): for each a function that computes some units of some rows, with csrc/kernels/units.h.

The text names no sizes: where a window begins in a row is an argument. Programs that differ in their sizes alone have the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sstkern.program.language import divisor
from sstkern.program.lower import Attached, Loop, Lowered, Memory
from sstkern.program.values import Node, Number, Value
from sstkern.program.windows import Window

_TYPES = {torch.float32: "float", torch.float64: "double"}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
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
    """As `Row`, of a vector."""

    vector: int
    start: int
    one: bool


@dataclass
class Touched:
    """What a loop reads and writes."""

    rows: list[Row] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)


@dataclass(frozen=True)
class Code:
    """text: a compile unit, without the instruction set. starts: the numbers `starts[i]` of the text. vectors: the values without rows
    that it reads, or that products begin with, and the shape that each is spread to, None for one number. touched: what each loop reads
    and writes."""

    text: str
    starts: list[int]
    vectors: list[tuple[Value, tuple[int, ...] | None]]
    touched: list[Touched]

    def bias(self, attached: Attached) -> int:
        """The place among the vectors of what a product begins with; -1 without."""
        return next((place for place, vector in enumerate(self.vectors) if vector == (attached.bias, (attached.product.columns,))), -1)


def code(lowered: Lowered) -> Code:
    return _Writer(lowered).code()


class _Writer:
    def __init__(self, lowered: Lowered):
        self.lowered, self.values = lowered, lowered.values
        self.starts: list[int] = []
        self.vectors: list[tuple[Value, tuple[int, ...] | None]] = []
        self.start_of: dict[Memory | tuple, int] = {}

    def code(self) -> Code:
        loops = [loop for stages in self.lowered.phases for stage in stages for loop in stage.loops]
        written = [_Function(self, loop) for loop in loops]
        functions = [function.lines(f"loop_{place}") for place, function in enumerate(written)]
        for bias in (part.bias for loop in loops for part in loop.attached if part.bias is not None):
            self.vector(bias, self.values.kinds[bias].shape)
        reduces = any(stage.reductions for stages in self.lowered.phases for stage in stages)
        names = ", ".join(f"run<T, loop_{place}<true>, loop_{place}<false>, kTogether_{place}>" for place in range(len(loops)))
        lines = [
            "#define SSTKERN_PROGRAM",
            '#include "units.h"',
            *(['#include "reductions.h"'] if reduces else []),
            "",
            "namespace sstkern {",
            "namespace SSTKERN_LEVEL {",
            "namespace {",
            "",
            f"using T = {_TYPES[self.values.dtype]};",
            "",
            *(line for function in functions for line in function),
            "}  // namespace",
            "",
            f"constexpr UnitsFunction<T> functions[] = {{{names or 'nullptr'}}};",
            f"constexpr ProgramLibrary program = library_of(functions, {len(loops)}, {'reductions<T>' if reduces else 'nullptr'});",
            "",
            "}  // namespace SSTKERN_LEVEL",
            "}  // namespace sstkern",
        ]
        return Code("\n".join(lines) + "\n", self.starts, self.vectors, [function.touched for function in written])

    def start(self, key: Memory | tuple, start: int) -> int:
        """The place in `starts` of where a window begins, or -1 for 0."""
        if start == 0:
            return -1
        if key not in self.start_of:
            self.start_of[key] = len(self.starts)
            self.starts.append(start)
        return self.start_of[key]

    def vector(self, value: Value, shape: tuple[int, ...] | None) -> int:
        if (value, shape) not in self.vectors:
            self.vectors.append((value, shape))
        return self.vectors.index((value, shape))


class _Function:
    """One loop's."""

    def __init__(self, writer: _Writer, loop: Loop):
        self.writer, self.values, self.loop = writer, writer.values, loop
        self.mine = set(loop.windows)
        self.names: dict[object, str] = {}
        self.body: list[str] = []
        self.touched = Touched()

    def lines(self, name: str) -> list[str]:
        for window in self.loop.windows:
            self._define(window, self._computed(window))
        self._store()
        together = f"kTogether_{name.removeprefix('loop_')}"
        return [
            f"constexpr int {together} = vectors_together({self._live()});",
            "template <bool Whole>",
            f"SSTKERN_INLINE void {name}(const UnitsGiven<T>& given, const Units<T>* at, int64_t units) {{",
            f"  constexpr int N = {together};",
            *(f"  {line}" for line in self.body),
            "}",
            "",
        ]

    def _store(self) -> None:
        """Puts each value to memory as soon as it is there: fewer are alive then, and an LSTM's training step took 0.95 of the time.
        Numbers, and what goes into rows that the loop reads, come last."""
        stores = [(self._vectors(window), self._stored(window, memory), memory.slot) for window, memory in self.loop.stores]
        read = {row.slot for row in self.touched.rows if not row.written}
        early: dict[str, list[str]] = {_name(line): [] for line in self.body}
        late: list[str] = []
        for value, store, slot in stores:
            (early[value] if value in early and slot not in read else late).append(f"{store}, {value});")
        self.body = [one for line in self.body for one in (line, *early[_name(line)])] + late

    def _stored(self, window: Window, memory: Memory) -> str:
        """What stores a value, without its name."""
        boolean, start = self._is_mask(window), self.writer.start(memory, memory.start)
        self.touched.rows.append(Row(memory.slot, start, False, boolean, True))
        return f"store_{'mask' if boolean else 'row'}<T, N, Whole>(at, {memory.slot}, {_begin(start)}, units"

    def _define(self, key: object, expression: str) -> str:
        name = f"v{len(self.names)}"
        self.names[key] = name
        self.body.append(f"const auto {name} = {expression};")
        return name

    def _is_mask(self, window: Window) -> bool:
        return window.base is not None and self.values.kinds[window.base].dtype == torch.bool

    def _argument(self, window: Window) -> str:
        """A window as an operand: a variable or a number."""
        if window in self.names:
            return self.names[window]
        base = window.base
        if base is None:
            return "T(0)"
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
        return f"({number} != T(0))" if self._is_mask(window) else number

    def _count(self, node: Node) -> str:
        """A width less some, a size like those of windows."""
        (of,), (less,) = node.values(), node.attributes
        count = divisor(self.values.kinds[of].shape[-1], less)
        return f"T({_begin(self.writer.start(('count', count), count))})"

    def _loaded(self, window: Window) -> str:
        attached = self._attached(window)
        if attached is not None:
            return f"load_sums<T, N>(at, {self.loop.attached.index(attached)}, {window.start // window.width})"
        memory = self.writer.lowered.read_by(self.loop, window.base)  # type: ignore[arg-type]
        start = self.writer.start((memory.slot, memory.start + window.start), memory.start + window.start)
        boolean, one = self._is_mask(window), window.width != self.loop.width
        self.touched.rows.append(Row(memory.slot, start, one, boolean, False))
        kind = "mask" if boolean else "row"
        if one:
            return f"load_one_{kind}<T, N>(at, {memory.slot}, {_begin(start)})"
        return f"load_{kind}<T, N, Whole>(at, {memory.slot}, {_begin(start)}, units)"

    def _attached(self, window: Window) -> Attached | None:
        if window.width != self.loop.width:
            return None
        return next((part for part in self.loop.attached if part.value == window.base), None)

    def _of_parameter(self, value: Value, result: Value, window: Window) -> str:
        """What has no rows, as an operand of a window of `result`."""
        boolean = self.values.kinds[value].dtype == torch.bool
        if self.values.width(value) == 1:
            place = self.writer.vector(value, None)
            self.touched.vectors.append(Vector(place, -1, True))
            number = f"given.vectors[{place}][0]"
            return f"spread_mask<T, N>({number} != T(0))" if boolean else number
        place = self.writer.vector(value, self.values.kinds[result].shape)
        key = ("vector", place, window.start)
        if key not in self.names:
            start = self.writer.start(key, window.start)
            self.touched.vectors.append(Vector(place, start, False))
            loaded = f"load_vector<T, N, Whole>(at, given.vectors[{place}] + {_begin(start)}, units)"
            self._define(key, f"truth<T>({loaded})" if boolean else loaded)
        return self.names[key]

    def _vectors(self, window: Window) -> str:
        """A window as vectors, if it is a number too."""
        found = self._argument(window)
        if found.startswith("v"):
            return found
        return f"spread_mask<T, N>({found})" if self._is_mask(window) else f"spread<T, N>({found})"

    def _number(self, part: object) -> str:
        if isinstance(part, Number):
            return f"given.numbers[{part.place}]"
        value = float(part)  # type: ignore[arg-type]
        if math.isnan(value):
            return 'T(__builtin_nan(""))'
        if math.isinf(value):
            return f"T({'-' if value < 0 else ''}__builtin_inf())"
        return f"T({value!r})"

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
            return f"truth<T>({self._expression(operation, arguments, masks, attributes, False)})"
        if operation == "cast":
            return self._cast(arguments[0], masks[0])
        if operation == "where":
            condition, *values = arguments
            if not masks[0]:
                condition = f"truth<T>({condition})"
            if not condition.startswith(("v", "truth", "spread")):
                condition = f"spread_mask<T, N>({condition})"
            return f"where<T>({condition}, {', '.join(self._numbers(values, masks[1:], keep=all(masks[1:])))})"
        if operation in ("logical_and", "logical_or", "logical_not"):
            spread = [self._spread(argument, mask) for argument, mask in zip(arguments, masks, strict=True)]
            return f"{operation}<T>({', '.join(spread)})"
        arguments = self._numbers(arguments, masks)
        if not any(argument.startswith(("v", "numbers", "spread")) for argument in arguments):
            arguments[0] = f"spread<T, N>({arguments[0]})"
        if operation in _OPERATORS:
            return f"{arguments[0]} {_OPERATORS[operation]} {arguments[1]}"
        if operation == "gelu":
            return f"gelu{'_tanh' if attributes[0] == 'tanh' else ''}<T>({arguments[0]})"
        numbers = [self._number(part) for part in attributes] if operation in _ATTRIBUTES else []
        return f"{operation}<T>({', '.join([*arguments, *numbers])})"

    def _numbers(self, arguments: list[str], masks: list[bool], keep: bool = False) -> list[str]:
        """Masks among numbers are 0 and 1."""
        if keep:
            return [self._spread(argument, True) for argument in arguments]
        found = []
        for argument, mask in zip(arguments, masks, strict=True):
            found.append(f"numbers<T>({self._spread(argument, True)})" if mask else argument)
        return found

    def _spread(self, argument: str, mask: bool) -> str:
        if argument.startswith(("v", "spread")):
            return argument
        return f"spread_mask<T, N>({argument})" if mask else f"spread<T, N>({argument})"

    def _cast(self, argument: str, mask: bool) -> str:
        argument = self._spread(argument, mask)
        return f"numbers<T>({argument})" if mask else f"truth<T>({argument})"

    def _live(self) -> int:
        """How many values are alive at once at most, if each is computed as late as it stands."""
        last: dict[str, int] = {}
        for place, line in enumerate(self.body):
            for word in _variables(line):
                last[word] = place
        alive, most = 0, 0
        ends = [0] * (len(self.body) + 1)
        for place in last.values():
            ends[place] += 1
        for place, line in enumerate(self.body):
            alive += line.startswith("const auto")
            most = max(most, alive)
            alive -= ends[place]
        return most


def _begin(start: int) -> str:
    return "0" if start < 0 else f"given.starts[{start}]"


def _name(line: str) -> str:
    """Of `const auto v0 = ...`."""
    return line.split()[2]


def _variables(line: str) -> Iterator[str]:
    word = ""
    for letter in [*line, " "]:
        if letter.isalnum() or letter == "_":
            word += letter
        else:
            if word[:1] == "v" and word[1:].isdigit():
                yield word
            word = ""
