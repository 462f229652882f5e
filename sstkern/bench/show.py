"""Runs on the terminal: progress while they last, then tables, and pictures beside the figures' files."""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sstkern.bench import callers as calling
from sstkern.bench import charts, compiled, own, paths, peers, report, suite
from sstkern.bench import growth as growing
from sstkern.bench import memory as remembering
from sstkern.bench import resets as resetting
from sstkern.bench import skewed as skewing
from sstkern.bench import widths as widening
from sstkern.bench.cases import Shape, grid
from sstkern.bench.own_cases import OwnCase

_WIDTH = 180  # where there is no terminal to fit


def cases(
    cells: Collection[str],
    shapes: Collection[Shape],
    phases: Collection[str],
    lengths: Collection[str],
    dtypes: Collection[str],
    threads: int,
    seconds: float,
    compile_limit: float | None,
    output: Path,
) -> bool:
    """Time the cases; whether all of them were. compile_limit: seconds for torch.compile, which is left out where it is None."""
    console, wanted = _console(), grid(cells, shapes, phases, lengths, dtypes)
    engines = [*peers.ENGINES, *([] if compile_limit is None else [compiled.engine(compile_limit)])]
    with _progress(wanted) as tell:
        found = suite.run(wanted, engines, threads, seconds, output, tell)
    for part in report.tables(found):
        console.print(part)
    _tell_files(console, [output / "bench.json", output / "bench.csv", *(charts.ratios(found["rows"], output) if found["rows"] else [])])
    return found["complete"]


def own_cells(
    wanted: Sequence[OwnCase], threads: int, seconds: float, limit: float, peers: Collection[str], file: Path, plot: Path
) -> bool:
    """Time somebody's own cells; whether all of them were."""
    for case in wanted:
        case.make()  # raises what is wrong with it before hours of others
    console = _console()
    with _progress(wanted) as tell:
        found = own.run(wanted, threads, seconds, limit, peers, file, tell, tell.doing)
    for part in report.tables(found):
        console.print(part)
    _tell_files(console, [file, *(_pictures(found["rows"], plot) if found["rows"] else [])])
    return found["complete"]


def _pictures(rows: list[dict], plot: Path) -> list[Path]:
    """Pictures of every other way, and of the fastest one."""
    return [charts.own_cells(rows, plot), charts.fastest_of_own_cells(rows, plot.with_name(f"{plot.stem}-fastest{plot.suffix}"))]


def _swept(
    wanted: Sequence[Any],
    run: Callable[[suite.Tell], dict],
    parts: Callable[[list[dict]], list[Any]],
    files: Callable[[list[dict]], list[Path]],
) -> bool:
    """Whether all that is wanted was measured. parts, files: what is printed of its rows, and what is left of them."""
    console = _console()
    with _progress(wanted) as shown:
        found = run(shown if shown.drawn else _Lines(len(wanted)))
    for part in parts(found["rows"]):
        console.print(part)
    _tell_files(console, files(found["rows"]))
    return found["complete"]


def growth(cells: Collection[str], phases: Collection[str], lengths: Collection[str], threads: int, seconds: float, output: Path) -> bool:
    """Time the sweeps, and where training is among the phases what runs in plain PyTorch; whether all of them were."""
    wanted, plain = growing.points(threads, cells, phases, lengths), paths.points(cells, lengths)
    complete = _swept(
        wanted,
        lambda tell: growing.run(wanted, seconds, output, tell),
        lambda rows: [],
        lambda rows: [output / "growth.json", *charts.growth(rows, output)],
    )
    if not complete or "training" not in phases:
        return complete
    return _swept(
        plain,
        lambda tell: paths.run(plain, seconds, output, tell),
        lambda rows: [_paths_table(rows)],
        lambda rows: [output / "paths.json"],
    )


def _paths_table(rows: list[dict]) -> Table:
    table = Table(title="milliseconds of one call, and times those of half as many steps", title_justify="left")
    for name in ("cell", "way", "lengths"):
        table.add_column(name, no_wrap=True)
    for name in ("T", "ms", f"growth, * above {paths.MOST}"):
        table.add_column(name, justify="right")
    for row, times in paths.growth(rows):
        star = "*" if times > paths.MOST else ""
        table.add_row(row["cell"], row["way"], row["lengths"], str(row["steps"]), f"{row['ms']:.1f}", f"{times:.2f}{star}")
    return table


def memory(
    cells: Collection[str], shapes: Collection[Shape], lengths: Collection[str], dtypes: Collection[str], threads: int, output: Path
) -> bool:
    """Measure the memory of training steps; whether of all of them."""
    wanted = remembering.cases(cells, shapes, lengths, dtypes)
    return _swept(
        wanted,
        lambda tell: remembering.run(wanted, threads, output, tell),
        lambda rows: [_memory_table(rows)],
        lambda rows: [output / "memory.json", *charts.memory(rows, output)],
    )


def skewed(cells: Collection[str], phases: Collection[str], threads: int, seconds: float, output: Path) -> bool:
    """Measure the skewed batches; whether all of them."""
    wanted = skewing.cases(cells, phases)
    return _swept(
        wanted,
        lambda tell: skewing.run(wanted, threads, seconds, output, tell),
        lambda rows: [_skewed_table(rows), *report.reasons(rows)],
        lambda rows: [output / "skewed.json"],
    )


def resets(shapes: Sequence[Shape], phases: Collection[str], seconds: float, output: Path) -> bool:
    """Time sequences that begin anew; whether all of them were."""
    wanted = resetting.cases(shapes or resetting.SHAPES, phases)
    return _swept(
        wanted,
        lambda tell: resetting.run(wanted, seconds, output, tell),
        lambda rows: [_resets_table(rows), *report.left_out(rows)],
        lambda rows: [output / "resets.json"],
    )


def _resets_table(rows: list[dict]) -> Table:
    others = [name for name in resetting.WAYS if name != resetting.OURS]
    table = Table(title="milliseconds of an LSTM with 3% of its steps reset, and others' time over ours", title_justify="left")
    for name in ("B,T,H", "phase"):
        table.add_column(name, no_wrap=True)
    for name in (resetting.OURS, *others):
        table.add_column(name, justify="right")
    for row in rows:
        ratios = [f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "-" for name in others]
        table.add_row(report.shape(row), row["phase"], f"{row['engines'][resetting.OURS]['ms']:.2f}", *ratios)
    return table


def callers(cells: Collection[str], phases: Collection[str], threads: int, seconds: float, output: Path) -> bool:
    """Count the calls of several callers; whether all were."""
    wanted = calling.cases(cells, phases)
    return _swept(
        wanted,
        lambda tell: calling.run(wanted, threads, seconds, output, tell),
        lambda rows: [_callers_table(rows), *report.left_out(rows)],
        lambda rows: [output / "callers.json"],
    )


def _callers_table(rows: list[dict]) -> Table:
    table = Table(title="calls a second, and their share of one call on each thread, by the number of callers", title_justify="left")
    for name in ("cell", "B,T,H", "phase", ""):
        table.add_column(name, no_wrap=True)
    for count in calling.CALLERS:
        table.add_column(str(count), justify="right")
    for row in rows:
        for name, rates in row["calls_per_second"].items():
            figures = [f"{rate:,.0f} " + (f"{rate / row['ideal']:.2f}" if row["ideal"] else "-") for rate in rates.values()]
            table.add_row(row["cell"], report.shape(row), row["phase"], name, *figures)
        table.add_section()
    return table


def widths(cells: Collection[str], phases: Collection[str], shape: Shape, threads: int, seconds: float, output: Path) -> bool:
    """Measure the rates over hidden sizes; whether all of them."""
    wanted = widening.curves(cells, phases, shape)
    return _swept(
        wanted,
        lambda tell: widening.run(wanted, threads, seconds, output, tell),
        lambda rows: [_widths_table(rows)],
        lambda rows: [output / "widths.json", *([charts.widths(rows, output / "widths.png")] if rows else [])],
    )


def _widths_table(rows: list[dict]) -> Table:
    table = Table(title="rate / that of the neighbouring multiples of 64, less the last vector's empty lanes", title_justify="left")
    for name in ("cell", "phase"):
        table.add_column(name)
    for name in ("least", "at H", "widths from 0.95 on"):
        table.add_column(name, justify="right")
    for row in rows:
        least = min(row["share"])
        enough = sum(share >= 0.95 for share in row["share"]) / len(row["share"])
        table.add_row(row["cell"], row["phase"], f"{least:.2f}", str(row["size"][row["share"].index(least)]), f"{enough:.0%}")
    return table


def _skewed_table(rows: list[dict]) -> Table:
    peer = skewing.PEER
    table = Table(title="milliseconds of one call, MiB beyond inputs and weights", title_justify="left")
    for name in ("cell", "B,T,H", "lengths", "phase", "form"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", f"ms of {peer}\n/ ours", "MiB", f"MiB of {peer}\n/ ours"):
        table.add_column(name, justify="right")
    for row in rows:
        star = "*" if row["discarded"] else ""
        for name, found in row["engines"].items():
            time, memory = (f"{row[ratio][name]:.2f}" if name in row[ratio] else "-" for ratio in ("time_ratio", "memory_ratio"))
            figures = (f"{found['ms']:.2f}{star}", time, f"{found['bytes'] / 2**20:.1f}", memory)
            table.add_row(row["cell"], report.shape(row), row["lengths"], row["phase"], name, *figures)
        table.add_section()
    return table


def _memory_table(rows: list[dict]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row["bytes"]))
    table = Table(title="MiB of a training step beyond inputs and weights", title_justify="left")
    for name in ("cell", "B,T,H", "lengths", "dtype"):
        table.add_column(name)
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        sizes = [f"{row['bytes'][name] / 2**20:.1f}" if name in row["bytes"] else "-" for name in names]
        table.add_row(row["cell"], report.shape(row), row["lengths"], row["dtype"], *sizes)
    return table


def _console() -> Console:
    # Reasons have brackets of their own: pip install "sstkern[bench]".
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=_WIDTH, markup=False)


class _Shown:
    """What to call before each of the items, and while one is worked on, so that a terminal shows which it is."""

    def __init__(self, bar: Progress, total: int):
        self._bar, self._task, self._done, self._item = bar, bar.add_task("", total=total), iter(range(total)), ""

    def __call__(self, item: Any) -> None:
        self._item = str(item)
        self._bar.update(self._task, completed=next(self._done), description=self._item, refresh=True)

    @property
    def drawn(self) -> bool:
        return not self._bar.disable

    def doing(self, what: str) -> None:
        self._bar.update(self._task, description=f"{self._item}: {what}", refresh=True)


class _Lines:
    """What to call before each of the items where nothing can be drawn, as in a log: a sweep takes minutes."""

    def __init__(self, total: int):
        self._total, self._count = total, 0

    def __call__(self, item: Any) -> None:
        self._count += 1
        print(f"{self._count}/{self._total}: {item}", file=sys.stderr, flush=True)


@contextmanager
def _progress(items: Sequence[Any]) -> Iterator[_Shown]:
    """Shows progress on stderr, if that is a terminal: stdout has the tables, which may go into a file."""
    console = Console(markup=False, stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Drawn only between items, and between what is done for one: a thread that draws would take time from what is measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal) as bar:
        yield _Shown(bar, len(items))


def _tell_files(console: Console, paths: Sequence[Path]) -> None:
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
