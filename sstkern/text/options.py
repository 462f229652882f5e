"""What a run can be told, without torch: `sstkern --help` reads it too."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Cell = Literal["average", "rnn", "gru", "lstm"]
Pooling = Literal["last", "mean", "max", "attention"]

GLOVE = "glove.6B"
"""The name of GloVe's vectors that are downloaded."""
HUB = "hf:"
"""What the name of a transformer of the Hugging Face hub begins with."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a :class:`Classifier`.

    The cell ``average`` is the mean of the word vectors: it has no recurrence, and ``layers``, ``hidden_size``,
    ``bidirectional`` and ``pooling`` do not apply to it.

    Attributes:
        cell: ``average``, ``rnn``, ``gru`` or ``lstm``.
        layers: stacked recurrent layers, at least 1.
        hidden_size: units of a layer, in each direction.
        embedding_size: numbers in a word vector; None leaves it to :meth:`sstkern.text.trainer.Run.start`: as many as
            pretrained vectors have, or 128. With ``affixes`` pretrained vectors stand beside the learned ones.
        bidirectional: also read the sentence from its end.
        dropout: share of numbers set to 0 in training: on the word vectors, between layers and on the sentence vector.
        pooling: how the steps become one sentence vector: ``last`` (the final state of the last layer), ``mean``,
            ``max`` or ``attention`` (a learned weighted mean).
        frozen: the word vectors, which are pretrained, are not trained.
        affixes: a word's vector is its own plus those of its beginnings and endings (see :class:`AffixEmbedding`). None leaves
            it to :meth:`sstkern.text.trainer.Run.start`: yes, but for a transformer's vectors, which are of parts of words already.
        vectors_size: numbers in a pretrained vector beside a learned one; 0 where there is none.

    Raises:
        ValueError: a field has a value that is not allowed; the message names it and what is.
    """

    cell: Cell = "lstm"
    layers: int = 1
    hidden_size: int = 128
    embedding_size: int | None = None
    bidirectional: bool = False
    dropout: float = 0.3
    pooling: Pooling = "max"
    frozen: bool = False
    affixes: bool | None = None
    vectors_size: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("cell", get_args(Cell)), ("pooling", get_args(Pooling))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("layers", "hidden_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
        size = self.embedding_size
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"embedding_size must be an integer of at least 1, or None, not {size!r}")
        if type(self.vectors_size) is not int or self.vectors_size < 0 or (self.vectors_size and not self.affixes):
            raise ValueError(f"vectors_size must be 0, or an integer above it with affixes, not {self.vectors_size!r}")
        if self.affixes not in (None, True, False):
            raise ValueError(f"affixes must be True, False or None, not {self.affixes!r}")
        for name in ("bidirectional", "frozen"):
            value = getattr(self, name)
            if type(value) is not bool:
                raise ValueError(f"{name} must be True or False, not {value!r}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number from 0 to below 1, not {self.dropout!r}")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train (see :mod:`sstkern.text.trainer`).

    Attributes:
        data: a folder with train.tsv and dev.tsv, or ``demo``; None is SST-2 (see :func:`sstkern.text.load_examples`).
        valid: a TSV file to validate on instead of the data's own dev.tsv; ``none`` validates on nothing, and the model is that of
            the last epoch.
        vectors: pretrained word vectors: GloVe's, as :func:`sstkern.text.read_glove` takes them, or a transformer's, as
            :func:`sstkern.text.read_transformer` does; None begins with random ones.
        min_count: a word that is rarer in the training data is unknown; a transformer's tokenizer has its own tokens.
        epochs: the most passes over the training data.
        batch_size: sentences per step and process.
        lr: AdamW's learning rate at first; it falls in a line to 0 at the end of the last epoch.
        weight_decay: AdamW's weight decay.
        clip: the largest norm of the gradient; a longer one is scaled down to it.
        label_smoothing: share of the target, from 0 to below 1, that training spreads over all classes.
        patience: epochs without a better accuracy on the validation set before training stops.
        seed: decides the initial weights, the order of the batches and dropout; 0 or more.
        threads: CPU threads of a process; None leaves it to PyTorch.

    Raises:
        ValueError: a field has a value that is not allowed; the message names it and what is.
    """

    data: str | None = None
    valid: str | None = None
    vectors: str | None = None
    min_count: int = 1
    epochs: int = 3
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    label_smoothing: float = 0.1
    patience: int = 3
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_count", 1), ("epochs", 1), ("batch_size", 1), ("patience", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        for name in ("data", "valid", "vectors"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name} must be a string, or None, not {value!r}")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ValueError(f"threads must be an integer of at least 1, or None, not {self.threads!r}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, not {value!r}")
        if type(self.weight_decay) not in (int, float) or not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number of at least 0, not {self.weight_decay!r}")
        if type(self.label_smoothing) not in (int, float) or not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be a number from 0 to below 1, not {self.label_smoothing!r}")
