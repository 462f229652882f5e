"""The sweeps' points and their figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sstkern.bench import growth, suite
from sstkern.bench.growth import BASE, Point


def test_each_sweep_changes_one_thing():
    points = growth.points(3, ["GRU"], ["training"], ["full"])
    base = replace(BASE, cell="GRU", training=True)
    for axis, values in growth.SWEEPS.items():
        assert [point.value for point in points if point.axis == axis] == list(values)
    for point in points:
        changed = base if point.axis == "threads" else replace(base, **{point.axis: point.value})
        assert point.case == changed
        assert point.threads == (point.value if point.axis == "threads" else 3)
    assert {growth.SWEEPS["steps"][0], growth.SWEEPS["steps"][-1]} == {10, 4000}


def test_threads_double_up_to_all_cores(monkeypatch: pytest.MonkeyPatch):
    for cores, counts in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr(growth.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert growth.thread_counts() == counts


def test_a_point_is_time_per_valid_token_on_its_threads(monkeypatch: pytest.MonkeyPatch):
    def measure(case, engines, threads, seconds):
        assert (torch.get_num_threads(), threads, seconds) == (2, 2, 0.5)
        return {"engines": {"sstkern": {"ms": 3.0}}, "left_out": {"torch": "why"}, "discarded": None}

    monkeypatch.setattr(suite, "measure", measure)
    case = replace(BASE, batch=3, steps=10)
    row = growth.measure(Point("threads", case, 2), 0.5)
    assert torch.get_num_threads() == 1
    assert row["us_per_token"] == {"sstkern": pytest.approx(100.0)}
    assert (row["axis"], row["value"], row["tokens"], row["left_out"]) == ("threads", 2, 30, {"torch": "why"})


def test_a_run_writes_its_points(tmp_path: Path):
    small = replace(BASE, batch=2, steps=3, size=4, lengths="sst2")
    found = growth.run([Point("steps", small, 1)], 0.01, tmp_path, lambda point: None)
    assert json.loads((tmp_path / "growth.json").read_text()) == found
    (row,) = found["rows"]
    assert found["complete"]
    assert set(row["us_per_token"]) == {"sstkern", "torch", "torch_packed"}
    assert min(row["us_per_token"].values()) > 0
