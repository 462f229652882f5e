"""Labelled sentences, and reading them from a TSV file in GLUE's layout."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sstkern.text.lines import decode_line

COLUMNS = ("sentence", "label")
MAX_LABEL = 2**31 - 1


@dataclass
class Examples:
    """Sentences and their classes, side by side: `labels[i]`, an integer from 0, belongs to `sentences[i]`."""

    sentences: list[str]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.sentences) != len(self.labels):
            raise ValueError(f"{len(self.sentences)} sentences and {len(self.labels)} labels, expected as many")

    def __len__(self) -> int:
        return len(self.sentences)

    def pick(self, indices: Iterable[int]) -> Examples:
        """Those at the positions `indices`, in that order."""
        chosen = list(indices)
        return Examples([self.sentences[i] for i in chosen], [self.labels[i] for i in chosen])

    @property
    def num_classes(self) -> int:
        """The largest label plus one; 0 without examples."""
        return max(self.labels, default=-1) + 1


def read_tsv(path: str | Path) -> Examples:
    """Read a TSV file: a header that names the columns `sentence` and `label`, then one example a line.

    The file is UTF-8, with or without a byte order mark, its lines end in LF or CR LF, and nothing is quoted: a `"` is
    a character. Other columns are ignored. An empty sentence is a sentence. Blank lines at the end are ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read so. The message names the file, the line (from 1), what stands there and
            what was expected: a label is an integer from 0 to 2^31 - 1.
    """
    header, *rows = _lines(path)
    names = header.split("\t")
    if any(names.count(column) != 1 for column in COLUMNS):
        raise ValueError(f"{path}, line 1: found columns {names}, expected a header with 'sentence' and 'label'")
    if not rows:
        raise ValueError(f"{path}, line 2: found the end of the file, expected an example")
    sentence_at, label_at = map(names.index, COLUMNS)
    examples = Examples([], [])
    for line, row in enumerate(rows, start=2):
        cells = row.split("\t")
        if len(cells) != len(names):
            raise ValueError(f"{path}, line {line}: found {len(cells)} columns, expected {len(names)}: {names}")
        label = cells[label_at]
        if not re.fullmatch("[0-9]{1,10}", label) or int(label) > MAX_LABEL:
            raise ValueError(f"{path}, line {line}: found label {label!r}, expected an integer from 0 to {MAX_LABEL}")
        examples.sentences.append(cells[sentence_at])
        examples.labels.append(int(label))
    return examples


def _lines(path: str | Path) -> list[str]:
    """The file's lines without their ends, blank ones at the end left out; at least one."""
    # Not splitlines(): it would also cut at a lone CR inside a sentence.
    lines = Path(path).read_bytes().rstrip(b"\r\n").split(b"\n")
    texts = [decode_line(line, number, path) for number, line in enumerate(lines, start=1)]
    if texts == [""]:
        raise ValueError(f"{path}, line 1: found an empty file, expected a header with 'sentence' and 'label'")
    return texts
