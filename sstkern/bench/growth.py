"""How the time per valid token grows with each size, and falls with threads: ours beside torch.nn's."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sstkern.bench import suite
from sstkern.bench.cases import LAYERS, LENGTHS, PHASES, Case
from sstkern.bench.peers import ours_and_torch

BASE = Case("LSTM", batch=8, steps=50, size=128)
"""What stays as it is while something else grows."""
SWEEPS = {
    "steps": (10, 30, 100, 300, 1000, 4000),
    "size": (16, 32, 64, 128, 256, 512, 1024),
    "batch": (1, 4, 16, 64, 256, 512),
}
AXES = (*SWEEPS, "threads")


@dataclass(frozen=True)
class Point:
    axis: str
    case: Case
    threads: int

    @property
    def value(self) -> int:
        return self.threads if self.axis == "threads" else getattr(self.case, self.axis)

    def __str__(self) -> str:
        return f"{self.case} on {self.threads} threads"


def points(
    threads: int, cells: Collection[str] = tuple(LAYERS), phases: Collection[str] = PHASES, lengths: Collection[str] = LENGTHS
) -> list[Point]:
    """All sweeps of all cells; the sizes grow on `threads` threads."""
    bases = [
        replace(BASE, cell=cell, training=phase == "training", lengths=length) for cell in cells for phase in phases for length in lengths
    ]
    found = []
    for base in bases:
        found += [Point(axis, replace(base, **{axis: value}), threads) for axis, values in SWEEPS.items() for value in values]
        found += [Point("threads", base, count) for count in thread_counts()]
    return found


def thread_counts() -> list[int]:
    """1, 2, 4, ... and all cores this process may use."""
    cores = len(os.sched_getaffinity(0))
    return [*(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]


def measure(point: Point, seconds: float) -> dict:
    before = torch.get_num_threads()
    torch.set_num_threads(point.threads)
    try:
        row = suite.measure(point.case, ours_and_torch(point.case), point.threads, seconds)
    finally:
        torch.set_num_threads(before)
    case = point.case
    return {
        "axis": point.axis,
        "value": point.value,
        "threads": point.threads,
        **case.as_row(),
        "us_per_token": {name: figures["ms"] * 1e3 / case.tokens for name, figures in row["engines"].items()},
        "left_out": row["left_out"],
        "discarded": row["discarded"],
    }


def run(wanted: Sequence[Point], seconds: float, folder: Path, tell: suite.Tell) -> dict:
    """Measure the points into `growth.json` in `folder`; returns what it holds."""
    return suite.sweep(wanted, lambda point: measure(point, seconds), folder / "growth.json", tell)
