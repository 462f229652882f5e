"""Somebody's own cells: our layer beside the other ways to run them, on the same weights and threads."""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from sstkern.bench import compiled, machine, report, suite, ways
from sstkern.bench.own_cases import OwnCase, OwnProblem
from sstkern.bench.peers import in_one_line
from sstkern.bench.report import Ratio, Row

ALL = "all cells"


def measure(
    case: OwnCase,
    threads: int,
    seconds: float,
    limit: float = compiled.LIMIT,
    peers: Collection[str] = ways.PEERS,
    doing: suite.Doing = lambda _: None,
) -> Row:
    """One row: what ours and the peers took, and why some did not run. limit: seconds to compile one."""
    engines, rate = ways.engines(limit, peers), machine.product_rate(case.torch_dtype, threads)

    def as_row(taken: dict, left_out: dict) -> Row:
        return report.row(case, taken, left_out, None, rate)

    try:
        problem = OwnProblem.of(case, threads)
        problem.expected()
    except Exception as error:  # the cell's own, which must not end the run of other cells
        return as_row({}, {ways.LOOP: f"failed, and leaves nothing to agree with: {in_one_line(error)}"})
    return suite.timed(problem, engines, seconds, as_row, doing)


def run(
    cases: Sequence[OwnCase],
    threads: int,
    seconds: float,
    limit: float,
    peers: Collection[str],
    file: Path,
    tell: suite.Tell,
    doing: suite.Doing,
) -> dict:
    """Measure the cases, leave `file` (JSON) after each of them, and return the report."""
    one = partial(measure, threads=threads, seconds=seconds, limit=limit, peers=peers, doing=doing)
    return suite.reported(cases, one, lambda found: report.write_json(found, file), tell, summary)


def summary(rows: Iterable[Row]) -> list[dict]:
    """The figures of each cell, and of all together where there are several."""
    rows = list(rows)
    several = len({row["cell"] for row in rows}) > 1
    together = report.summary([row | {"cell": ALL} for row in rows], _GROUPS) if several else []
    return report.summary(rows, _GROUPS) + together


def _best(row: Row, phase: str) -> float | None:
    return row["ratio"] if row["phase"] == phase else None


_GROUPS: dict[str, Ratio] = {
    "inference, fastest peer": partial(_best, phase="inference"),
    "training, fastest peer": partial(_best, phase="training"),
    "all points, fastest peer": lambda row: row["ratio"],
    **{f"all points, {name}": partial(report.against, names=(name,)) for name in ways.PEERS},
}
