"""Trains the study's models, each in a folder of its own, and measures them; what is there is not done again.

A recipe is trained once on what the split leaves, which shows how it does on the held-out sentences epoch by epoch, and then, with each
seed, on all of the training data, as long as the recipe says: those models are measured on dev.
"""

import hashlib
import json
import random
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sstkern.atomic import write_atomically
from sstkern.text import Examples
from sstkern.text.checkpoint import TextClassifier, TrainingOptions, load_model
from sstkern.text.history import read_metrics
from sstkern.text.models import ModelConfig
from sstkern.text.study.recipes import Recipe
from sstkern.text.trainer import Evaluation, Run, evaluate

QUICK_EPOCHS = 1
GAP_SENTENCES = 850  # of the training side, as many as are held out


class InterruptedStudyError(Exception):
    """Ctrl-C or another signal to stop, after the run under way was saved."""


@dataclass(frozen=True)
class Data:
    """What the study trains and measures on, and the folders that hold it for `sstkern train`.

    Attributes:
        whole: all phrases to train on.
        side: those of them that do not occur inside a sentence of `held_out`.
        held_out: whole sentences of the training data, to choose by.
        dev: SST-2's validation sentences, which decide nothing.
        folder: has `split` and `whole`, and both with `-shuffled` behind, each with train.tsv and dev.tsv.
    """

    whole: Examples
    side: Examples
    held_out: Examples
    dev: Examples
    folder: Path

    @cached_property
    def sha256(self) -> str:
        """A hash of all sentences and labels."""
        parts = [part.content() for part in (self.whole, self.side, self.held_out, self.dev)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def write(self) -> None:
        """Write the folders, unless they are there."""
        for name, parts in (("split", (self.side, self.held_out)), ("whole", (self.whole, self.dev))):
            for file, examples in zip(("train.tsv", "dev.tsv"), parts, strict=True):
                _write(self.folder / name / file, examples)
                _write(self.folder / f"{name}-shuffled" / file, shuffled(examples, 0))


def _write(path: Path, examples: Examples) -> None:
    text = _as_tsv(examples)
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text)


def shuffled(examples: Examples, seed: int) -> Examples:
    """The same examples with the words of every sentence in random order."""
    order = random.Random(seed)

    def shuffle(sentence: str) -> str:
        words = sentence.split()
        return " ".join(order.sample(words, len(words)))

    return replace(examples, sentences=[shuffle(sentence) for sentence in examples.sentences])


def _as_tsv(examples: Examples) -> bytes:
    rows = [
        f"{sentence}\t{examples.names[label] if examples.names else label}"
        for sentence, label in zip(examples.sentences, examples.labels, strict=True)
    ]
    return "\n".join(["sentence\tlabel", *rows, ""]).encode()


@dataclass(frozen=True)
class Runs:
    """Where and how the study's models are trained.

    Attributes:
        data: what on.
        folder: of the runs, RECIPE-split and RECIPE-SEED.
        vectors: the source of each kind of word vectors.
        seeds: one run of a recipe on all of the data each; the first also decides the run on the split.
        quick: one epoch.
    """

    data: Data
    folder: Path
    vectors: dict[str, str]
    seeds: Sequence[int]
    quick: bool = False

    def of(self, recipe: Recipe) -> dict[str, Any]:
        """What was measured of a recipe, trained now where it was not yet: `split`, and `runs`, one entry a seed.

        Raises:
            InterruptedStudyError: Ctrl-C; the next call goes on where this one stopped.
        """
        return {"split": self.one(recipe, None), "runs": [self.one(recipe, seed) for seed in self.seeds]}

    def one(self, recipe: Recipe, seed: int | None) -> dict[str, Any]:
        """The run of one seed on all of the data, or, without a seed, the run on the split."""
        config, options = self.settings(recipe, seed)
        output = self._output(recipe, seed)
        asked = {"model": asdict(config), "training": asdict(options), "data": self.data.sha256}
        file = output / "result.json"
        if file.is_file() and (known := json.loads(file.read_bytes()))["asked"] == asked:
            return known["measured"]
        run = self._train(config, options, output)
        measured = {"command": command(config, options, output)}
        measured |= self._on_split(run, output) if seed is None else self._on_dev(recipe, output)
        write_atomically(file, (json.dumps({"asked": asked, "measured": measured}, indent=1) + "\n").encode())
        return json.loads(file.read_bytes())["measured"]

    def _output(self, recipe: Recipe, seed: int | None) -> Path:
        return self.folder / f"{recipe.name}-{'split' if seed is None else seed}"

    def settings(self, recipe: Recipe, seed: int | None) -> tuple[ModelConfig, TrainingOptions]:
        folder = ("split" if seed is None else "whole") + ("-shuffled" if recipe.shuffled else "")
        options = {"data": str((self.data.folder / folder).resolve()), "seed": self.seeds[0] if seed is None else seed}
        if seed is not None:
            options["valid"] = "none"
        if recipe.vectors is not None:
            options["vectors"] = self.vectors[recipe.vectors]
        if self.quick:
            options["epochs"] = QUICK_EPOCHS
        return ModelConfig(**recipe.model), TrainingOptions(**recipe.training | options)

    def classifier(self, recipe: Recipe, seed: int) -> TextClassifier:
        """The model trained on all of the data."""
        self.one(recipe, seed)
        return load_model(self._output(recipe, seed))

    def _train(self, config: ModelConfig, options: TrainingOptions, output: Path) -> Run:
        run = self._resumed(config, options, output) or Run.start(config, options, _unused(output))
        if not run.train():
            raise InterruptedStudyError(f"{output} is saved at step {run.state.step}")
        return run

    def _resumed(self, config: ModelConfig, options: TrainingOptions, output: Path) -> Run | None:
        """The run that was broken off in `output`, if it is one with these settings."""
        try:
            run = Run.resume(output)
        except (ValueError, FileNotFoundError):
            return None
        # A run knows what it left open, from the vectors it read.
        left_open = {name: getattr(config, name) for name in ("affixes", "embedding_size", "vectors_size")}
        found = replace(run.classifier.model.config, **left_open)
        return run if (found, run.options) == (config, options) else None

    def _on_split(self, run: Run, output: Path) -> dict[str, Any]:
        epochs = [line for line in read_metrics(output / "metrics.jsonl") if line["event"] == "epoch"]
        if not epochs:
            raise ValueError(f"{output / 'metrics.jsonl'}: found no epoch; remove {output}, so that it is trained again")
        best = max(epochs, key=lambda line: line["valid_accuracy"])
        parameters = list(run.classifier.model.parameters())
        return {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "accuracy": epochs[-1]["valid_accuracy"],
            "loss": epochs[-1]["valid_loss"],
            "epochs": epochs,
            "seconds_to_best": sum(line["seconds"] for line in epochs[: best["epoch"]]),
            "throughput": asdict(run.throughput()),
        }

    def _on_dev(self, recipe: Recipe, output: Path) -> dict[str, Any]:
        trained = load_model(output)
        sides = {"train": whole_sentences(self.data.whole, GAP_SENTENCES), "dev": self.data.dev}
        scores = {name: _scored(trained, shuffled(side, 1) if recipe.shuffled else side) for name, side in sides.items()}
        return {
            "accuracy": {name: score.accuracy for name, score in scores.items()},
            "loss": {name: score.loss for name, score in scores.items()},
            "dev_shuffled_accuracy": _scored(trained, shuffled(self.data.dev, 1)).accuracy,
        }


def whole_sentences(examples: Examples, count: int) -> Examples:
    """The first `count` examples that look like whole sentences: those of dev do, most training phrases do not. Any, where none does."""
    pairs = list(zip(examples.sentences, examples.labels, strict=True))
    whole = [(sentence, label) for sentence, label in pairs if len(sentence.split()) >= 5 and sentence.split()[-1] == "."]
    chosen = (whole or pairs)[:count]
    return Examples([sentence for sentence, _ in chosen], [label for _, label in chosen])


def _scored(classifier: TextClassifier, examples: Examples) -> Evaluation:
    encoded = [classifier.vocabulary.encode(sentence) for sentence in examples.sentences]
    return evaluate(classifier.model, encoded, examples.labels)


def command(config: ModelConfig, options: TrainingOptions, output: Path) -> str:
    """The `sstkern train` command that repeats a run."""
    given = [*_given(config), *_given(options), "--output", _short(output)]
    return shlex.join(["sstkern", "train", *given])


def _given(settings: ModelConfig | TrainingOptions) -> list[str]:
    """Options for what differs from the defaults."""
    words, defaults = [], asdict(type(settings)())
    for name, value in asdict(settings).items():
        if value != defaults[name]:
            words.append(f"--{name.replace('_', '-')}")
            if value is not True:
                words.append(_short(value) if name in ("data", "vectors") else str(value))
    return words


def _short(path: str | Path) -> str:
    """Relative to the working directory where it lies in it: a report should not show whose machine it came from."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _unused(output: Path) -> Path:
    """`output`, empty: what is left there of other settings is moved aside, not deleted."""
    if output.exists() and any(output.iterdir()):
        number = next(n for n in range(1, 10_000) if not output.with_name(f"{output.name}.old-{n}").exists())
        output.rename(output.with_name(f"{output.name}.old-{number}"))
    return output
