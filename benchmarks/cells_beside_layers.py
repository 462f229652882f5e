"""The cells whose figures are published beside our hand-written LSTM and GRU, each case in one interleaved run.

    python benchmarks/cells_beside_layers.py --output benchmarks/results/MACHINE --threads 2

writes cells_beside_layers.json there, and prints a line for each case: milliseconds of each, the hand-written layer's time over the cell's,
the same for the time of a floating-point operation of their products, and GFLOP/s over those of one large torch.mm.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `benchmarks` is, which the cells' names begin with
from benchmarks.published_cells import CELLS, NEAREST
from sstkern.bench import machine, peers, report, suite, timing, ways
from sstkern.bench.cases import PHASES, Case
from sstkern.bench.own_cases import OwnCase, OwnProblem
from sstkern.bench.shapes import Shape, parse_shape

SHAPES: tuple[Shape, ...] = (
    *((1, 50, 128), (1, 500, 64), (4, 200, 64), (1, 80, 96)),
    *((32, 20, 128), (64, 200, 64), (128, 20, 128), (16, 50, 100), (32, 40, 160), (32, 100, 256), (96, 30, 256)),
)
LAYERS = ("LSTM", "GRU")


def measure(case: OwnCase, threads: int, seconds: float) -> dict:
    """One row."""
    layers = {name: Case(name, *case.shape, training=case.training) for name in LAYERS}
    prepared = {peers.OURS: ways.ours(OwnProblem.of(case, threads))}
    prepared |= {name: peers.sstkern_layer(peers.Problem.of(layer, threads)) for name, layer in layers.items()}
    taken = timing.compare({name: one.block for name, one in prepared.items()}, seconds)
    flops = {peers.OURS: case.flops, **{name: layer.flops for name, layer in layers.items()}}
    rates = {name: flops[name] / taken[name].median / 1e9 for name in taken}
    rate, nearest = machine.product_rate(torch.float32, threads), NEAREST[case.cell]
    return {
        **case.as_row(),
        "nearest": nearest,
        "ms": {name: one.median * 1e3 for name, one in taken.items()},
        "gflop": {name: count / 1e9 for name, count in flops.items()},
        "rate_share": {name: found / rate for name, found in rates.items()},
        "ratio": taken[nearest].median / taken[peers.OURS].median,
        "ratio_per_flop": rates[peers.OURS] / rates[nearest],
        "disturbed": [name for name, one in taken.items() if one.disturbed],
    }


def line(row: dict) -> str:
    times = "  ".join(f"{name} {row['ms'][name]:8.3f} ms {row['rate_share'][name]:5.0%}" for name in row["ms"])
    star = "*" if row["disturbed"] else ""
    return (
        f"{report.class_name(row):22} {report.shape(row):11} {row['phase']:9} {times}  "
        f"{row['nearest']} / cell {row['ratio']:.2f}{star}, per operation {row['ratio_per_flop']:.2f}{star}"
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", action="append", choices=CELLS, help="can be given again; all by default")
    parser.add_argument("--shape", action="append", type=parse_shape, help="B,T,H; can be given again")
    parser.add_argument("--phase", action="append", choices=PHASES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for a case")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder")
    chosen = parser.parse_args(given)
    torch.set_num_threads(chosen.threads)
    cases = [
        OwnCase(cell, *shape, training=phase == "training")
        for cell, phase, shape in product(chosen.cell or CELLS, chosen.phase or PHASES, chosen.shape or SHAPES)
    ]

    suite.sweep_with_lines(
        cases, lambda case: measure(case, chosen.threads, chosen.seconds), chosen.output / "cells_beside_layers.json", line
    )


if __name__ == "__main__":
    main()
