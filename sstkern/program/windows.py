"""Where the numbers of a program's rows come from: each value as one row of numbers, cut into windows that are computed unit by unit.

A row of any shape is its numbers one after the other. A *window* is some neighbouring ones of them. What only moves numbers (chunk, slice,
cat, reshape) is gone here where it moves them in one piece: a window of `chunk` is a window of what was cut. What moves them otherwise is
a `Move` (`lower`), and what sums some of them is one too, but for those that follow each other: they are a `Reduction`.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sstkern.program.graph import Program
from sstkern.program.language import OPERATIONS, PRODUCTS, REDUCTIONS, SUMS, read, resolved
from sstkern.program.shapes import Examples, Kind, Leaves, on_examples
from sstkern.program.values import Node, Value

_SAME = ("reshape", "reshape_like", "detach")
_CUTS = ("chunk", "slice", "cut")
_JOINS = ("cat", "placed")
_MOVES = (*_CUTS, *_JOINS, "transpose", "expand")
_CONSTANTS = ("full", "full_like", "count")


class NotLowered(ValueError):
    """Why a program runs in plain PyTorch only."""


class Window(NamedTuple):
    """The numbers start .. start + width - 1 of a row of `base`. base None: zeros."""

    base: Value | None
    start: int
    width: int


class Values:
    """The values of a program for tensors of these kinds: their numbers, and what they are windows of."""

    def __init__(self, program: Program, leaves: Leaves, alone: Collection[Value] = ()):
        self.program, self.leaves = program, leaves
        with on_examples():
            self.examples = Examples(leaves)
            for place, node in enumerate(program.nodes):
                self.examples.add(Value("v", place), node)
        self.uses = Counter(value for node in program.nodes for value in read(node))
        self.uses.update((*program.outputs, *program.next_states))
        self._parts: dict[Value, list[tuple[int, Window]] | None] = {}
        self._arguments: dict[Value, list[Value]] = {}
        self.rows = self._rows()
        self.kinds: dict[Value, Kind] = {value: self._kind(value) for value in self.examples.of}
        self._widths = {value: math.prod(kind.shape) for value, kind in self.kinds.items()}
        self.dtype = self._dtype()
        self.biases = self._biases(alone)
        """For products, the vector that is added and used for nothing else: their sums then begin with it."""
        self.cuts: dict[Value, set[int]] = {}

    def _rows(self) -> set[Value]:
        """What has a row for every sequence: all but what follows from parameters only."""
        program = self.program
        found = {Value(kind, place) for kind, leaves in (("x", program.inputs), ("h", program.states)) for place in range(len(leaves))}
        for place, node in enumerate(program.nodes):
            if OPERATIONS[node.operation].makes_rows or any(value in found for value in node.values()):
                found.add(Value("v", place))
        return found

    def _kind(self, value: Value) -> Kind:
        tensor = torch.as_tensor(self.examples.of[value])  # what is computed of numbers only is a number
        return Kind(tuple(tensor.shape[1:] if value in self.rows else tensor.shape), tensor.dtype)

    def _dtype(self) -> torch.dtype:
        dtypes = {self.kinds[value].dtype for value in self.rows} - {torch.bool}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise NotLowered(f"it computes in {names or 'bool only'}; compiled are programs of one of float32 and float64")
        return dtypes.pop()

    def _biases(self, alone: Collection[Value]) -> dict[Value, tuple[Value, Value]]:
        """Each sum of a product and a vector, with both. alone: products that keep theirs apart."""
        found = {}
        for place, node in enumerate(self.program.nodes):
            if node.operation != "add" or len(node.values()) != 2:
                continue
            for product, vector in (node.values(), node.values()[::-1]):
                fits = vector not in self.rows and self.kinds[vector] == self.kinds[product]
                if fits and self.is_product(product) and self.uses[product] == 1 and product not in alone:
                    found[Value("v", place)] = product, vector
        return found

    def node(self, value: Value) -> Node | None:
        return self.program.nodes[value.place] if value.kind == "v" else None

    def operation(self, value: Value) -> str:
        """The operation of a node's result; "" for inputs, states and parameters, and for what follows from parameters only."""
        return self.program.nodes[value.place].operation if value.kind == "v" and value in self.rows else ""

    def width(self, value: Value) -> int:
        return self._widths[value]

    def is_product(self, value: Value) -> bool:
        return self.operation(value) in PRODUCTS

    def is_constant(self, value: Value) -> bool:
        """Whether it is one number, the same for all rows, that the program's text has, or a width."""
        return self.operation(value) in _CONSTANTS

    def is_vector(self, value: Value) -> bool:
        """Whether it has the same numbers in every row: what follows from parameters, spread."""
        return self.operation(value) == "expand" and self.arguments(value)[0] not in self.rows

    def is_moved(self, value: Value) -> bool:
        """Whether a `Move` makes it."""
        operation = self.operation(value)
        if self.is_vector(value) or self.is_spread(value):
            return False
        if operation == "sum_to":
            return not self._is_same(value) and not self.is_reduced(value)
        return operation in _MOVES and self._windows_of(value) is None

    def is_reduced(self, value: Value) -> bool:
        """Whether a `Reduction` makes it."""
        if self.operation(value) != "sum_to":
            return self.operation(value) in REDUCTIONS
        of, shape = (self.kinds[part].shape for part in (self._rows_of(value)[0], value))
        shape = (1,) * (len(of) - len(shape)) + shape
        kept = sum(1 for _ in takewhile(bool, map(operator.eq, of, shape)))
        return not self._is_same(value) and set(shape[kept:]) == {1}

    def is_put(self, value: Value) -> bool:
        """Whether it is put to memory by what is neither a product nor a loop."""
        return self.is_moved(value) or self.is_reduced(value)

    def is_spread(self, value: Value) -> bool:
        """Whether it is one number of a row that all its units take."""
        if self.operation(value) not in ("expand", "expand_like"):
            return False
        source = self._rows_of(value)[0]
        return source in self.rows and self.width(source) == 1 and not self._is_same(value)

    def is_pointwise(self, value: Value) -> bool:
        operation = self.operation(value)
        moves = operation in (*PRODUCTS, *REDUCTIONS, *_SAME, *_MOVES, *_CONSTANTS, "sum_to")
        return self.is_spread(value) or (operation != "" and not moves and not self._is_same(value))

    def _rows_of(self, value: Value) -> list[Value]:
        """The arguments that are rows, or what follows from parameters only, without those that only give a shape."""
        node = self.node(value)
        assert node is not None
        return read(node)

    def arguments(self, value: Value) -> list[Value]:
        """What a node computes with."""
        if value not in self._arguments:
            self._arguments[value] = self._factors(value) or self._rows_of(value)
        return self._arguments[value]

    def _factors(self, value: Value) -> list[Value]:
        """Two rows whose products a reduction sums up: where both are used elsewhere too, the products need not be put to memory."""
        if not self.is_reduced(value) or self.operation(value) not in (*SUMS, "sum_to"):
            return []
        (product,) = self._rows_of(value)
        node = self.node(product) if self.operation(product) == "mul" else None
        if node is None:
            return []
        parts = [part for part in node.values() if part in self.rows and self.kinds[part] == self.kinds[product]]
        shared = all(part.kind != "v" or self.uses[part] > 1 for part in parts)
        return parts if len(parts) == 2 and shared and not any(map(self.is_constant, parts)) else []

    def _is_same(self, value: Value) -> bool:
        """Whether a node has the numbers of its argument."""
        operation = self.operation(value)
        if operation in _SAME or value in self.biases:
            return True
        if operation in ("sum_to", "expand", "expand_like"):
            source = self._rows_of(value)[0]
            return source in self.rows and self.width(value) == self.width(source)
        return operation == "cast" and self.kinds[value].dtype == self.kinds[self._rows_of(value)[0]].dtype

    def _windows_of(self, value: Value) -> list[tuple[int, Window]] | None:
        """The parts of a row that is put together of windows of other rows, each with its place; None where it is not."""
        if self._is_same(value):
            source = self.biases[value][0] if value in self.biases else self._rows_of(value)[0]
            return [(0, Window(source, 0, self.width(value)))]
        node, sizes = self.node(value), self.leaves.sizes
        assert node is not None
        operation, shape = node.operation, self.kinds[value].shape
        attributes = [resolved(part, sizes, ()) for part in node.attributes]
        if operation == "transpose":
            return self._transposed(value, attributes)
        if operation not in (*_CUTS, *_JOINS):
            return None
        source = self._rows_of(value)[0]
        dim, *others = attributes
        if math.prod(shape[:dim]) != 1:
            return None
        below = math.prod(shape[dim + 1 :]) if dim != -1 else 1
        if operation == "cat":
            return self._joined(node.values())
        if operation == "placed":
            start, end = others[0] * below, others[1] * below
            return [(0, Window(None, 0, start)), (start, Window(source, 0, end - start)), (end, Window(None, 0, self.width(value) - end))]
        return [(0, Window(source, self._start(value, node, others) * below, self.width(value)))]

    def _start(self, value: Value, node: Node, others: Sequence) -> int:
        """Where a part begins, along its dimension."""
        dim: Any = node.attributes[0]
        if node.operation == "chunk":
            return others[1] * self.kinds[value].shape[dim]
        if node.operation == "slice":
            return others[0]
        return sum(self.kinds[part].shape[dim] for part in node.values()[1:][: others[0]])

    def _joined(self, parts: Sequence[Value]) -> list[tuple[int, Window]]:
        """Zeros beside each other are one window: of x[:, :1] the gradient is that of as many chunks as x is wide."""
        found: list[tuple[int, Window]] = []
        at = 0
        for part in parts:
            width = self.width(part)
            if self._is_zero(part) and found and found[-1][1].base is None:
                before, zeros = found.pop()
                found.append((before, Window(None, 0, zeros.width + width)))
            else:
                found.append((at, Window(None if self._is_zero(part) else part, 0, width)))
            at += width
        return found

    def _is_zero(self, value: Value) -> bool:
        node = self.node(value) if self.operation(value) in ("full", "full_like") else None
        return node is not None and (node.arguments if node.operation == "full" else node.attributes)[0] in (0, 0.0)

    def _transposed(self, value: Value, dims: Sequence[int]) -> list[tuple[int, Window]] | None:
        shape = self.kinds[value].shape
        low, high = sorted(dim % len(shape) for dim in dims)
        moved = [size for size in shape[low : high + 1] if size != 1]
        return [(0, Window(self._rows_of(value)[0], 0, self.width(value)))] if len(moved) <= 1 else None

    def parts(self, value: Value) -> list[tuple[int, Window]] | None:
        """The windows that a value puts together, with their places; None for what is computed."""
        if value not in self._parts:
            self._parts[value] = self._found_parts(value)
        return self._parts[value]

    def _found_parts(self, value: Value) -> list[tuple[int, Window]] | None:
        if value not in self.rows or value.kind != "v":
            return None
        moves = value in self.biases or self.operation(value) in (*_SAME, *_MOVES, "sum_to", "cast", "expand_like")
        parts = self._windows_of(value) if moves else None
        return None if parts is None else [(at, window) for at, window in parts if window.width > 0]

    def find_cuts(self, used: Sequence[Value]) -> None:
        """Where each row is cut: at the ends of every window that is taken of it, and where what is computed with it unit by unit is."""
        self.cuts = {value: {0, self.width(value)} for value in self.rows}
        links: dict[Value, list[tuple[Value, Value, int, int, int]]] = {value: [] for value in self.rows}
        for value in used:
            for other, start, low, width in self._together(value):
                link = value, other, start, low, width
                links[value].append(link)
                links[other].append(link)
        waiting = list(used)
        while waiting:
            for link in links[waiting.pop()]:
                waiting += self._share(*link)

    def _together(self, value: Value) -> Iterator[tuple[Value, int, int, int]]:
        """(another, where the window begins there, where here, its width): windows of both that have the same cuts."""
        parts = self.parts(value)
        if parts is not None:
            for at, window in parts:
                if window.base is not None and window.base in self.rows:
                    yield window.base, window.start, at, window.width
        elif self.is_pointwise(value):
            width = self.width(value)
            yield from ((arg, 0, 0, width) for arg in self.arguments(value) if arg in self.rows and self.width(arg) == width)

    def _share(self, value: Value, other: Value, start: int, low: int, width: int) -> list[Value]:
        """Gives both the cuts of both; returns those that have new ones."""
        mine, theirs = self.cuts[value], self.cuts[other]
        before = len(mine), len(theirs)
        mine |= {low, low + width}
        if other.kind == "v":  # inputs and states are in memory: whoever reads them does so in windows of his own
            theirs |= {cut - low + start for cut in mine if low <= cut <= low + width}
            mine |= {cut - start + low for cut in theirs if start <= cut <= start + width}
        changed = zip((value, other), before, (len(mine), len(theirs)), strict=True)
        return [one for one, then, now in changed if now > then]

    def windows(self, value: Value, start: int = 0, width: int | None = None) -> list[tuple[int, Window]]:
        """The windows that a part of a row is computed by, each with its place in that part. They are of inputs, states, parameters, and
        what is computed."""
        end = start + (self.width(value) if width is None else width)
        parts = self.parts(value)
        if parts is None:
            cuts = [cut for cut in sorted(self.cuts.get(value, ())) if start < cut < end]
            edges = [start, *cuts, end]
            return [(a - start, Window(value, a, b - a)) for a, b in pairwise(edges) if b > a]
        found = []
        for at, window in parts:
            low, high = max(start, at), min(end, at + window.width)
            if low < high and window.base is None:
                found.append((low - start, Window(None, 0, high - low)))
            elif low < high and window.base is not None:
                below = self.windows(window.base, window.start + low - at, high - low)
                found += [(low - start + place, part) for place, part in below]
        return found

    def base(self, value: Value) -> tuple[Value, int]:
        """What a value is one window of, itself if of nothing else, and where it begins there."""
        base, start = value, 0
        while (parts := self.parts(base)) is not None and len(parts) == 1 and parts[0][1].base is not None:
            base, start = parts[0][1].base, start + parts[0][1].start
        return base, start

    def window(self, value: Value, start: int, width: int) -> Window:
        """The one window that a window of `value` is, where it is one."""
        ((_, found),) = self.windows(value, start, width)
        return found

    def places(self, value: Value) -> list[list[int]]:
        """For each number of what is moved, the places of the numbers that it is the sum of, in the rows of its arguments, one row after
        the other."""
        arguments = self.arguments(value)
        node = self.node(value)
        assert node is not None
        given: list = []
        at = 1
        for part in node.arguments:
            if part in arguments:
                width = self.width(part)
                row = torch.arange(at, at + width, dtype=torch.float64).reshape(1, *self.kinds[part].shape)
                given.append(row)
                at += width
            else:
                given.append(torch.zeros(1, *self.kinds[part].shape, dtype=torch.float64))  # type: ignore[index]
        attributes = [resolved(part, self.leaves.sizes, ()) for part in node.attributes]
        operation = OPERATIONS[node.operation]
        with on_examples():
            if node.operation == "sum_to":
                return self._summed(value, arguments[0])
            moved: Tensor = operation.compute(*([torch.zeros(1)] if operation.makes_rows else []), *given, *attributes)
        return [[place - 1] if place > 0 else [] for place in moved.flatten().to(torch.int64).tolist()]

    def _summed(self, value: Value, source: Value) -> list[list[int]]:
        shape, of = self.kinds[value].shape, self.kinds[source].shape
        targets = torch.arange(self.width(value)).reshape(shape).expand(of).flatten().tolist()
        found: list[list[int]] = [[] for _ in range(self.width(value))]
        for place, target in enumerate(targets):
            found[target].append(place)
        return found
