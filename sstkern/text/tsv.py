"""Labelled sentences, and reading them from a TSV file in GLUE's layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sstkern.text.lines import decode_line

COLUMNS = ("sentence", "label")
MAX_LABEL = 2**31 - 1


@dataclass
class Examples:
    """Sentences and their classes, side by side: `labels[i]`, an integer from 0, belongs to `sentences[i]`.

    `names[label]` is what a file calls the class whose labels are strings; there are none where they are numbers.
    """

    sentences: list[str]
    labels: list[int]
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.sentences) != len(self.labels):
            raise ValueError(f"{len(self.sentences)} sentences and {len(self.labels)} labels, expected as many")

    def __len__(self) -> int:
        return len(self.sentences)

    def pick(self, indices: Iterable[int]) -> Examples:
        """The examples at the positions `indices`, in that order."""
        chosen = list(indices)
        return Examples([self.sentences[i] for i in chosen], [self.labels[i] for i in chosen], self.names)

    def content(self) -> dict[str, list]:
        """All there is, for a hash: without names as before there were any."""
        content: dict[str, list] = {"sentences": self.sentences, "labels": self.labels}
        return content | ({"names": self.names} if self.names else {})

    @property
    def num_classes(self) -> int:
        """The largest label plus one, or the number of names; 0 without examples."""
        return len(self.names) or max(self.labels, default=-1) + 1


def read_tsv(
    path: str | Path,
    names: Sequence[str] | None = None,
    on_fault: Callable[[ValueError], object] | None = None,
    classes: int | None = None,
) -> Examples:
    """Read a TSV file: a header that names the columns `sentence` and `label`, then one example a line.

    The file is UTF-8, with or without a byte order mark, its lines end in LF or CR LF, and nothing is quoted: a `"` is
    a character. Other columns are ignored. An empty sentence is a sentence. Blank lines at the end are ignored.

    All labels are integers from 0, or all are strings: then class 0 is the first of them in the order of their characters.

    Args:
        path: of the file.
        names: what the classes are called that are known, such as those of the training examples, where the labels have to be among
            them; empty where they have to be integers. None takes the file's own.
        on_fault: is called with what is wrong with a line that is not UTF-8, and the others are read. None raises that.
        classes: how many classes are known, where the labels have to be integers below that; None allows all integers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read so. The message names the file, the line (from 1), what stands there and
            what was expected: a label is an integer from 0 to 2^31 - 1, or a string without white space at its ends.
    """
    (_, header), *rows = _lines(path, on_fault)
    columns = header.split("\t")
    if any(columns.count(column) != 1 for column in COLUMNS):
        raise ValueError(f"{path}, line 1: found columns {columns}, expected a header with 'sentence' and 'label'")
    if not rows:
        raise ValueError(f"{path}, line 2: found the end of the file, expected an example")
    sentence_at, label_at = map(columns.index, COLUMNS)
    sentences, labels = [], []
    for line, row in rows:
        cells = row.split("\t")
        if len(cells) != len(columns):
            raise ValueError(f"{path}, line {line}: found {len(cells)} columns, expected {len(columns)}: {columns}")
        sentences.append(cells[sentence_at])
        labels.append(cells[label_at])
    expected = _expected(names, classes)
    if names is None:
        names = [] if _is_number(labels[0]) else sorted(set(labels))
    ids = {name: id_ for id_, name in enumerate(names)}
    found = []
    for (line, _), label in zip(rows, labels, strict=True):
        class_ = _class(label, ids, classes)
        if class_ is None:
            raise ValueError(f"{path}, line {line}: found label {label!r}, expected {expected or _kind(names)}")
        found.append(class_)
    return Examples(sentences, found, list(names))


def _class(label: str, ids: dict[str, int], classes: int | None) -> int | None:
    """The class of a label, among those with names if there are some; None if it has none."""
    if ids:
        return None if _is_number(label) or label != label.strip() or not label else ids.get(label)
    digits = label.lstrip("0") or "0"
    if not _is_number(label) or len(digits) > len(str(MAX_LABEL)):  # Python reads no number of thousands of digits
        return None
    return int(digits) if int(digits) < (classes or MAX_LABEL + 1) else None


def _expected(names: Sequence[str] | None, classes: int | None) -> str | None:
    """The labels that are known, in words; None where all are allowed."""
    if names:
        return f"one of the model's labels: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    if classes is None:
        return None
    return f"{'0 or 1' if classes == 2 else f'an integer from 0 to {classes - 1}'}, the model's labels"


def _kind(names: Sequence[str]) -> str:
    """What all labels of a file have to be, in words."""
    return "a string as the others, or integers in all lines" if names else f"an integer from 0 to {MAX_LABEL}"


def _is_number(label: str) -> bool:
    return re.fullmatch("[0-9]+", label) is not None


def _lines(path: str | Path, on_fault: Callable[[ValueError], object] | None) -> list[tuple[int, str]]:
    """The file's lines without their ends, each with its number, blank ones at the end left out; the first is always there."""
    # Not splitlines(): it would also cut at a lone CR inside a sentence.
    lines = Path(path).read_bytes().rstrip(b"\r\n").split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append((number, decode_line(line, number, path)))
        except ValueError as fault:
            if on_fault is None or number == 1:
                raise
            on_fault(fault)
    if found == [(1, "")]:
        raise ValueError(f"{path}, line 1: found an empty file, expected a header with 'sentence' and 'label'")
    return found
