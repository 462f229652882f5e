"""Thin text classifiers: embedding, one recurrent encoder, pooling over the valid steps, a linear layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from sstkern.modules import GRU, LSTM, RNN
from sstkern.text import PAD

Cell = Literal["average", "rnn", "gru", "lstm"]
Pooling = Literal["last", "mean", "max", "attention"]

# Measured on held-out sentences of SST-2's training data.
AFFIX_SCALE = 0.25  # standard deviation of the numbers at first
WORD_DROPOUT = 0.5

RECURRENT: dict[str, type[nn.Module]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


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


class AffixEmbedding(nn.Embedding):
    """The vector of a word, plus the sum of those of its affixes over the root of their number.

    A word seldom or never seen so has a vector from those it resembles. In training half of the words that have affixes
    go without their own, so that the affixes learn to stand alone. The arguments of ``torch.nn.Embedding``; id 0 is no vector.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx=PAD)
        with torch.no_grad():
            self.weight.mul_(AFFIX_SCALE)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T, K) int64, a word's id and those of its affixes, to (B, T, E); (B, T), a batch without a word, to zeros."""
        if ids.dim() == 2:
            ids = ids.new_full((*ids.shape, 2), PAD)
        words, affixes = ids[..., 0], ids[..., 1:]
        counts = (affixes != PAD).sum(-1)
        if self.training:
            dropped = torch.rand(words.shape, device=words.device) < WORD_DROPOUT
            words = words.masked_fill(dropped & (counts > 0), PAD)
        sums = embedding_bag(affixes.flatten(0, 1), self.weight, mode="sum", padding_idx=PAD).view(*words.shape, -1)
        return super().forward(words) + sums / counts.clamp(min=1).to(sums.dtype).sqrt()[..., None]


class Classifier(nn.Module):
    """Embedding, dropout, encoder, pooling, dropout, linear.

    Args:
        vocabulary_size: number of token ids.
        classes: number of classes.
        config: what lies in between; its ``embedding_size`` is a number, and ``affixes`` None means none here.
        recurrent: the recurrent layer of each cell. Any class with the arguments of ``torch.nn.LSTM`` whose forward
            also takes ``lengths`` will do.
        tokens: number of those ids that are whole tokens' and may have pretrained vectors; all by default.

    Raises:
        ValueError: ``config.embedding_size`` is None.
    """

    def __init__(
        self,
        vocabulary_size: int,
        classes: int,
        config: ModelConfig,
        recurrent: Mapping[str, type[nn.Module]] = RECURRENT,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        if config.embedding_size is None:
            raise ValueError("embedding_size is None, expected an integer of at least 1")
        self.config = config
        self.embedding = (AffixEmbedding if config.affixes else nn.Embedding)(vocabulary_size, config.embedding_size)
        if config.vectors_size:
            self.vectors = nn.Embedding(tokens or vocabulary_size, config.vectors_size)
        self.pretrained.weight.requires_grad_(not config.frozen)
        self.dropout = nn.Dropout(config.dropout)
        features = config.embedding_size + config.vectors_size
        if config.cell == "average":
            self.encoder = None
        else:
            self.encoder = recurrent[config.cell](
                features,
                config.hidden_size,
                num_layers=config.layers,
                batch_first=True,
                dropout=config.dropout if config.layers > 1 else 0.0,
                bidirectional=config.bidirectional,
            )
            features = config.hidden_size * (2 if config.bidirectional else 1)
            if config.pooling == "attention":
                self.attention = nn.Linear(features, 1)
        self.linear = nn.Linear(features, classes)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Score every class for every sentence.

        Args:
            ids: (B, T) int64 token ids, (B, T, K) with affixes; what lies past a sentence's length is not read.
            lengths: (B,) int64, each from 0 to T. A sentence of length 0 has the sentence vector 0.

        Returns:
            (B, classes) logits in the dtype of the weights.
        """
        embedded = self.dropout(self.embedded(ids))
        return self.linear(self.dropout(self._sentence_vectors(embedded, lengths)))

    def embedded(self, ids: Tensor) -> Tensor:
        """The word vectors (B, T, E) of token ids, those that the encoder reads."""
        learned = self.embedding(ids)
        if not self.config.vectors_size:
            return learned
        words = ids[..., 0] if ids.dim() == 3 else ids
        return torch.cat([self.vectors(words), learned], -1)

    @property
    def pretrained(self) -> nn.Embedding:
        """The table that pretrained vectors go to, if there are some."""
        return self.vectors if self.config.vectors_size else self.embedding

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their names: all, or all but the frozen word vectors."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _sentence_vectors(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        if self.encoder is None:
            return _mean(embedded, lengths)
        outputs, final = self.encoder(embedded, lengths=lengths)
        match self.config.pooling:
            case "last":
                hidden = final[0] if isinstance(final, tuple) else final
                directions = 2 if self.config.bidirectional else 1
                return hidden[-directions:].transpose(0, 1).flatten(1)
            case "mean":
                return _mean(outputs, lengths)
            case "max":
                return _max(outputs, lengths)
            case "attention":
                return _weighted_mean(outputs, self.attention(outputs), lengths)


def _valid(steps: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, 1) bool: the steps within each sentence."""
    return (torch.arange(steps.shape[1], device=steps.device) < lengths[:, None])[..., None]


def _mean(steps: Tensor, lengths: Tensor) -> Tensor:
    total = steps.masked_fill(~_valid(steps, lengths), 0).sum(1)
    return total / lengths.clamp(min=1)[:, None]


def _max(steps: Tensor, lengths: Tensor) -> Tensor:
    highest = steps.masked_fill(~_valid(steps, lengths), -torch.inf).amax(1)
    return highest.masked_fill(lengths[:, None] == 0, 0)


def _weighted_mean(steps: Tensor, scores: Tensor, lengths: Tensor) -> Tensor:
    valid = _valid(steps, lengths)
    # The lowest finite number, not -inf: a sentence of length 0 would have a softmax of 0 / 0.
    weights = scores.masked_fill(~valid, torch.finfo(scores.dtype).min).softmax(1)
    return (weights * steps).masked_fill(~valid, 0).sum(1)
