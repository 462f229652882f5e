"""Compilers that are scripts, and a cache in a folder of the test's."""

import os
import time
from collections.abc import Callable
from pathlib import Path

COUNTING = """echo run >> "{runs}"\n"""
COPYING = """cp source.cpp library.so\n"""
"""What the cache keeps need not be a library until it is loaded."""


class Scripted:
    """A compiler of the shell's language. CXX names it; each of its runs is counted."""

    def __init__(self, folder: Path, body: str = COPYING) -> None:
        self.path, self._runs = folder / "compiler", folder / "runs"
        self.path.write_text("#!/bin/sh\n" + COUNTING.format(runs=self._runs) + body)
        self.path.chmod(0o755)

    @property
    def runs(self) -> int:
        return len(self._runs.read_text().split()) if self._runs.exists() else 0


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(process: int) -> None:
    """Waits until a process is not there, or is waited for only."""

    def gone() -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(gone, 10.0)  # before it ends by itself


def number(path: Path) -> int:
    """The number of a process that has written it down."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def names(folder: Path) -> set[str]:
    """What a folder of the cache has, by the endings."""
    return {name.rpartition(".")[2] for name in os.listdir(folder)}
