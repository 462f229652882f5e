"""The C++ of a program's loops (`lower`): for each a function that computes some units of some rows, with csrc/kernels/units.h."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sstkern.program.loops import OPERATORS, Arguments, LoopText, Row, Touched, Vector
from sstkern.program.lower import Attached, Lowered
from sstkern.program.values import Value

_TYPES = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True)
class Code:
    """text: a compile unit, without the instruction set. arguments: the starts and vectors that it names. touched: what each loop reads
    and writes."""

    text: str
    arguments: Arguments
    touched: list[Touched]

    @property
    def starts(self) -> list[int]:
        return self.arguments.starts

    @property
    def vectors(self) -> list[tuple[Value, tuple[int, ...] | None]]:
        return self.arguments.vectors

    def bias(self, attached: Attached) -> int:
        return self.arguments.bias(attached)


def code(lowered: Lowered) -> Code:
    arguments = Arguments(lowered)
    loops = [loop for stages in lowered.phases for stage in stages for loop in stage.loops]
    written = [_Function(arguments, loop) for loop in loops]
    functions = [function.text(f"loop_{place}") for place, function in enumerate(written)]
    for part in (part for loop in loops for part in loop.attached):
        arguments.bias(part)  # among the vectors
    reduces = any(stage.reductions for stages in lowered.phases for stage in stages)
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
        f"using T = {_TYPES[lowered.values.dtype]};",
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
    return Code("\n".join(lines) + "\n", arguments, [function.touched for function in written])


class _Function(LoopText):
    """One loop's."""

    def text(self, name: str) -> list[str]:
        self.walk()
        together = f"kTogether_{name.removeprefix('loop_')}"
        return [
            f"constexpr int {together} = vectors_together({self.live()});",
            "template <bool Whole>",
            f"SSTKERN_INLINE void {name}(const UnitsGiven<T>& given, const Units<T>* at, int64_t units) {{",
            f"  constexpr int N = {together};",
            *(f"  const auto {line.name} = {line.text};" if line.name else f"  {line.text};" for line in self.lines),
            "}",
            "",
        ]

    def literal(self, value: float) -> str:
        if math.isnan(value):
            return 'T(__builtin_nan(""))'
        if math.isinf(value):
            return f"T({'-' if value < 0 else ''}__builtin_inf())"
        return f"T({value!r})"

    def number(self, place: int) -> str:
        return f"given.numbers[{place}]"

    def size(self, start: int) -> str:
        return f"T({_begin(start)})"

    def row(self, row: Row) -> str:
        kind = "mask" if row.boolean else "row"
        if row.one:
            return f"load_one_{kind}<T, N>(at, {row.slot}, {_begin(row.start)})"
        return f"load_{kind}<T, N, Whole>(at, {row.slot}, {_begin(row.start)}, units)"

    def sums(self, place: int, gate: int) -> str:
        return f"load_sums<T, N>(at, {place}, {gate})"

    def vector(self, vector: Vector, boolean: bool) -> str:
        if vector.one:
            number = f"given.vectors[{vector.vector}][0]"
            return f"spread_mask<T, N>({self.condition(number)})" if boolean else number
        loaded = f"load_vector<T, N, Whole>(at, given.vectors[{vector.vector}] + {_begin(vector.start)}, units)"
        return self.truth(loaded) if boolean else loaded

    def condition(self, number: str) -> str:
        return f"({number} != T(0))"

    def truth(self, numbers: str) -> str:
        return f"truth<T>({numbers})"

    def numbers(self, mask: str) -> str:
        return f"numbers<T>({mask})"

    def spread(self, argument: str, mask: bool) -> str:
        if _is_vectors(argument):
            return argument
        return f"spread_mask<T, N>({argument})" if mask else f"spread<T, N>({argument})"

    def stored(self, row: Row, value: str) -> str:
        return f"store_{'mask' if row.boolean else 'row'}<T, N, Whole>(at, {row.slot}, {_begin(row.start)}, units, {value})"

    def call(self, operation: str, arguments: list[str]) -> str:
        if not any(map(_is_vectors, arguments)):
            arguments = [self.spread(arguments[0], False), *arguments[1:]]
        if operation in OPERATORS:
            return f"{arguments[0]} {OPERATORS[operation]} {arguments[1]}"
        return f"{operation}<T>({', '.join(arguments)})"


def _is_vectors(text: str) -> bool:
    """Whether it is Vectors or a Mask, and not one number or bool."""
    return text.startswith(("v", "numbers", "spread", "truth"))


def _begin(start: int) -> str:
    return "0" if start < 0 else f"given.starts[{start}]"
