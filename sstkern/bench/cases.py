"""What is measured: cells, shapes, phases, lengths and dtypes."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

import torch

from sstkern.bench.shapes import Shape
from sstkern.cells import CELLS, Cell

LAYERS: dict[str, Cell] = {}
"""torch.nn's layers, whose names ours have too; for a layer with several cells the first, its default."""
for _cell in CELLS.values():
    if _cell.torch_class:
        LAYERS.setdefault(_cell.torch_class, _cell)
PHASES = ("inference", "training")
LENGTHS = ("full", "sst2")
RESTS = {"rest_1": 1, "rest_20": 20}
"""Lengths of skewed batches: one sequence has all time steps, each of the rest so many."""
DTYPES = ("float32", "bfloat16", "float16")
TIMED = DTYPES[:2]
"""What is timed unless asked: a call of torch.nn's GRU in float16 can take a minute."""

SHAPES: tuple[Shape, ...] = (
    (1, 50, 128),
    (1, 200, 256),
    (1, 1, 256),
    (8, 50, 128),
    (32, 20, 128),
    (128, 20, 128),
    (128, 50, 256),
    (32, 100, 512),
    (64, 200, 64),
    (256, 30, 300),
    (16, 400, 1024),
)

# How many of the 67,349 sentences of SST-2's train.tsv (GLUE, https://dl.fbaipublicfiles.com/glue/data/SST-2.zip) have 1, 2, ... 52
# words, split at white space.
# fmt: off
SST2_HISTOGRAM = (
    4270, 7241, 7031, 5511, 4578, 4019, 3594, 3092, 2861, 2564, 2230, 2051, 1830, 1748, 1560, 1388, 1265, 1182, 1040, 922, 860, 820, 741,
    654, 572, 505, 460, 416, 335, 297, 281, 253, 226, 166, 152, 108, 90, 91, 60, 55, 53, 34, 30, 24, 27, 17, 9, 11, 9, 7, 6, 3,
)
# fmt: on
_SEED = 0


@dataclass(frozen=True)
class Case:
    """One layer of one cell on one batch; input_size and hidden_size are both `size`."""

    cell: str
    batch: int
    steps: int
    size: int
    training: bool = False
    """Forward and backward, else forward only."""
    lengths: str = "full"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, allowed in (("cell", LAYERS), ("lengths", (*LENGTHS, *RESTS)), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        self._check_sizes()

    def _check_sizes(self) -> None:
        for name in ("batch", "steps", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        return f"{self.cell} B{self.batch} T{self.steps} H{self.size} {self.phase} {self.lengths} {self.dtype}"

    @property
    def phase(self) -> str:
        return PHASES[self.training]

    @property
    def shape(self) -> Shape:
        return self.batch, self.steps, self.size

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def valid(self) -> list[int] | None:
        """The sequences' lengths, or None where all are `steps`."""
        if self.packed:
            return [self.steps, *[min(RESTS[self.lengths], self.steps)] * (self.batch - 1)]
        return None if self.lengths == "full" else sst2_lengths(self.batch, self.steps)

    @property
    def packed(self) -> bool:
        """Whether its sequences are made packed, (tokens, size): padded, a skewed batch may be more than the memory holds."""
        return self.lengths in RESTS

    @property
    def tokens(self) -> int:
        """Valid time steps of all sequences."""
        return self.batch * self.steps if self.valid is None else sum(self.valid)

    def as_row(self) -> dict[str, str | int]:
        """What a row of figures says of it."""
        names = ("cell", "batch", "steps", "size", "phase", "lengths", "dtype", "tokens")
        return {name: getattr(self, name) for name in names}

    @property
    def gate_rows(self) -> int:
        """Rows of weight_ih and of weight_hh."""
        return len(LAYERS[self.cell].gates) * self.size

    @property
    def flops(self) -> int:
        """Operations of the matrix products on valid tokens; a backward has two for every one of the forward."""
        return self.tokens * 2 * self.gate_rows * 2 * self.size * (3 if self.training else 1)

    @property
    def weight_bytes(self) -> int:
        """weight_ih and weight_hh."""
        return 2 * self.recurrent_bytes

    @property
    def streamed_bytes(self) -> int:
        """Weights that one sequence must read: weight_ih once for all steps, weight_hh at each of them; backward reads both again."""
        return self.recurrent_bytes * (1 + self.steps) * (2 if self.training else 1)

    @property
    def recurrent_bytes(self) -> int:
        """weight_hh, as large as weight_ih."""
        return self.gate_rows * self.size * self.torch_dtype.itemsize


def sst2_lengths(batch: int, steps: int) -> list[int]:
    """Lengths distributed as SST-2's sentences, stretched so that the longest of this batch has `steps`; always the same."""
    words = range(1, len(SST2_HISTOGRAM) + 1)
    drawn = random.Random(_SEED).choices(words, SST2_HISTOGRAM, k=batch)
    longest = max(drawn)
    return [max(1, round(length * steps / longest)) for length in drawn]


def grid(
    cells: Collection[str] = tuple(LAYERS),
    shapes: Collection[Shape] = SHAPES,
    phases: Collection[str] = PHASES,
    lengths: Collection[str] = LENGTHS,
    dtypes: Collection[str] = TIMED,
) -> list[Case]:
    """Every combination; float32 first, since it has the most peers."""
    combinations = product(dtypes, phases, lengths, cells, shapes)
    return [Case(cell, *shape, phase == "training", length, dtype) for dtype, phase, length, cell, shape in combinations]
