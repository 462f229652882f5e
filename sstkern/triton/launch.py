"""The launch table: which schedule of the time loop runs a layer, and in what tiles."""

from dataclasses import dataclass

import torch

SCHEDULES = ("resident", "grid", "streamed", "stepwise")


@dataclass(frozen=True)
class Card:
    """What the table asks of a GPU."""

    multiprocessors: int
    shared_memory: int
    """Bytes that one program can have."""
    wgmma: bool = False
    """Whether a product reads its weights from shared memory (Hopper's WGMMA, Blackwell's successor), or needs them in registers."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch's compile-time sizes; `recurrence` says what they mean."""

    schedule: str
    block_h: int
    block_b: int
    block_k: int
    chunks: int
    num_warps: int
    num_stages: int

    def programs(self, hidden_size: int) -> int:
        """That share the units of one task."""
        return -(-hidden_size // self.block_h)


def power_of_two(size: int, least: int = 1) -> int:
    return max(least, 1 << (size - 1).bit_length())


def choose(
    card: Card, dtype: torch.dtype, precision: str, gates: int, batch: int, hidden_size: int, projects: bool, schedule: str | None = None
) -> Launch:
    """The launch for a layer of a cell with `gates` gates; `schedule` forces one.

    Raises ValueError for a schedule that cannot run the layer, with the reason.
    """
    for name in SCHEDULES if schedule is None else (schedule,):
        launch = _sized(name, card, dtype, gates, batch, hidden_size)
        obstacle = _obstacle(launch, card, dtype, precision, gates, hidden_size, projects)
        if obstacle is None:
            return launch
    raise ValueError(f"schedule: '{schedule}' cannot run this layer: {obstacle}")


def _sized(schedule: str, card: Card, dtype: torch.dtype, gates: int, batch: int, hidden_size: int) -> Launch:
    padded_gates = power_of_two(gates)
    block_b = min(power_of_two(batch, 16), 64)
    if schedule == "resident":
        width = power_of_two(hidden_size, 16)
        return Launch(schedule, width, 16, width, 1, 8 if width * padded_gates >= 512 else 4, 1)
    if schedule == "stepwise":
        return Launch(schedule, 64, 16, 16, 1, 4, 1)
    # A tensor core's 64 rows of gates.
    block_h = 64 // padded_gates
    width = power_of_two(hidden_size, 64)
    block_k = min(width, 128 if schedule == "grid" else 64)
    return Launch(schedule, block_h, block_b, block_k, width // block_k, 4, 1 if schedule == "grid" else 3)


def _obstacle(launch: Launch, card: Card, dtype: torch.dtype, precision: str, gates: int, hidden_size: int, projects: bool) -> str | None:
    if launch.schedule == "stepwise":
        return None
    if projects:
        return "it has a projection, and only 'stepwise' has a place for one"
    if launch.schedule != "resident" and launch.programs(hidden_size) > card.multiprocessors:
        return f"its {launch.programs(hidden_size)} programs have to run at once, on {card.multiprocessors} multiprocessors"
    if launch.schedule == "streamed":
        return None
    weights = power_of_two(gates) * launch.block_h * launch.block_k * launch.chunks * dtype.itemsize
    if weights > 0.65 * card.shared_memory:
        return f"its {weights} bytes of weights do not fit in the {card.shared_memory} bytes of a program"
    return None


_forced: str | None = None


def forced() -> str | None:
    """The schedule that `sstkern.backend` asks for. Process-wide: autograd runs a backward in threads of its own."""
    return _forced


def force(schedule: str | None) -> str | None:
    """Returns the one that was forced before."""
    global _forced
    before, _forced = _forced, schedule
    return before
