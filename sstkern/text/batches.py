"""Batches of sentences of similar length."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from sstkern.text.vocabulary import PAD

UNLABELLED = -100  # the class that torch.nn.functional.cross_entropy ignores

# Groups per pool. Shuffled examples are sorted by length within a pool only: the larger the pool the less the padding,
# the smaller the more a sentence's company varies from epoch to epoch.
POOL = 100


class Batch(NamedTuple):
    """B sentences, the longest of T tokens (at least 1); all tensors are int64, on the CPU.

    Attributes:
        ids: (B, T) token ids, or (B, T, K) where a token is K ids; 0 after a sentence's end.
        lengths: (B,) tokens in each sentence, from 0 to T.
        labels: (B,) classes; -100 where there are none.
        indices: (B,) the sentences' positions in the data set.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def collate(encoded: Sequence[Sequence[int]], labels: Sequence[int] | None, indices: Sequence[int]) -> Batch:
    """The batch of the sentences at the positions `indices`, in that order.

    Args:
        encoded: the token ids of every sentence of the data set.
        labels: the class of every sentence of the data set, or None.
        indices: positions in the data set, at least one.

    Raises:
        ValueError: `indices` is empty.
    """
    if len(indices) == 0:
        raise ValueError("indices is empty, expected at least one position in the data set")
    # One index picks the sentence and its label, so that they cannot part.
    rows = [encoded[index] for index in indices]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int64)
    ids = torch.full((len(rows), max(1, int(lengths.max())), *tokens.shape[1:]), PAD)
    inside = torch.arange(ids.shape[1]) < lengths[:, None]
    ids[inside] = tokens
    classes = [UNLABELLED if labels is None else labels[index] for index in indices]
    return Batch(ids, lengths, torch.tensor(classes), torch.tensor(indices))


def small_batches(encoded: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """All sentences, from the shortest to the longest, in batches of at most 256 sentences and 32,768 tokens with the padding, or of one
    sentence: a long one does not make all others as long."""
    group: list[int] = []
    for place in sorted(range(len(encoded)), key=lambda place: len(encoded[place])):
        if len(group) == 256 or (group and (len(group) + 1) * len(encoded[place]) > 32_768):
            yield collate(encoded, None, group)
            group = []
        group.append(place)
    if group:
        yield collate(encoded, None, group)


class Batches:
    """Cuts a data set into batches of similar length, anew in every epoch, each example once per epoch.

    Args:
        encoded: the token ids of every sentence.
        labels: the class of every sentence, or None if there are none.
        batch_size: sentences per batch and rank; the rest that does not fill a batch makes a smaller one.
        seed: with the number of the epoch, decides the order; 0 or more.
        shuffle: whether the order is random; otherwise every epoch goes from the shortest sentence to the longest.

    Raises:
        ValueError: there are more or fewer labels than sentences, `batch_size` is below 1, or `seed` is negative.
    """

    def __init__(
        self,
        encoded: Sequence[Sequence[int]],
        labels: Sequence[int] | None,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if labels is not None and len(labels) != len(encoded):
            raise ValueError(f"labels has {len(labels)} entries, expected {len(encoded)}, one for each sentence")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected 0 or more")
        self.encoded = encoded
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)

    def __len__(self) -> int:
        """Batches per epoch on one rank; on each of W ranks there are `len(self) / W`, rounded up."""
        return -(-len(self.encoded) // self.batch_size)

    def epoch(self, number: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, in an order that depends only on the seed, `number` and `world_size`.

        Every rank gets the same number of batches, and at every step the ranks' sentences are of similar length;
        together they are what one rank would get with a batch size `world_size` times as large. Nothing is dropped.
        Something is repeated only if the examples left for the smallest step are fewer than the ranks: a rank that
        would go without gets the longest of them again.

        Args:
            number: the epoch, from 0.
            start: how many batches to leave out at the beginning, without building them: resumes exactly.
            rank: which share to give, from 0 to `world_size` - 1.
            world_size: the number of shares.

        Raises:
            ValueError: `number` is negative, `start` is beyond the end, or `rank` is not below `world_size`.
        """
        if number < 0:
            raise ValueError(f"number is {number}, expected an epoch from 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, expected 0 to world_size - 1, which is {world_size - 1}")
        groups = self._groups(number, self.batch_size * world_size)
        if not 0 <= start <= len(groups):
            raise ValueError(f"start is {start}, expected 0 to {len(groups)}, the number of batches")
        shares = (group[min(rank, len(group) - 1) :: world_size] for group in groups[start:])
        return (collate(self.encoded, self.labels, share.tolist()) for share in shares)

    def _groups(self, number: int, size: int) -> list[np.ndarray]:
        """The positions that each step takes, `size` or, in one group, fewer; sorted by length in each group."""
        total = len(self.encoded)
        cuts = range(0, total, size)
        if not self.shuffle:
            order = np.argsort(self._lengths, kind="stable")
            return [order[cut : cut + size] for cut in cuts]
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        shuffled = rng.permutation(total)
        pools = np.arange(total) // (size * POOL)
        order = shuffled[np.lexsort((self._lengths[shuffled], pools))]
        return [order[cut : cut + size] for cut in rng.permutation(cuts)]
