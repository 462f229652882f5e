"""The words a model knows, and their ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from sstkern.atomic import write_atomically

PAD = 0
UNK = 1
SPECIALS = ["<pad>", "<unk>"]


class Vocabulary:
    """Whitespace tokens and their ids: `<pad>` is 0, `<unk>` is 1, the words follow.

    Args:
        tokens: every token in the order of the ids, `<pad>` and `<unk>` first; `build` makes it from sentences.

    Raises:
        ValueError: the first two tokens are others, a token comes twice, or a token is not one word.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        if self.tokens[:2] != SPECIALS:
            raise ValueError(f"tokens begin with {self.tokens[:2]}, expected {SPECIALS}")
        for token in self.tokens:
            if not isinstance(token, str) or token.split() != [token]:
                raise ValueError(f"tokens hold {token!r}, expected words without white space")
        self._ids = {token: id_ for id_, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens):
            twice = Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"tokens hold {twice!r} twice, expected every token once")

    @classmethod
    def build(cls, sentences: Iterable[str], min_count: int = 1) -> Vocabulary:
        """The tokens of `sentences` that occur at least `min_count` times, the most frequent first.

        Equally frequent tokens stand in the order in which they first appear.

        Raises:
            TypeError: `sentences` is a single string.
            ValueError: `min_count` is below 1.
        """
        if isinstance(sentences, str):
            raise TypeError("sentences is a string, expected several, such as a list of strings")
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}, expected at least 1")
        counts = Counter(chain.from_iterable(sentence.split() for sentence in sentences))
        words = [token for token, count in counts.most_common() if count >= min_count and token not in SPECIALS]
        return cls(SPECIALS + words)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def encode(self, sentence: str) -> list[int]:
        """The ids of the sentence's tokens, 1 for each unknown one; an empty sentence has none."""
        # `or UNK`: a "<pad>" written in the text is a word we do not know, not padding.
        return [self._ids.get(token, UNK) or UNK for token in self.pieces(sentence)]

    def pieces(self, sentence: str) -> list[str]:
        """The sentence's tokens as they are written, unknown ones too; `encode` has their ids."""
        return sentence.split()

    def save(self, path: str | Path) -> None:
        """Write the tokens as a JSON list in UTF-8, one a line. A fault leaves an older file whole."""
        text = json.dumps(self.tokens, ensure_ascii=False, indent=0) + "\n"
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no vocabulary; the message names it and says why.
        """
        try:
            tokens = json.loads(Path(path).read_bytes())
            if not isinstance(tokens, list):
                raise ValueError(f"holds a {type(tokens).__name__}, expected a list of tokens")
            return cls(tokens)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no vocabulary: {error}") from error
