"""The data of a run: what it trains and validates on."""

import hashlib
import json
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from sstkern.text import Examples, load_examples, read_tsv
from sstkern.text.checkpoint import TrainingOptions
from sstkern.text.sst2 import DEMO


@dataclass(frozen=True)
class Data:
    """The examples of a run, what they are in words, and their hash; ``valid`` may have none."""

    train: Examples
    valid: Examples
    description: str

    @classmethod
    def load(cls, options: TrainingOptions, accelerator: Accelerator) -> "Data":
        # The main process first: a download happens once, and one that fails is tried and warned about once.
        found = load_examples(options.data) if accelerator.is_main_process else None
        (description,) = broadcast_object_list([found and found[2]])
        train, valid, _ = found or load_examples("demo" if description.startswith(DEMO) else options.data)
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
