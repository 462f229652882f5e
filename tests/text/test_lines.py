import os

import pytest

from sstkern.text.lines import decode_line, lines_as_they_come


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"a b\n", "a b"),
        (b"a b\r\n", "a b"),
        (b"a b", "a b"),
        (b"\xef\xbb\xbfa\n", "a"),
        (b"a\rb\r\r\n", "a\rb\r"),
        ("a\u2028\ufeffé\n".encode(), "a\u2028\ufeffé"),
        (b"\n", ""),
        (b"", ""),
    ],
)
def test_a_line_is_its_text_without_mark_and_end(line, text):
    assert decode_line(line, 1, "x") == text


@pytest.mark.parametrize(("line", "byte"), [(b"caf\xe9\n", "e9"), (b"\xff\xfea\0", "ff"), (b"\xed\xa0\x80", "ed")])
def test_what_is_not_utf8_is_named(line, byte):
    with pytest.raises(ValueError, match=f"^x, line 7: found byte 0x{byte}, expected UTF-8$"):
        decode_line(line, 7, "x")


def test_lines_come_together_as_they_are_there_and_whole():
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        lines = lines_as_they_come(file)
        os.write(writer, b"a\n")
        assert next(lines) == [b"a"]
        os.write(writer, b"b\r\n\nc")
        assert next(lines) == [b"b\r", b""]
        os.write(writer, b"d")
        os.write(writer, b"e\nf")
        assert next(lines) == [b"cde"]
        os.close(writer)
        assert list(lines) == [[b"f"]]


def test_all_lines_of_a_file_come_in_order_some_hundreds_at_once(tmp_path):
    lines = [bytes([97 + place % 26]) * (place % 300) for place in range(2000)] + [b"x" * 200_000, b"end"]
    path = tmp_path / "lines"
    path.write_bytes(b"\n".join(lines))
    with path.open("rb") as file:
        found = list(lines_as_they_come(file))
    assert [line for group in found for line in group] == lines
    assert len(found) < 10
