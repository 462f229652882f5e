"""Words with their beginnings and endings: a word that was never seen still ends in "ly"."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from sstkern.atomic import write_atomically
from sstkern.text.vocabulary import PAD, SPECIALS, UNK, Vocabulary

SHORTEST, LONGEST = 2, 5  # letters of an affix
AFFIXES = 2 * (LONGEST - SHORTEST + 1)  # of a token, at most


class AffixVocabulary(Vocabulary):
    """A `Vocabulary` whose tokens are rows of ids: the word's, then those of its prefixes and suffixes of 2 to 5 letters.

    An unknown word has the id of padding and those of its affixes that are known. Bojanowski et al. (2017) do the same with
    all of a word's n-grams, hashed.

    Args:
        tokens: as a Vocabulary's.
        affixes: a prefix has "<" before it, a suffix ">" behind it; their ids follow the tokens'.

    Raises:
        ValueError: the tokens are no vocabulary, or an affix comes twice.
    """

    def __init__(self, tokens: Sequence[str], affixes: Sequence[str]) -> None:
        super().__init__(tokens)
        self.affixes = list(affixes)
        self._affix_ids = {affix: id_ for id_, affix in enumerate(self.affixes, start=len(self.tokens))}
        if len(self._affix_ids) != len(self.affixes):
            raise ValueError(f"affixes hold {Counter(self.affixes).most_common(1)[0][0]!r} twice, expected every affix once")
        # One list a word, shared by its occurrences: SST-2's would take 200 MiB.
        self._rows = {token: self._row(id_, token) for token, id_ in self._ids.items() if id_ > UNK}

    @classmethod
    def of_words(cls, vocabulary: Vocabulary, words: Iterable[str]) -> AffixVocabulary:
        """The tokens of a vocabulary, with the affixes that two or more of `words` have: that of a single one is the word again."""
        counts = Counter(chain.from_iterable(_affixes(word) for word in words if word not in SPECIALS))
        return cls(vocabulary.tokens, [affix for affix, count in counts.items() if count > 1])

    def __len__(self) -> int:
        """The number of ids: the tokens' and the affixes'."""
        return len(self.tokens) + len(self.affixes)

    def encode(self, sentence: str) -> list[list[int]]:  # type: ignore[override]  # a token has several ids
        """1 + 8 ids for each of the sentence's tokens, filled up with those of padding."""
        return [self._rows.get(token) or self._row(PAD, token) for token in sentence.split()]

    def _row(self, word: int, token: str) -> list[int]:
        row = [word, *(self._affix_ids[affix] for affix in _affixes(token) if affix in self._affix_ids)]
        return row + [PAD] * (1 + AFFIXES - len(row))

    def save(self, path: str | Path) -> None:
        """Write tokens and affixes as JSON in UTF-8. A fault leaves an older file whole."""
        text = json.dumps({"tokens": self.tokens, "affixes": self.affixes}, ensure_ascii=False, indent=0) + "\n"
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> AffixVocabulary:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no such vocabulary; the message names it and says why.
        """
        try:
            found = json.loads(Path(path).read_bytes())
            if (
                not isinstance(found, dict)
                or found.keys() != {"tokens", "affixes"}
                or not all(isinstance(part, list) for part in found.values())
            ):
                raise ValueError("expected an object with the lists 'tokens' and 'affixes'")
            if not all(isinstance(affix, str) for affix in found["affixes"]):
                raise ValueError("affixes hold something that is no string")
            return cls(found["tokens"], found["affixes"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no vocabulary with affixes: {error}") from error


def _affixes(token: str) -> list[str]:
    """The word's beginnings and endings, each with its boundary; the whole word is none of them."""
    lengths = range(SHORTEST, min(LONGEST, len(token) - 1) + 1)
    return [f"<{token[:length]}" for length in lengths] + [f"{token[-length:]}>" for length in lengths]
