"""Files that are whole or absent, and files that grow by whole pieces."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, making its folder if need be.

    A fault on the way leaves what `path` held before, whole; a reader never sees a part.

    Raises:
        OSError: a write failed, for instance on a full disk; its `filename` is `path`.
    """
    # Beside the target, because a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class GrowingFile:
    """A file that grows by whole pieces: one that does not fit on the disk waits, and is written before the next one.

    Args:
        path: of the file, made with its folder if need be.
        size: bytes of it to keep; what lies behind them is cut off. A shorter file is kept as it is.

    Attributes:
        size: bytes of the file, all of them whole pieces.
        waiting: what is not written yet.

    Raises:
        OSError: the file cannot be opened; `filename` is `path`.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self.waiting = b""
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.append(b"")

    def append(self, piece: bytes) -> None:
        """Write what waits, and the piece.

        Raises:
            OSError: it could not be written; `filename` is the file's path. The file has no part of it, and it waits.
        """
        self.waiting += piece
        # Without a buffer, whose rest would come to the file when it is closed.
        with _naming(self.path), self.path.open("ab", buffering=0) as file:
            self.size = min(self.size, file.tell())
            file.truncate(self.size)
            try:
                rest = self.waiting
                while rest:  # a disk that fills up takes a part, and fails at the next call
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(self.size)
                raise
        self.size += len(self.waiting)
        self.waiting = b""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes an OSError name the file that was to be written. A full disk's names none, others name the partial file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
