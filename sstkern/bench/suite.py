"""A run: every case measured and written as it finishes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sstkern.bench import machine, peers, report, timing
from sstkern.bench.cases import Case
from sstkern.bench.peers import Engine, Prepared, Problem

Item = TypeVar("Item")
Tell = Callable[[Any], None]
Doing = Callable[[str], None]
"""What is done for the item that was told, which may take minutes."""
ATTEMPTS = 3
"""How often a case is timed at most. If the solo and the interleaved timing differ too much, it is timed again; the last attempt is
reported."""


def measure(case: Case, engines: Sequence[Engine], threads: int, seconds: float) -> dict:
    """One row of the report: what each engine that can run the case took, and why the others did not run."""
    bandwidth = machine.bandwidth(case.recurrent_bytes, threads) if case.batch == 1 else None
    rate = machine.product_rate(case.torch_dtype, threads)
    problem = Problem.of(case, threads)
    return timed(problem, engines, seconds, lambda taken, left_out: report.row(case, taken, left_out, bandwidth, rate))


def timed(
    problem: Problem,
    engines: Sequence[Engine],
    seconds: float,
    as_row: Callable[[dict, dict], dict],
    doing: Doing = lambda _: None,
) -> dict:
    """A row that `as_row` makes of the engines' figures and of why others did not run; timed again where the row says it is discarded.

    doing: called before each engine is made ready, and before all are timed.
    """
    with peers.ready(problem, [_announced(engine, doing) for engine in engines]) as (prepared, differences, left_out):
        doing("timing")
        for _ in range(ATTEMPTS):
            timings = timing.compare({name: one.block for name, one in prepared.items()}, seconds) if prepared else {}
            taken = {name: report.figures(timings[name], differences[name], prepared[name].notes) for name in timings}
            row = as_row(taken, left_out)
            if row["discarded"] is None:
                break
    return row


def _announced(engine: Engine, doing: Doing) -> Engine:
    def prepare(problem: Problem) -> Prepared:
        doing(f"preparing {engine.name}")
        return engine.prepare(problem)

    return replace(engine, prepare=prepare)


def run(cases: Sequence[Case], engines: Sequence[Engine], threads: int, seconds: float, folder: Path, tell: Tell) -> dict:
    """Measure the cases, leave `bench.json` and `bench.csv` in `folder` after each of them, and return the report."""
    return reported(cases, lambda case: measure(case, engines, threads, seconds), lambda found: report.write(found, folder), tell)


def reported(
    cases: Sequence[Item],
    measure: Callable[[Item], dict],
    write: Callable[[dict], None],
    tell: Tell,
    summarize: Callable[[Iterable[dict]], list[dict]] = report.summary,
) -> dict:
    """A report of the cases' rows, written after each of them."""
    found = report.start(machine.environment(), len(cases))

    def one(case: Item) -> None:
        report.add(found, measure(case), summarize)
        write(found)

    found["complete"] = each(cases, one, tell)
    if found["rows"] or found["complete"]:  # an earlier run's file is worth more than nothing of one that was stopped
        write(found)
    return found


def each(items: Sequence[Item], measure: Callable[[Item], None], tell: Callable[[Item], None]) -> bool:
    """Whether all items were measured, rather than Ctrl-C pressed; `tell` is called before each."""
    try:
        for item in items:
            tell(item)
            measure(item)
    except KeyboardInterrupt:
        return False
    return True


def sweep(items: Sequence[Item], measure: Callable[[Item], dict], file: Path, tell: Tell) -> dict:
    """Measure the items, leave `file` (JSON) after each of them, and return what it holds."""
    found: dict = {"environment": machine.environment(), "items": len(items), "complete": False, "rows": []}

    def write() -> None:
        report.write_json(found, file)

    def one(item: Item) -> None:
        found["rows"].append(measure(item))
        write()

    found["complete"] = each(items, one, tell)
    if found["rows"] or found["complete"]:
        write()
    return found


def sweep_with_lines(items: Sequence[Item], measure: Callable[[Item], dict], file: Path, line: Callable[[dict], str]) -> dict:
    """`sweep`, which prints each row's line as soon as it is measured."""

    def measured(item: Item) -> dict:
        row = measure(item)
        print(line(row), flush=True)
        return row

    return sweep(items, measured, file, lambda item: None)
