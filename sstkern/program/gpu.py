"""The Triton of a program (`lower`): one kernel for the loop over time steps, and one for each stage before and after it.

A kernel's programs share a tile of the batch: each has some units of every loop, and some columns of every product. What one of them stores
for a later stage the others read once all have met (`sstkern.engines.triton.tiles`). The text is that of `sstkern.program.loops`, with
sizes as arguments: one text serves all of them. `sstkern.program.on_gpu` gives the arguments by their names here:

    slot0 width0      rows in memory, and how many numbers a row has; those of a state in two turns are state0,
                      and after them what sequences begin anew with, backward its gradient
    start0 vector0 numbers weight0 units0    as `loops.Arguments` and `lower.Lowered` number them; units of each piece of work
    depth0 column0 inner0 from0 repeat0      of a product: how deep, the strides of its matrix, where its operand starts, how often
    sums0             of a product that is there before the loop
    table0 of_each0   of a move; groups0 over0 divisor0 of a reduction
    BLOCK0 BLOCK_K0 CHUNKS0                  a program's tiles: of units, of a product's depth, and how many of those there are
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from sstkern.engines.triton.launch import power_of_two
from sstkern.program.loops import OPERATORS, Arguments, LoopText, Row, Vector
from sstkern.program.lower import AFTER, BEFORE, CORE, Attached, Loop, Lowered, Memory, Move, Plain, Product, Reduction, Stage

_TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64"}
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_LOGICAL = {"logical_and": "&", "logical_or": "|"}
_HEADER = """import triton
import triton.language as tl

from sstkern.engines.triton import functions as f
from sstkern.engines.triton.tiles import (
    addresses,
    begin,
    cumulated,
    cut_after,
    finish,
    first_row,
    gate_rows,
    halves,
    kept,
    largest,
    load,
    picked,
    product,
    sequences,
    stacked,
    store,
    store_state,
    summed,
    time_step,
)

"""
_TASK = """    task = first_task + tl.program_id(0) // programs
    program = tl.program_id(0) % programs
    columns = tl.arange(0, BLOCK_B)
    slots = task * BLOCK_B + columns
    present = slots < B
    length, steps = sequences(lengths, slots, T, B, HAS_LENGTHS, STAGE >= 0)
    counter = counters + task"""
_STEP = """    for s in range(first_step, tl.minimum(last_step, steps)):
        t = time_step(s, steps, REVERSE)
        now = t < length
        row = first_row(offsets, t, B, HAS_LENGTHS) + slots
        local = ((s % 2) * slabs + (task - first_task)) * BLOCK_B + columns.to(tl.int64)
        before = (s + 1) % 2 * B + slots.to(tl.int64)
        after = s % 2 * B + slots.to(tl.int64)
        anew = 2 * B + slots.to(tl.int64)
        cut = now
        if CUTS:
            cut = cut_after(marks, t, slots, length, B, REVERSE)"""
_ROWS = """    program = tl.program_id(0) % programs
    row = (tl.program_id(0) // programs).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    now = row < N"""
CALL = ("offsets", "lengths", "marks", "counters", "T", "B", "programs", "first_step", "last_step", "first_task", "slabs")
"""Arguments of every core kernel."""
CONSTANTS = ("REVERSE", "HAS_LENGTHS", "CUTS", "BACKWARD", "STAGE", "EXCHANGES", "KEEP", "PRECISION", "TARGET", "BLOCK_B")
ROW_CALL, ROW_CONSTANTS = ("N", "programs"), ("STAGE", "BLOCK_B")
_COUNTS = ("T", "B", "N", "programs", "first_step", "last_step", "first_task", "slabs")


@dataclass(frozen=True)
class Work:
    """A part of a stage that programs share by its units. products: their numbers. whole: whether a program has a whole row in a tile of
    its own, of `over` numbers, and not only some units. live: how many tiles are alive at once."""

    units: int
    products: tuple[int, ...] = ()
    gates: int = 1
    over: int = 0
    whole: bool = False
    live: int = 2


@dataclass
class Kernel:
    """names: of its arguments beside those of every kernel of its kind. meets: whether its programs read what others of them have
    stored."""

    name: str
    names: list[str] = field(default_factory=list)
    works: list[int] = field(default_factory=list)
    stages: int = 1
    meets: bool = False


@dataclass
class Code:
    """text: a module. works, products, ahead, moves, reductions: by the numbers that the text has. rows: the kernels before and after the
    loop by phase and stage. read: slots that loops read."""

    lowered: Lowered
    arguments: Arguments
    text: str = ""
    works: list[Work] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    ahead: list[Attached] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    core: Kernel | None = None
    rows: dict[tuple[int, int], Kernel] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)


def code(lowered: Lowered) -> Code:
    found = Code(lowered, Arguments(lowered))
    parts = []
    if lowered.phases[CORE]:
        core = _Core(found)
        parts.append(core.text())
        found.core = core.kernel
    for phase in (BEFORE, AFTER):
        for place, stage in enumerate(lowered.phases[phase]):
            if stage.loops or stage.moves or stage.reductions:
                rows = _Rows(found, phase, place, stage)
                parts.append(rows.text())
                found.rows[phase, place] = rows.kernel
    found.text = _HEADER + "\n\n".join(parts)
    return found


class _Emitter:
    """A kernel's lines."""

    def __init__(self, found: Code, name: str):
        self.code, self.arguments, self.values = found, found.arguments, found.lowered.values
        self.real = _TYPES[self.values.dtype]
        self.kernel = Kernel(name)
        self.setup: list[str] = []
        self.variables = 0
        self.windows: list[tuple[int, Row]] = []
        """What loops read and store, each with its width."""
        self.early: set[str] = set()
        """Loads of what no program stores in this launch."""

    def use(self, name: str) -> str:
        """An argument."""
        if name not in self.kernel.names:
            self.kernel.names.append(name)
        return name

    def start(self, start: int) -> str:
        return "0" if start < 0 else self.use(f"start{start}")

    def work(self, work: Work) -> int:
        self.code.works.append(work)
        place = len(self.code.works) - 1
        self.kernel.works.append(place)
        self.setup.append(f"u{place} = program * {self.use(f'BLOCK{place}')} + tl.arange(0, {f'BLOCK{place}'})")
        self.use(f"units{place}")
        return place

    def rows_of(self, slot: int) -> str:
        """Where rows of a slot are: as `load` and `store` take them."""
        return f"{self.use(f'slot{slot}')}, row, {self.use(f'width{slot}')}"

    def there(self, slot: int) -> str:
        return "now"

    def loaded(self, slot: int, start: str, units: str, count: str) -> str:
        return f"load({self.rows_of(slot)}, {start}, {units}, {count}, {self.there(slot)}, {self.shared(slot)})"

    def shared(self, slot: int) -> bool:
        """Whether another program may have stored what is loaded."""
        return False

    def stored(self, slot: int, start: str, units: str, count: str, value: str) -> str:
        return f"store({self.rows_of(slot)}, {start}, {units}, {count}, {self.there(slot)}, {value})"

    def memory(self, memory: Memory) -> str:
        """Where numbers begin in their row."""
        return self.start(self.arguments.start(memory, memory.start))

    def of_stage(self, found: Stage) -> list[tuple[list[str], list[str]]]:
        """The stage in one part or two, between which all programs have to meet: where loops read what the stage's products, moves and
        reductions store. Of each part what can be loaded before they meet, and the rest."""
        made = self.products_of(found)
        made += [line for move in found.moves for line in self.of_move(move)]
        made += [line for reduction in found.reductions for line in self.of_reduction(reduction)]
        before = len(self.windows)
        early: list[str] = []
        loops: list[str] = []
        for loop in found.loops:
            loaded, rest = self.of_loop(loop)
            early += loaded
            loops += rest
        stored = {part.target.slot for parts in (found.plain, found.moves, found.reductions) for part in parts}
        if any(row.slot in stored and not row.written for _, row in self.windows[before:]):
            return [([], made), (early, loops)]
        return [(early, made + loops)]

    def products_of(self, found: Stage) -> list[str]:
        """The lines of the products that are put to memory."""
        return []

    def of_move(self, move: Move) -> list[str]:
        number = len(self.code.moves)
        self.code.moves.append(move)
        work = self.work(Work(len(move.places)))
        parts = [
            f"picked({self.rows_of(source.slot)}, {self.memory(source)}, {self.use(f'table{number}_{place}')}, "
            f"{self.use(f'of_each{number}_{place}')}, u{work}, units{work}, {self.there(source.slot)}, {self.real})"
            for place, (source, _) in enumerate(move.sources)
        ]
        value = " + ".join(parts)
        if self.code.lowered.slots[move.target.slot].boolean:
            value = f"({value}) != 0.0"
        return [self.stored(move.target.slot, self.memory(move.target), f"u{work}", f"units{work}", value)]

    def of_reduction(self, reduction: Reduction) -> list[str]:
        number = len(self.code.reductions)
        self.code.reductions.append(reduction)
        cumulative = reduction.operation.startswith("cumsum")
        place = len(self.code.works)
        self.code.works.append(Work(reduction.groups, over=reduction.width, whole=cumulative, live=1 + 2 * len(reduction.sources)))
        self.kernel.works.append(place)
        over, block = self.use(f"over{number}"), self.use(f"BLOCK{place}")
        sources = [f"{self.rows_of(source.slot)}, {self.memory(source)} + group * {over}" for source in reduction.sources]
        there = self.there(reduction.sources[0].slot)
        if cumulative:
            value = f"cumulated({sources[0]}, {over}, {there}, {reduction.operation == 'cumsum_back'}, {block}, {self.real})"
            units, count, start = f"tl.arange(0, {block})", over, f"{self.memory(reduction.target)} + group * {over}"
        else:
            both = ", ".join((sources * 2)[:2])
            value = f"summed({both}, {over}, {there}, {len(sources) == 2}, {block}, {self.real})"
            value += f" / ({self.use(f'divisor{number}')} * tl.full((1, 1), 1.0, {self.real}))" if reduction.divisor != 1 else ""
            if reduction.operation in ("amax", "max"):
                value = f"largest({sources[0]}, {over}, {there}, {block}, {self.real})"
            units, count, start = "group + tl.arange(0, 1)", self.use(f"groups{number}"), self.memory(reduction.target)
        stored = self.stored(reduction.target.slot, start, units, count, value)
        return [f"for group in range(program, {self.use(f'groups{number}')}, programs):", f"    {stored}"]

    def of_loop(self, loop: Loop) -> tuple[list[str], list[str]]:
        lines, sums = self.sums_of(loop)
        text = _Loop(self, loop, sums, len(self.code.works) - 1)
        text.walk()
        self.code.works[text.work] = replace(self.code.works[text.work], live=text.live() + 1)
        self.windows += [(loop.width, row) for row in text.touched.rows]
        self.code.read |= {row.slot for row in text.touched.rows if not row.written}
        found = [(line.text in self.early, f"{line.name} = {line.text}" if line.name else line.text) for line in text.lines]
        return [line for early, line in found if early], lines + [line for early, line in found if not early]

    def sums_of(self, loop: Loop) -> tuple[list[str], list[list[str]]]:
        """The lines of a loop's products, and what loads each gate of each."""
        raise NotImplementedError

    def sums_ahead(self, part: Attached, work: int) -> list[str]:
        """What loads each gate of a product that is there before the kernel runs."""
        if part not in self.code.ahead:
            self.code.ahead.append(part)
            self.arguments.bias(part)  # among the vectors
        at, units = f"{self.use(f'sums{self.code.ahead.index(part)}')}, row, {part.gates} * units{work}", f"u{work}, units{work}"
        found = [f"load({at}, {gate} * units{work}, {units}, now, False)" for gate in range(part.gates)]
        self.early.update(found)
        return found

    def signature(self, call: Iterable[str], constants: Iterable[str]) -> list[str]:
        constant = [name for name in self.kernel.names if name[:5] == "BLOCK" or name[:6] == "CHUNKS"]
        plain = [name for name in self.kernel.names if name not in constant]
        return [
            f"@triton.jit(do_not_specialize=[{', '.join(repr(name) for name in call if name in _COUNTS)}])",
            f"def {self.kernel.name}(",
            *(f"    {name}," for name in (*plain, *call)),
            *(f"    {name}: tl.constexpr," for name in (*constant, *constants)),
            "):",
        ]


class _Core(_Emitter):
    """Of the loop over time steps."""

    def __init__(self, found: Code):
        super().__init__(found, "core")
        self.stages = found.lowered.phases[CORE]
        self.written = {memory.slot for stage in self.stages for memory in _targets(stage)}

    def meets(self) -> bool:
        """Whether anything is computed of what other units have stored: of another window than was stored there, unit for unit."""
        loops = [loop for stage in self.stages for loop in stage.loops]
        if any(stage.plain or stage.moves or stage.reductions for stage in self.stages) or any(
            not part.ahead for loop in loops for part in loop.attached
        ):
            return True
        stored: dict[object, set[tuple[int, int, bool]]] = {}
        read: dict[object, set[tuple[int, int, bool]]] = {}
        for width, row in self.windows:
            kind, place, *_ = self.code.lowered.slots[row.slot]
            memory = ("state", place) if kind in "hn" else row.slot
            start = 0 if row.start < 0 else self.arguments.starts[row.start]
            (stored if row.written else read).setdefault(memory, set()).add((width, start, row.one))
        return any(
            windows - stored[memory] or len({width for width, *_ in stored[memory]}) > 1
            for memory, windows in read.items()
            if memory in stored
        )

    def text(self) -> str:
        parts = [part for stage in self.stages for part in self.of_stage(stage)]
        self.kernel.stages = len(parts)
        body: list[str] = []
        for place, (early, lines) in enumerate(parts):
            count = f"programs * ((s - first_step) * {len(parts)} + {place})"
            inside = [*early, f"begin(counter, {count}, EXCHANGES, TARGET)", *lines, "finish(counter, EXCHANGES, TARGET)"]
            body += [f"        if STAGE < 0 or STAGE == {place}:", *(f"            {line}" for line in inside)]
        self.kernel.meets = self.meets()
        head = self.signature(CALL, CONSTANTS)
        return "\n".join([*head, _TASK, *(f"    {line}" for line in self.setup), _STEP, *body]) + "\n"

    def products_of(self, found: Stage) -> list[str]:
        return [line for plain in found.plain for line in self.of_plain(plain)]

    def rows_of(self, slot: int) -> str:
        kind, place, *_ = self.code.lowered.slots[slot]
        if kind in "hn":
            return f"{self.use(f'state{place}')}, {'before' if kind == 'h' else 'after'}, {self.use(f'width{slot}')}"
        return f"{self.use(f'slot{slot}')}, {'local' if kind == 'l' else 'row'}, {self.use(f'width{slot}')}"

    def there(self, slot: int) -> str:
        return "present" if self.code.lowered.slots[slot].kind in "hn" else "now"

    def shared(self, slot: int) -> bool:
        return slot in self.written or self.code.lowered.slots[slot].kind == "h"

    def stored(self, slot: int, start: str, units: str, count: str, value: str) -> str:
        kind, place, *_ = self.code.lowered.slots[slot]
        if kind != "n":
            return super().stored(slot, start, units, count, value)
        rows = f"{self.use(f'state{place}')}, before, after, anew, {self.use(f'width{slot}')}"
        return f"store_state({rows}, {start}, {units}, {count}, present, now, cut, {value}, CUTS, BACKWARD)"

    def product(self, work: int, parts: Sequence[tuple[Product, int]], start: str) -> str:
        """The sums of products of one operand, whose matrices are stacked, of the columns that are work's units. parts: each with its
        gates."""
        product, number = parts[0][0], len(self.code.products)
        self.code.products.append(product)
        depth, of_row, of_column = (self.use(f"{name}{number}") for name in ("depth", "column", "inner"))
        rows, there, gates = f"r{number}", f"m{number}", sum(gates for _, gates in parts)
        self.setup += [
            f"{rows}, {there} = gate_rows(u{work}, units{work}, {gates}, {power_of_two(gates)})",
            f"w{number} = addresses({self.use(f'weight{product.weight}')}, {rows}, {of_row})",
        ]
        for place, (part, _) in enumerate(parts[1:], 1):
            before = f"{sum(gates for _, gates in parts[:place])} * units{work}"
            weight = self.use(f"weight{part.weight}")
            self.setup.append(f"w{number} = stacked(w{number}, {weight}, {rows}, {before}, {of_row})")
        tile = f"KEEP, {self.use(f'BLOCK_K{number}')}, {self.use(f'CHUNKS{number}')}, PRECISION"
        self.setup.append(f"k{number} = kept(w{number}, {there}, {depth}, {of_column}, {tile})")
        operand = f"{self.rows_of(product.operand.slot)}, {start}, {depth}, {self.there(product.operand.slot)}"
        return f"product(k{number}, w{number}, {there}, {of_column}, {operand}, {tile}, {self.real})"

    def of_plain(self, plain: Plain) -> list[str]:
        product, number = plain.product, len(self.code.products)
        work = self.work(Work(product.columns, (number,)))
        found = self.product(work, [(product, 1)], f"{self.memory(product.operand)} + i * depth{number}")
        start = f"{self.memory(plain.target)} + i * units{work}"
        stored = self.stored(plain.target.slot, start, f"u{work}", f"units{work}", found)
        return [f"for i in range(0, {self.use(f'repeat{number}')}):", f"    {stored}"]

    def sums_of(self, loop: Loop) -> tuple[list[str], list[list[str]]]:
        first, stacks = len(self.code.products), _stacks([part for part in loop.attached if not part.ahead])
        gates = max((power_of_two(sum(part.gates for part in stack)) for stack in stacks), default=1)
        work = self.work(Work(loop.width, tuple(range(first, first + len(stacks))), gates))
        lines: list[str] = []
        of_part: dict[Attached, list[str]] = {}
        for stack in stacks:
            names = [f"p{len(self.code.products)}"]
            product = self.product(work, [(part.product, part.gates) for part in stack], self.memory(stack[0].product.operand))
            lines.append(f"{names[0]} = {product}")
            while len(names) < sum(part.gates for part in stack):
                lines += [f"{name}a, {name}b = halves({name})" for name in names]
                names = [f"{name}{half}" for name in names for half in "ab"]
            rest = iter(names)
            of_part |= {part: [next(rest) for _ in range(part.gates)] for part in stack}
        sums = []
        for part in loop.attached:
            if part.ahead:
                sums.append(self.sums_ahead(part, work))
            else:
                bias = self.arguments.bias(part)
                names = of_part[part]
                sums.append(names if bias < 0 else [f"{name} + {self.bias(bias, gate, work)}" for gate, name in enumerate(names)])
        return lines, sums

    def bias(self, vector: int, gate: int, work: int) -> str:
        at = f"{self.use(f'vector{vector}')} + {gate} * units{work} + u{work}"
        return f"tl.load({at}, mask=u{work} < units{work}, other=0)[:, None]"


def _stacks(parts: Sequence[Attached]) -> list[list[Attached]]:
    """Products that have one operand and strides, and so are one product of their matrices' rows: tensor cores take 64 of those, and read
    them from shared memory, where fewer are kept in registers."""
    found: dict[tuple[Memory, int, int], list[Attached]] = {}
    for part in parts:
        product = part.product
        found.setdefault((product.operand, product.depth, product.columns if product.transposed else 0), []).append(part)
    return list(found.values())


class _Rows(_Emitter):
    """Of a stage before or after the loop, for all rows at once; its products are there when it begins. A stage in two parts has two
    launches of the kernel."""

    def __init__(self, found: Code, phase: int, place: int, stage: Stage):
        super().__init__(found, f"{'before' if phase == BEFORE else 'after'}_{place}")
        self.stage = stage

    def text(self) -> str:
        parts = self.of_stage(self.stage)
        self.kernel.stages = len(parts)
        body = list(self.setup)
        for place, (early, lines) in enumerate(parts):
            inside = [*early, *lines] or ["pass"]
            body += [f"if STAGE == {place}:", *(f"    {line}" for line in inside)]
        return "\n".join([*self.signature(ROW_CALL, ROW_CONSTANTS), _ROWS, *(f"    {line}" for line in body)]) + "\n"

    def sums_of(self, loop: Loop) -> tuple[list[str], list[list[str]]]:
        work = self.work(Work(loop.width))
        return [], [self.sums_ahead(part, work) for part in loop.attached]


class _Loop(LoopText):
    """One loop's lines."""

    def __init__(self, emitter: _Emitter, loop: Loop, sums: list[list[str]], work: int):
        super().__init__(emitter.arguments, loop)
        self.emitter, self.of_products, self.work = emitter, sums, work

    def new_name(self) -> str:
        self.emitter.variables += 1
        return f"v{self.emitter.variables - 1}"

    def _units(self) -> tuple[str, str]:
        return f"u{self.work}", f"units{self.work}"

    def literal(self, value: float) -> str:
        text = f'float("{value}")' if math.isnan(value) or math.isinf(value) else repr(value)
        return f"tl.full((1, 1), {text}, {self.emitter.real})"

    def number(self, place: int) -> str:
        return f"tl.load({self.emitter.use('numbers')} + {place})"

    def size(self, start: int) -> str:
        return f"({self.emitter.start(start)} * tl.full((1, 1), 1.0, {self.emitter.real}))"

    def row(self, row: Row) -> str:
        units, count = ("tl.arange(0, 1)", "1") if row.one else self._units()
        found = self.emitter.loaded(row.slot, self.emitter.start(row.start), units, count)
        text = f"({found} != 0)" if row.boolean else f"{found}.to({self.emitter.real})"
        return text if self.emitter.shared(row.slot) else self._early(text)

    def _early(self, text: str) -> str:
        self.emitter.early.add(text)
        return text

    def sums(self, place: int, gate: int) -> str:
        return self.of_products[place][gate]

    def vector(self, vector: Vector, boolean: bool) -> str:
        at, (units, count) = self.emitter.use(f"vector{vector.vector}"), self._units()
        if vector.one:
            found = f"tl.load({at})"
        else:
            found = f"tl.load({at} + {self.emitter.start(vector.start)} + {units}, mask={units} < {count}, other=0)[:, None]"
        return self._early(f"({found} != 0)" if boolean else found)

    def condition(self, number: str) -> str:
        return self.truth(number)

    def truth(self, numbers: str) -> str:
        return f"(({numbers}) != 0.0)"

    def numbers(self, mask: str) -> str:
        return f"({mask}).to({self.emitter.real})"

    def spread(self, argument: str, mask: bool) -> str:
        return argument

    def stored(self, row: Row, value: str) -> str:
        return self.emitter.stored(row.slot, self.emitter.start(row.start), *self._units(), value)

    def call(self, operation: str, arguments: list[str]) -> str:
        operator = (OPERATORS | _COMPARISONS | _LOGICAL).get(operation)
        if operator is not None:
            return f"{arguments[0]} {operator} {arguments[1]}"
        if operation == "logical_not":
            return f"~{arguments[0]}"
        return f"{'tl' if operation == 'where' else 'f'}.{operation}({', '.join(arguments)})"


def _targets(stage: Stage) -> Iterable[Memory]:
    for parts in (stage.plain, stage.moves, stage.reductions):
        yield from (part.target for part in parts)
    yield from (memory for loop in stage.loops for _, memory in loop.stores)
