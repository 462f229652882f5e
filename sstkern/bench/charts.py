"""The pictures of a run."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sstkern.bench.cases import CELLS, LENGTHS, PHASES
from sstkern.bench.growth import AXES

_ENGINES = {"sstkern": "C0", "torch": "C1", "torch_packed": "C2"}
_AXES = {"steps": "time steps", "size": "hidden size", "batch": "sequences", "threads": "threads"}
_STYLES = {"full": "o-", "sst2": "x--"}


def ratios(rows: list[dict], folder: Path) -> list[Path]:
    """How many times as long as ours the best peer takes: a picture a dtype, a panel a phase and kind of lengths, a line a shape."""
    return [_ratios([row for row in rows if row["dtype"] == dtype], folder / f"ratios-{dtype}.png") for dtype in _distinct(rows, "dtype")]


def _ratios(rows: list[dict], path: Path) -> Path:
    shapes = list(dict.fromkeys(_shape(row) for row in rows))
    phases = [phase for phase in PHASES if any(row["phase"] == phase for row in rows)]
    lengths = [length for length in LENGTHS if any(row["lengths"] == length for row in rows)]
    size = (1.5 + 4.5 * len(lengths), 1.6 + (0.9 + 0.3 * len(shapes)) * len(phases))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(phases), len(lengths), sharex=True, sharey=True, squeeze=False)
    for line, phase in zip(panels, phases, strict=True):
        for panel, length in zip(line, lengths, strict=True):
            panel.set_title(f"{phase}, {length} lengths")
            _dots(panel, [row for row in rows if (row["phase"], row["lengths"]) == (phase, length)], shapes)
    for panel in panels[-1]:
        panel.set_xlabel("best peer's time / ours")
    panels[0, 0].invert_yaxis()  # shared by all
    figure.suptitle(f"{rows[0]['dtype']}, by sequences, time steps, hidden size; hollow: discarded")
    return _save(figure, path)


def _dots(panel: Axes, rows: list[dict], shapes: list[str]) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.axvline(1, color="black", linewidth=1)
    panel.set_yticks(range(len(shapes)), shapes)
    panel.set_ylim(-0.5, len(shapes) - 0.5)
    panel.grid(alpha=0.3)
    for place, cell in enumerate(CELLS):
        chosen = [row for row in rows if row["cell"] == cell and row["ratio"] is not None]
        heights = [shapes.index(_shape(row)) + 0.2 * (place - 1) for row in chosen]
        colors = [f"C{place}" if row["discarded"] is None else "none" for row in chosen]
        panel.scatter([row["ratio"] for row in chosen], heights, s=28, c=colors, edgecolors=f"C{place}", zorder=3)
        panel.scatter([], [], s=28, color=f"C{place}", label=cell)  # the legend's, filled
    panel.legend(fontsize=8, loc="best")


def growth(rows: list[dict], folder: Path) -> list[Path]:
    """Time per valid token over every size: a picture a cell and phase, a panel an axis."""
    found = []
    for cell in _distinct(rows, "cell"):
        for phase in _distinct(rows, "phase"):
            chosen = [row for row in rows if (row["cell"], row["phase"]) == (cell, phase)]
            if chosen:
                found.append(_growth(chosen, f"{cell}, {phase}", folder / f"growth-{cell.lower()}-{phase}.png"))
    return found


def _growth(rows: list[dict], title: str, path: Path) -> Path:
    axes = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(1 + 3.8 * len(axes), 4.2), layout="constrained")
    (panels,) = figure.subplots(1, len(axes), squeeze=False)
    for panel, axis in zip(panels, axes, strict=True):
        for (engine, color), (length, style) in ((e, s) for e in _ENGINES.items() for s in _STYLES.items()):
            points = [row for row in rows if (row["axis"], row["lengths"]) == (axis, length) and engine in row["us_per_token"]]
            if points:
                times = [row["us_per_token"][engine] for row in points]
                panel.plot([row["value"] for row in points], times, style, color=color, markersize=5, label=f"{engine}, {length}")
        _log_both(panel)
        panel.set_xlabel(_AXES[axis])
    panels[0].set_ylabel("µs per valid token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.suptitle(title)
    return _save(figure, path)


def _log_both(panel: Axes) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3, which="both")


def memory(rows: list[dict], path: Path) -> Path:
    """Memory of a training step: a line a case, a bar an engine."""
    figure = Figure(figsize=(9, 1.4 + 0.55 * len(rows)), layout="constrained")
    panel = figure.subplots()
    for place, (engine, color) in enumerate(_ENGINES.items()):
        found = [(i, row["bytes"][engine] / 2**20) for i, row in enumerate(rows) if engine in row["bytes"]]
        heights = [i + 0.25 * (place - 1) for i, _ in found]
        bars = panel.barh(heights, [size for _, size in found], height=0.23, color=color, label=engine)
        panel.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    panel.set_yticks(range(len(rows)), [f"{row['cell']} {_shape(row)} {row['lengths']}" for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xscale("symlog", linthresh=1)
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.margins(x=0.1)
    panel.set_xlabel("MiB beyond inputs and weights")
    panel.grid(alpha=0.3, axis="x")
    panel.legend(fontsize=8)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _distinct(rows: Iterable[dict], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))


def _shape(row: dict) -> str:
    return f"{row['batch']},{row['steps']},{row['size']}"
