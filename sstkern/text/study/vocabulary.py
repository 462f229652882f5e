"""The words of a data set: how many there are, how often they occur, and how many of them another set knows."""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sstkern.text import UNK, Examples, Vocabulary
from sstkern.text.vocabulary import SPECIALS

MOST_FREQUENT = 20
FIT = (10, 5000)  # ranks
POINTS = 200  # of the rank-frequency curve, evenly spaced in the logarithm of the rank

CURVE, FITTED = "#0072B2", "#D55E00"  # of Okabe and Ito, which colour-blind readers tell apart


def counts(train: Examples, dev: Examples) -> dict:
    """Count the white-space tokens of the training phrases and see how much of the development sentences they cover.

    SST-2's training phrases overlap: a word of a sentence is counted again in every phrase of the sentence that holds it. So the
    frequencies are those of a training epoch, not of the reviews, and few words occur only once.

    Zipf's law has the frequency of the word of rank r proportional to r to the power of -s. The exponent s is fitted by least squares
    to the logarithms of rank and frequency, every rank from 10 to 5,000 (or the last) with the same weight: those before are a
    handful of function words, those after stand on a few counts each. With equal weights per rank, the rare words decide most.

    Returns:
        `tokens`: running tokens of train. `distinct`: words of train; `at_least_twice`: those seen twice or more; `specials`: the
        tokens that a vocabulary has besides, padding and unknown. `coverage`: for a `min_count` of 1 and 2 (keys "1" and "2")
        `vocabulary_size` (specials included) and what of dev it covers, from 0 to 1: `tokens`, the share of running tokens that it
        knows; `words`, that of distinct ones; `sentences_with_unknown`, the share of sentences that hold an unknown token.
        `most_frequent`: the 20 first [word, count]. `rank` and `frequency`: at most 200 points of the curve. `zipf`: `exponent`,
        `constant` (the line's frequency at rank 1), `first_rank`, `last_rank` and `r_squared`, that of the logarithms (None where
        all of those frequencies are the same).

    Raises:
        ValueError: train has fewer than 12 words, too few for a fit; or dev has no token.
    """
    frequency = Counter(token for sentence in train.sentences for token in sentence.split()).most_common()
    if len(frequency) < FIT[0] + 2:
        raise ValueError(f"train has {len(frequency)} words, expected at least {FIT[0] + 2}")
    if not any(sentence.split() for sentence in dev.sentences):
        raise ValueError("dev has no token")
    numbers = np.array([number for _, number in frequency])
    ranks = np.unique(np.geomspace(1, len(numbers), POINTS).round().astype(int))
    return {
        "tokens": int(numbers.sum()),
        "distinct": len(numbers),
        "at_least_twice": int((numbers >= 2).sum()),
        "specials": len(SPECIALS),
        "coverage": {str(least): _coverage(Vocabulary.build(train.sentences, least), dev) for least in (1, 2)},
        "most_frequent": [list(pair) for pair in frequency[:MOST_FREQUENT]],
        "rank": ranks.tolist(),
        "frequency": numbers[ranks - 1].tolist(),
        "zipf": _zipf(numbers),
    }


def _coverage(vocabulary: Vocabulary, dev: Examples) -> dict:
    encoded = [vocabulary.encode(sentence) for sentence in dev.sentences]
    words = {word for sentence in dev.sentences for word in sentence.split()}
    ids = [id_ for sentence in encoded for id_ in sentence]
    return {
        "vocabulary_size": len(vocabulary),
        "tokens": sum(id_ != UNK for id_ in ids) / len(ids),
        "words": sum(vocabulary.encode(word) != [UNK] for word in words) / len(words),
        "sentences_with_unknown": sum(UNK in sentence for sentence in encoded) / len(encoded),
    }


def _zipf(numbers: np.ndarray) -> dict:
    """The line through the logarithms of rank and frequency; numbers are the frequencies, the largest first."""
    first, last = FIT[0], min(FIT[1], len(numbers))
    x, y = np.log(np.arange(first, last + 1)), np.log(numbers[first - 1 : last])
    slope, intercept = np.polyfit(x, y, 1)
    rest, deviation = y - (slope * x + intercept), y - y.mean()
    return {
        "exponent": float(-slope),
        "constant": float(np.exp(intercept)),
        "first_rank": first,
        "last_rank": last,
        "r_squared": float(1 - rest @ rest / (deviation @ deviation)) if numbers[first - 1] != numbers[last - 1] else None,
    }


def plot_counts(result: dict, target: Path) -> None:
    """Draw frequency over rank and the fit that `counts` returned to a PNG file."""
    zipf = result["zipf"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.loglog(result["rank"], result["frequency"], ".", color=CURVE, label=f"the {result['distinct']:,} words of the training phrases")
    ends = np.array([zipf["first_rank"], zipf["last_rank"]])
    label = f"least squares over ranks {ends[0]:,} to {ends[1]:,}: exponent {zipf['exponent']:.2f}"
    axes.plot(ends, zipf["constant"] * ends ** -zipf["exponent"], color=FITTED, linewidth=2, label=label)
    axes.set_xlabel("rank of the word")
    axes.set_ylabel("frequency (occurrences in the training phrases)")
    axes.set_title("Zipf's law")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)
