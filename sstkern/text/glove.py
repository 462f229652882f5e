"""Pretrained word vectors from text files such as GloVe's: on each line a word, then its numbers."""

import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import torch

from sstkern.text.download import fetch_file
from sstkern.text.options import GLOVE as NAME

URL = "https://nlp.stanford.edu/data/glove.6B.zip"
SHA256 = "617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb"
BY_HAND = f"download it by other means and give the path of the zip in place of {NAME!r}"

BUFFER = 1 << 20  # bytes
ENDS = b" \r\n"


class Vectors(NamedTuple):
    """Word vectors.

    Attributes:
        words: the words that have one.
        matrix: (len(words), dimension) float32, in their order.
    """

    words: list[str]
    matrix: torch.Tensor


def read_glove(source: str | Path, words: Iterable[str], dimension: int | None = None, most_frequent: int = 0) -> Vectors:
    """The vectors of those of `words` that the file has, in the order of `words`, each once, and then of its first words.

    The file is read line by line and only the numbers of `words` are parsed. A word may hold spaces, except the file's
    first one, for the first line tells the dimension. A first line of two integers is word2vec's header, the number of
    words and the dimension. A byte order mark, CR LF, spaces at a line's end and blank lines at the file's end are
    ignored. Words are compared as UTF-8 bytes and as written: glove.6B's are all in lower case.

    Args:
        source: a text file, or a zip archive with text files named as GloVe's are, "glove.6B.300d.txt", or a single one
            of any name; or the word "glove.6B" for the archive of that name (822 MiB), from the user's cache,
            downloaded on first use (a file of that name is "./glove.6B").
        words: the words wanted.
        dimension: numbers in a vector. None takes the file's own, in an archive the largest, 300 in glove.6B.
        most_frequent: the first so many words of the file are wanted too: GloVe's files begin with the most frequent ones.
            Those that are not UTF-8 or hold white space are left out.

    Raises:
        FileNotFoundError: there is no such file.
        UnavailableError: glove.6B is not in the cache and could not be downloaded.
        TypeError: `words` is a single string.
        ValueError: the archive is damaged or has no file of that dimension; a line has fewer or more numbers than the
            first; a number of a word wanted is none or not finite, or the word comes twice; the header's counts are
            wrong; no word was found. The message names the file, the line (from 1), what stands there and what was
            expected. Lines of other words are only checked for the count of their numbers.
    """
    if isinstance(words, str):
        raise TypeError("words is a string, expected several, such as a list of strings")
    if dimension is not None and dimension < 1:
        raise ValueError(f"dimension is {dimension}, expected at least 1")
    path = fetch_file(URL, SHA256, "glove", BY_HAND) if source == NAME else Path(source)
    with _open(path, dimension) as (name, file):
        return _read(name, file, words, dimension, most_frequent)


@contextmanager
def _open(path: Path, dimension: int | None) -> Iterator[tuple[str, BinaryIO]]:
    """The text's name, for messages, and the text, unpacked while it is read."""
    with path.open("rb", BUFFER) as file:
        if path.suffix.lower() != ".zip":
            yield str(path), file
            return
        try:
            with zipfile.ZipFile(file) as archive:
                member = _member(path, archive.namelist(), dimension)
                # zipfile's own readline is written in Python: with it, reading takes twice as long.
                with archive.open(member) as packed, io.BufferedReader(cast(io.RawIOBase, packed), BUFFER) as text:
                    yield f"{path}, {member}", text
        # OSError: a damaged archive leads to places before the file's start. RuntimeError: to passwords and unknown compression.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ValueError(f"{path} is a damaged zip archive, or none: {error}") from error


def _member(path: Path, names: list[str], dimension: int | None) -> str:
    texts = [name for name in names if name.endswith(".txt")]
    dimensions = {name: int(found[1]) for name in texts if (found := re.search(r"\.(\d+)d\.txt$", name))}
    if dimension is None:
        dimension = max(dimensions.values(), default=None)
    fitting = [name for name in texts if dimensions.get(name) == dimension] or [name for name in texts if name not in dimensions]
    if len(fitting) != 1:
        wanted = "a single .txt" if dimension is None else f"one that ends in .{dimension}d.txt"
        raise ValueError(f"{path}: found the members {', '.join(names[:10]) or 'of an empty archive'}, expected {wanted}")
    return fitting[0]


def _read(name: str, file: BinaryIO, words: Iterable[str], dimension: int | None, most_frequent: int) -> Vectors:
    wanted = {word.encode(): word for word in words}
    found: dict[bytes, np.ndarray] = {}
    first = file.readline().removeprefix(b"\xef\xbb\xbf")
    count, dimension = _layout(name, first, dimension)
    lines = _without_blank_end(file if count is not None else chain([first], file))
    number = before = 0 if count is None else 1
    for number, line in enumerate(lines, start=before + 1):
        # In nearly all lines there are as many spaces as numbers: counting them is the cheapest check.
        word = line[: line.index(b" ")] if line.count(b" ") == dimension else _word(name, number, line, dimension)
        if number - before <= most_frequent and _is_token(word):
            wanted.setdefault(word, word.decode())
        if word in wanted:
            if word in found:
                raise ValueError(f"{name}, line {number}: found the word {wanted[word]!r} again, expected it once")
            found[word] = _vector(name, number, line, dimension)
    if count is not None and number - before != count:
        raise ValueError(f"{name}: found {number - before} words, expected {count} as line 1 says")
    if not found:
        raise ValueError(f"{name}: found none of the {len(wanted)} words, expected at least one")
    rows = [word for word in wanted if word in found]
    return Vectors([wanted[word] for word in rows], torch.from_numpy(np.stack([found[word] for word in rows])))


def _is_token(word: bytes) -> bool:
    try:
        text = word.decode()
    except UnicodeDecodeError:
        return False
    return text.split() == [text]


def _without_blank_end(lines: Iterable[bytes]) -> Iterator[bytes]:
    lines = iter(lines)
    for line in lines:
        if line.isspace() and all(map(bytes.isspace, lines)):
            return
        yield line


def _layout(name: str, first: bytes, dimension: int | None) -> tuple[int | None, int]:
    """The number of words, None without word2vec's header, and the dimension, as the first line has them."""
    if not first.strip():
        raise ValueError(f"{name}, line 1: found an empty {'line' if first else 'file'}, expected a word and its numbers")
    try:
        fields = first.decode().rstrip(" \r\n").split(" ")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, line 1: found byte 0x{first[error.start]:02x}, expected UTF-8") from error
    is_header = len(fields) == 2 and all(re.fullmatch("[0-9]{1,18}", field) for field in fields)
    own = int(fields[1]) if is_header else len(fields) - 1
    if own < 1:
        raise ValueError(f"{name}, line 1: found {fields[0][:40]!r}, expected a word and its numbers")
    if dimension not in (None, own):
        raise ValueError(f"{name}, line 1: found dimension {own}, expected {dimension}")
    return int(fields[0]) if is_header else None, own


def _word(name: str, number: int, line: bytes, dimension: int) -> bytes:
    """The word of a line that has more or fewer spaces than numbers are expected."""
    word, *numbers = line.rstrip(ENDS).rsplit(b" ", dimension)
    # glove.840B has words such as ". . ." and "at name@domain.com". With a decimal number inside, it is a line too long.
    has_more = re.search(rb" [-+]?[0-9]*\.[0-9]+(e[-+]?[0-9]+)?( |$)", word)
    if has_more or len(numbers) < dimension:
        has = f"more than {dimension}" if has_more else len(numbers)
        raise ValueError(f"{name}, line {number}: found {has} numbers after the word, expected {dimension}")
    return word


def _vector(name: str, number: int, line: bytes, dimension: int) -> np.ndarray:
    """The numbers of a line, (dimension,) float32."""
    _, *fields = line.rstrip(ENDS).rsplit(b" ", dimension)
    if len(fields) < dimension:
        raise ValueError(f"{name}, line {number}: found {len(fields)} numbers after the word, expected {dimension}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        vector = np.array([_number(field) for field in fields]).astype(np.float32)
    if not np.isfinite(vector).all():
        fault = int(np.isfinite(vector).argmin())
        text = fields[fault].decode(errors="backslashreplace")
        raise ValueError(f"{name}, line {number}: found {text!r} as number {fault + 1}, expected a finite number")
    return vector


def _number(field: bytes) -> float:
    try:
        return float(field)
    except ValueError:
        return float("nan")
