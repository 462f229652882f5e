"""Words with their beginnings and endings: a word that was never seen still ends in "ly"."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from sstkern.text.vocabulary import PAD, UNK, Vocabulary

SHORTEST, LONGEST = 2, 5  # letters of an affix
AFFIXES = 2 * (LONGEST - SHORTEST + 1)
BUCKETS = 30_000  # ids that affixes are hashed into; SST-2's words have 29,000 different ones


class AffixVocabulary(Vocabulary):
    """A `Vocabulary` whose tokens are rows of ids: the word's, then those of its prefixes and suffixes of 2 to 5 letters.

    An unknown word has the id of padding and its affixes. Affixes are hashed (CRC-32) into ids after the words', and two may
    share one; a beginning never shares a mark with an ending, since each has the word's boundary in it (Bojanowski et al.,
    2017, do the same with all of a word's n-grams).
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        super().__init__(tokens)
        # One list a word, shared by its occurrences: SST-2's would take 200 MiB.
        self._rows = {token: self._row(id_, token) for token, id_ in self._ids.items() if id_ > UNK}

    def __len__(self) -> int:
        """The number of ids: the words' and the buckets'."""
        return len(self.tokens) + BUCKETS

    def encode(self, sentence: str) -> list[list[int]]:
        """For each of the sentence's tokens 1 + 8 ids, 0 where it has no such affix."""
        return [self._rows.get(token) or self._row(PAD, token) for token in sentence.split()]

    def _row(self, word: int, token: str) -> list[int]:
        row = [word, *(len(self.tokens) + crc32(affix.encode()) % BUCKETS for affix in _affixes(token))]
        return row + [PAD] * (1 + AFFIXES - len(row))


def _affixes(token: str) -> list[str]:
    """The word's beginnings and endings, each with its boundary; the whole word is none of them."""
    lengths = range(SHORTEST, min(LONGEST, len(token) - 1) + 1)
    return [f"<{token[:length]}" for length in lengths] + [f"{token[-length:]}>" for length in lengths]
