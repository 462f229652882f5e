import pytest

from sstkern.text import Examples, read_tsv


@pytest.mark.parametrize(
    ("content", "sentences", "labels"),
    [
        (b"sentence\tlabel\na b \t1\nc\t0\n", ["a b ", "c"], [1, 0]),
        (b"sentence\tlabel\na\t1", ["a"], [1]),
        (b"sentence\tlabel\na\t1\n\n\r\n\n", ["a"], [1]),
        (b"sentence\tlabel\r\na\t1\r\nb\t0\r\n", ["a", "b"], [1, 0]),
        (b"\xef\xbb\xbfsentence\tlabel\na\t1\n\xef\xbb\xbfb\t0\n", ["a", "b"], [1, 0]),
        (b"label\tnote\tsentence\n2147483647\tx\ta\n", ["a"], [2147483647]),
        (b'sentence\tlabel\n"a\t1\nb"\t0\n', ['"a', 'b"'], [1, 0]),
        (b"sentence\tlabel\na\rb\t1\n", ["a\rb"], [1]),
        ("sentence\tlabel\na\u2028b\x0cé\t1\n".encode(), ["a\u2028b\x0cé"], [1]),
        (b"sentence\tlabel\n\t1\n", [""], [1]),
    ],
    ids=[
        "plain",
        "unended",
        "blank-end",
        "crlf",
        "bom",
        "columns",
        "quotes",
        "stray-cr",
        "separators",
        "empty-sentence",
    ],
)
def test_reads(tmp_path, content, sentences, labels):
    file = tmp_path / "x.tsv"
    file.write_bytes(content)
    assert read_tsv(file) == Examples(sentences, labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: found an empty file, expected a header with 'sentence' and 'label'"),
        (b"\n\n", "line 1: found an empty file"),
        (b"a\t1\n", r"line 1: found columns \['a', '1'\], expected a header with 'sentence' and 'label'"),
        (b"label\tsentence\tlabel\n", r"line 1: found columns \['label', 'sentence', 'label'\]"),
        (b"sentence\tlabel\n", "line 2: found the end of the file, expected an example"),
        (b"sentence\tlabel\na\t1\nb\t1\t\n", "line 3: found 3 columns, expected 2"),
        (b"sentence\tlabel\na\t1\n\nb\t1\n", "line 3: found 1 columns, expected 2"),
        (b"sentence\tlabel\na\t1\nb\tgood\n", "line 3: found label 'good', expected an integer from 0 to 2147483647"),
        (b"sentence\tlabel\na\t1\nb\t-1\n", "line 3: found label '-1'"),
        (b"sentence\tlabel\na\t1\nb\t1.0\n", "line 3: found label '1.0'"),
        ("sentence\tlabel\na\t1\nb\t\u0661\n".encode(), "line 3: found label '\u0661'"),
        (b"sentence\tlabel\na\tgood\nb\t1\n", "line 3: found label '1', expected a string as the others, or integers in all lines"),
        (b"sentence\tlabel\na\tgood\nb\tbad \n", "line 3: found label 'bad ', expected a string"),
        (b"sentence\tlabel\na\t\nb\tbad\n", "line 2: found label '', expected a string"),
        (b"sentence\tlabel\na\t2147483648\n", "line 2: found label '2147483648'"),
        (b"sentence\tlabel\na\t1\nb\xff\t1\n", "line 3: found byte 0xff, expected UTF-8"),
    ],
)
def test_names_the_place_of_a_fault(tmp_path, content, message):
    file = tmp_path / "x.tsv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.tsv, {message}"):
        read_tsv(file)


def test_labels_are_numbers_or_strings(tmp_path):
    file = tmp_path / "x.tsv"
    file.write_text("sentence\tlabel\na\tgood\nb\tbad\nc\tgood\n")
    assert read_tsv(file) == Examples(["a", "b", "c"], [1, 0, 1], ["bad", "good"])
    assert read_tsv(file, ["good", "so so", "bad"]).labels == [0, 2, 0]
    with pytest.raises(ValueError, match=r"x\.tsv, line 3: found label 'bad', expected one of the model's labels: fine, good$"):
        read_tsv(file, ["fine", "good"])
    with pytest.raises(ValueError, match=r"x\.tsv, line 2: found label 'good', expected an integer"):
        read_tsv(file, [])


@pytest.mark.parametrize(
    ("label", "names", "classes", "expected"),
    [
        ("1", ["neg", "pos"], 2, "one of the model's labels: neg, pos"),
        ("good", ["neg", "pos"], 2, "one of the model's labels: neg, pos"),
        ("1", list("abcdefghijkl"), 12, "one of the model's labels: a, b, c, d, e, f, g, h, i, j, ..."),
        ("good", [], 2, "0 or 1, the model's labels"),
        ("2", [], 2, "0 or 1, the model's labels"),
        ("9" * 5000, [], 2, "0 or 1, the model's labels"),
        ("0" * 5000 + "2", [], 2, "0 or 1, the model's labels"),
        ("3", [], 3, "an integer from 0 to 2, the model's labels"),
    ],
)
def test_a_label_that_is_not_known_is_told_with_its_line_and_those_that_are(tmp_path, label, names, classes, expected):
    file = tmp_path / "x.tsv"
    file.write_bytes(f"sentence\tlabel\n\xff\t0\nb\t{label}\n".encode("latin-1"))
    with pytest.raises(ValueError) as error:
        read_tsv(file, names, lambda _: None, classes)
    assert str(error.value) == f"{file}, line 3: found label {label!r}, expected {expected}"


def test_lines_that_are_not_utf8_can_be_passed_over(tmp_path):
    file = tmp_path / "x.tsv"
    file.write_bytes(b"sentence\tlabel\na\t1\nb\xff\t1\nc\t0\n\xe9\t0\n")
    faults = []
    assert read_tsv(file, on_fault=faults.append) == Examples(["a", "c"], [1, 0])
    expected = [f"{file}, line {line}: found byte 0x{byte}, expected UTF-8" for line, byte in ((3, "ff"), (5, "e9"))]
    assert [str(fault) for fault in faults] == expected
    # The numbers stay those of the file.
    file.write_bytes(b"sentence\tlabel\nb\xff\t1\nc\tgood\nc\t0\n")
    with pytest.raises(ValueError, match=r"x\.tsv, line 4: found label '0', expected a string"):
        read_tsv(file, on_fault=faults.append)


@pytest.mark.parametrize("content", [b"sentence\tlabel\n\xff\t1\n", b"\xffsentence\tlabel\na\t1\n"], ids=["no example", "no header"])
def test_a_file_without_a_line_that_can_be_read_is_refused(tmp_path, content):
    (tmp_path / "x.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tsv, line [12]: found"):
        read_tsv(tmp_path / "x.tsv", on_fault=lambda _: None)


def test_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.tsv"):
        read_tsv(tmp_path / "x.tsv")


def test_examples_are_sentences_with_labels():
    examples = Examples(["a", "b"], [0, 2])
    assert (len(examples), examples.num_classes) == (2, 3)
    assert Examples([], []).num_classes == 0
    assert Examples(["a"], [0], ["bad", "good"]).num_classes == 2
    assert (examples.content(), Examples([], [], ["bad"]).content()) == (
        {"sentences": ["a", "b"], "labels": [0, 2]},
        {"sentences": [], "labels": [], "names": ["bad"]},
    )
    with pytest.raises(ValueError, match="1 sentences and 2 labels"):
        Examples(["a"], [0, 1])


def test_picked_examples_keep_their_labels():
    examples = Examples(["a", "b", "c"], [0, 1, 2])
    assert examples.pick([2, 0]) == Examples(["c", "a"], [2, 0])
    assert examples.pick(range(0)) == Examples([], [])
    assert Examples(["a"], [0], ["bad"]).pick([0]).names == ["bad"]
