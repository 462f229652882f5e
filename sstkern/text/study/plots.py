"""The plots of the trained models."""

from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from sstkern.text.study.recipes import RECIPES

Models = dict[str, dict[str, Any]]
"""What `Runs.of` measured of each recipe, by its name."""


def accuracies(models: Models, target: Path) -> None:
    """Accuracy on dev of every run, the means, and what was aimed at."""
    recipes = [recipe for recipe in RECIPES if recipe.name in models]
    figure = Figure(figsize=(8, 0.45 * len(recipes) + 1.7), layout="constrained")
    axes = figure.subplots()
    for row, recipe in enumerate(recipes):
        dev = [run["accuracy"]["dev"] for run in models[recipe.name]["runs"]]
        first = row == 0
        axes.plot(dev, [row] * len(dev), "o", color="C0", alpha=0.5, label="dev, one run" if first else None)
        axes.plot(mean(dev), row, "|", color="C0", markersize=18, markeredgewidth=3, label="dev, mean" if first else None)
        held_out = models[recipe.name]["split"]["accuracy"]
        axes.plot(held_out, row, "x", color="C1", label="held-out sentences, the run on the split" if first else None)
        if recipe.target is not None:
            axes.plot(recipe.target, row, ">", color="C7", label="aim" if first else None)
    axes.set_yticks(range(len(recipes)), [recipe.title for recipe in recipes])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(target, dpi=120)


def progress(models: Models, target: Path) -> None:
    """Accuracy on the held-out sentences over the epochs, of the runs on the split."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, recipe in enumerate(recipe for recipe in RECIPES if recipe.name in models):
        line = [epoch["valid_accuracy"] for epoch in models[recipe.name]["split"]["epochs"]]
        axes.plot(range(1, len(line) + 1), line, marker="osD^v<>Px*"[place % 10], color=f"C{place % 10}", label=recipe.title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on the held-out sentences")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(target, dpi=120)


def speeds(models: Models, target: Path) -> None:
    """Tokens a second in training, ours and torch.nn's, of the same models in the same run."""
    measured = [(recipe, models[recipe.name]["split"]["throughput"]) for recipe in RECIPES if recipe.name in models]
    measured = [(recipe, speed) for recipe, speed in measured if speed["torch"] is not None]
    figure = Figure(figsize=(8, 0.5 * len(measured) + 1.4), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(("sstkern", "torch")):
        rows = [row + 0.4 * place - 0.2 for row in range(len(measured))]
        axes.barh(rows, [speed[name] / 1000 for _, speed in measured], 0.38, label={"torch": "torch.nn"}.get(name, name))
    axes.set_yticks(range(len(measured)), [recipe.title for recipe, _ in measured])
    axes.invert_yaxis()
    axes.set_xlabel("thousands of tokens a second in training")
    axes.legend(fontsize=8)
    figure.savefig(target, dpi=120)
