"""How our layers' rate grows with the hidden size: whether widths between the kernels' tiles lose something."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from sstkern.bench import suite
from sstkern.bench.cases import LAYERS, PHASES, Case
from sstkern.bench.peers import Problem, sstkern_layer
from sstkern.bench.shapes import WHOLE, Shape

SHAPE: Shape = (48, 37, 11 * WHOLE)
"""Sequences, time steps, and the largest hidden size."""
STEP = 8
LANES = {"avx512_bf16": 16, "avx512": 16, "avx2": 8, "baseline": 4}
"""float32 numbers of a vector."""
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Curve:
    cell: str
    training: bool
    shape: Shape = SHAPE

    @property
    def most(self) -> int:
        return self.shape[2]

    def case(self, size: int) -> Case:
        return Case(self.cell, *self.shape[:2], size, self.training)

    def __str__(self) -> str:
        return f"{self.cell} {PHASES[self.training]} up to H {self.most}"


def curves(cells: Collection[str] = tuple(LAYERS), phases: Collection[str] = PHASES, shape: Shape = SHAPE) -> list[Curve]:
    return [Curve(cell, phase == "training", shape) for cell in cells for phase in phases]


def expected(rates: Mapping[int, float], size: int, lanes: int) -> float:
    """What the straight line between the rates of the neighbouring multiples of 64 promises, less the lanes that the last vector wastes."""
    below, above = size // WHOLE * WHOLE, -(-size // WHOLE) * WHOLE
    line = rates[below] + (rates[above] - rates[below]) * (size - below) / WHOLE
    return line * size / (lanes * -(-size // lanes))


def rates_between(curve: Curve, below: int, threads: int, seconds: float) -> list[dict[int, float]]:
    """Rounds of the rate of a call, in GFLOP/s, of each size from one multiple of 64 to the next one.

    The sizes take turns, so that what slows the machine down meanwhile meets all of them. On one thread the time is the processor's.
    """
    cases = {size: curve.case(size) for size in range(below, below + WHOLE + 1, STEP)}
    layers = {size: sstkern_layer(Problem.of(case, threads)) for size, case in cases.items()}
    clock = time.process_time if threads == 1 else time.perf_counter
    for layer in layers.values():
        layer.block(0)
    rounds: list[dict[int, float]] = []
    start = time.perf_counter()
    while len(rounds) < _LEAST_ROUNDS or time.perf_counter() - start < seconds * len(cases):
        rounds.append({})
        for size, layer in layers.items():
            with layer.mode():
                before = clock()
                layer.run()
                rounds[-1][size] = cases[size].flops / (clock() - before) / 1e9
    return rounds


def measure(curve: Curve, threads: int, seconds: float) -> dict:
    """One row: the curve's sizes, the rates of their fastest calls, and their shares of what is expected: medians over the rounds, each of
    which is compared to itself."""
    lanes = LANES[torch.ops.sstkern.cpu_capability()]
    batch, steps, _ = curve.shape
    row: dict = {"cell": curve.cell, "phase": PHASES[curve.training], "batch": batch, "steps": steps, "threads": threads}
    points: dict[int, tuple[float, float]] = {}
    for below in range(WHOLE, curve.most, WHOLE):
        rounds = rates_between(curve, below, threads, seconds)
        for size in rounds[0]:
            share = median(rates[size] / expected(rates, size, lanes) for rates in rounds)
            points[size] = max(rates[size] for rates in rounds), share
    return row | {"size": [*points], "gflops": [rate for rate, _ in points.values()], "share": [share for _, share in points.values()]}


def run(wanted: Collection[Curve], threads: int, seconds: float, folder: Path, tell: suite.Tell) -> dict:
    """Measure the curves into `widths.json` in `folder`; returns what it holds."""
    return suite.sweep(list(wanted), lambda curve: measure(curve, threads, seconds), folder / "widths.json", tell)
