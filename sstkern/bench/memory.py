"""Memory that a call needs beyond its inputs and weights, ours beside torch.nn's: each measured in a fresh process.

`python -m sstkern.bench.memory JSON` is that process.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sstkern.bench import suite
from sstkern.bench.cases import DTYPES, LAYERS, LENGTHS, Case, Shape, grid
from sstkern.bench.cases import SHAPES as ALL_SHAPES
from sstkern.bench.peers import Problem, ours_and_torch


def cases(
    cells: Collection[str] = tuple(LAYERS),
    shapes: Collection[Shape] = ALL_SHAPES,
    lengths: Collection[str] = LENGTHS,
    dtypes: Collection[str] = DTYPES,
) -> list[Case]:
    return grid(cells, shapes, ("training",), lengths, dtypes)


def measure(case: Case, threads: int) -> dict:
    """One row: bytes of each engine."""
    return {
        **case.as_row(),
        "bytes": {engine.name: in_a_process(case, threads, engine.name) for engine in ours_and_torch(case)},
    }


def in_a_process(case: Case, threads: int, engine: str) -> int:
    """`extra`, in a new process. Raises OSError where that fails."""
    task = json.dumps({"case": asdict(case), "threads": threads, "engine": engine})
    # The new process finds this very package, wherever it was imported from.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "sstkern.bench.memory", task], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"measuring memory of {engine} on {case} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def run(wanted: Sequence[Case], threads: int, folder: Path, tell: suite.Tell) -> dict:
    """Measure the cases into `memory.json` in `folder`; returns what it holds."""
    return suite.sweep(wanted, lambda case: measure(case, threads), folder / "memory.json", tell)


def extra(case: Case, threads: int, name: str) -> int:
    """Bytes by which this process grows, at its peak, while the engine runs the case once."""
    (engine,) = (engine for engine in ours_and_torch(case) if engine.name == name)
    torch.set_num_threads(threads)
    small = replace(case, batch=2, steps=2, size=16)
    engine.prepare(Problem.of(small, threads)).results()  # threads, libraries and their buffers are there
    prepared = engine.prepare(Problem.of(case, threads))
    before = _reset_peak()
    with prepared.mode():
        results = prepared.run()  # held: they are part of a step's memory
    after = _peak()
    del results
    return after - before


def _reset_peak() -> int:
    """Lets the peak be what is in use now, and returns it. What the C library keeps of freed memory is given back before: the engine would
    take it from there, unseen."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The peak of this process. Not ru_maxrss, which nothing resets: importing torch may have peaked higher than what is to be measured."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(extra(Case(**task["case"]), task["threads"], task["engine"]))
