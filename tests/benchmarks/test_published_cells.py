"""The cells whose figures are published: that all are there, run and agree with their loops."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks.published_cells import CELLS, arguments
from sstkern.bench import peers, ways
from sstkern.bench.own_cases import OwnCase, OwnProblem


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_agrees_with_its_loop(name: str):
    problem = OwnProblem.of(OwnCase(name, batch=2, steps=3, size=4, training=True), 1)
    assert peers.difference(problem, ways.ours(problem).results(), problem.expected()) < 1e-5


def test_all_are_timed_unless_some_are_chosen():
    assert len(set(CELLS)) == 12
    assert arguments(["--seconds", "1"]) == ["bench", *(part for cell in CELLS for part in ("--cell", cell)), "--seconds", "1"]
    assert arguments(["--cell", "a:A"]) == ["bench", "--cell", "a:A"]
