"""The study: every problem answered from runs of its own, each answer kept as it comes, and a report of all there are."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sstkern.atomic import write_atomically
from sstkern.bench.machine import environment
from sstkern.text import Examples, load_examples
from sstkern.text.models import Classifier
from sstkern.text.split import hold_out, most_held_out, share_inside
from sstkern.text.study import PROBLEMS, gradients, losses, report, vocabulary
from sstkern.text.study.recipes import RECIPES, of_problem
from sstkern.text.study.runs import Data, Runs

SEEDS = (0, 1, 2)
HELD_OUT = 850  # as many as dev has, about
QUICK_PHRASES = 6000
JACOBIAN_SENTENCES, JACOBIAN_TOKENS = 8, 31


@dataclass
class Study:
    """One folder's study.

    Attributes:
        folder: of everything that it writes.
        train, dev: SST-2's, or other data's.
        runs: of its models.
        source: what the data is, in words.
    """

    folder: Path
    train: Examples
    dev: Examples
    runs: Runs
    source: str

    @classmethod
    def prepare(cls, folder: Path, data: str | None, glove: str, transformer: str, quick: bool) -> "Study":
        """Read the data, and write the split of it to train on.

        Raises:
            FileNotFoundError, ValueError: the data is not there or cannot be read.
        """
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"output: {folder} is a file, expected a folder")
        train, dev, source = load_examples(data)
        side, held_out = hold_out(train, min(HELD_OUT, len(train) // 8, most_held_out(train)))
        whole, side = (part.pick(range(min(QUICK_PHRASES, len(part)))) if quick else part for part in (train, side))
        split = Data(whole, side, held_out, dev, folder / "data")
        split.write()
        vectors = {"glove": glove, "transformer": transformer}
        return cls(folder, train, dev, Runs(split, folder / "runs", vectors, SEEDS[:1] if quick else SEEDS, quick), source)

    def answer(self, problem: str) -> dict[str, Any]:
        """The result of a problem: the one that is kept, or a new one, which is kept from then on.

        Raises:
            InterruptedStudyError: Ctrl-C while a model was trained.
            OSError, ValueError: word vectors cannot be had.
        """
        # Those with models ask the models' own results, which know their settings.
        if problem not in self.kept() or of_problem(problem):
            began = time.perf_counter()
            result = ANSWERS[problem](self)
            entry = {"asked": self.asked, "seconds": round(time.perf_counter() - began, 1), "machine": environment(), "result": result}
            write_atomically(self._file(problem), (json.dumps(entry, indent=1) + "\n").encode())
        return self.kept()[problem]["result"]

    def kept(self) -> dict[str, dict[str, Any]]:
        """The answers that the folder has to what this study asks, not those to other data or of a quick pass."""
        files = {problem: self._file(problem) for problem in PROBLEMS}
        entries = {problem: json.loads(file.read_bytes()) for problem, file in files.items() if file.is_file()}
        return {problem: entry for problem, entry in entries.items() if entry["asked"] == self.asked}

    def _file(self, problem: str) -> Path:
        return self.folder / "results" / f"{problem}.json"

    @property
    def asked(self) -> dict[str, Any]:
        """What an answer depends on besides the program."""
        return {"data": self.runs.data.sha256, "quick": self.runs.quick}

    def trained(self, problem: str) -> dict[str, dict[str, Any]]:
        """What was measured of a problem's models, by the recipe's name."""
        return {recipe.name: self.runs.of(recipe) for recipe in of_problem(problem)}

    def split(self) -> dict[str, Any]:
        data = self.runs.data
        random_rows = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0)).tolist()
        cut = len(data.held_out)
        parts = [self.train.pick(rows) for rows in (random_rows[cut:], random_rows[:cut])]
        return {
            "phrases": len(self.train),
            "train": len(data.side),
            "held_out": len(data.held_out),
            "dev": len(data.dev),
            "inside": share_inside(data.side, data.held_out),
            "inside_of_random": share_inside(*parts),
        }


def _vanishing(study: Study) -> dict[str, Any]:
    """Problem 1.2 at initialisation and after the training of 3.2 and 4.1."""
    sentences = [s for s in study.dev.sentences if len(s.split()) >= JACOBIAN_TOKENS][:JACOBIAN_SENTENCES]
    if not sentences:
        raise ValueError(f"dev has no sentence of at least {JACOBIAN_TOKENS} tokens")
    recipes = [recipe for recipe in RECIPES if recipe.name in ("rnn", "gru", "lstm")]
    trained = {recipe.name: study.runs.classifier(recipe, study.runs.seeds[0]) for recipe in recipes}
    found = {}
    for moment in ("initialisation", "trained"):
        parts = []
        for name, classifier in trained.items():
            model = classifier.model if moment == "trained" else _new(classifier.model)
            inputs = [_embedded(model, classifier.vocabulary.encode(sentence)) for sentence in sentences]
            parts.append(gradients.vanishing({name: model.encoder}, inputs, JACOBIAN_TOKENS - 1))
        cells = {name: norms for part in parts for name, norms in part["cells"].items()}
        found[moment] = parts[0] | {"fused_backwards": sum(part["fused_backwards"] for part in parts), "cells": cells}
    return found


def _new(model: Classifier) -> Classifier:
    """One of the same kind before any training."""
    torch.manual_seed(0)
    return Classifier(model.embedding.num_embeddings, model.linear.out_features, model.config).eval()


def _embedded(model: nn.Module, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model.embedded(torch.tensor([ids]))[0, :JACOBIAN_TOKENS]


def _recurrent(study: Study) -> dict[str, Any]:
    data = study.runs.data
    return study.trained("3.2") | {"label_order": losses.label_order(data.side, data.held_out, seed=0)}


TITLES = {
    "1.1": "exploding gradients and clipping",
    "1.2": "vanishing gradients",
    "2.1": "the vocabulary",
    "2.2": "coverage, and a fair split",
    "3.1": "average pooling",
    "3.2": "a recurrent network",
    "3.3": "cross entropy is the negative log likelihood",
    "3.4": "log after softmax, and log_softmax",
    "4.1": "LSTM and GRU",
    "4.2": "dropout, and what word order is worth",
    "4.3": "two layers, both directions",
    "5.1": "GloVe",
    "5.2": "a transformer's word embedding",
}
INSTEAD = {"5.1": " (--glove takes a zip or a text file)", "5.2": " (--transformer takes a folder)"}
ANSWERS: dict[str, Callable[[Study], dict[str, Any]]] = {
    "1.1": lambda study: gradients.exploding(study.train),
    "1.2": _vanishing,
    "2.1": lambda study: vocabulary.counts(study.train, study.dev),
    "2.2": lambda study: study.split(),
    "3.1": lambda study: study.trained("3.1"),
    "3.2": _recurrent,
    "3.3": lambda study: losses.cross_entropy_is_nll(seed=0),
    "3.4": lambda study: losses.log_after_softmax(),
    "4.1": lambda study: study.trained("4.1"),
    "4.2": lambda study: study.trained("4.2"),
    "4.3": lambda study: study.trained("4.3"),
    "5.1": lambda study: study.trained("5.1"),
    "5.2": lambda study: study.trained("5.2"),
}


def run(study: Study, problems: Sequence[str], tell: Callable[[str], None]) -> list[str]:
    """Answer the problems in order and write the report after each; what could not be answered, and why.

    Raises:
        InterruptedStudyError: Ctrl-C; what was answered is in the report.
    """
    failed = []
    for number, problem in enumerate(problems, start=1):
        tell(f"problem {problem} ({number} of {len(problems)}): {TITLES[problem]}")
        try:
            study.answer(problem)
        except (OSError, ValueError, MemoryError) as error:
            failed.append(f"problem {problem}: {error}{INSTEAD.get(problem, '')}")
            tell(failed[-1])
        report.write(study)
    return failed
