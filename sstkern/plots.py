"""Plots of a gradient check."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sstkern.testing import Report


def plot_errors_by_step(report: Report, target: Path) -> None:
    """Draw a gradient check's errors over the time steps, the largest of all cases, to a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    lines: dict[str, list[float]] = {}
    for row in report.rows:
        if row.by_step and row.against != "itself":
            label = f"{row.tensor}, {str(row.dtype).removeprefix('torch.')} against {row.against}"
            line = lines.setdefault(label, [0.0] * len(row.by_step))
            lines[label] = [max(pair) for pair in zip(line, row.by_step, strict=True)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (label, line) in enumerate(lines.items()):
        axes.semilogy(line, marker="osD^v<>P"[place % 8], markersize=4, label=label)
    axes.set_xlabel("time step")
    axes.set_ylabel("largest error / largest number")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(target, dpi=120)
