import io
import os
import random
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from sstkern.text import glove, read_glove
from sstkern.text.download import UnavailableError

PLAIN = b"the 0.5 -1 2e-1\n. 1.5 2.5 3.5\ngood -0.25 0 .5\n"
WORDS = ["good", "new", "the"]
ROWS = [[-0.25, 0, 0.5], [0.5, -1, 0.2]]

needs_data = pytest.mark.skipif("SSTKERN_DATA" not in os.environ, reason="SSTKERN_DATA is not set")


def write(folder: Path, content: bytes) -> Path:
    file = folder / "x.txt"
    file.write_bytes(content)
    return file


def write_zip(folder: Path, **members: bytes) -> Path:
    """An archive whose members have the names, "__" standing for a dot."""
    file = folder / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return file


def check(vectors: glove.Vectors, words: list[str], rows: list[list[float]]) -> None:
    assert vectors.words == words
    assert vectors.matrix.dtype == torch.float32
    assert torch.equal(vectors.matrix, torch.tensor(rows))


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.removesuffix(b"\n"),
        PLAIN + b"\n\r\n\n",
        PLAIN.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + PLAIN,
        b"3 3\n" + PLAIN,
        b"\xef\xbb\xbf3 3 \r\n" + PLAIN.replace(b"\n", b" \r\n"),
        PLAIN + b"caf\xe9 1 2 3\n",
        PLAIN + b"other not a number\n",
    ],
    ids=["plain", "unended", "blank-end", "crlf", "bom", "header", "word2vec", "no-utf8-elsewhere", "no-number-elsewhere"],
)
@pytest.mark.parametrize("dimension", [None, 3])
def test_reads(tmp_path, content, dimension):
    check(read_glove(write(tmp_path, content), WORDS, dimension), ["good", "the"], ROWS)


def test_takes_the_words_in_their_order_and_once(tmp_path):
    file = str(write(tmp_path, PLAIN))
    check(read_glove(file, ["the", "good", "the"]), ["the", "good"], ROWS[::-1])


@pytest.mark.parametrize("word", [". . .", "at name@domain.com", "windows 95", "naïve 映画", "a\u00a0b", "a\x85b\u2028", "5", "-.5"])
def test_words_of_any_kind(tmp_path, word):
    check(
        read_glove(write(tmp_path, PLAIN + f"{word} 7 8 9\nlast 1 2 3\n".encode()), [word, "last"]), [word, "last"], [[7, 8, 9], [1, 2, 3]]
    )


def test_the_most_frequent_words_follow_those_asked_for(tmp_path):
    file = write(tmp_path, b"the 1 2\n\xff 3 4\nno break 5 6\ngood 7 8\nbad 9 10\n")
    check(read_glove(file, ["bad"], most_frequent=4), ["bad", "the", "good"], [[9, 10], [1, 2], [7, 8]])


def test_numbers_are_the_nearest_float32(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 50))
    content = "".join(f"w{i} {' '.join(map(repr, row.tolist()))}\n" for i, row in enumerate(values))
    found = read_glove(write(tmp_path, content.encode()), [f"w{i}" for i in range(20)])
    assert np.array_equal(found.matrix.numpy(), values.astype(np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: found an empty file, expected a word and its numbers"),
        (b"\n" + PLAIN, "line 1: found an empty line"),
        (b"the\n", "line 1: found 'the', expected a word and its numbers"),
        (b"\xff\xfet\x00h\x00e\x00", "line 1: found byte 0xff, expected UTF-8"),
        (PLAIN + b"torn 0.5 1\n", "line 4: found 2 numbers after the word, expected 3"),
        (PLAIN + b"torn", "line 4: found 0 numbers after the word, expected 3"),
        (PLAIN + b"\ntorn 1 2 3\n", "line 4: found 0 numbers after the word, expected 3"),
        (PLAIN + b"long 1.5 2 3 4\n", "line 4: found more than 3 numbers after the word, expected 3"),
        (PLAIN + b"two 1.5 2 3two 1.5 2 3\n", "line 4: found more than 3 numbers after the word, expected 3"),
        (PLAIN + b"new 1 2 \n", "line 4: found 2 numbers after the word, expected 3"),
        (PLAIN + b"new 1 x2 3\n", "line 4: found 'x2' as number 2, expected a finite number"),
        (PLAIN + b"new 1 2 \n3\n", "line 4: found 2 numbers"),
        (PLAIN + b"new 1 2 nan\n", "line 4: found 'nan' as number 3"),
        (PLAIN + b"new -inf 2 3\n", "line 4: found '-inf' as number 1"),
        (PLAIN + b"new 1 1e39 3\n", "line 4: found '1e39' as number 2"),
        (PLAIN + b"new 1 \xff 3\n", r"line 4: found '\\\\xff' as number 2"),
        (PLAIN + b"good 1 2 3\n", "line 4: found the word 'good' again, expected it once"),
        (b"4 3\n" + PLAIN, ": found 3 words, expected 4 as line 1 says"),
        (b"3 3\n" + PLAIN + b"new 1 2 3\n", ": found 4 words, expected 3 as line 1 says"),
        (b"3 4\n" + PLAIN, "line 2: found 3 numbers after the word, expected 4"),
        (b"other 1 2 3\n", ": found none of the 3 words, expected at least one"),
    ],
)
def test_names_the_place_of_a_fault(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"x\.txt(, )?{message}"):
        read_glove(write(tmp_path, content), WORDS)


@pytest.mark.parametrize("content", [PLAIN, b"3 3\n" + PLAIN])
@pytest.mark.parametrize("dimension", [2, 4])
def test_a_dimension_that_contradicts_the_file(tmp_path, content, dimension):
    with pytest.raises(ValueError, match=rf"x\.txt, line 1: found dimension 3, expected {dimension}"):
        read_glove(write(tmp_path, content), WORDS, dimension)
    with pytest.raises(ValueError, match="dimension is 0, expected at least 1"):
        read_glove(tmp_path / "x.txt", WORDS, 0)


def test_words_that_are_a_single_string(tmp_path):
    with pytest.raises(TypeError, match="words is a string, expected several"):
        read_glove(tmp_path / "any.txt", "the")


def test_a_missing_file_is_named(tmp_path):
    for name in ("x.txt", "x.zip"):
        with pytest.raises(FileNotFoundError, match=name):
            read_glove(tmp_path / name, WORDS)


@pytest.mark.parametrize(("dimension", "row"), [(1, [1.0]), (2, [2.0, 2.0]), (10, [3.0] * 10), (None, [3.0] * 10)])
def test_picks_the_member_of_a_dimension_or_the_largest(tmp_path, dimension, row):
    members = {f"folder/glove__6B__{size}d__txt": b"good" + b" %d" % value * size + b"\n" for size, value in ((1, 1), (10, 3), (2, 2))}
    check(read_glove(write_zip(tmp_path, readme__txt=b"", **members), ["good"], dimension), ["good"], [row])


@pytest.mark.parametrize("dimension", [None, 3])
def test_takes_a_single_member_of_any_name(tmp_path, dimension):
    check(read_glove(write_zip(tmp_path, LICENSE=b"", vectors__txt=PLAIN), WORDS, dimension), ["good", "the"], ROWS)


@pytest.mark.parametrize(
    ("members", "dimension", "message"),
    [
        ({"glove__6B__3d__txt": PLAIN}, 300, r"found the members glove\.6B\.3d\.txt, expected one that ends in \.300d\.txt"),
        ({"a__txt": PLAIN, "b__txt": PLAIN}, None, r"found the members a\.txt, b\.txt, expected a single \.txt"),
        ({"LICENSE": b""}, None, r"found the members LICENSE, expected a single \.txt"),
        ({}, None, r"found the members of an empty archive, expected a single \.txt"),
        ({"vectors__txt": PLAIN}, 4, r", vectors\.txt, line 1: found dimension 3, expected 4"),
        ({"vectors__txt": PLAIN + b"torn 1\n"}, 3, r", vectors\.txt, line 4: found 1 numbers"),
    ],
)
def test_names_the_member_at_fault(tmp_path, members, dimension, message):
    with pytest.raises(ValueError, match=rf"x\.zip(: )?{message}"):
        read_glove(write_zip(tmp_path, **members), WORDS, dimension)


def damaged_zips() -> dict[str, bytes]:
    buffer = io.BytesIO()
    digits = str(random.Random(0).getrandbits(4000)).encode()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.txt", PLAIN + b"other 1 2 " + digits)
    whole = buffer.getvalue()
    middle = len(whole) // 2
    return {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "torn": whole[:middle],
        "without-front": whole[40:],
        "no-zip": PLAIN,
        "empty": b"",
        "wrong-crc": whole.replace(archive.getinfo("x.txt").CRC.to_bytes(4, "little"), b"\0\0\0\0"),
    }


@pytest.mark.parametrize("fault", ["flipped", "torn", "without-front", "no-zip", "empty", "wrong-crc"])
def test_a_damaged_zip(tmp_path, fault):
    (tmp_path / "x.zip").write_bytes(damaged_zips()[fault])
    with pytest.raises(ValueError, match=r"x\.zip is a damaged zip archive, or none: "):
        read_glove(tmp_path / "x.zip", WORDS)


def test_reads_glove_6b_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path)
    (tmp_path / "glove").mkdir()
    write_zip(tmp_path, glove__6B__3d__txt=PLAIN).rename(tmp_path / "glove" / "glove.6B.zip")
    check(read_glove("glove.6B", WORDS), ["good", "the"], ROWS)


def test_without_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path)
    monkeypatch.setattr(glove, "URL", "http://127.0.0.1:1/glove.6B.zip")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UnavailableError, match=r"1/glove\.6B\.zip could not .* give the path of the zip in place of 'glove\.6B'"):
        read_glove("glove.6B", WORDS)


def test_the_file_is_never_in_memory(tmp_path):
    line = b" 0.125" * 50 + b"\n"
    file = write_zip(tmp_path, x__txt=b"".join(b"w%d" % i + line for i in range(100_000)))
    tracemalloc.start()
    found = read_glove(file, ["w99999", "w5"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    check(found, ["w99999", "w5"], [[0.125] * 50] * 2)
    assert peak < 6 * glove.BUFFER < 100_000 * len(line) / 3


@needs_data
def test_real_vectors():
    file = Path(os.environ["SSTKERN_DATA"]) / "glove" / "glove.6B.zip"
    found = read_glove(file, ["film", "Film", "movie", "potato", "the"])
    assert found.words == ["film", "movie", "potato", "the"]
    assert found.matrix.shape == (4, 50)
    assert found.matrix[3, :3].tolist() == pytest.approx([0.418, 0.24968, -0.41242])
    film, movie, potato, _ = torch.nn.functional.normalize(found.matrix)
    assert film @ movie > 0.9 > 0.3 > film @ potato
