"""Programs on the Triton engine: the kernels of `gpu` launched, with PyTorch's products before and after the loop over time steps.

T time steps, B batch, N rows of valid steps, as `sstkern.engines.triton.rows` orders them: what is padded is gathered before, and put back
after. Everything runs on the current stream, and nothing waits for the GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from sstkern.engines.triton import device, launch, sources
from sstkern.engines.triton import layer as layers
from sstkern.engines.triton import rows as rows_of
from sstkern.engines.triton.device import Device
from sstkern.engines.triton.launch import choose_step
from sstkern.lengths import ALL_ROWS, check_packed, longest
from sstkern.program.compiler import CannotCompile
from sstkern.program.gpu import Code, Kernel, code
from sstkern.program.lower import AFTER, BEFORE, Lowered, Memory, Product, RowSum, Stage
from sstkern.program.prepared import Prepared


class Compiled(Prepared):
    """A program that the Triton engine runs; its kernels are compiled when they are first launched."""

    precision = staticmethod(Device.product_precision)
    """The precision of float32 products, from the device and the dtype."""

    def prepare(self, found: Lowered, rows_only: tuple[set[int], set[int]]) -> None:
        self.found, self.rows_only = found, rows_only
        self.code: Code = code(found)
        self.vectors = self.vectors_of(found, self.code.arguments)
        self.kernels = sources.module(self.code.text)
        self.sizes = _sizes(self.code)
        self.operands = _operands(self.code)
        self.launches: dict[tuple, launch.StepLaunch] = {}
        """Launches that were compiled before, to see whether they spill."""
        self._tables: dict[torch.device, dict[str, Tensor]] = {}

    def run(self, *arguments: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        with layers.on(arguments[0][0].device):
            call = _Call(self, *arguments)
            self.count(call.backward)
            return call.run()

    def count(self, backward: bool) -> None:
        layers.runs["backward" if backward else "forward"] += 1

    def parts(self, kernel: Kernel) -> tuple[launch.Part, ...]:
        """The kernel's parts as `launch` asks for them."""
        works = [self.code.works[place] for place in kernel.works]
        return tuple(
            launch.Part(
                work.units,
                work.gates,
                tuple(self.code.products[number].depth for number in work.products),
                0 if work.whole else work.over,
                work.over if work.whole else 0,
                work.live,
            )
            for work in works
        )

    def tables(self, place: torch.device) -> dict[str, Tensor]:
        """What moves take from where, int32."""
        if place not in self._tables:
            self._tables[place] = {name: table.to(place) for name, table in _tables(self.code).items()}
            _in_graphs.append(self._tables[place])
        return self._tables[place]


class CompiledLayer(Compiled):
    """A built-in layer compiled, whose float32 is that of the others."""

    precision = staticmethod(Device.precision)

    def count(self, backward: bool) -> None:
        """`projected` counts layers, with all their directions."""


_in_graphs: list[dict[str, Tensor]] = []
"""Every table: a CUDA graph may replay after its program was forgotten."""


def _sizes(found: Code) -> dict[str, int]:
    """What the text names that is the same in every call."""
    sizes = {f"start{place}": start for place, start in enumerate(found.arguments.starts)}
    sizes |= {f"width{place}": slot.width for place, slot in enumerate(found.lowered.slots)}
    sizes |= {f"units{place}": work.units for place, work in enumerate(found.works)}
    for place, product in enumerate(found.products):
        strides = (1, product.columns) if product.transposed else (product.depth, 1)
        sizes |= {f"depth{place}": product.depth, f"column{place}": strides[0], f"inner{place}": strides[1], f"repeat{place}": product.rows}
    for place, move in enumerate(found.moves):
        sizes |= {f"of_each{place}_{source}": len(table) for source, table in enumerate(_places(move))}
    for place, reduction in enumerate(found.reductions):
        sizes |= {f"groups{place}": reduction.groups, f"over{place}": reduction.width, f"divisor{place}": reduction.divisor}
    return sizes


def _operands(found: Code) -> set[int]:
    """Slots of which products and sums over rows alone are computed: they have the dtype of products."""
    stages = [stage for stages in found.lowered.phases for stage in stages]
    read = {source.slot for stage in stages for move in stage.moves for source, _ in move.sources}
    read |= {source.slot for stage in stages for reduction in stage.reductions for source in reduction.sources}
    read |= found.read
    slots = enumerate(found.lowered.slots)
    return {place for place, slot in slots if slot.kind in "lr" and not slot.boolean} - read


def _places(move) -> list[list[list[int]]]:
    """For each source a table: for each number of the target its places in that source, one after the other, -1 where there is none."""
    first, found = 0, []
    for _, width in move.sources:
        inside = [[place - first for place in of if first <= place < first + width] for of in move.places]
        most = max(map(len, inside), default=0)
        found.append([[of[k] if k < len(of) else -1 for of in inside] for k in range(most)])
        first += width
    return found


def _tables(found: Code) -> dict[str, Tensor]:
    return {
        f"table{place}_{source}": torch.tensor(table, dtype=torch.int32, device="cpu").reshape(len(table), -1)
        for place, move in enumerate(found.moves)
        for source, table in enumerate(_places(move))
    }


def _options(plan: launch.StepLaunch) -> dict[str, Any]:
    return {"num_warps": plan.num_warps, "num_stages": plan.num_stages, "launch_cooperative_grid": plan.exchanges}


class _Call:
    """One call's tensors."""

    def __init__(
        self,
        compiled: Compiled,
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
    ):
        self.compiled, self.found, self.code = compiled, compiled.found, compiled.code
        self.lengths, self.reverse, self.padded, self.groups, self.backward = lengths, reverse, padded, groups, backward
        self.inputs, x = inputs, inputs[0]
        self.place, self.real = x.device, self.found.values.dtype
        self.T, self.B = x.shape[:2] if padded else self.packed_sizes()
        self.rows, self.marks = rows_of.of_operator(lengths, self.T, self.place)
        if groups is not None and (groups < 1 or self.B % groups):
            raise ValueError(f"groups: {groups} do not share {self.B} sequences equally")
        self.N = self.T * self.B if self.rows is None else self.rows.count
        self.all_rows = self.T * self.B if padded else x.size(0)
        self.device = device.of(self.place)
        # The interpreter gets products of 16 bits wrong.
        narrow = compiled.narrow if self.device.target != "interpreter" else None
        self.stored = self.real if narrow is None else narrow
        self.weights = [weight.to(self.stored).contiguous() for weight in weights]
        self.vectors = [vector.to(self.real).contiguous() for vector in vectors]
        self.set_states(states)
        self.numbers = self.filled(numbers)
        self.saved_rows = self.N if saved_rows is None else self.all_rows if saved_rows == ALL_ROWS else saved_rows
        if self.saved_rows < self.N:
            raise ValueError(f"saved_rows: expected at least {self.N}, the number of valid time steps, got {self.saved_rows}")
        self.slots: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}

    def run(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        last = [state[1] for state in self.states]  # where there is nothing to run
        if self.T and self.B:
            self.phase(BEFORE)
            for place, part in enumerate(self.code.ahead):
                if place not in self.sums and part.ahead:
                    self.sums[place] = self.product(part.product, self.code.arguments.bias(part))
            if self.code.core is not None:
                last = self.loop(self.code.core)
            self.phase(AFTER)
        if self.backward and self.marks is not None:
            last = self.first_gradients(last)
        return self.results(), [self.back(state) for state in last], [self.sum_over_rows(part) for part in self.found.sums]

    def packed_sizes(self) -> tuple[int, int]:
        """T and B."""
        lengths = check_packed(self.lengths, self.inputs[0].size(0))
        return longest(lengths), len(lengths)

    # States

    def set_states(self, given: Sequence[Tensor]) -> None:
        """(2, B, width) each, after even and after odd steps; the second begins with the first ones. (3, B, width) where sequences begin
        anew: with the third, which backward is its gradient."""
        count = len(self.found.values.program.states)
        self.states = [self.turns(state) for state in given[:count]]
        if self.marks is None:
            return
        anew: list[Tensor | int] = [self.by_slot(state) for state in given[count:]] or [0] * count
        for state, of_anew in zip(self.states, anew, strict=True):
            state[2] = of_anew
            if self.starts_anew is not None and not self.backward:
                state[1] = torch.where(self.starts_anew, state[2], state[1])

    def turns(self, state: Tensor) -> Tensor:
        found = state.new_empty(2 if self.marks is None else 3, *state.shape)
        found[1] = self.by_slot(state)
        return found

    @cached_property
    def starts_anew(self) -> Tensor | None:
        """Whether each slot's sequence begins anew with its first step, bool (B, 1); None where the layer begins with the last one."""
        if self.marks is None or not self.T or self.reverse != self.backward:
            return None
        return rows_of.starting(self.marks, self.rows)[:, None]

    def first_gradients(self, last: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of the first states, then those of what sequences begin anew with."""
        start, anew = self.starts_anew, [state[2] for state in self.states]
        if start is None:
            return [*last, *anew]
        of_given = [torch.where(start, 0, gradient) for gradient in last]
        return [*of_given, *(total + torch.where(start, gradient, 0) for total, gradient in zip(anew, last, strict=True))]

    # Rows

    def by_slot(self, state: Tensor) -> Tensor:
        """The state in the order of the slots."""
        return state if self.rows is None else state[self.rows.order.long()]

    def back(self, state: Tensor) -> Tensor:
        """The state in the order of the batch."""
        return state.clone() if self.rows is None else state[self.rows.slot]

    def filled(self, numbers: Sequence[float]) -> Tensor:
        """A tensor of the numbers, without a copy from the host, which a CUDA graph could not have."""
        found = torch.empty(max(1, len(numbers)), dtype=self.real, device=self.place)
        for place, number in enumerate(numbers):
            found[place].fill_(number)
        return found

    def input_rows(self, place: int) -> Tensor:
        """(N, width)"""
        given = self.inputs[place]
        if place in self.compiled.rows_only[0] or not self.padded:
            return given[: self.N].contiguous()
        if self.rows is None:
            return given.reshape(self.N, given.size(-1)).contiguous()
        return rows_of.gather(given, self.rows, (self.rows.step, self.rows.sequence))

    def slot(self, number: int) -> Tensor:
        """The rows of a slot, (rows, width)."""
        if number not in self.slots:
            kind, place, width, _ = self.found.slots[number]
            dtype = self.dtype(number)
            if kind == "x":
                self.slots[number] = self.input_rows(place)
            else:
                saved = kind == "o" and place in self.compiled.rows_only[1]
                count = self.saved_rows if saved else self.N
                whole = (self.rows is None or self.rows.present is None) and count == self.N
                new = torch.empty if whole else torch.zeros
                self.slots[number] = new(count, width, dtype=dtype, device=self.place)
        return self.slots[number]

    def dtype(self, slot: int) -> torch.dtype:
        return torch.bool if self.found.slots[slot].boolean else self.stored if slot in self.compiled.operands else self.real

    def window(self, memory: Memory, rows: int, width: int) -> Tensor:
        """(N * rows, width): `rows` pieces of a slot's rows."""
        found = self.slot(memory.slot)[: self.N, memory.start : memory.start + rows * width]
        return found if rows == 1 else found.reshape(self.N * rows, width)

    def results(self) -> list[Tensor]:
        """The outputs, in their places."""
        found: dict[int, Tensor] = {}
        for number, slot in enumerate(self.found.slots):
            if slot.kind == "o":
                found[slot.place] = self.output(self.slot(number), slot.place in self.compiled.rows_only[1])
        return [found[place] for place in range(self.compiled.outputs)]

    def output(self, rows: Tensor, rows_only: bool) -> Tensor:
        if rows_only or not self.padded:
            return rows
        if self.rows is None:
            return rows.view(self.T, self.B, rows.size(1))
        if self.N == 0:
            return rows.new_zeros(self.T, self.B, rows.size(1))
        return torch.where(self.rows.valid[..., None], rows[self.rows.place], rows.new_zeros(()))  # bools stay bools

    # Products and phases

    def product(self, product: Product, bias: int = -1) -> Tensor:
        """(N * rows, columns). bias: the vector that the sums begin with."""
        operand, weight = self.window(product.operand, product.rows, product.depth), self.weights[product.weight]
        matrix = weight if product.transposed else weight.T
        if self.stored == self.real:
            return torch.mm(operand, matrix) if bias < 0 else torch.addmm(self.vectors[bias], operand, matrix)
        found = layers.product(operand.to(self.stored)[None], matrix[None], self.real)[0]
        return found if bias < 0 else found + self.vectors[bias]

    def phase(self, phase: int) -> None:
        for place, stage in enumerate(self.found.phases[phase]):
            self.products_of(stage)
            if (phase, place) in self.code.rows:
                self.launch_rows(self.code.rows[phase, place])

    def products_of(self, stage: Stage) -> None:
        for plain in stage.plain:
            rows, columns = plain.product.rows, plain.product.columns
            target = self.slot(plain.target.slot)[: self.N, plain.target.start : plain.target.start + rows * columns]
            target.copy_(self.product(plain.product).view(self.N, rows * columns))
        for loop in stage.loops:
            for part in loop.attached:
                self.sums[self.code.ahead.index(part)] = self.product(part.product, self.code.arguments.bias(part))

    def launch_rows(self, kernel: Kernel) -> None:
        if self.N == 0:
            return
        step = launch.Step(self.real, "ieee", self.N, self.compiled.parts(kernel), False)
        plan = choose_step(self.device.card, step, "stepwise")
        tiles = {f"BLOCK{place}": block for place, block in zip(kernel.works, plan.blocks, strict=True)}
        arguments = self.named(kernel, tiles) | {"N": self.N, "programs": plan.programs, "BLOCK_B": plan.block_b}
        grid = (plan.programs * -(-self.N // plan.block_b),)
        for stage in range(kernel.stages):
            self.run_kernel(kernel, grid, arguments | {"STAGE": stage}, {"num_warps": plan.num_warps})

    def run_kernel(self, kernel: Kernel, grid: tuple[int, ...], arguments: dict, options: dict) -> None:
        """Raises CannotCompile for what Triton does not compile, or this GPU has no room for."""
        try:
            self.device.run(getattr(self.compiled.kernels, kernel.name), grid, arguments, options)
        except TritonError as error:
            raise CannotCompile(f"Triton {triton.__version__}: {type(error).__name__}: {error}") from error

    # The loop

    @cached_property
    def step(self) -> launch.Step:
        assert self.code.core is not None
        precision = self.compiled.precision(self.device, self.stored)
        return launch.Step(self.stored, precision, self.B, self.compiled.parts(self.code.core), self.code.core.meets)

    def loop(self, kernel: Kernel) -> list[Tensor]:
        """Returns the last states, (B, width) each, in the order of the kernel."""
        plan = self.plan(kernel)
        self.launch_loop(kernel, plan, self.of_loop(kernel, plan))
        return self.last_states(plan)

    def tasks(self, plan: launch.StepLaunch) -> int:
        return -(-self.B // plan.block_b)

    def slabs(self, plan: launch.StepLaunch) -> int:
        """Tasks in one launch: as many as are resident at once where programs wait for each other, all where they do not."""
        tasks = self.tasks(plan)
        return min(tasks, max(1, self.device.card.multiprocessors // plan.programs)) if plan.exchanges else tasks

    def of_loop(self, kernel: Kernel, plan: launch.StepLaunch) -> dict[str, Any]:
        """The arguments that all launches of the loop have."""
        slabs = self.slabs(plan)
        for number, slot in enumerate(self.found.slots):
            if slot.kind == "l" and f"slot{number}" in kernel.names:
                shape = 2 * slabs * plan.block_b, slot.width
                self.slots[number] = torch.empty(shape, dtype=self.dtype(number), device=self.place)
        works = zip(kernel.works, plan.blocks, plan.depths, strict=True)
        tiles: dict[str, int] = {}
        for place, block, depths in works:
            tiles[f"BLOCK{place}"] = block
            for number, (size, count) in zip(self.code.works[place].products, depths, strict=True):
                tiles |= {f"BLOCK_K{number}": size, f"CHUNKS{number}": count}
        return self.named(kernel, tiles) | {
            "offsets": self.numbers if self.rows is None else self.rows.offsets,
            "lengths": self.numbers if self.rows is None else self.rows.lengths,
            "marks": self.numbers if self.marks is None else self.marks,
            "T": self.T,
            "B": self.B,
            "programs": plan.programs,
            "slabs": slabs,
            "REVERSE": self.reverse,
            "HAS_LENGTHS": self.rows is not None,
            "CUTS": self.marks is not None,
            "BACKWARD": self.backward and self.marks is not None,
            "EXCHANGES": plan.exchanges,
            "KEEP": plan.keeps,
            "PRECISION": self.step.precision,
            "TARGET": self.device.target,
            "BLOCK_B": plan.block_b,
        }

    def plan(self, kernel: Kernel) -> launch.StepLaunch:
        """Raises ValueError for a schedule that is forced and cannot run it, CannotCompile where none can."""
        forced = launch.forced()
        try:
            plan = self.chosen(kernel, forced)
            # A task's counter has 31 bits.
            if plan.exchanges and plan.programs * kernel.stages * self.T >= 2**31:
                plan = choose_step(self.device.card, self.step, "stepwise")
        except ValueError as error:
            if forced is not None:
                raise
            raise CannotCompile(str(error).removeprefix("schedule: ")) from error
        return plan

    def chosen(self, kernel: Kernel, forced: str | None) -> launch.StepLaunch:
        """The launch, by the launch table and by what the compiler says of its choice."""
        plan = choose_step(self.device.card, self.step, forced)
        if self.device.stack is None or plan.schedule == "stepwise":
            return plan
        key = plan, self.step.precision, self.place, self.reverse, self.marks is None, self.rows is None
        if key not in self.compiled.launches:
            stack = partial(self.stack, self.device.stack, kernel)
            self.compiled.launches[key] = launch.with_least_stack(plan, self.device.card, self.step, stack)
        return self.compiled.launches[key]

    def stack(self, asked: Callable[..., int], kernel: Kernel, plan: launch.StepLaunch) -> int:
        """Bytes of stack, as `Device.stack` says; as many as can be where the loop's kernel does not compile."""
        grid, arguments = next(self.launches(kernel, plan, self.of_loop(kernel, plan)))
        try:
            return asked(getattr(self.compiled.kernels, kernel.name), grid, arguments, _options(plan))
        except TritonError:
            return sys.maxsize

    def launch_loop(self, kernel: Kernel, plan: launch.StepLaunch, arguments: dict) -> None:
        for grid, now in self.launches(kernel, plan, arguments):
            layers.runs[plan.schedule] += 1
            self.run_kernel(kernel, grid, now, _options(plan))

    def launches(self, kernel: Kernel, plan: launch.StepLaunch, arguments: dict) -> Iterator[tuple[tuple[int, ...], dict]]:
        """The grid and the arguments of each launch of the loop."""
        tasks, slabs = self.tasks(plan), self.slabs(plan)
        counters = torch.zeros(tasks, dtype=torch.int32, device=self.place) if plan.exchanges else self.numbers
        if plan.schedule != "stepwise":
            for first in range(0, tasks, slabs):
                now = {"counters": counters, "first_task": first, "first_step": 0, "last_step": self.T, "STAGE": -1}
                yield (plan.programs * min(slabs, tasks - first),), arguments | now
            return
        for step in range(self.T):
            for stage in range(kernel.stages):
                now = {"counters": counters, "first_task": 0, "first_step": step, "last_step": step + 1, "STAGE": stage}
                yield (plan.programs * tasks,), arguments | now

    def last_states(self, plan: launch.StepLaunch) -> list[Tensor]:
        """Each tile's are in the turn of its last step."""
        if self.rows is None or plan.schedule == "stepwise":
            return [state[(self.T - 1) % 2] for state in self.states]
        slots = torch.arange(self.B, device=self.place)
        steps = self.rows.lengths[slots // plan.block_b * plan.block_b]
        turn = (steps.long() + 1) % 2
        return [state[turn, slots] for state in self.states]

    def named(self, kernel: Kernel, tiles: dict[str, int]) -> dict[str, Any]:
        """The kernel's arguments by their names."""
        return {name: tiles[name] if name in tiles else self.argument(name) for name in kernel.names}

    def argument(self, name: str) -> Any:
        if name in self.compiled.sizes:
            return self.compiled.sizes[name]
        if name == "numbers":
            return self.numbers
        if name.startswith("table"):
            return self.compiled.tables(self.place)[name]
        kind, number = name.rstrip("0123456789"), int(name[len(name.rstrip("0123456789")) :])
        kept = {"state": self.states, "vector": self.vectors, "weight": self.weights, "sums": self.sums}
        found = self.slot(number) if kind == "slot" else kept[kind][number]  # type: ignore[index]
        return found.view(torch.uint8) if found.dtype == torch.bool else found

    # Sums over rows

    def sum_over_rows(self, part: RowSum) -> Tensor:
        """(left width,) or (left width, right width); with groups (groups, ...): those of equal shares of the batch."""
        if self.N == 0:
            shape = (part.left_width,) if part.right.slot < 0 else (part.left_width, part.right_width)
            return torch.zeros(*(() if self.groups is None else (self.groups,)), *shape, dtype=self.real, device=self.place)
        left = self.grouped(self.window(Memory(part.left, 0), part.rows, part.left_width), part.rows)
        if part.right.slot < 0:
            total = left.sum(1, dtype=self.real)
        else:
            right = self.grouped(self.window(part.right, part.rows, part.right_width), part.rows)
            total = layers.product(left.transpose(1, 2).to(self.stored), right.to(self.stored), self.real)
        return total if self.groups is not None else total[0]

    def grouped(self, rows: Tensor, repeat: int) -> Tensor:
        """(N * repeat, width) as (groups or 1, rows, width), zero where no step is valid."""
        present = None if self.rows is None else self.rows.present
        if present is not None:
            rows = torch.where(present.repeat_interleave(repeat, 0), rows, 0)
        if self.groups is None:
            return rows[None]
        width, groups = rows.size(1), self.groups
        padded = self.padded_rows(rows.view(self.N, repeat * width)).view(self.T, groups, self.B // groups, repeat, width)
        return padded.transpose(0, 1).reshape(groups, -1, width)

    def padded_rows(self, rows: Tensor) -> Tensor:
        if self.rows is None or self.N == 0:
            return rows.view(self.T, self.B, -1) if self.rows is None else rows.new_zeros(self.T, self.B, rows.size(1))
        return torch.where(self.rows.valid[..., None], rows[self.rows.place], 0)
