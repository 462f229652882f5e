"""Runs of own cells: rows of what agrees, reasons for what does not, and what they come to."""

import json
from pathlib import Path

import pytest

from sstkern.bench import machine, own, report, ways
from sstkern.bench.own_cases import OwnCase, OwnProblem
from sstkern.bench.peers import Engine, Prepared, Unavailable

NAME = "own_cells_to_time:"
RATE = 50.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """No process and no compiler: the loop twice, a way that fails, and one that is wrong."""

    def fail(problem: OwnProblem) -> Prepared:
        raise Unavailable("compiling took more than 1 s")

    def wrong(problem: OwnProblem) -> Prepared:
        prepared = problem.eager()
        prepared.read = lambda results: [2 * results[0], *results[1:]]
        return prepared

    made = {"sstkern": ways.ours, "loop": OwnProblem.eager, "compiled_loop": fail, "scan": wrong}
    monkeypatch.setattr(ways, "engines", lambda limit, peers: [Engine(name, prepare) for name, prepare in made.items()])
    monkeypatch.setattr(machine, "product_rate", lambda dtype, threads: RATE)


def test_a_row_has_figures_and_reasons():
    case = OwnCase(f"{NAME}Leaky", 2, 3, 4, training=True, input_size=5)
    row = own.measure(case, 1, 0.01)
    assert (set(row["engines"]), row["best_peer"], row["input_size"]) == ({"sstkern", "loop"}, "loop", 5)
    assert row["left_out"]["compiled_loop"] == "compiling took more than 1 s"
    assert row["left_out"]["scan"].startswith("wrong: differs from the reference by 1.0e+00")
    assert row["ratio"] == row["engines"]["loop"]["ms"] / row["engines"]["sstkern"]["ms"]
    assert row["gflop"] == case.flops / 1e9
    assert row["rate_share"] == pytest.approx(case.flops / row["engines"]["sstkern"]["ms"] / 1e6 / RATE)
    assert row["engines"]["sstkern"]["difference"] < 1e-5


def test_a_cell_that_is_no_program_has_no_rate():
    row = own.measure(OwnCase(f"{NAME}Stepped", 2, 3, 4), 1, 0.01)
    assert (row["gflop"], row["gflops"], row["rate_share"]) == (None, None, None)
    assert row["ratio"] > 0
    (line,) = (line for line in report.reasons([row]) if "stepped" in line)
    assert line.startswith(f"{NAME}Stepped was stepped in Python: ")


def test_a_cell_that_fails_does_not_end_the_run(tmp_path: Path):
    cases = [OwnCase(NAME + cell, 2, 3, 4) for cell in ("Broken", "Leaky")]
    told: list[OwnCase] = []
    doing: list[str] = []
    file = tmp_path / "new" / "own.json"
    found = own.run(cases, 1, 0.01, 1.0, (), file, told.append, doing.append)
    assert told == cases
    assert doing == [*(f"preparing {name}" for name in ("sstkern", "loop", "compiled_loop", "scan")), "timing"]  # of the second
    assert json.loads(file.read_text()) == found
    broken, leaky = found["rows"]
    assert (broken["engines"], broken["ratio"]) == ({}, None)
    assert broken["left_out"] == {"loop": "failed, and leaves nothing to agree with: RuntimeError: out of order"}
    assert leaky["ratio"] > 0
    assert (found["complete"], found["cases"]) == (True, 2)


def test_a_cell_that_is_never_the_same_is_left_out():
    row = own.measure(OwnCase(f"{NAME}Random", 2, 3, 4), 1, 0.01)
    assert row["engines"] == {}
    assert all(row["left_out"][name].startswith("wrong: ") for name in ("sstkern", "loop"))


def test_the_summary_is_of_each_cell_and_of_all():
    def row(cell: str, phase: str, **ms: float) -> dict:
        case = OwnCase(cell, 2, 3, 4, training=phase == "training")
        engines = {name: {"ms": time, "alone_ms": time, "disturbed": False, "spread": 0.0} for name, time in ms.items()}
        return report.row(case, engines, {}, None, RATE)

    rows = [row(f"{NAME}Leaky", "inference", sstkern=1, loop=8, scan=2), row(f"{NAME}Default", "training", sstkern=1, loop=8)]
    found = {(group["group"], group["cell"]): group["geometric_mean"] for group in own.summary(rows)}
    assert found["inference, fastest peer", f"{NAME}Leaky"] == pytest.approx(2)
    assert found["all points, loop", f"{NAME}Leaky"] == pytest.approx(8)
    assert found["all points, fastest peer", own.ALL] == pytest.approx(4)
    assert found["training, fastest peer", own.ALL] == pytest.approx(8)
    assert ("all points, scan", f"{NAME}Default") not in found
    assert {cell for _, cell in ((group["group"], group["cell"]) for group in own.summary(rows[:1]))} == {f"{NAME}Leaky"}
