"""Thin text classifiers: embedding, one recurrent encoder, pooling over the valid steps, a linear layer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from sstkern.modules import GRU, LSTM, RNN
from sstkern.text.options import Cell, ModelConfig, Pooling
from sstkern.text.vocabulary import PAD

# Measured on held-out sentences of SST-2's training data.
AFFIX_SCALE = 0.25  # standard deviation of the numbers at first
WORD_DROPOUT = 0.5

__all__ = ["AffixEmbedding", "Cell", "Classifier", "ModelConfig", "Pooling"]

RECURRENT: dict[str, type[nn.Module]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


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
        return self.linear(self.dropout(self._pooled(*self._encoded(embedded, lengths), lengths)))

    def alone(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """As `forward`, without dropout: for every sentence, on the CPU, the very bits that it has in a batch of its own.

        The encoder gives the same bits in any batch. torch's sum over a sentence and the padding behind it, its product of more rows, and
        that of a row that begins elsewhere in memory round in another way.
        """
        steps, last = self._encoded(self.embedded(ids), lengths)
        found = []
        for b, length in enumerate(lengths.tolist()):
            mine = steps[b : b + 1, : max(1, length)].clone(memory_format=torch.contiguous_format)
            found.append(self.linear(self._pooled(mine, last[b : b + 1].clone(), lengths[b : b + 1])))
        return torch.cat(found)

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

    def _encoded(self, embedded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is pooled: (B, T, F), and of the last steps (B, F), which an average has none of: (B, 0)."""
        if self.encoder is None:
            return embedded, embedded.new_empty(len(embedded), 0)
        outputs, final = self.encoder(embedded, lengths=lengths)
        hidden = final[0] if isinstance(final, tuple) else final
        directions = 2 if self.config.bidirectional else 1
        return outputs, hidden[-directions:].transpose(0, 1).flatten(1)

    def _pooled(self, steps: Tensor, last: Tensor, lengths: Tensor) -> Tensor:
        """The sentence vectors (B, F)."""
        match "mean" if self.encoder is None else self.config.pooling:
            case "last":
                return last
            case "mean":
                return _mean(steps, lengths)
            case "max":
                return _max(steps, lengths)
            case "attention":
                return _weighted_mean(steps, self.attention(steps), lengths)


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
