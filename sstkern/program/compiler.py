"""The system's C++ compiler: finding it, and a shared library of a source text."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from sstkern.build_info import build_info

SECONDS = 60.0
"""A cell takes a few, on one core."""
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-g0", "-fPIC", "-shared", "-fvisibility=hidden", *build_info().get("flags", ()))
"""As setup.py has the extension compiled: what a level's instructions are stands in its header. A product and a sum are not made one
operation: the compiler chose otherwise for vectors that are cut off than for whole ones, and bits hung on the batch. Where the extension
was built with sanitizers, so are cells."""
_NAMES = ("c++", "g++", "clang++")
_CHANGING = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "CCC_OVERRIDE_OPTIONS", "DEPENDENCIES_OUTPUT", "SUNPRO_DEPENDENCIES")
"""Environment variables by which a compiler makes something else of the same command."""
_LINES = 12


class CannotCompile(RuntimeError):
    """Why a source text cannot become a shared library here."""


class Compiler(NamedTuple):
    """command: its words, each program with its path. identity: what another compiler, or another version of it, has not."""

    command: tuple[str, ...]
    identity: tuple[str, ...]


def headers() -> Path:
    """The folder of the kernels' headers: in the installed package, or of the sources beside it.

    Raises CannotCompile where there is neither.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "kernels", package.parent / "csrc" / "kernels"):
        if (folder / "kernels.h").is_file():
            return folder
    raise CannotCompile("the kernels' headers are not installed; install sstkern again")


def find() -> Compiler:
    """The compiler that the environment variable CXX names, else the first of c++, g++ and clang++. It is not started.

    CXX may have several words ("ccache g++"). Raises CannotCompile where there is none.
    """
    if given := os.environ.get("CXX", "").strip():
        return _compiler(given, _words(given))
    for name in _NAMES:
        if shutil.which(name):
            return _compiler(name, [name])
    raise CannotCompile(f"no C++ compiler: none of {', '.join(_NAMES)} is on PATH; install one ('apt-get install g++'), or name one in CXX")


def _words(given: str) -> list[str]:
    if shutil.which(given):  # a path with blanks
        return [given]
    try:
        return shlex.split(given)
    except ValueError as error:
        raise CannotCompile(f"CXX={given!r} is no command: {error}") from None


def _compiler(given: str, words: list[str]) -> Compiler:
    if shutil.which(words[0]) is None:
        raise CannotCompile(f"no C++ compiler: CXX={given!r} names no program that can be run")
    command, identity = [], []
    for word in words:
        found = shutil.which(word)
        path = os.path.abspath(found) if found else word
        command.append(path)  # not where links lead: ccache and its like go by the name
        identity += [path, *_file(path)] if found else [path]
    return Compiler(tuple(command), tuple(identity))


def _file(path: str) -> tuple[str, str, str]:
    """A package's update changes the file. To ask the program takes 2 ms, and a wrapper tells no more."""
    status = os.stat(path)
    return os.path.realpath(path), str(status.st_size), str(status.st_mtime_ns)


def describe(compiler: Compiler) -> str:
    """The compiler's path, and its version in its own words."""
    told = _run([*compiler.command, "--version"], Path(tempfile.gettempdir()), 10.0)
    return f"{shlex.join(compiler.command)} ({told.partition(chr(10))[0]})"


def compiled(compiler: Compiler, source: str, folder: Path) -> bytes:
    """The shared library of a source text, a whole translation unit, which includes the kernels' headers by their names.

    folder: an empty one, for the compiler's files.
    Raises CannotCompile where the compiler fails, is ended, or takes more than `SECONDS`, and OSError where the folder cannot be used.
    """
    (folder / "source.cpp").write_text(source, encoding="utf-8")
    _run([*compiler.command, *FLAGS, "-I", str(headers()), "source.cpp", "-o", "library.so"], folder, SECONDS)
    try:
        return (folder / "library.so").read_bytes()
    except FileNotFoundError:
        raise CannotCompile(f"{compiler.command[0]} ended without an error and made nothing") from None


def _run(command: list[str], folder: Path, seconds: float) -> str:
    """What the command printed. Whatever ends the wait for it, it and all that it started are ended."""
    environment = {name: value for name, value in os.environ.items() if name not in _CHANGING}
    ctrl_c = _put_off_ctrl_c()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"LC_ALL": "C", "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, which can be ended as a whole
        )
    except BaseException as error:
        ctrl_c()
        if isinstance(error, OSError):
            raise CannotCompile(f"{command[0]} cannot be started: {error.strerror}") from error
        raise
    with process:
        try:
            ctrl_c()
            printed = process.communicate(timeout=seconds)[0].decode(errors="replace")
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CannotCompile(f"{command[0]} took more than {seconds:g} seconds, and was ended") from None
            raise
    if process.returncode:
        ending = f"failed with exit code {process.returncode}" if process.returncode > 0 else f"was ended by signal {-process.returncode}"
        last = "\n".join(printed.strip().splitlines()[-_LINES:])
        raise CannotCompile(f"{command[0]} {ending}; its last lines:\n{last}" if last else f"{command[0]} {ending} and printed nothing")
    return printed


def _put_off_ctrl_c() -> Callable[[], None]:
    """Puts Ctrl-C off until the returned function is called: in the middle of Popen it would leave a process that nobody knows."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        return lambda: None
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))

    def happens() -> None:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])

    return happens
