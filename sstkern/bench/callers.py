"""Calls a second of one layer from several Python threads at once, as a server makes them: ours beside torch.nn's."""

import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from sstkern.bench import suite
from sstkern.bench.cases import LAYERS, PHASES, Case
from sstkern.bench.peers import OURS, Prepared, Problem, ours_and_torch, ready

SHAPES = (
    *(("LSTM", 1, 50, 128), ("LSTM", 1, 60, 136), ("LSTM", 1, 120, 248), ("LSTM", 16, 20, 256)),
    *(("GRU", 3, 40, 256), ("RNN", 1, 100, 256)),
)
"""Cell, sequences, time steps, hidden size."""
CALLERS = (1, 2, 4, 8)
ALONE = f"{OURS}_one_thread"
"""Ours under torch.set_num_threads(1): what Python's lock takes from the ideal, it takes here too."""
_ROUNDS = 3


def cases(cells: Collection[str] = tuple(LAYERS), phases: Collection[str] = PHASES) -> list[Case]:
    return [Case(*shape, training=phase == "training") for phase in phases for shape in SHAPES if shape[0] in cells]


def measure(case: Case, threads: int, seconds: float) -> dict:
    """One row: calls a second by the number of callers, the median of rounds that go through all in turn, and the ideal, one call on each
    of the threads: what one caller with one thread makes, times the threads."""
    rates: dict[str, dict[int, list[float]]] = {}
    with ready(Problem.of(case, threads), ours_and_torch(case)) as (prepared, _, left_out):
        ways = {name: (one, threads) for name, one in prepared.items()}
        if OURS in prepared:
            ways[ALONE] = prepared[OURS], 1
        each = seconds / (_ROUNDS * len(ways) * len(CALLERS))
        for _ in range(_ROUNDS):
            for callers in CALLERS:
                for name, (one, allowed) in ways.items():
                    rates.setdefault(name, {}).setdefault(callers, []).append(calls_per_second(one, callers, allowed, each))
    found = {name: {callers: median(rate) for callers, rate in of_way.items()} for name, of_way in rates.items()}
    ideal = threads * found[ALONE][1] if ALONE in found else None
    return {**case.as_row(), "threads": threads, "ideal": ideal, "calls_per_second": found, "left_out": left_out}


def calls_per_second(prepared: Prepared, callers: int, threads: int, seconds: float) -> float:
    """The calls a second of all callers together. Each calls again and again; torch is allowed so many threads."""
    start, end = threading.Barrier(callers + 1), threading.Event()

    def call() -> int:
        count = 0
        with prepared.mode():
            start.wait()
            while not end.is_set():
                prepared.run()
                count += 1
        return count

    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # of new threads too
    try:
        with ThreadPoolExecutor(callers) as pool:
            counts = [pool.submit(call) for _ in range(callers)]
            start.wait()
            began = time.perf_counter()
            try:
                time.sleep(seconds)
            finally:
                end.set()
            return sum(count.result() for count in counts) / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)


def run(wanted: Sequence[Case], threads: int, seconds: float, folder: Path, tell: suite.Tell) -> dict:
    """Measure the cases into `callers.json` in `folder`; returns what it holds."""
    return suite.sweep(wanted, lambda case: measure(case, threads, seconds), folder / "callers.json", tell)
