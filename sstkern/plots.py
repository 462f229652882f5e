"""Plots of a training run and of a gradient check."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sstkern.testing import Report


def plot_training(metrics: Path, steps_per_epoch: int, target: Path) -> None:
    """Draw loss and accuracy over the epochs, from a run's ``metrics.jsonl`` to a PNG file.

    Raises:
        OSError: a file cannot be read or written.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    steps = [line for line in lines if line["event"] == "step"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("nats per sentence", ""), strict=True):
        axes.plot(
            [line["step"] / steps_per_epoch for line in steps],
            [line[name] for line in steps],
            color="C0",
            alpha=0.35,
            label="training, as it goes",
        )
        numbers = [line["epoch"] for line in epochs]
        axes.plot(numbers, [line[name] for line in epochs], "o-", color="C0", label="training, mean of the epoch")
        if all(f"valid_{name}" in line for line in epochs):
            axes.plot(numbers, [line[f"valid_{name}"] for line in epochs], "s-", color="C1", label="validation")
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{name} ({unit})" if unit else name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(target, dpi=120)


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
