"""The launch table: which schedule of the time loop runs a layer, and in what tiles.

`sstkern aot-report` prints what the table's launches compile to; the numbers of warps and loads below are those that spill no register.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

SCHEDULES = ("resident", "grid", "streamed", "stepwise")
"""In the order of preference; `recurrence` says what they are."""


@dataclass(frozen=True)
class Card:
    """What the table asks of a GPU."""

    multiprocessors: int
    shared_memory: int
    """Bytes that one program can have."""
    wgmma: bool = False
    """Whether a product reads its weights from shared memory (Hopper's WGMMA, Blackwell's successor), unless they are float64."""
    registers: int = 2**14
    """Bytes of weights that a program can keep where products need them in registers: a third of those of 4 warps."""
    float64_backward: tuple[int, ...] = (3, 4)
    """Numbers of gates with which the backward's product works in float64: with one, Triton 3.9 spills registers; 3.6 compiles none."""


@dataclass(frozen=True)
class Layer:
    """What the table asks of a layer."""

    dtype: torch.dtype
    precision: str
    """tl.dot's `input_precision`."""
    gates: int
    batch: int
    hidden_size: int
    directions: int = 1

    @property
    def padded_gates(self) -> int:
        return power_of_two(self.gates)


@dataclass(frozen=True)
class Launch:
    """A kernel's compile-time sizes; `recurrence` says what they mean."""

    schedule: str
    block_h: int
    block_b: int
    block_k: int = 16
    chunks: int = 1
    block_u: int = 1
    num_warps: int = 4
    num_stages: int = 1

    @property
    def exchanges(self) -> bool:
        """Whether the programs of a task wait for each other, and so have to run at once."""
        return self.schedule in ("grid", "streamed")

    def programs(self, hidden_size: int) -> int:
        """That share the units of one task."""
        return -(-hidden_size // self.block_h)


def choose(card: Card, layer: Layer, backward: bool, schedule: str | None = None) -> Launch:
    """The launch of the forward or backward kernel; `schedule` forces one.

    Raises ValueError for a schedule that cannot run the layer, with the reason.
    """
    for name in _preferred(layer) if schedule is None else (schedule,):
        launch = _SIZED[name](card, layer, backward)
        obstacle = _obstacle(launch, card, layer, backward)
        if obstacle is None:
            return launch
    raise ValueError(f"schedule: '{schedule}' cannot run this layer: {obstacle}")


def _preferred(layer: Layer) -> tuple[str, ...]:
    """An LSTM of 128 units takes 3.2 us a step `resident`, 1.9 us in a grid; one of 64 units 1.7 us either way (H200, bfloat16)."""
    resident, grid, *others = SCHEDULES
    wide = layer.padded_gates * layer.hidden_size > 256
    return (grid, resident, *others) if wide else SCHEDULES


def power_of_two(size: int, least: int = 1) -> int:
    return max(least, 1 << (size - 1).bit_length())


def _resident(card: Card, layer: Layer, backward: bool) -> Launch:
    width, rows = power_of_two(layer.hidden_size, 16), 16
    # Of 32 threads that have 4 elements of a state's tile: with 8 an LSTM of 64 units takes 3.1 us a step, so 1.6 us (H200, bfloat16).
    return Launch("resident", width, rows, width, num_warps=min(max(width * rows // (32 * 4), 4), 16))


def _grid(card: Card, layer: Layer, backward: bool) -> Launch:
    return _exchanging("grid", card, layer, backward, block_k=128 if layer.dtype.itemsize == 2 else 64, num_stages=1)


def _streamed(card: Card, layer: Layer, backward: bool) -> Launch:
    # The backward's product has block_k rows, and a tensor core takes 64.
    block_k = {2: 64, 4: 64 if backward else 32, 8: 16}[layer.dtype.itemsize]
    num_stages = 1 if layer.dtype == torch.float64 else 2 if layer.precision == "tf32x3" else 3
    return _exchanging("streamed", card, layer, backward, block_k, num_stages)


def _exchanging(schedule: str, card: Card, layer: Layer, backward: bool, block_k: int, num_stages: int) -> Launch:
    block_h = 64 // layer.padded_gates  # the 64 rows of gates that a tensor core takes
    programs = layer.directions * -(-layer.hidden_size // block_h)
    # The smallest tiles of the batch that still run all at once: what a step takes hardly depends on their number.
    sizes = (16,) if layer.gates == 1 or layer.dtype == torch.float64 else (16, 32) if layer.dtype == torch.float32 else (16, 32, 64)
    block_b = next((size for size in sizes if programs * -(-layer.batch // size) <= card.multiprocessors), sizes[-1])
    double = layer.dtype == torch.float64
    wide = double or (backward and (block_h * block_b > 256 or layer.dtype == torch.float32))
    if backward and block_b == 64:
        block_k = 64  # rows of a part of dh, which registers hold
    # Parts of dh on their way together: as many as registers have room for beside the rest of the step.
    block_u = {2: 8 if wide else 32, 4: 4 if wide else 8, 8: 4}[layer.dtype.itemsize]
    width = power_of_two(layer.hidden_size, max(block_k, block_h))
    num_warps = 16 if double and not backward else 8 if wide else 4
    return Launch(schedule, block_h, block_b, block_k, width // block_k, block_u, num_warps, num_stages)


def _stepwise(card: Card, layer: Layer, backward: bool) -> Launch:
    return Launch("stepwise", 16, 16, num_warps=4 if layer.dtype == torch.float64 else 8)


_SIZED = {"resident": _resident, "grid": _grid, "streamed": _streamed, "stepwise": _stepwise}


def _obstacle(launch: Launch, card: Card, layer: Layer, backward: bool) -> str | None:
    if launch.schedule == "stepwise":
        return None
    if backward and layer.dtype == torch.float64 and layer.gates not in card.float64_backward:
        return "this version of Triton does not compile its backward in float64, or spills registers"
    programs = launch.programs(layer.hidden_size)
    if launch.exchanges and programs > card.multiprocessors:
        return f"its {programs} programs have to run at once, on {card.multiprocessors} multiprocessors"
    if launch.schedule == "streamed":
        return None
    if layer.precision == "tf32x3":
        return "it keeps weights, and registers have no room for their three parts"
    weights = layer.padded_gates * launch.block_h * launch.block_k * launch.chunks * layer.dtype.itemsize
    room = _room(card, layer)
    return None if weights <= room else f"it keeps {weights} bytes of weights in a program, and this GPU has room for {room}"


def _room(card: Card, layer: "Layer | Step") -> int:
    """Bytes of weights that a program can keep."""
    return card.shared_memory * 3 // 5 if card.wgmma and layer.dtype != torch.float64 else card.registers


_forced: str | None = None


def forced() -> str | None:
    """The schedule that `sstkern.backend` asks for. Process-wide: autograd runs a backward in threads of its own."""
    return _forced


def force(schedule: str | None) -> str | None:
    """Returns the one that was forced before."""
    global _forced
    before, _forced = _forced, schedule
    return before


@dataclass(frozen=True)
class Part:
    """Of a program's step, what its programs share by units. gates: of how many its products are, 1 without one. depths: of its products'
    operands. over: how many numbers of a row it reduces, some at a time; row: how many one program needs in a tile of its own. live: how
    many tiles of its units are alive at once."""

    units: int
    gates: int = 1
    depths: tuple[int, ...] = ()
    over: int = 0
    row: int = 0
    live: int = 1

    @property
    def rows(self) -> int:
        """Of all its products' matrix, gates padded; its units where it has none."""
        return self.units * power_of_two(self.gates)


@dataclass(frozen=True)
class Step:
    """What the table asks of a program's step. dtype: of the operands of its products. meets: whether units need what others computed."""

    dtype: torch.dtype
    precision: str
    batch: int
    parts: tuple[Part, ...]
    meets: bool


@dataclass(frozen=True)
class StepLaunch:
    """programs: that share a tile of the batch. blocks: of units, each part's. depths: of each part's products, the columns of a chunk and
    how many chunks there are."""

    schedule: str
    programs: int
    block_b: int
    blocks: tuple[int, ...]
    depths: tuple[tuple[tuple[int, int], ...], ...]
    num_warps: int
    num_stages: int
    meets: bool

    @property
    def exchanges(self) -> bool:
        """Whether the programs of a task wait for each other, and so have to run at once."""
        return self.meets and self.programs > 1 and self.schedule != "stepwise"

    @property
    def keeps(self) -> bool:
        return self.schedule in ("resident", "grid")


_ROWS = 16
"""Of the batch in a program's tile: what a product of tensor cores takes at least."""
_LIVE = 64
"""Registers of a thread that the tiles alive at once may take; the rest are for addresses and what the compiler adds. With 96 a
layer-normalised LSTM of 256 units spills."""
_REDUCED = 64
"""Numbers of a row that a reduction takes at once: with 256 their addresses spill."""


def choose_step(card: Card, step: Step, schedule: str | None = None) -> StepLaunch:
    """The launch of a program's loop over time steps, forward or backward; `schedule` forces one.

    Raises ValueError for a schedule that cannot run it, with the reason.
    """
    resident, grid, *others = SCHEDULES
    wide = max((part.rows for part in step.parts), default=1) > 256
    order = (grid, resident, *others) if wide and step.meets else SCHEDULES
    for name in order if schedule is None else (schedule,):
        for rows in (32, 16, 64) if _deep(step) else (64, 32, 16):
            launch = _step_launch(card, step, name, rows)
            obstacle = _step_obstacle(launch, card, step)
            if obstacle is None:
                return launch
    raise ValueError(f"schedule: '{schedule}' cannot run this program: {obstacle}")


SPILLED = 8
"""Bytes of a thread's stack that are as good as none: what a streamed LSTM's backward in float64 has costs two loads a step."""


def with_least_stack(first: StepLaunch, card: Card, step: Step, stack: Callable[[StepLaunch], int]) -> StepLaunch:
    """`first`, or where registers spill the launch of the same schedule, in other tiles, that spills least. stack: asks the compiler how
    many bytes of a thread one does."""
    found: list[tuple[int, StepLaunch]] = []
    for launch in _same_schedule(first, card, step):
        found.append((stack(launch), launch))
        if found[-1][0] <= SPILLED:
            return launch
    return min(found, key=lambda one: one[0])[1]


def _same_schedule(first: StepLaunch, card: Card, step: Step) -> Iterator[StepLaunch]:
    """`first`, then other numbers of warps, then fewer rows of the matrices in a program."""
    yield first
    tiles = [first]
    for rows in (64, 32, 16):
        launch = _step_launch(card, step, first.schedule, rows)
        if launch.programs > first.programs and _step_obstacle(launch, card, step) is None:
            tiles.append(launch)
    for launch in tiles:
        for num_warps in (8, 4):
            if (other := replace(launch, num_warps=num_warps)) != first:
                yield other


def _step_launch(card: Card, step: Step, schedule: str, rows: int) -> StepLaunch:
    """rows: of the matrices of its products, in one program where several share them."""
    wide = max((part.rows for part in step.parts), default=1)
    programs = 1 if schedule == "resident" and step.meets else -(-wide // rows)
    blocks = tuple(_block(part, programs) for part in step.parts)
    item = step.dtype.itemsize
    block_k = ({2: 128, 4: 64, 8: 16} if schedule in ("resident", "grid") else {2: 64, 4: 32, 8: 16})[item]
    depths = tuple(tuple(_chunks(depth, block_k) for depth in part.depths) for part in step.parts)
    return StepLaunch(schedule, programs, _ROWS, blocks, depths, _warps(step, blocks), 1, step.meets)


def _chunks(depth: int, block: int) -> tuple[int, int]:
    size = min(block, power_of_two(depth, 16))
    return size, -(-depth // size)


def _deep(step: Step) -> bool:
    """Whether an operand is so deep that the loads of its chunks, which the compiler asks for all at once, spill beside 64 rows of a
    matrix in 4 warps. 8 warps have room for them with 32 rows, which are no warpgroup's product. 64 then are for what would need more
    programs than run at once."""
    return max((depth for part in step.parts for depth in part.depths), default=0) >= 512


def _tiles(step: Step, blocks: Sequence[int]) -> int:
    """Registers that the tiles alive at once take, of all threads together."""
    words = 2 if step.dtype == torch.float64 else 1
    # Beside a product its operand and the matrix are on their way.
    tiles = [part.live + (power_of_two(part.gates) * len(part.depths) + 4 if part.depths else 0) for part in step.parts]
    return max((count * block * _ROWS * words for count, block in zip(tiles, blocks, strict=True)), default=1)


def _warps(step: Step, blocks: Sequence[int]) -> int:
    """So many that those fit."""
    if _deep(step) and step.dtype.itemsize == 2:  # of float32, 8 warps spill more often than 4
        return 8
    most = 8 if step.meets else 4
    return min(power_of_two(-(-_tiles(step, blocks) // (32 * _LIVE)), 4), most)


def _block(part: Part, programs: int) -> int:
    if part.row:
        return power_of_two(part.row)
    if part.over:
        return min(power_of_two(part.over), _REDUCED)
    least = -(-16 // power_of_two(part.gates)) if part.depths else 1
    return power_of_two(-(-part.units // programs), least)


def _step_obstacle(launch: StepLaunch, card: Card, step: Step) -> str | None:
    row = max((part.row for part in step.parts), default=0)
    if row > 4096:
        return f"a cumulative sum has {row} numbers, and one program has room for 4096"
    if launch.schedule == "stepwise":
        return None
    if _tiles(step, launch.blocks) > 32 * launch.num_warps * _LIVE:
        return "registers have no room for its tiles"
    if launch.exchanges and launch.programs > card.multiprocessors:
        return f"its {launch.programs} programs have to run at once, on {card.multiprocessors} multiprocessors"
    if launch.schedule == "streamed":
        return None
    if step.precision == "tf32x3":
        return "it keeps weights, and registers have no room for their three parts"
    weights = sum(
        power_of_two(part.gates) * block * size * count * step.dtype.itemsize
        for part, block, of_part in zip(step.parts, launch.blocks, launch.depths, strict=True)
        for size, count in of_part
    )
    room = _room(card, step)
    return None if weights <= room else f"it keeps {weights} bytes of weights in a program, and this GPU has room for {room}"
