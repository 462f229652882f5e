"""The pictures of a run."""

from collections.abc import Callable, Iterable
from math import log10
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from sstkern.bench.cases import LAYERS
from sstkern.bench.peers import OURS
from sstkern.bench.report import against, class_name, shape

_ENGINES = {"sstkern": "C0", "torch": "C1", "torch_packed": "C2"}
_AXES = {"steps": "time steps", "size": "hidden size", "batch": "sequences", "threads": "threads"}
_LEAST = 2**14  # bytes; less is nothing, which a logarithm cannot show
_STYLES = {"full": "o-", "sst2": "x--"}


def ratios(rows: list[dict], folder: Path) -> list[Path]:
    """The best peer's time over ours: a picture for each dtype, a panel for each phase and kind of lengths, a line for each shape."""
    return [_ratios(of_dtype, folder / f"ratios-{dtype}.png") for dtype, of_dtype in _by_dtype(rows)]


def _by_dtype(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    return [(dtype, [row for row in rows if row["dtype"] == dtype]) for dtype in _distinct(rows, "dtype")]


def _ratios(rows: list[dict], path: Path) -> Path:
    def dots(panel: Axes, chosen: list[dict], shapes: list[str]) -> None:
        panel.axvline(1, color="black", linewidth=1)
        for place, cell in enumerate(LAYERS):
            found = [row for row in chosen if row["cell"] == cell and row["ratio"] is not None]
            heights = [shapes.index(shape(row)) + 0.2 * (place - 1) for row in found]
            _scatter(panel, found, [row["ratio"] for row in found], heights, f"C{place}", cell)

    title = f"{rows[0]['dtype']}, by sequences, time steps, hidden size; hollow: discarded"
    return _by_shape(rows, ("phase", "lengths"), dots, title, "best peer's time / ours", path)


def memory(rows: list[dict], folder: Path) -> list[Path]:
    """Memory of a training step: a picture for each dtype, a panel for each cell and kind of lengths, a line for each shape, a dot for each
    engine."""
    return [_memory(of_dtype, folder / f"memory-{dtype}.png") for dtype, of_dtype in _by_dtype(rows)]


def _memory(rows: list[dict], path: Path) -> Path:

    def dots(panel: Axes, chosen: list[dict], shapes: list[str]) -> None:
        for place, (engine, color) in enumerate(_ENGINES.items()):
            found = [row for row in chosen if engine in row["bytes"]]
            sizes = [max(row["bytes"][engine], _LEAST) / 2**20 for row in found]
            heights = [shapes.index(shape(row)) + 0.2 * (place - 1) for row in found]
            panel.scatter(sizes, heights, s=28, color=color, zorder=3, label=engine)

    title = f"{rows[0]['dtype']} training step, by sequences, time steps, hidden size"
    return _by_shape(rows, ("cell", "lengths"), dots, title, "MiB beyond inputs and weights", path)


def own_cells(rows: list[dict], path: Path) -> Path:
    """Each other way's time over ours: a panel for each phase and shape, a line for each cell."""
    rows = [row | {"shape": shape(row)} for row in rows]
    peers = [name for name in dict.fromkeys(name for row in rows for name in row["engines"]) if name != OURS]

    def dots(panel: Axes, chosen: list[dict], cells: list[str]) -> None:
        panel.axvline(1, color="black", linewidth=1)
        for place, peer in enumerate(peers):
            found = [row for row in chosen if {peer, OURS} <= row["engines"].keys()]
            heights = [cells.index(row["cell"]) for row in found]
            _scatter(panel, found, [against(row, (peer,)) for row in found], heights, f"C{place}", peer)

    title = "float32; panels by sequences, time steps, hidden size; hollow: discarded"
    return _panels(rows, ("phase", "shape"), lambda row: row["cell"], "{}, {}", dots, title, "time / ours", path)


def fastest_of_own_cells(rows: list[dict], path: Path) -> Path:
    """The fastest other way's time over ours: a panel for each phase, a line for each cell, a color for each shape."""
    rows = [row | {"shape": shape(row)} for row in rows]
    shapes = _distinct(rows, "shape")

    def dots(panel: Axes, chosen: list[dict], cells: list[str]) -> None:
        panel.axvline(1, color="black", linewidth=1)
        for place, one in enumerate(shapes):
            found = [row for row in chosen if row["shape"] == one and row["ratio"] is not None]
            heights = [cells.index(class_name(row)) for row in found]
            _scatter(panel, found, [row["ratio"] for row in found], heights, f"C{place}", one)

    title = "float32, by sequences, time steps, hidden size; hollow: discarded"
    return _panels(rows, ("dtype", "phase"), class_name, "{1}", dots, title, "fastest other way's time / ours", path)


def _scatter(panel: Axes, rows: list[dict], ratios: list, heights: list, color: str, label: str) -> None:
    """A dot for each row, hollow where the row was discarded; the legend's is filled."""
    colors = [color if row["discarded"] is None else "none" for row in rows]
    panel.scatter(ratios, heights, s=28, c=colors, edgecolors=color, zorder=3)
    panel.scatter([], [], s=28, color=color, label=label)


def _by_shape(rows: list[dict], names: tuple[str, str], dots: Callable, title: str, unit: str, path: Path) -> Path:
    return _panels(rows, names, shape, "{}, {} lengths", dots, title, unit, path)


def _panels(
    rows: list[dict],
    names: tuple[str, str],
    line_of: Callable[[dict], str],
    heading: str,
    dots: Callable,
    title: str,
    unit: str,
    path: Path,
) -> Path:
    """A panel for every pair of values that the rows have under two names, with a line for what `line_of` says of a row."""
    lines = list(dict.fromkeys(map(line_of, rows)))
    down, across = (_distinct(rows, name) for name in names)
    size = (max(6.5, 1.5 + 4.5 * len(across)), 1.8 + (0.9 + 0.3 * len(lines)) * len(down))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(down), len(across), sharex=True, sharey=True, squeeze=False)
    for across_panels, first in zip(panels, down, strict=True):
        for panel, second in zip(across_panels, across, strict=True):
            panel.set_title(heading.format(first, second))
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
            dots(panel, [row for row in rows if (row[names[0]], row[names[1]]) == (first, second)], lines)
    panels[0, 0].set_yticks(range(len(lines)), lines)
    panels[0, 0].set_ylim(len(lines) - 0.5, -0.5)  # shared by all
    _write_ticks(panels[0, 0].xaxis)
    for panel in panels[-1]:
        panel.set_xlabel(unit)
    _legend(figure, panels.flat)
    figure.suptitle(title)
    return _save(figure, path)


def growth(rows: list[dict], folder: Path) -> list[Path]:
    """Time per valid token over every size: a picture for each cell and phase, a panel for each axis."""
    found = []
    for cell in _distinct(rows, "cell"):
        for phase in _distinct(rows, "phase"):
            chosen = [row for row in rows if (row["cell"], row["phase"]) == (cell, phase)]
            if chosen:
                found.append(_growth(chosen, f"{cell}, {phase}", folder / f"growth-{cell.lower()}-{phase}.png"))
    return found


def _growth(rows: list[dict], title: str, path: Path) -> Path:
    axes = _distinct(rows, "axis")
    figure = Figure(figsize=(max(6.5, 1 + 3.8 * len(axes)), 4.2), layout="constrained")
    (panels,) = figure.subplots(1, len(axes), squeeze=False)
    for panel, axis in zip(panels, axes, strict=True):
        chosen = [row for row in rows if row["axis"] == axis]
        for (engine, color), (length, style) in ((e, s) for e in _ENGINES.items() for s in _STYLES.items()):
            points = [row for row in chosen if row["lengths"] == length and engine in row["us_per_token"]]
            if points:
                times = [row["us_per_token"][engine] for row in points]
                panel.plot([row["value"] for row in points], times, style, color=color, markersize=5, label=f"{engine}, {length}")
            hollow = [(row["value"], row["us_per_token"][engine]) for row in points if row["discarded"]]
            panel.plot([value for value, _ in hollow], [time for _, time in hollow], "o", color=color, mfc="white", markersize=5)
        panel.set_xscale("log")
        panel.set_yscale("log")
        _write_ticks(panel.yaxis)
        values = sorted({row["value"] for row in chosen})
        panel.set_xticks(values, [str(value) for value in values])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
        panel.set_xlabel(_AXES[axis])
    panels[0].set_ylabel("µs per valid token")
    _legend(figure, panels)
    figure.suptitle(f"{title}; hollow: discarded")
    return _save(figure, path)


def widths(rows: list[dict], path: Path) -> Path:
    """The rate over the hidden size: a panel for each phase, a line for each cell; thin lines: what is expected between multiples of 64."""
    phases = _distinct(rows, "phase")
    figure = Figure(figsize=(max(6.5, 1 + 5.5 * len(phases)), 4.6), layout="constrained")
    (panels,) = figure.subplots(1, len(phases), sharey=True, squeeze=False)
    for panel, phase in zip(panels, phases, strict=True):
        for row in (row for row in rows if row["phase"] == phase):
            color = f"C{list(LAYERS).index(row['cell'])}"
            panel.plot(row["size"], row["gflops"], ".-", color=color, markersize=4, label=row["cell"])
            thin = [rate / share for rate, share in zip(row["gflops"], row["share"], strict=True)]
            panel.plot(row["size"], thin, color=color, linewidth=0.6, alpha=0.6)
        panel.set_title(phase)
        panel.set_xlabel(_AXES["size"])
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GFLOP/s")
    _legend(figure, panels)
    shape = "{batch} sequences, {steps} time steps, {threads} thread(s)".format(**rows[0])
    figure.suptitle(f"float32, {shape}; thin: between multiples of 64, less empty lanes")
    return _save(figure, path)


def _write_ticks(axis: Axis) -> None:
    """On a logarithmic axis with everything drawn: the more numbers a decade, the fewer decades it has."""
    low, high = axis.get_view_interval()
    decades = log10(high / low)
    axis.set_major_locator(LogLocator(10, subs=(1,) if decades > 3 else (1, 2, 5) if decades > 1.5 else (1, 1.5, 2, 3, 4, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One for all panels, below them."""
    entries = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries), fontsize=9)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _distinct(rows: Iterable[dict], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))
