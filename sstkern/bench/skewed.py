"""Batches of which one sequence is far longer than the rest: time and memory of ours, packed, nested and padded, beside torch.nn's packed.

The sequences are in each engine's form before anything is measured.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sstkern.bench import memory, report, suite
from sstkern.bench.cases import LAYERS, PHASES, Case
from sstkern.bench.peers import Problem, ours_and_torch

PEER = "torch_packed"
BATCHES = (
    ("rest_1", 4000, 2000, 32),
    ("rest_20", 256, 5000, 64),
)
"""Lengths, sequences, time steps of the longest one, hidden size: 5,999 tokens in 8,000,000 places, and 10,100 in 1,280,000."""


def cases(cells: Collection[str] = tuple(LAYERS), phases: Collection[str] = PHASES) -> list[Case]:
    return [Case(cell, *shape, phase == "training", lengths) for lengths, *shape in BATCHES for cell in cells for phase in phases]


def measure(case: Case, threads: int, seconds: float) -> dict:
    """One row: each engine's time and memory, and the peer's over ours."""

    def as_row(engines: dict, left_out: dict) -> dict:
        return {**case.as_row(), "engines": engines, "left_out": left_out, "discarded": report.disturbed(engines)}

    row = suite.timed(Problem.of(case, threads), ours_and_torch(case), seconds, as_row)
    for name, figures in row["engines"].items():
        figures["bytes"] = memory.in_a_process(case, threads, name)
    return row | {"time_ratio": over_ours(row["engines"], "ms"), "memory_ratio": over_ours(row["engines"], "bytes")}


def over_ours(engines: Mapping[str, dict], figure: str) -> dict[str, float]:
    """The peer's figure over that of each of ours, but for those that are 0; empty where the peer did not run."""
    peer = engines.get(PEER)
    return {name: peer[figure] / found[figure] for name, found in engines.items() if peer and name != PEER and found[figure]}


def run(wanted: Sequence[Case], threads: int, seconds: float, folder: Path, tell: suite.Tell) -> dict:
    """Measure the cases into `skewed.json` in `folder`; returns what it holds."""
    return suite.sweep(wanted, lambda case: measure(case, threads, seconds), folder / "skewed.json", tell)
