"""Programs on the CPU engine: their loops compiled, and described to the C++ of csrc/program.h.

A program is compiled for the dtypes and the structure of its rows; sizes and numbers are arguments.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sstkern import engines, private
from sstkern.program import cache as libraries
from sstkern.program.cpp import Code, code
from sstkern.program.loops import Touched
from sstkern.program.lower import Loop, Lowered, Memory, Move, Plain, Product, Reduction
from sstkern.program.prepared import Prepared
from sstkern.program.values import Value

_KINDS = {letter: place for place, letter in enumerate("xhnorl")}
"""Kinds of slots, numbered as in csrc/program.h."""
_REDUCTIONS = ("sum", "amax", "max", "cumsum", "cumsum_back")
"""Reductions, numbered as in csrc/kernels/kernels.h."""
_RUN = torch.ops.sstkern.run_program.default


class Compiled(Prepared):
    """A program that the C++ engine runs."""

    def prepare(self, found: Lowered, rows_only: tuple[set[int], set[int]]) -> None:
        written = code(found)
        self.vectors = self.vectors_of(found, written.arguments)
        described = _description(found, written, self.outputs, self.numbers, rows_only)
        self.handle = torch.ops.sstkern.make_program(_library(written.text), described)
        weakref.finalize(self, _forget, self.handle)

    def run(self, *arguments: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return _RUN(self.handle, *arguments)


@lru_cache(maxsize=256)
def _library(text: str) -> int:
    level = engines.cpu.level()
    path = libraries.library(f'#include "levels/{level}.h"\n{text}#include "levels/end.h"\n', level)
    try:
        return torch.ops.sstkern.load_program_library(str(path))
    except ValueError as error:
        raise libraries.cannot_load(path, error) from error


def _forget(handle: int) -> None:
    # Python collects garbage at any time, as within a caller's FlopCounterMode or while torch.export writes operators down.
    with private.untraced():
        torch.ops.sstkern.forget_program(handle)


def _description(found: Lowered, written: Code, outputs: int, numbers: int, rows_only: tuple[set[int], set[int]]) -> list[int]:
    """The description that csrc/program.cpp reads."""
    program = found.values.program
    only = {"x": rows_only[0], "o": rows_only[1]}
    numbers_of = [len(program.inputs), len(program.states), outputs, len(found.weights), len(written.vectors), numbers, len(found.slots)]
    for slot in found.slots:
        place = slot.place if slot.kind in "xhno" else 0
        numbers_of += [_KINDS[slot.kind], place, slot.width, slot.boolean, slot.kind in only and place in only[slot.kind]]
    numbers_of += [len(written.starts), *written.starts]
    touched = iter(written.touched)
    for stages in found.phases:
        attached = list(dict.fromkeys(part.value for stage in stages for loop in stage.loops for part in loop.attached))
        numbers_of += [len(attached), len(stages)]
        for stage in stages:
            numbers_of += [len(stage.plain), *chain.from_iterable(map(_of_plain, stage.plain))]
            numbers_of += [len(stage.moves), *chain.from_iterable(map(_of_move, stage.moves))]
            numbers_of += [len(stage.reductions), *chain.from_iterable(map(_of_reduction, stage.reductions)), len(stage.loops)]
            for loop in stage.loops:
                numbers_of += [*_of_loop(loop, attached, written), *_of_touched(next(touched))]
    numbers_of.append(len(found.sums))
    for part in found.sums:
        numbers_of += [part.left, part.left_width, part.rows, *part.right, part.right_width]
    return list(map(int, numbers_of))


def _of_memory(memory: Memory) -> list[int]:
    return [memory.slot, memory.start]


def _of_product(product: Product) -> list[int]:
    return [*_of_memory(product.operand), product.rows, product.depth, product.columns, product.weight, product.transposed]


def _of_plain(plain: Plain) -> list[int]:
    return [*_of_product(plain.product), *_of_memory(plain.target)]


def _of_move(move: Move) -> list[int]:
    sources = chain.from_iterable([*_of_memory(memory), width] for memory, width in move.sources)
    places = chain.from_iterable([len(of), *of] for of in move.places)
    return [len(move.sources), *sources, *_of_memory(move.target), len(move.places), *places]


def _of_reduction(reduction: Reduction) -> list[int]:
    sources = chain.from_iterable(map(_of_memory, reduction.sources))
    kind = _REDUCTIONS.index(reduction.operation)
    return [kind, reduction.groups, reduction.width, reduction.divisor, len(reduction.sources), *sources, *_of_memory(reduction.target)]


def _of_loop(loop: Loop, attached: Sequence[Value], written: Code) -> list[int]:
    parts = chain.from_iterable(
        [*_of_product(part.product), part.gates, part.ahead, attached.index(part.value), written.bias(part)] for part in loop.attached
    )
    return [loop.width, len(loop.attached), *parts]


def _of_touched(touched: Touched) -> list[int]:
    return [len(touched.rows), *chain.from_iterable(touched.rows), len(touched.vectors), *chain.from_iterable(touched.vectors)]


def forget() -> None:
    """Forgets what was compiled, as a new process has."""
    _library.cache_clear()
