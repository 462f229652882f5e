"""The data of a run: what it trains and validates on."""

import hashlib
import json
from dataclasses import dataclass

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
        if options.valid == "none":
            valid = Examples([], [])
            description += ", without validation"
        elif options.valid is not None:
            valid = read_tsv(options.valid, train.names, classes=train.num_classes)
            description += f", validated on {options.valid}"
        return cls(train, valid, description)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps([self.train.content(), self.valid.content()]).encode()).hexdigest()
