"""A program as loops over units and matrix products between them: what the CPU engine runs, and what `cpp` writes the loops' code of.

Three *phases* run one after the other: before the loop over time steps, for all rows at once, what matrix products without a state are made
from; the loop; after it, for all rows, matrix products that no state depends on, and what follows. What is computed unit by unit is done in
the loop wherever that is possible: its numbers are in registers there.

A phase has *stages*: products, and loops over the units of windows of one width. What a stage reads is complete when it begins; what one
loop computes, it reads itself. A product whose sums a loop reads, gate by gate, is attached to it: the units are computed while the sums
are in the first cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from sstkern.program.graph import Program, needed
from sstkern.program.language import divisor
from sstkern.program.shapes import Leaves
from sstkern.program.values import Value
from sstkern.program.windows import NotLowered, Values, Window

BEFORE, CORE, AFTER, END = 0, 1, 2, 3
MOST_PRODUCTS = 8
"""Attached to one loop: as many as csrc/kernels/kernels.h has places for."""


class Slot(NamedTuple):
    """Rows in memory. kind: "x" an input, "h" a state before a step, "n" after it, "o" an output, "r" rows of all time steps, "l" of those
    that a phase runs on at once: in the loop those of one time step.

    place: which input, state or output. boolean: whether they are bools, a byte each.
    """

    kind: str
    place: int
    width: int
    boolean: bool


class Memory(NamedTuple):
    """Where the numbers of a row begin."""

    slot: int
    start: int

    def at(self, place: int) -> Memory:
        """A number of the row."""
        return Memory(self.slot, self.start + place)


@dataclass(frozen=True)
class Product:
    """A matrix product of `rows` rows of `depth` numbers each, which follow each other in a row of the operand, with a parameter."""

    operand: Memory
    rows: int
    depth: int
    columns: int
    weight: int
    transposed: bool


@dataclass(frozen=True)
class Attached:
    """A product whose columns are `gates` windows of a loop's width. ahead: whether its operand is there for all time steps before.
    bias: the vector that its sums begin with."""

    value: Value
    product: Product
    gates: int
    ahead: bool
    bias: Value | None


@dataclass
class Loop:
    """windows: what is computed, each after what it takes. stores: what is put to memory."""

    phase: int
    width: int
    attached: list[Attached] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    stores: list[tuple[Window, Memory]] = field(default_factory=list)


@dataclass(frozen=True)
class Plain:
    """A product that is put to memory."""

    product: Product
    target: Memory


@dataclass(frozen=True)
class Move:
    """places: for each number of the target those of the sources, one after the other, that it is the sum of."""

    sources: tuple[tuple[Memory, int], ...]
    target: Memory
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Reduction:
    """operation: of `language.REDUCTIONS`, "mean" being a "sum" over the `divisor`, or "cumsum_back". sources: one, or two whose products
    are summed. groups: how many runs of `width` numbers follow each other in each source."""

    operation: str
    sources: tuple[Memory, ...]
    groups: int
    width: int
    divisor: int
    target: Memory


@dataclass
class Stage:
    plain: list[Plain] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)


class Wanted(NamedTuple):
    """A sum over rows that a derivative wants."""

    parameter: int
    left: Value
    right: Value | None

    def renamed(self, new: Mapping[Value, Value]) -> Wanted:
        return Wanted(self.parameter, new.get(self.left, self.left), None if self.right is None else new.get(self.right, self.right))


class RowSum(NamedTuple):
    """A parameter's gradient, or a part of it: over all rows the sum of `left`, or of its products with `right`.

    rows: how many rows of these widths follow each other in a row of the program.
    """

    parameter: int
    left: int
    left_width: int
    right: Memory
    right_width: int
    rows: int


NOTHING = Memory(-1, 0)


@dataclass(frozen=True)
class Lowered:
    """phases: the stages of each. memory: where values lie that loops read; copies: where states do that are read after the loop over time
    steps. weights: the parameters of products. fixed: the places of the nodes that follow from parameters only, which are computed once a
    call."""

    values: Values
    slots: list[Slot]
    phases: list[list[Stage]]
    memory: dict[Value, Memory]
    copies: dict[Value, Memory]
    weights: list[Value]
    fixed: list[int]
    sums: list[RowSum]

    def read_by(self, loop: Loop, base: Value) -> Memory:
        """Where a loop reads a value."""
        return self.copies[base] if base.kind == "h" and loop.phase == AFTER else self.memory[base]


@lru_cache(maxsize=512)
def lowered(program: Program, leaves: Leaves, outputs: tuple[Value, ...], sums: tuple[Wanted, ...] = ()) -> Lowered:
    """The program lowered for tensors of these kinds. Raises NotLowered, with the reason, for what this cannot express."""
    plain: set[Value] = set()
    while True:
        found = _Lowering(program, leaves, outputs, sums, plain)
        again = found.crowded() | found.biased_in_vain()
        if not again - plain:
            return found.result()
        plain |= again


class _Lowering:
    """plain: products that are not to be attached."""

    def __init__(self, program: Program, leaves: Leaves, outputs: Sequence[Value], sums: Sequence[Wanted], plain: set[Value]):
        self.program, self.outputs, self.wanted = program, outputs, sums
        summed = [value for part in sums for value in (part.left, part.right) if value is not None]
        ends = [*outputs, *program.next_states, *summed]
        self.values = values = Values(program, leaves, {*plain, *ends})
        if any(value not in values.rows for value in ends):
            raise NotLowered("a result of its step is the same for all rows")
        used = sorted(self._read(ends))
        self.used = [value for place in used if (value := Value("v", place)) in values.rows]
        self.fixed = [place for place in used if Value("v", place) not in values.rows]
        values.find_cuts(self.used)
        self.slots: list[Slot] = []
        self.homes: dict[Value, Memory] = {}
        self.weights: list[Value] = []
        self.plain = plain | self._never_attached()
        self.phase = self._phases()
        self._find_windows()
        self._find_stages()
        self.loops: dict[tuple[int, int, int], Loop] = {}
        self._place()

    def _read(self, ends: Sequence[Value]) -> set[int]:
        """The places of the nodes whose numbers the ends follow from: not those that give a shape only."""
        found: set[int] = set()
        wanted = list(ends)
        while wanted:
            value = wanted.pop()
            node = self.values.node(value)
            if node is not None and value.place not in found:
                found.add(value.place)
                wanted += self.values.arguments(value) if value in self.values.rows else node.values()
        return found

    def _slot(self, kind: str, place: int, value: Value) -> int:
        self.slots.append(Slot(kind, place, self.values.width(value), self.values.kinds[value].dtype.itemsize == 1))
        return len(self.slots) - 1

    def _computed(self, window: Window) -> bool:
        """Whether a loop computes it, or reads it from a product's sums; else it is in memory, or a number."""
        base = window.base
        return base is not None and (self.values.is_pointwise(base) or (self.values.is_product(base) and base not in self.plain))

    def _put(self, window: Window) -> bool:
        """Whether it is in memory without a loop that stores it there."""
        base = window.base
        return base is not None and (base in self.plain or self.values.is_put(base))

    # Products and phases

    def _never_attached(self) -> set[Value]:
        """Products that no loop reads gate by gate: nothing reads them, or their columns are no windows of one width."""
        values = self.values
        read = {
            window.base
            for value in self.used
            if values.is_pointwise(value)
            for part in values.arguments(value)
            if part in values.rows
            for _, window in values.windows(part)
        }
        return {value for value in self.used if values.is_product(value) and (value not in read or not self._gates(value))}

    def _gates(self, product: Value) -> int:
        """The number of windows of one width that a product's columns are; 0 where they are not."""
        windows = self.values.windows(product)
        alone = self.values.width(product) == self.values.kinds[product].shape[-1]
        return len(windows) if alone and len({window.width for _, window in windows}) == 1 else 0

    def _phases(self) -> dict[Value, int]:
        values = self.values
        stateful = {Value("h", place) for place in range(len(self.program.states))}
        for value in self.used:
            if any(part in stateful for part in values.arguments(value)):
                stateful.add(value)
        carried = {Value("v", place) for place in needed(self.program.nodes, self.program.next_states)}
        heavy = [value for value in self.used if values.is_product(value) or values.is_put(value)]
        before = self._ancestors(value for value in heavy if value not in stateful)
        before |= {value for value in heavy if value not in stateful and (value in self.plain or values.is_put(value))}
        after: set[Value] = set()
        for value in self.used:
            late = value in heavy or any(part in after for part in values.arguments(value))
            if value in stateful and value not in carried and late:
                after.add(value)
        after |= self._late_only([value for value in self.used if value not in carried | after | before], after)
        return {value: BEFORE if value in before - stateful else AFTER if value in after else CORE for value in self.used}

    def _late_only(self, given: Sequence[Value], after: set[Value]) -> set[Value]:
        """Of the given values, those that only phases after the loop and sums over rows compute with, and that follow from inputs and from
        what is kept for all time steps anyway."""
        summed = {part.left for part in self.wanted if part.right is None}
        ends = {*self.outputs, *(value for part in self.wanted if part.right is not None for value in (part.left, part.right))}
        users: dict[Value, list[Value]] = {}
        for user in self.used:
            for part in self.values.arguments(user):
                users.setdefault(part, []).append(user)

        def there(part: Value) -> bool:
            kept = part in ends | summed | after | found or self.values.is_constant(part) or self.values.is_vector(part)
            return part.kind == "x" or part not in self.values.rows or kept

        found = {value for value in given if value not in ends and self.values.is_pointwise(value)}
        while True:
            stays = {
                value
                for value in found
                if not all(user in after | found for user in users.get(value, ())) or not all(map(there, self.values.arguments(value)))
            }
            if not stays:
                return found
            found -= stays

    def _ancestors(self, products: Iterable[Value]) -> set[Value]:
        """What the operands follow from."""
        operands = [part for value in products for part in self._operands(value)]
        found = {Value("v", place) for place in needed(self.program.nodes, operands)}
        return {value for value in found if value in self.values.rows}

    def _operands(self, value: Value) -> list[Value]:
        parts = self.values.arguments(value)
        return parts[:1] if self.values.is_product(value) else parts

    def _ahead(self, product: Value) -> bool:
        """Whether its operand is there before the loop."""
        if self.phase[product] != CORE:
            return False
        return all(part.base is None or self._phase_of(part) == BEFORE for _, part in self.values.windows(self._operands(product)[0]))

    def _phase_of(self, window: Window) -> int:
        """Where a window is first there: inputs and what has no rows are before all else."""
        base = window.base
        if base is not None and base.kind == "h":
            return CORE
        return self.phase[base] if base is not None and self._is_made(base) else BEFORE

    # Windows: which there are, each after what it takes

    def _find_windows(self) -> None:
        self.order: list[Window] = []
        self.readers: dict[Window, list[Window]] = {}
        self.stores: dict[Window, list[tuple[int, Memory]]] = {}
        """The places that windows are stored to, with the phase of each store."""
        self.operands: dict[Value, list[tuple[Memory, Value]]] = {}
        """The operands of products and moves: where each is, and what."""
        self.copies: dict[Value, int] = {}
        self._known: set[Window] = set()
        after = [self._slot("n", place, Value("h", place)) for place in range(len(self.program.states))]
        results = [self._slot("o", place, value) for place, value in enumerate(self.outputs)]
        self.results = {
            value: (Memory(slot, 0),) for value, slot in zip(self.outputs, results, strict=True) if self.values.base(value)[0] == value
        }
        for value, slot in (*zip(self.outputs, results, strict=True), *zip(self.program.next_states, after, strict=True)):
            self._store_all(value, Memory(slot, 0), CORE)
        self.sums = [self._row_sum(part) for part in self.wanted]

    def _store_all(self, value: Value, target: Memory, phase: int) -> None:
        for at, window in self.values.windows(value):
            self._store(window, Memory(target.slot, target.start + at), phase)

    def _store(self, window: Window, target: Memory, phase: int) -> None:
        """phase: where it is wanted, if it is there before."""
        self._need(window)
        phase = CORE if self.slots[target.slot].kind == "n" else self._put_in(window, phase)
        request = phase, target
        if request not in self.stores.setdefault(window, []):
            self.stores[window].append(request)

    def _is_made(self, base: Value) -> bool:
        """Whether a phase has it: what is computed, or put to memory."""
        return base in self.phase and not self.values.is_constant(base) and not self.values.is_vector(base)

    def _need(self, window: Window) -> None:
        """Notes a window and all that it takes."""
        if window in self._known:
            return
        self._known.add(window)
        base = window.base
        if base is not None and base.kind in "xh":
            self._leaf(base)
        if base is not None and base in self.phase:
            if self.values.is_product(base) or self.values.is_put(base):
                self._find_operands(base)
            for part in self.taken(window):
                self._need(part)
                if part.base is not None and part.base.kind == "h" and self.phase[base] == AFTER:
                    self._copy(part.base)
                self.readers.setdefault(part, []).append(window)
        self.order.append(window)

    def taken(self, window: Window) -> list[Window]:
        """The windows of rows that a window is computed from."""
        if window.base is None or not self.values.is_pointwise(window.base):
            return []
        return [self.argument(window, part) for part in self.values.arguments(window.base) if part in self.values.rows]

    def argument(self, window: Window, part: Value) -> Window:
        """The window of an argument that goes with one of the result: the same, or the one number that all have."""
        values = self.values
        assert window.base is not None
        if values.width(part) == values.width(window.base):
            return values.window(part, window.start, window.width)
        if values.width(part) == 1:
            return values.window(part, 0, 1)
        raise NotLowered(f"'{self.program.nodes[window.base.place]}' spreads rows of shape {values.kinds[part].shape}")

    def _find_operands(self, made: Value) -> None:
        if made not in self.operands:
            self.operands[made] = []  # before the others: it does not need itself
            ahead = self.values.is_product(made) and self._ahead(made)
            phase = BEFORE if ahead else self.phase[made]
            self.operands[made] = [(self._memory(part, phase), part) for part in self._operands(made)]
            if ahead:
                self._keep(self.operands[made][0][0].slot)

    def _memory(self, value: Value, phase: int) -> Memory:
        """Where all numbers of a value are, in their order, for a phase to read, or at the end."""
        base, start = self.values.base(value)
        if base.kind in "xh":
            return Memory(self._leaf(base) if base.kind == "x" or phase == CORE else self._copy(base), start)
        windows = self.values.windows(base, start, self.values.width(value))
        home = self._home(base)
        for at, window in windows:
            if self._put(window) and window.base == base:
                self._need(window)
            else:
                self._store(window, home.at(start + at), min(phase, AFTER))
        if any(self._put_in(window, phase) != phase for _, window in windows):
            self._keep(home.slot)
        return home.at(start)

    def _put_in(self, window: Window, phase: int) -> int:
        """The phase that puts a window to memory where it is read in this one."""
        base = window.base
        if base is not None and base.kind == "h":
            return CORE
        return self.phase[base] if base is not None and self._is_made(base) else min(phase, AFTER)

    def _leaf(self, leaf: Value) -> int:
        """The slot of an input or a state."""
        if leaf not in self.homes:
            self.homes[leaf] = Memory(self._slot(leaf.kind, leaf.place, leaf), 0)
        return self.homes[leaf].slot

    def _home(self, base: Value) -> Memory:
        """The memory of a value: where it is put anyway, as an output or beside others; else a slot of its own."""
        if base not in self.homes:
            anyway = [target for phase, target in self.stores.get(self._whole(base), ()) if phase == self.phase.get(base)]
            given = [target for target in (*self.results.get(base, ()), *anyway) if self.slots[target.slot].kind != "n"]
            self.homes[base] = given[0] if given else Memory(self._slot("l", 0, base), 0)
        return self.homes[base]

    def _whole(self, base: Value) -> Window:
        return Window(base, 0, self.values.width(base))

    def _keep(self, slot: int) -> None:
        """Keeps rows of all time steps: those of one are gone in another phase."""
        if self.slots[slot].kind == "l":
            self.slots[slot] = self.slots[slot]._replace(kind="r")

    def _row_sum(self, part: Wanted) -> RowSum:
        values = self.values
        if part.right is None:
            width = values.width(part.left)
            return RowSum(part.parameter, self._kept(part.left, contiguous=True, phase=AFTER).slot, width, NOTHING, 0, 1)
        left, right = (values.kinds[value].shape[-1] for value in (part.left, part.right))
        rows = values.width(part.left) // left if left else 1
        return RowSum(part.parameter, self._kept(part.left, contiguous=True).slot, left, self._kept(part.right), right, rows)

    def _kept(self, value: Value, contiguous: bool = False, phase: int = END) -> Memory:
        """Where the rows of all time steps are at the end, or in a phase after the loop. contiguous: a row after the other, without
        anything between them."""
        base, _ = self.values.base(value)
        if base.kind == "h" or (contiguous and not self._alone(base, self.values.width(value))):
            return Memory(self._copy(value), 0)
        return self._memory(value, phase)

    def _alone(self, base: Value, width: int) -> bool:
        """Whether its rows are, or can be, of that width and have nothing between them."""
        if base.kind == "x":
            return False
        slot = self.slots[self._home(base).slot]
        return slot.kind != "o" and slot.width == width

    def _copy(self, value: Value) -> int:
        if value not in self.copies:
            self.copies[value] = self._slot("r", 0, value)
            self._store_all(value, Memory(self.copies[value], 0), CORE)
        return self.copies[value]

    # Stages

    def _find_stages(self) -> None:
        self.first: dict[Window, int] = {}
        """The first stage that can read a window, of its own phase: in registers if a loop computes it, else in memory."""
        self.made: dict[Value, int] = {}
        """The stage of products and moves."""
        for window in self.order:
            self.first[window] = self._first(window)
        self.stage: dict[Window, int] = {}
        ends = self._deadlines()
        attached: dict[Value, int] = {}
        for window in reversed(self.order):
            if not self._computed(window):
                continue
            assert window.base is not None
            stage = self._last(window, ends)
            if self.values.is_product(window.base) and not self._ahead(window.base):
                attached[window.base] = min(stage, attached.get(window.base, stage))
            self.stage[window] = stage
        for window in self.stage:
            if window.base in attached:
                self.stage[window] = self.made[window.base] = attached[window.base]

    def _first(self, window: Window) -> int:
        base = window.base
        if base is None or not self._is_made(base):
            return 0
        if self.values.is_product(base) or self.values.is_put(base):
            if base not in self.made:
                self.made[base] = self._stage_of(base)
            return self.made[base] + (1 if self._put(window) else 0)
        phase = self.phase[base]
        found = 0
        for part in self.taken(window):
            if self._phase_of(part) == phase:
                spread = part.width != window.width and self._computed(part)
                found = max(found, self.first.get(part, 0) + spread)
        return found

    def _stage_of(self, made: Value) -> int:
        """After all of its operands are in memory."""
        if self.values.is_product(made) and self._ahead(made):
            return 0
        found = 0
        for memory, part in self.operands[made]:
            if self.slots[memory.slot].kind in "xh":
                continue
            for _, window in self.values.windows(part):
                if window.base is not None and window.base.kind == "h" and self.phase[made] != CORE:
                    continue  # its rows are kept by then
                if self._put(window):
                    found = max(found, self.first[window] if self._phase_of(window) == self.phase[made] else 0)
                elif not self._computed(window) or self._phase_of(window) == self.phase[made]:
                    found = max(found, self.first[window] + 1)
        return found

    def _deadlines(self) -> dict[tuple[Window, int], int]:
        """For what products and moves read, with the phase: the last stage that may store it."""
        found: dict[tuple[Window, int], int] = {}
        for made, stage in self.made.items():
            if self.values.is_product(made) and self._ahead(made):
                continue
            for memory, part in self.operands[made]:
                if self.slots[memory.slot].kind in "xh":
                    continue
                for _, window in self.values.windows(part):
                    key = window, self.phase[made]
                    found[key] = min(stage - 1, found.get(key, stage - 1))
        return found

    def _last(self, window: Window, ends: dict[tuple[Window, int], int]) -> int:
        """The stage to compute a window in: as late as its readers allow, since what is computed late is not stored in between."""
        assert window.base is not None
        phase = self.phase[window.base]
        stages = [
            self.stage[reader] - (reader.width != window.width)
            for reader in self.readers.get(window, ())
            if self._phase_of(reader) == phase
        ]
        if (window, phase) in ends:
            stages.append(ends[window, phase])
        return max(min(stages, default=self.first[window]), self.first[window])

    # Loops

    def _place(self) -> None:
        values = self.values
        for window in self.order:
            if self._computed(window) and values.is_pointwise(window.base):  # type: ignore[arg-type]
                self._loop(self.phase[window.base], self.stage[window], window.width).windows.append(window)  # type: ignore[index]
        for window in self.order:
            if self._computed(window):
                self._connect(window)
            elif self._put(window):
                self._reach(window)
        ends = self._deadlines()
        self.targets: dict[Value, Memory] = {}
        for window in self.order:
            for phase, target in self.stores.get(window, ()):
                if self._put(window) and self._takes(window, phase, target):
                    continue
                self._loop(phase, self._copied_at(window, phase, ends), window.width).stores.append((window, target))
        for phase in (BEFORE, CORE, AFTER):
            for (of, stage, width), loop in self.loops.items():
                if of == phase:
                    self._attach(loop, phase, stage, width)

    def _copied_at(self, window: Window, phase: int, ends: dict[tuple[Window, int], int]) -> int:
        if self._computed(window) and self._phase_of(window) == phase:
            return self.stage[window]
        if self._computed(window):
            return 0
        if (window, phase) in ends:
            return ends[window, phase]
        return self.first[window] if self._phase_of(window) == phase and window.base is not None and self._is_made(window.base) else 0

    def _takes(self, window: Window, phase: int, target: Memory) -> bool:
        """Whether what is put to memory is put to this target, which is all of it and the first; else it is copied there."""
        base = window.base
        assert base is not None
        if base in self.targets:
            return False
        mine = phase == self.phase[base]
        if mine and base not in self.homes and window.width == self.values.width(base):
            self.targets[base] = target
            return True
        home = self._home(base)
        if not mine:
            self._keep(home.slot)
        return home.at(window.start) == target

    def _loop(self, phase: int, stage: int, width: int) -> Loop:
        return self.loops.setdefault((phase, stage, width), Loop(phase, width))

    def _connect(self, window: Window) -> None:
        """Puts to memory what readers in other loops take."""
        base, stage = window.base, self.stage[window]
        assert base is not None
        phase = self.phase[base]
        for reader in self.readers.get(window, ()):
            theirs = self._phase_of(reader)
            ahead = self.values.is_product(base) and self._ahead(base)
            same = theirs == phase and reader.width == window.width and (self.stage[reader] == stage or ahead)
            if not same:
                self._reach_from(window, theirs)
        for theirs, _ in list(self.stores.get(window, ())):
            if theirs != phase:
                self._reach_from(window, theirs)

    def _reach(self, window: Window) -> None:
        """Gives each window that is put to memory a place that its readers reach."""
        assert window.base is not None
        if readers := self.readers.get(window, ()):
            home = self._home(window.base)
            if any(self._phase_of(reader) != self.phase[window.base] for reader in readers):
                self._keep(home.slot)

    def _reach_from(self, window: Window, phase: int) -> None:
        """Stores what a loop computes where another loop, perhaps of another phase, can read it."""
        base = window.base
        assert base is not None
        home = self._home(base)
        self._store(window, home.at(window.start), self.phase[base])
        if phase != self.phase[base]:
            self._keep(home.slot)

    def _attach(self, loop: Loop, phase: int, stage: int, width: int) -> None:
        read = [part for window in loop.windows for part in self.taken(window)] + [window for window, _ in loop.stores]
        for window in read:
            base = window.base
            if base is None or not self._computed(window) or not self.values.is_product(base) or self.phase[base] != phase:
                continue
            if window.width != width or any(base == part.value for part in loop.attached):
                continue
            if self._ahead(base) or self.stage[window] == stage:
                bias = next((vector for product, vector in self.values.biases.values() if product == base), None)
                loop.attached.append(Attached(base, self._product(base), self._gates(base), self._ahead(base), bias))

    def _product(self, value: Value) -> Product:
        node = self.values.node(value)
        assert node is not None
        memory, operand = self.operands[value][0]
        depth, columns = self.values.kinds[operand].shape[-1], self.values.kinds[value].shape[-1]
        weight = node.values()[1]
        if weight not in self.weights:
            self.weights.append(weight)
        rows = self.values.width(value) // columns if columns else 1
        return Product(memory, rows, depth, columns, self.weights.index(weight), node.operation == "transposed_product")

    def crowded(self) -> set[Value]:
        """Products that are too many for a loop."""
        return {part.value for loop in self.loops.values() for part in loop.attached[MOST_PRODUCTS:]}

    def biased_in_vain(self) -> set[Value]:
        """Products that are to begin with a vector, and are not attached."""
        return {product for product, _ in self.values.biases.values()} & self.plain

    def result(self) -> Lowered:
        phases = []
        for phase in (BEFORE, CORE, AFTER):
            stages: dict[int, Stage] = {}
            for made, stage in self.made.items():
                if self.phase[made] == phase and (made in self.plain or self.values.is_put(made)):
                    self._add_made(stages.setdefault(stage, Stage()), made)
            for (of, stage, _), loop in self.loops.items():
                if of == phase and (loop.windows or loop.stores):
                    stages.setdefault(stage, Stage()).loops.append(loop)
            phases.append([stages[stage] for stage in sorted(stages)])
        memory = self.homes | self.targets
        copies = {value: Memory(slot, 0) for value, slot in self.copies.items()}
        return Lowered(self.values, self.slots, phases, memory, copies, self.weights, self.fixed, self.sums)

    def memory_of(self, made: Value) -> Memory:
        """The place of what is made, if it lies in memory."""
        return self.targets.get(made) or self._home(made)

    def _add_made(self, stage: Stage, made: Value) -> None:
        target = self.memory_of(made)
        if self.values.is_reduced(made):
            stage.reductions.append(self._reduction(made, target))
        elif self.values.is_moved(made):
            sources = tuple((memory, self.values.width(part)) for memory, part in self.operands[made])
            stage.moves.append(Move(sources, target, tuple(map(tuple, self.values.places(made)))))
        else:
            stage.plain.append(Plain(self._product(made), target))

    def _reduction(self, made: Value, target: Memory) -> Reduction:
        values, node = self.values, self.values.node(made)
        assert node is not None
        source = self.operands[made][0][1]
        summed = node.operation == "sum_to"
        width = values.width(source) // values.width(made) if summed else values.kinds[source].shape[-1]
        less = node.attributes[0] if node.operation == "mean" else None
        operation = "sum" if summed or less is not None else "cumsum_back" if node.attributes == (True,) else node.operation
        over = 1 if less is None else divisor(width, less)
        memories = tuple(memory for memory, _ in self.operands[made])
        return Reduction(operation, memories, values.width(source) // width if width else 0, width, over, target)
