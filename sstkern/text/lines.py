"""Lines of UTF-8, from files and from standard input."""

from collections.abc import Iterator
from io import BufferedIOBase

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decode_line(line: bytes, number: int, source: object) -> str:
    """The text of a line without its end, LF or CR LF.

    A byte order mark before the first line is no part of it, nor one before another, where files were put together. A CR inside is a
    character, and cuts no line.

    Args:
        line: with or without its end.
        number: from 1.
        source: whose line it is, for the message.

    Raises:
        ValueError: the line is not UTF-8. The message names source, line and byte.
    """
    line = line.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n").removesuffix(b"\r")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}, line {number}: found byte 0x{line[error.start]:02x}, expected UTF-8") from error


def lines_as_they_come(file: BufferedIOBase) -> Iterator[list[bytes]]:
    """The lines of a file or a pipe without their LF, those together that can be read at once: 64 KiB, or one that somebody has typed."""
    begun: list[bytes] = []  # of a line whose end is not there yet
    while chunk := file.read1(1 << 16):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        if others:
            *whole, rest = b"".join(begun), *others
            begun = [rest]
            yield whole
    if last := b"".join(begun):
        yield [last]
