"""Text for the classifiers: vocabulary, SST-2 and TSV reading, length-bucketed batches, pretrained word vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sstkern import renamed
from sstkern.text.affixes import AffixVocabulary
from sstkern.text.batches import UNLABELLED, Batch, Batches, collate
from sstkern.text.demo import demo
from sstkern.text.glove import Vectors, read_glove
from sstkern.text.split import hold_out, share_inside
from sstkern.text.sst2 import load_examples
from sstkern.text.transformer import Subwords, read_transformer
from sstkern.text.tsv import Examples, read_tsv
from sstkern.text.vectors import load_vectors, of_transformer
from sstkern.text.vocabulary import PAD, UNK, Vocabulary

if TYPE_CHECKING:
    from sstkern.text.checkpoint import TextClassifier

__all__ = [
    "PAD",
    "UNK",
    "UNLABELLED",
    "AffixVocabulary",
    "Batch",
    "Batches",
    "Examples",
    "Subwords",
    "Vectors",
    "Vocabulary",
    "collate",
    "demo",
    "hold_out",
    "load_classifier",
    "load_examples",
    "load_vectors",
    "of_transformer",
    "read_glove",
    "read_transformer",
    "read_tsv",
    "share_inside",
]


def load_classifier(path: str | Path) -> TextClassifier:
    """The trained classifier that `sstkern train` left in the folder `path`.

    Raises ModuleNotFoundError without the [train] extra, and ValueError where there is no model, or a file of it is damaged.
    """
    from sstkern.text.checkpoint import load_model  # here: it needs the extra

    return load_model(path)


def __getattr__(name: str) -> Any:
    if name == "load":
        renamed.warn("sstkern.text.load", "sstkern.text.load_examples")
        return load_examples
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
