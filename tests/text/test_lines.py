import pytest

from sstkern.text.lines import decode_line


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
