"""Ways that run in plain PyTorch, over growing numbers of time steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sstkern.bench import paths
from sstkern.bench.paths import BASE, STEPS, WAYS, Point


def test_each_way_has_growing_steps_and_lengths_where_it_takes_them():
    points = paths.points(["GRU"], ["full", "sst2"])
    for name, way in WAYS.items():
        mine = [point.case for point in points if point.way == name]
        assert [case.steps for case in mine] == [*STEPS] * (1 + way.lengths)
        assert {case.cell for case in mine} == {"GRU"}
        assert {case.lengths for case in mine} == ({"full", "sst2"} if way.lengths else {"full"})


@pytest.mark.parametrize("lengths", ["full", "sst2"])
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_runs(way, cell, lengths):
    case = replace(BASE, cell=cell, steps=10, lengths=lengths if WAYS[way].lengths else "full")
    before = torch.get_num_threads()
    row = paths.measure(Point(way, case), 0.001)
    assert (row["way"], row["cell"], row["steps"], row["lengths"]) == (way, cell, 10, case.lengths)
    assert row["ms"] > 0
    assert torch.get_num_threads() == before


def test_growth_is_against_fewer_steps_of_the_same_way():
    rows = [
        {"way": way, "cell": "GRU", "lengths": "full", "steps": steps, "ms": ms}
        for way, times in (("a", (1.0, 2.0, 5.0)), ("b", (7.0, 7.0)))
        for steps, ms in zip(STEPS, times, strict=False)
    ]
    assert [(row["way"], row["steps"], times) for row, times in paths.growth(rows)] == [("a", 500, 2.0), ("a", 1000, 2.5), ("b", 500, 1.0)]


def test_a_run_writes_its_points(tmp_path: Path):
    point = Point("forward mode", replace(BASE, steps=3))
    found = paths.run([point], 0.001, tmp_path, lambda point: None)
    assert json.loads((tmp_path / "paths.json").read_text()) == found
    assert found["complete"]
    assert [row["way"] for row in found["rows"]] == ["forward mode"]
    assert str(point) == "LSTM T3 full: forward mode"
