"""The study's report: report.md from its template, report.html of that, and results.json with every number."""

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from statistics import mean, mode
from typing import Any

from sstkern.atomic import write_atomically
from sstkern.text.checkpoint import TrainingOptions
from sstkern.text.study import gradients, losses, plots, vocabulary
from sstkern.text.study.recipes import RECIPES, Recipe

TEMPLATE = Path(__file__).with_name("report.md.jinja")


def write(study: Any) -> None:
    """Write the report of all answers that a study has, and draw its plots; nothing where it has none."""
    kept = study.kept()
    if not kept:
        return
    answers = {problem: entry["result"] for problem, entry in kept.items()}
    models = {recipe.name: answers[recipe.problem][recipe.name] for recipe in RECIPES if recipe.name in answers.get(recipe.problem, ())}
    _draw(study.folder / "plots", answers, models)
    markdown = _markdown(kept, answers, models, study)
    write_atomically(study.folder / "report.md", markdown.encode())
    write_atomically(study.folder / "report.html", _html(markdown).encode())
    write_atomically(study.folder / "results.json", (json.dumps(kept, indent=1) + "\n").encode())


def _draw(folder: Path, answers: dict[str, dict], models: plots.Models) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if models:
        plots.accuracies(models, folder / "accuracies.png")
        plots.progress(models, folder / "progress.png")
        plots.speeds(models, folder / "speeds.png")
    drawings: dict[str, tuple[str, Callable[[dict, Path], None]]] = {
        "1.1": ("exploding.png", gradients.plot_exploding),
        "1.2": ("vanishing.png", lambda answer, target: gradients.plot_vanishing(answer["initialisation"], answer["trained"], target)),
        "2.1": ("frequencies.png", vocabulary.plot_counts),
        "3.4": ("log_softmax.png", losses.plot_log_after_softmax),
    }
    for problem, (name, plot) in drawings.items():
        if problem in answers:
            plot(answers[problem], folder / name)


def _markdown(kept: dict[str, dict], answers: dict[str, dict], models: plots.Models, study: Any) -> str:
    import jinja2

    # Delimiters that neither Markdown nor formulas have.
    marks = {"variable_start_string": "<<", "variable_end_string": ">>", "block_start_string": "<%", "block_end_string": "%>"}
    language = jinja2.Environment(**marks, trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    runs = study.runs
    words = _Words(models, answers, runs.quick)
    return language.from_string(TEMPLATE.read_text()).render(
        {name: getattr(words, name) for name in dir(words) if not name.startswith("_")},
        quick=runs.quick,
        epochs="one epoch" if runs.quick else f"{TrainingOptions.epochs} epochs",
        seeds=", ".join(map(str, runs.seeds)),
        dev=len(runs.data.dev),
        held_out=len(runs.data.held_out),
        side=len(runs.data.side),
        whole=len(runs.data.whole),
        phrases=len(study.train),
        source=study.source,
        machine=next(iter(kept.values()))["machine"],
        table=table,
        number=number,
        vocabulary_table=vocabulary_table,
        coverage_table=coverage_table,
        common_words=common_words,
        label_order_table=label_order_table,
        log_softmax_table=log_softmax_table,
        log_softmax_breaks=log_softmax_breaks,
        largest=lambda values: max((value for value in values if value is not None), default=None),
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float | None) -> str:
    """Three digits; what JSON cannot hold is None."""
    return "not finite" if value is None else f"{value:.3g}"


class _Words:
    """What the template asks for."""

    def __init__(self, models: plots.Models, answers: dict[str, dict], quick: bool) -> None:
        self.models, self.answers, self._quick = models, answers, quick
        self._titles = {recipe.name: recipe.title for recipe in RECIPES}

    def mean(self, name: str, side: str = "dev") -> float:
        return mean(run["accuracy"][side] for run in self.models[name]["runs"])

    def held_out(self, name: str) -> str:
        return f"{self.models[name]['split']['accuracy']:.4f}"

    def accuracy(self, name: str, side: str = "dev") -> str:
        values = [run["accuracy"][side] for run in self.models[name]["runs"]]
        spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
        return f"{mean(values):.4f}{spread}"

    def gap(self, name: str) -> float:
        """Points between training and dev."""
        return 100 * (self.mean(name, "train") - self.mean(name))

    def table_of(self, *names: str) -> str:
        """The accuracies of those models that are there."""
        rows = [
            [self._titles[name], self.held_out(name), self.accuracy(name, "train"), self.accuracy(name), f"{self.gap(name):.1f}"]
            for name in names
            if name in self.models
        ]
        return table(["model", "held out", "train", "dev", "train - dev, points"], rows)

    def compared(self, name: str, other: str) -> str:
        """How much better or worse one run is than another on dev, in words."""
        if other not in self.models:
            return f"not compared here with {self._titles[other]}, which was not trained"
        points = 100 * (self.mean(name) - self.mean(other))
        return f"{abs(points):.1f} points {'better' if points >= 0 else 'worse'} on dev than {self._titles[other]} ({self.mean(other):.4f})"

    def accuracies(self) -> str:
        """Every model, with what it should reach."""
        rows = [
            [
                recipe.problem,
                recipe.title,
                f"{self.models[recipe.name]['split']['trained_parameters']:,}",
                self.held_out(recipe.name),
                f"**{self.accuracy(recipe.name)}**",
                self._aim(recipe),
            ]
            for recipe in RECIPES
            if recipe.name in self.models
        ]
        return table(["", "model", "trained parameters", "held out", "dev", "aim"], rows)

    def _aim(self, recipe: Recipe) -> str:
        if recipe.target is None or self._quick:
            return "-"
        return f"{recipe.target} {'reached' if self.mean(recipe.name) >= recipe.target else '**missed**'}"

    def speeds(self) -> str:
        """Thousands of tokens a second, and seconds to the best accuracy on the held-out sentences."""
        rows = [[recipe.title, *self._speed(recipe.name)] for recipe in RECIPES if recipe.name in self.models]
        return table(["model", "ours", "torch.nn", "ratio", "s to best, ours", "s to best, torch.nn"], rows)

    def _speed(self, name: str) -> list[str]:
        split = self.models[name]["split"]
        speed, best = split["throughput"], split["seconds_to_best"]
        ours = f"{speed['sstkern'] / 1000:.1f}"
        if speed["torch"] is None:
            return [ours, "-", "-", f"{best:.0f}", "-"]
        ratio = speed["sstkern"] / speed["torch"]
        return [ours, f"{speed['torch'] / 1000:.1f}", f"{ratio:.2f}", f"{best:.0f}", f"{best * ratio:.0f}"]

    def rates(self) -> str:
        """The learning rates: the most common one, and in brackets whose are others."""
        rates = {recipe.title: recipe.training.get("lr", TrainingOptions.lr) for recipe in RECIPES}
        common = mode(rates.values())
        others = "; ".join(f"{title}: {rate:g}" for title, rate in rates.items() if rate != common)
        return f"{common:g} ({others})"

    def blind(self) -> float:
        """The accuracy on shuffled sentences of the model that was trained on ordered ones."""
        return mean(run["dev_shuffled_accuracy"] for run in self.models["lstm-dropout"]["runs"])

    def commands(self) -> str:
        return "\n".join(run["command"] for model in self.models.values() for run in (model["split"], *model["runs"]))

    def vanished(self) -> list[list[str]]:
        """The Jacobians' norms at the largest distance."""
        moments = [self.answers["1.2"][moment]["cells"] for moment in ("initialisation", "trained")]
        names = {"dh": "norm of dh_T/dh_t", "dc": "norm of dc_T/dc_t", "forget_max": "product of forget gates, largest unit"}
        return [
            [f"{cell.upper()}: {title}", *(f"{cells[cell][key][-1]:.1e}" for cells in moments)]
            for cell in moments[0]
            for key, title in names.items()
            if key in moments[0][cell]
        ]


def vocabulary_table(found: dict[str, Any]) -> str:
    rows = [
        ["running tokens of the training phrases", f"{found['tokens']:,}"],
        ["distinct tokens", f"{found['distinct']:,}"],
        ["of these seen at least twice", f"{found['at_least_twice']:,}"],
        ["special tokens besides", found["specials"]],
        ["a vocabulary of all, with the special ones", f"{found['coverage']['1']['vocabulary_size']:,}"],
    ]
    return table(["", "number"], rows)


def coverage_table(found: dict[str, Any]) -> str:
    """Shares of dev that vocabularies know."""
    names = {"1": "all words", "2": "words seen at least twice"}
    parts = ("tokens", "words", "sentences_with_unknown")
    rows = [
        [names[least], f"{known['vocabulary_size']:,}", *(f"{100 * known[part]:.1f}%" for part in parts)]
        for least, known in found["coverage"].items()
    ]
    return table(["vocabulary", "size", "dev's tokens known", "dev's distinct words known", "dev's sentences with an unknown word"], rows)


def common_words(found: dict[str, Any]) -> str:
    return ", ".join(f"`{word}` ({count:,})" for word, count in found["most_frequent"][:10])


def label_order_table(found: dict[str, Any]) -> str:
    names = {"labels_moved": "labels moved with their sentences", "labels_left_behind": "labels left behind"}
    rows = [
        [title, f"{100 * found[key]['labels_right']:.1f}%", f"{found[key]['accuracy']:.4f}", f"{found[key]['loss']:.4f}"]
        for key, title in names.items()
    ]
    rows.append(["always the more frequent label", "-", f"{found['majority']:.4f}", "-"])
    return table(["", "training sentences with their own label's class", "accuracy, held out", "loss, held out"], rows)


def log_softmax_table(found: dict[str, Any]) -> str:
    dtypes = list(found["dtypes"])
    header = ["gap", "exact", *(f"{way}, {dtype}" for dtype in dtypes for way in ("log(softmax)", "log_softmax"))]
    rows = [
        [f"{row['gap']:g}", row["exact"], *(row[dtype][way] for dtype in dtypes for way in ("log_of_softmax", "log_softmax"))]
        for row in found["table"]
    ]
    return table(header, rows)


def log_softmax_breaks(found: dict[str, Any]) -> str:
    """Where each way fails first, for two classes."""
    names = {"log_of_softmax": "log(softmax)", "log_softmax": "log_softmax"}
    rows = [
        [
            f"{names[way]}, {dtype}",
            *(
                "never" if of[way][key] is None else f"{of[way][key]:g}"
                for key in ("first_inexact", "first_bad_gradient", "first_infinite")
            ),
        ]
        for dtype, classes in found["dtypes"].items()
        for way, of in ((way, classes["2"]) for way in names)
    ]
    return table(["from which gap on", "error above 1%", "gradient wrong or no number", "value minus infinity"], rows)


def _html(markdown: str) -> str:
    """A page of its own: formulas as MathML, no script, nothing fetched but the plots beside it."""
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def formula(text: str, options: dict[str, Any]) -> str:
        return convert(text, display="block" if options["display_mode"] else "inline")

    reader = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, renderer=formula)
    title = escape(markdown.splitlines()[0].removeprefix("# "))
    meta = "<meta charset=utf-8>\n<meta name=viewport content='width=device-width'>"
    head = f"<!doctype html>\n<html lang=en>\n{meta}\n<title>{title}</title>\n<style>{_STYLE}</style>\n"
    return f"{head}{reader.render(markdown)}</html>\n"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; font-size: 0.85em; display: block; overflow-x: auto; margin: 1em 0 }
td, th { border-bottom: 1px solid #ccc; padding: 0.3em 0.6em; text-align: left; white-space: nowrap }
pre { background: #f5f5f5; padding: 0.8em; overflow-x: auto; font-size: 0.8em }
img { max-width: 100% }
math[display=block] { margin: 0.8em 0; overflow-x: auto }
"""
