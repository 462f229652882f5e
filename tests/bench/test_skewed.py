"""Skewed batches: which they are, and their figures."""

import json
from pathlib import Path

import pytest

from sstkern.bench import memory, skewed
from sstkern.bench.cases import Case
from sstkern.bench.timing import Timing


def test_the_batches_have_few_tokens_in_many_places():
    cases = skewed.cases(["GRU"], ["training"])
    assert cases == [Case("GRU", 4000, 2000, 32, True, "rest_1"), Case("GRU", 256, 5000, 64, True, "rest_20")]
    assert [case.tokens for case in cases] == [5999, 10100]
    assert {(case.cell, case.phase) for case in skewed.cases(["GRU", "LSTM"])} == {
        (cell, phase) for cell in ("GRU", "LSTM") for phase in ("inference", "training")
    }


def test_ratios_are_the_peer_s_figure_over_ours():
    engines = {"sstkern_packed": {"ms": 2.0}, "sstkern_nested": {"ms": 0.0}, "torch_packed": {"ms": 3.0}}
    assert skewed.over_ours(engines, "ms") == {"sstkern_packed": 1.5}
    assert skewed.over_ours({"sstkern_packed": {"ms": 2.0}}, "ms") == {}


def test_a_run_writes_time_and_memory_of_what_could_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = {"sstkern_packed": 10, "sstkern_nested": 20, "torch_packed": 40}
    monkeypatch.setattr(memory, "in_a_process", lambda case, threads, engine: sizes[engine] * threads)
    monkeypatch.setattr("sstkern.bench.peers.MOST_PADDED", 100)
    found = skewed.run([Case("LSTM", 4, 30, 5, True, "rest_20")], 1, 0.01, tmp_path, lambda case: None)
    assert json.loads((tmp_path / "skewed.json").read_text()) == found
    (row,) = found["rows"]
    assert {name: figures["bytes"] for name, figures in row["engines"].items()} == sizes
    assert row["left_out"] == {"sstkern_padded": "padded, x alone has 0 MiB, more than 0"}
    assert (row["memory_ratio"], row["tokens"]) == ({"sstkern_packed": 4, "sstkern_nested": 2}, 90)
    times = {name: figures["ms"] for name, figures in row["engines"].items()}
    assert row["time_ratio"] == {name: times["torch_packed"] / times[name] for name in ("sstkern_packed", "sstkern_nested")}


def test_a_disturbed_form_discards_the_row(monkeypatch: pytest.MonkeyPatch):
    """Whichever it is: each has a ratio."""
    times = {"sstkern_packed": (1, 1), "sstkern_nested": (1, 1), "sstkern_padded": (8, 9), "torch_packed": (2, 2)}
    timings = {name: Timing(ms / 1e3, alone / 1e3, (1, 1), 6) for name, (ms, alone) in times.items()}
    monkeypatch.setattr("sstkern.bench.timing.compare", lambda blocks, seconds: timings)
    monkeypatch.setattr(memory, "in_a_process", lambda case, threads, engine: 1)
    assert (
        skewed.measure(Case("RNN", 2, 3, 4, lengths="rest_1"), 1, 0.01)["discarded"] == "sstkern_padded 9 ms alone, 8 ms among the others"
    )


def test_memory_of_packed_sequences_is_not_that_of_the_padded_ones():
    case = Case("LSTM", 100, 2000, 32, True, "rest_1")  # 2,099 tokens in 200,000 places
    padded = 4 * case.batch * case.steps * case.size
    assert memory.in_a_process(case, 1, "sstkern_packed") < padded / 2
    assert memory.in_a_process(case, 1, "sstkern_padded") > 1.9 * padded  # its output and its gradient of x
