"""The folders of runs: a run in each, and one training at a time in a run."""

import errno
import fcntl
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

from sstkern.text import checkpoint

RUNS = Path("runs")


class InUseError(OSError):
    """Another training writes to the folder."""


class RunFolder:
    """The folder of a run, held for this process until `release` is called, or the process ends.

    Args:
        path: of the folder.
        lock: fcntl.LOCK_SH for one that several may hold.

    Attributes:
        path: of the folder.
        release: lets others have it; a second call does nothing.

    Raises:
        InUseError: another process, or another object in this one, holds it.
        OSError: it is no folder, or cannot be read.
    """

    def __init__(self, path: Path, lock: int = fcntl.LOCK_EX) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise InUseError(f"{path} is in use by another training; wait for its end, or choose another output") from None
        except OSError as error:
            # Some network file systems have no locks on folders. Runs that are started still have one each.
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise


def take(output: Path) -> RunFolder:
    """Make the folder for a new run, or take an empty one.

    Raises:
        ValueError: there is something in it.
        InUseError: another run has just taken it.
        OSError: it cannot be made.
    """
    check_new(output)
    try:
        output.mkdir(parents=True)
    except FileExistsError:
        folder = RunFolder(output)
        if not _is_new(output):  # once more: who held it until now may have written
            folder.release()
            raise _not_new(output) from None
        return folder
    return RunFolder(output)


def take_next(cell: str) -> RunFolder:
    """Make a new folder runs/CELL, or CELL-2, CELL-3, ..., behind the last there is.

    Raises:
        OSError: it cannot be made.
    """
    RUNS.mkdir(exist_ok=True)
    while True:
        number = max(_numbers(cell), default=0) + 1
        path = _folder(cell, number)
        try:
            path.mkdir()
        except FileExistsError:
            continue  # a run that was started at the same time was quicker
        return RunFolder(path)


def check_new(output: Path) -> None:
    """Raise InUseError if another run is being trained in `output`, ValueError unless it is an empty folder, or not there."""
    if not _is_new(output):
        if output.is_dir():
            # Shared, so that the processes of one training, which all look, do not take each other for another.
            RunFolder(output, fcntl.LOCK_SH).release()
        raise _not_new(output)


def _is_new(output: Path) -> bool:
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def _not_new(output: Path) -> ValueError:
    return ValueError(f"{output} exists and is no empty folder; choose another output, or resume the run in it")


def newest(cell: str) -> Path:
    """The folder of the cell's newest run, that with the highest number, from which training can go on.

    Raises:
        ValueError: there is none.
    """
    for number in sorted(_numbers(cell), reverse=True):
        if checkpoint.exists((folder := _folder(cell, number)) / "last"):
            return folder
    raise ValueError(f"{RUNS} has no run of the cell {cell!r} to go on with; give the run's folder as --output")


def _folder(cell: str, number: int) -> Path:
    return RUNS / (cell if number == 1 else f"{cell}-{number}")


def _numbers(cell: str) -> Iterator[int]:
    """The numbers of what is there under a name of a run of the cell."""
    for path in RUNS.iterdir() if RUNS.is_dir() else ():
        if path.name == cell:
            yield 1
        elif match := re.fullmatch(rf"{re.escape(cell)}-([1-9][0-9]*)", path.name):
            yield int(match[1])
