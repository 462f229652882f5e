"""Runs, whole and interrupted."""

import json
from pathlib import Path

import pytest

from sstkern.bench import machine, peers, suite
from sstkern.bench.cases import Case
from sstkern.bench.timing import Timing

CASES = [Case("LSTM", 1, 3, 4), Case("GRU", 2, 3, 4, training=True)]
OURS_AND_TORCH = peers.ENGINES[:2]


def test_a_run_measures_and_writes_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "peak", lambda: 100.0)
    monkeypatch.setattr(machine, "bandwidth", lambda size, threads: {(4 * 4 * 4 * 4, 1): 10.0}[size, threads])
    told, written = [], []

    def tell(case: Case) -> None:
        told.append(case)
        file = tmp_path / "bench.json"
        written.append(len(json.loads(file.read_text())["rows"]) if file.exists() else 0)

    found = suite.run(CASES, peers.ENGINES, 1, 0.01, tmp_path, tell)
    assert (told, written) == (CASES, [0, 1])
    assert found["complete"]
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    inference, training = found["rows"]
    assert {"sstkern", "torch", "torch_packed", "onnxruntime"} <= set(inference["engines"])
    assert training["left_out"] == {"onnxruntime": "inference only", "openvino": "inference only"}
    assert 0 < inference["peak_share"] < 1
    assert inference["bandwidth_share"] > 0
    assert training["bandwidth_share"] is None  # two sequences share what is read
    for row in found["rows"]:
        assert row["ratio"] == row["engines"][row["best_peer"]]["ms"] / row["engines"]["sstkern"]["ms"]


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path):
    def tell(case: Case) -> None:
        if case == CASES[1]:
            raise KeyboardInterrupt

    found = suite.run(CASES, OURS_AND_TORCH, 1, 0.01, tmp_path, tell)
    assert (found["complete"], len(found["rows"]), found["cases"]) == (False, 1, 2)
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert len((tmp_path / "bench.csv").read_text().splitlines()) == 2


def test_ctrl_c_before_the_first_row_keeps_an_earlier_run(tmp_path: Path):
    def stopped(case: Case) -> dict:
        raise KeyboardInterrupt

    def tell(case: Case) -> None:
        pass

    file = tmp_path / "found.json"
    file.write_text("earlier")
    assert not suite.sweep(CASES, stopped, file, tell)["complete"]
    assert not suite.reported(CASES, stopped, lambda found: file.write_text("nothing"), tell)["complete"]
    assert file.read_text() == "earlier"


def test_a_case_that_no_engine_can_run_is_a_row_with_reasons():
    def refuse(problem: peers.Problem) -> peers.Prepared:
        raise peers.Unavailable("not today")

    row = suite.measure(CASES[0], [peers.Engine("torch", refuse)], 1, 0.01)
    assert (row["engines"], row["left_out"], row["ratio"]) == ({}, {"torch": "not today"}, None)


def test_a_disturbed_case_is_timed_again(monkeypatch: pytest.MonkeyPatch):
    alone = iter([2.0, 1.0, 2.0])  # of ours, attempt by attempt
    timings = ({"sstkern": Timing(1.0, first, (1.0, 1.0), 6), "torch": Timing(3.0, 3.0, (3.0, 3.0), 6)} for first in alone)
    monkeypatch.setattr(suite.timing, "compare", lambda blocks, seconds: next(timings))
    assert suite.measure(CASES[1], OURS_AND_TORCH, 1, 0.01)["discarded"] is None
    assert next(alone) == 2.0  # the third was not needed


def test_a_case_that_stays_disturbed_is_discarded(monkeypatch: pytest.MonkeyPatch):
    attempts = []

    def compare(blocks: dict, seconds: float) -> dict[str, Timing]:
        attempts.append(seconds)
        return {"sstkern": Timing(1.0, 2.0, (1.0, 1.0), 6), "torch": Timing(3.0, 3.0, (3.0, 3.0), 6)}

    monkeypatch.setattr(suite.timing, "compare", compare)
    assert suite.measure(CASES[1], OURS_AND_TORCH, 1, 0.01)["discarded"] == "sstkern 2000 ms alone, 1000 ms among the others"
    assert len(attempts) == suite.ATTEMPTS
