"""The data of a run: what it trains and validates on."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from sstkern.text import Examples, load, read_tsv
from sstkern.text.checkpoint import TrainingOptions


@dataclass(frozen=True)
class Data:
    """The examples of a run, what they are in words, and their hash; ``valid`` may have none."""

    train: Examples
    valid: Examples
    description: str

    @classmethod
    def load(cls, options: TrainingOptions, accelerator: Accelerator) -> "Data":
        # One process at a time, so that a download happens once.
        with accelerator.main_process_first():
            train, valid, description = load(options.data)
        if len(set(train.labels)) < 2:
            raise ValueError(f"{description}: found only the label {train.labels[0]} to train on, expected two or more")
        if options.valid == "none":
            valid = Examples([], [])
            description += ", without validation"
        elif options.valid is not None:
            valid = read_tsv(options.valid, train.names)
            description += f", validated on {options.valid}"
            check_labels(valid, train.num_classes, options.valid)
        return cls(train, valid, description)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps([self.train.content(), self.valid.content()]).encode()).hexdigest()


def check_labels(examples: Examples, classes: int, source: str | Path) -> None:
    """Raise ValueError, naming ``source``, if a label is none of a model's 0 to ``classes - 1``."""
    for row, label in enumerate(examples.labels, start=1):
        if label >= classes:
            known = ", ".join(map(str, range(classes))) if classes <= 10 else f"0 to {classes - 1}"
            raise ValueError(f"{source}: found the label {label} in example {row}, but the model knows {known}")
