"""Plots of a training run."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sstkern.atomic import write_atomically
from sstkern.text.history import read_metrics


def plot_training(metrics: Path, steps_per_epoch: int, target: Path) -> None:
    """Draw loss and accuracy over the epochs, from a run's ``metrics.jsonl`` to a PNG file.

    Raises:
        OSError: a file cannot be read or written.
    """
    lines = read_metrics(metrics)
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
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_atomically(target, picture.getvalue())
