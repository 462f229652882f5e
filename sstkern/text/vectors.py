"""Pretrained word vectors for a classifier, with the vocabulary they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sstkern.text.glove import NAME, read_glove
from sstkern.text.transformer import HUB, Subwords, read_transformer
from sstkern.text.vocabulary import SPECIALS, Vocabulary

# The standard deviation of the numbers. A transformer's are ten times smaller: 0.6 did best on held-out sentences, and
# GloVe's have about that already.
SCALE = 0.6

# Of GloVe's words, besides those of the sentences. With them 98% of the tokens of held-out sentences of SST-2 are known,
# without 94%.
MOST_FREQUENT = 50_000


def load_vectors(
    source: str | Path, sentences: Sequence[str], min_count: int = 1, dimension: int | None = None
) -> tuple[Vocabulary | Subwords, Tensor]:
    """A vocabulary and its pretrained vectors, scaled to the standard deviation 0.6.

    GloVe's are those of the words of `sentences` and of the file's 50,000 most frequent ones; a word without one, `<pad>` and
    `<unk>` have zeros. A transformer's are those of all tokens of its tokenizer, whatever the sentences.

    Args:
        source: a transformer, which is a folder or "hf:NAME" (see `read_transformer`), or else GloVe's vectors (see
            `read_glove`).
        sentences: the training sentences.
        min_count: a word that is rarer in the sentences is unknown, unless it is one of the file's most frequent.
        dimension: numbers in a vector; None takes the source's own.

    Returns:
        The vocabulary, and (len(vocabulary), E) float32, row i the vector of the token with id i.

    Raises:
        FileNotFoundError: there is no such source, or a file of it is missing.
        ModuleNotFoundError: a package for reading a transformer is not installed.
        UnavailableError: a file could not be downloaded.
        ValueError: the source cannot be read, has another dimension, or its numbers are all the same or not finite.
    """
    source = str(source)
    if of_transformer(source):
        matrix, subwords = read_transformer(source)
        if dimension not in (None, matrix.shape[1]):
            raise ValueError(f"{source}: found the dimension {matrix.shape[1]}, expected {dimension}")
        return subwords, _scaled(matrix, source)
    known = Vocabulary.build(sentences, min_count).tokens
    words, read = read_glove(source, known[len(SPECIALS) :], dimension, MOST_FREQUENT)
    rows = [row for row, word in enumerate(words) if word not in SPECIALS]
    words = [words[row] for row in rows]
    vocabulary = Vocabulary(list(dict.fromkeys([*known, *words])))
    matrix = torch.zeros(len(vocabulary), read.shape[1])
    matrix[vocabulary.encode(" ".join(words))] = _scaled(read[rows], source)
    return vocabulary, matrix


def of_transformer(source: str | Path) -> bool:
    """Whether a source of vectors is a transformer, not a file of words' vectors.

    The name of GloVe's vectors is theirs, even where a folder has that name; the folder is "./glove.6B".
    """
    return str(source) != NAME and (str(source).startswith(HUB) or Path(source).is_dir())


def _scaled(matrix: Tensor, source: str) -> Tensor:
    deviation = matrix.std(correction=0).item()
    if not 0 < deviation < float("inf"):
        raise ValueError(f"{source}: found numbers with the standard deviation {deviation}, expected a finite one above 0")
    return matrix * (SCALE / deviation)
