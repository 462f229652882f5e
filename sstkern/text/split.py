"""A validation set held out of SST-2's training phrases, none of whose sentences is trained on."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence

from sstkern.text.tsv import Examples

SHORTEST = 5  # tokens of a held-out sentence
ENDS = frozenset({".", "!", "?", "...", "''", "'", "-rrb-"})


def hold_out(examples: Examples, size: int = 850, seed: int = 0) -> tuple[Examples, Examples]:
    """Split training examples into those to train on and `size` whole sentences to validate on.

    SST-2's training phrases are the constituents of some seven thousand sentences, each with a label: with "starts off witty and
    sophisticated and you ..." come "starts off witty and sophisticated" and "witty". Of 850 phrases that are held out at random
    90% stand inside a phrase that is trained on (`share_inside`), so they measure memory. Here a held-out sentence is whole, that
    is, inside no other phrase, and every phrase that stands inside it is left out of training.

    Whole phrases are sometimes fragments, SST-2's development examples are sentences. So a held-out one has at least 5 tokens and
    ends in one of . ! ? ... '' ' -rrb-, unless no phrase does: then any whole one may be held out.

    Args:
        examples: phrases of white-space tokens.
        size: sentences to hold out, at least 1.
        seed: decides which.

    Returns:
        The training examples and the held-out ones, both in the order of `examples`.

    Raises:
        ValueError: `size` is below 1 or above the number of sentences that can be held out.
    """
    phrases = [sentence.split() for sentence in examples.sentences]
    fit = _fit(phrases)
    if not 1 <= size <= len(fit):
        raise ValueError(f"size is {size}, expected 1 to {len(fit)}, the whole sentences among the examples")
    held = sorted(random.Random(seed).sample(fit, size))
    gone = _occurring(map(tuple, phrases), (phrases[index] for index in held))
    taken = set(held)
    kept = (i for i, phrase in enumerate(phrases) if tuple(phrase) not in gone and i not in taken)
    return examples.pick(kept), examples.pick(held)


def most_held_out(examples: Examples) -> int:
    """The largest size that `hold_out` takes for these examples."""
    return len(_fit([sentence.split() for sentence in examples.sentences]))


def share_inside(train: Examples, valid: Examples) -> float:
    """The share, from 0 to 1, of `valid`'s phrases that stand, token for token, inside a phrase of `train` or are one; nan of none."""
    phrases = [sentence.split() for sentence in train.sentences]
    wanted = [tuple(sentence.split()) for sentence in valid.sentences]
    inside = _occurring(wanted, (phrases[index] for index in _whole(phrases)))
    return sum(phrase in inside for phrase in wanted) / len(wanted) if wanted else math.nan


def _fit(phrases: Sequence[list[str]]) -> list[int]:
    """The positions of the phrases that can be held out."""
    whole = _whole(phrases)
    return [index for index in whole if len(phrases[index]) >= SHORTEST and phrases[index][-1] in ENDS] or whole


def _whole(phrases: Sequence[list[str]]) -> list[int]:
    """The positions of the phrases that stand inside no other one, in order; of equal ones the first."""
    among = set(map(tuple, phrases))
    covered: set[tuple[str, ...]] = set()
    whole = []
    # The longest first: what a phrase stands inside comes before it. What is covered covers nothing new.
    for index in sorted(range(len(phrases)), key=lambda index: -len(phrases[index])):
        if tuple(phrases[index]) not in covered:
            whole.append(index)
            covered.update(among.intersection(_runs(phrases[index])))
    return sorted(whole)


def _occurring(wanted: Iterable[tuple[str, ...]], sentences: Iterable[list[str]]) -> set[tuple[str, ...]]:
    """The wanted phrases that stand inside one of the sentences."""
    among = set(wanted)
    return {run for sentence in sentences for run in _runs(sentence) if run in among}


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Every contiguous sequence of one or more of the words, all of them together included."""
    row = tuple(words)
    return (row[begin:end] for begin in range(len(row)) for end in range(begin + 1, len(row) + 1))
