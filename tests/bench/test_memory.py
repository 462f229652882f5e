"""Memory of a training step, measured in processes that are really started."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sstkern.bench import cases, memory
from sstkern.bench.cases import Case

CASE = Case("LSTM", batch=64, steps=50, size=128, training=True)


def test_a_step_holds_at_least_what_it_returns_and_not_much_more():
    floats = CASE.tokens * CASE.size
    taken = memory.in_a_process(CASE, 1, "sstkern")
    assert 2 * 4 * floats < taken < 40 * 4 * floats  # output and gradient of the input, at least


def test_the_cases_are_training_in_each_dtype():
    found = memory.cases(["GRU"], [(1, 2, 3)], ["full", "sst2"])
    assert found == [Case("GRU", 1, 2, 3, True, lengths, dtype) for dtype in cases.DTYPES for lengths in ("full", "sst2")]


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_sixteen_bits_take_less_memory_than_32(cell: str):
    """The weights' own part is small here: (rows, 64) and more of each value."""
    case = Case(cell, 48, 160, 64, training=True)
    taken = {dtype: memory.in_a_process(replace(case, dtype=dtype), 1, "sstkern") for dtype in ("float32", "bfloat16")}
    assert taken["bfloat16"] < 0.75 * taken["float32"]


def test_a_run_writes_the_bytes_of_each_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = {"sstkern": 10, "torch": 20, "torch_packed": 30}
    monkeypatch.setattr(memory, "in_a_process", lambda case, threads, engine: sizes[engine] * threads)
    wanted = memory.cases(["GRU"], [(1, 2, 3)], ["full", "sst2"], ["float32"])
    found = memory.run(wanted, 2, tmp_path, lambda case: None)
    assert json.loads((tmp_path / "memory.json").read_text()) == found
    assert [row["bytes"] for row in found["rows"]] == [
        {"sstkern": 20, "torch": 40},
        {"sstkern": 20, "torch": 40, "torch_packed": 60},
    ]


def test_a_process_that_fails_says_what_it_was_doing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.sys, "executable", "false")
    with pytest.raises(OSError, match="measuring memory of torch on LSTM B64 T50 H128 training full float32 failed"):
        memory.in_a_process(CASE, 1, "torch")
