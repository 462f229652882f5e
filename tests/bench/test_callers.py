"""Calls of several callers at once: which cases, and their figures."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch

from sstkern.bench import callers
from sstkern.bench.cases import Case
from sstkern.bench.peers import Prepared


def test_cases_are_those_of_the_cells():
    assert callers.cases(["GRU"], ["training"]) == [Case("GRU", 3, 40, 256, True)]
    assert len(callers.cases()) == 2 * len(callers.SHAPES)


def test_each_caller_calls_in_a_thread_of_its_own_with_the_threads_it_is_allowed():
    seen, before = set(), torch.get_num_threads()

    def run() -> None:
        seen.add((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        time.sleep(0.01)

    rate = callers.calls_per_second(Prepared(run, training=False), 3, before + 1, 0.2)
    assert len({thread for thread, _, _ in seen}) == 3
    assert {found[1:] for found in seen} == {(before + 1, False)}
    assert torch.get_num_threads() == before
    assert 30 < rate <= 300  # each takes 10 ms and a little


def test_an_error_of_a_caller_ends_the_measurement():
    def run() -> None:
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        callers.calls_per_second(Prepared(run, training=False), 2, 1, 0.1)


def test_a_run_writes_rates_of_all_ways(tmp_path: Path):
    found = callers.run([Case("RNN", 2, 3, 5)], 2, 0.2, tmp_path, lambda case: None)
    assert json.loads((tmp_path / "callers.json").read_text())["rows"][0]["tokens"] == 6
    (row,) = found["rows"]
    assert set(row["calls_per_second"]) == {"sstkern", "torch", "sstkern_one_thread"}
    assert all(set(rates) == {1, 2, 4, 8} and min(rates.values()) > 0 for rates in row["calls_per_second"].values())
    assert row["ideal"] == 2 * row["calls_per_second"]["sstkern_one_thread"][1] > 0
