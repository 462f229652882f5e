"""Rates over hidden sizes: their figures, and what they are compared to."""

import json
from pathlib import Path

import pytest

from sstkern.bench import widths
from sstkern.bench.widths import Curve


def test_the_line_between_multiples_of_64_less_empty_lanes():
    rates = {64: 40.0, 128: 80.0}
    assert [widths.expected(rates, size, 8) for size in (64, 96, 128)] == [40, 60, 80]
    assert widths.expected(rates, 72, 8) == 45
    assert widths.expected(rates, 72, 16) == pytest.approx(45 * 72 / 80)  # 4.5 vectors in 5


def test_curves_are_those_of_all_cells_and_phases():
    assert widths.curves(["GRU"]) == [Curve("GRU", False), Curve("GRU", True)]
    curves = widths.curves(["RNN", "LSTM"], ["training"], (3, 4, 128))
    assert [str(curve) for curve in curves] == ["RNN training up to H 128", "LSTM training up to H 128"]
    assert curves[0].case(80).shape == (3, 4, 80)
    case = Curve("RNN", True).case(72)
    assert (case.batch, case.steps, case.size, case.phase, case.lengths, case.dtype) == (48, 37, 72, "training", "full", "float32")


def test_sizes_that_two_stretches_share_are_one_point(monkeypatch: pytest.MonkeyPatch):
    def rates_between(curve, below, threads, seconds):
        assert (threads, seconds) == (3, 0.5)
        return [{size: scale * (10.0 if size % 64 else 20.0) for size in range(below, below + 65, 32)} for scale in (0.5, 1, 0.7)]

    monkeypatch.setattr(widths, "rates_between", rates_between)
    row = widths.measure(Curve("GRU", True, (2, 3, 192)), 3, 0.5)
    assert (row["cell"], row["phase"], row["batch"], row["steps"], row["threads"]) == ("GRU", "training", 2, 3, 3)
    assert row["size"] == [64, 96, 128, 160, 192]
    assert row["gflops"] == [20, 10, 20, 10, 20]
    assert row["share"] == [1, 0.5, 1, 0.5, 1]


def test_a_run_writes_the_rates_of_every_eighth_size(tmp_path: Path):
    found = widths.run([Curve("RNN", False, (2, 3, 128))], 1, 0.001, tmp_path, lambda curve: None)
    assert json.loads((tmp_path / "widths.json").read_text()) == found
    (row,) = found["rows"]
    assert found["complete"]
    assert row["size"] == list(range(64, 129, 8))
    assert min(row["gflops"]) > 0
    assert (row["share"][0], row["share"][-1]) == (1, 1)
