"""Shared libraries of source texts, each compiled once on a machine and kept in a folder of the user's."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from sstkern.program.compiler import FLAGS, CannotCompile, Compiler, compiled, find, headers

_TOKEN = secrets.token_hex(8)
_OTHER_FOLDER = "SSTKERN_CACHE can name another folder"
_known: dict[tuple[str, str], Path] = {}
"""The checked libraries of the latest texts: to check one takes a millisecond."""
_MOST_KNOWN = 256
_locks: set[int] = set()
"""Descriptors of this process's lock files, open while a thread has or awaits the lock."""


class _Folder(NamedTuple):
    """The cache's folder, open: files are opened by their names in it, whatever its path leads to meanwhile."""

    path: Path
    descriptor: int


def library(source: str, level: str) -> Path:
    """The shared library of a source text, compiled unless an earlier call, of any process, has done so.

    source: a whole translation unit; it includes the kernels' headers by their names. level: the instruction set that it is for.

    Threads and processes that ask at the same time compile once. The file was checked by the hash kept beside it. Load it at once: the
    folder is not writable for others, and neither are those above it (`_check_above`), so that nobody else can put another file in its
    place in between.

    Raises CannotCompile where it is not there and cannot be made, where other users could have changed it, and where the environment
    has SSTKERN_COMPILE=0 (`check_wanted`).
    """
    check_wanted()
    key = source, level
    found = _known.get(key)
    if found is None:
        found = _library(source, level)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return found


def check_wanted() -> None:
    """Raises CannotCompile where the environment has SSTKERN_COMPILE=0, or there what is neither 0 nor 1."""
    given = os.environ.get("SSTKERN_COMPILE") or "1"
    if given == "0":
        raise CannotCompile("SSTKERN_COMPILE=0 turns compiling off")
    if given != "1":
        raise CannotCompile(f"SSTKERN_COMPILE: expected 0 or 1, got {given!r}")


def place() -> Path:
    """The cache's folder, which is made if need be. Raises CannotCompile where it cannot be used, or nothing can be added to it."""
    with _opened() as folder:
        if not os.access(folder.path, os.W_OK):
            raise CannotCompile(f"{folder.path} is not writable; {_OTHER_FOLDER}")
        return folder.path


def cannot_load(path: Path, error: Exception) -> CannotCompile:
    """What to raise where the system does not load a library of the cache: some forbid code from folders that users can write to."""
    return CannotCompile(f"{path} was compiled and cannot be loaded: {error}; {_OTHER_FOLDER}")


def _library(source: str, level: str) -> Path:
    compiler = find()
    key = _key(source, level, compiler)
    with _opened() as folder:
        if not _whole(folder, key):
            with _locked(folder, key):
                if not _whole(folder, key):  # another one may have made it while this one waited
                    _make(folder, key, compiler, source)
        return folder.path / f"{key}.so"


def _key(source: str, level: str, compiler: Compiler) -> str:
    """A hash of all that a library is made from."""
    parts: list[str | bytes] = [source, level, *compiler.identity, *FLAGS, platform.machine(), _package_version()]
    folder, found = headers(), hashlib.sha256()
    for header in sorted(folder.rglob("*.h")):
        parts += [str(header.relative_to(folder)), header.read_bytes()]
    for part in parts:  # the digest of each, all of one length: parts cannot flow together
        found.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    return found.hexdigest()


@cache
def _package_version() -> str:
    try:
        return version("sstkern")
    except PackageNotFoundError:  # sources that are not installed
        return ""


@contextmanager
def _opened() -> Iterator[_Folder]:
    """The folder, seen to be the user's own. What the system refuses in it is a CannotCompile too."""
    path = _wanted()
    try:
        _make_folders(path)
        path = Path(os.path.realpath(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_own(path, os.fstat(descriptor))
            _check_above(path)
            if os.fstatvfs(descriptor).f_flag & os.ST_NOEXEC:
                raise CannotCompile(f"{path} is on a file system without executable files (noexec); {_OTHER_FOLDER}")
            yield _Folder(path, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CannotCompile(f"{path} cannot be used: {error}; {_OTHER_FOLDER}") from error


def _wanted() -> Path:
    if given := os.environ.get("SSTKERN_CACHE"):
        return Path(given).absolute()
    for name, below in (("XDG_CACHE_HOME", "sstkern/cells"), ("HOME", ".cache/sstkern/cells")):  # beside the trainer's data
        if os.path.isabs(given := os.environ.get(name, "")):
            return Path(given, below)
    return _temporary()


def _temporary() -> Path:
    """A folder of this process alone: a forked child has another number."""
    _note_temporary()
    return _temporary_path()


def _temporary_path() -> Path:
    return Path(tempfile.gettempdir(), f"sstkern-{_TOKEN}-{os.getpid()}")


@cache
def _note_temporary() -> None:
    """A process that has had such a folder, or a child of one, removes its own at its end."""
    atexit.register(lambda: shutil.rmtree(_temporary_path(), ignore_errors=True))


def _make_folders(path: Path) -> None:
    if not path.exists():
        _make_folders(path.parent)
        with suppress(FileExistsError):
            path.mkdir(0o700)


def _check_own(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise CannotCompile(f"{path} belongs to user {status.st_uid}, and this process to user {os.geteuid()}; {_OTHER_FOLDER}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CannotCompile(f"{path} can be changed by other users (mode {stat.S_IMODE(status.st_mode):o}); 'chmod go-w' forbids it")


def _check_above(path: Path) -> None:
    """Who may write to a folder above could put another one in this one's place, except in one like /tmp: sticky, and nobody else's but
    root's. A group of the user's own is the usual case of a writable home; who owns what is above a home is its administrator."""
    for above in path.parents:
        status = os.stat(above)
        others = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != os.getegid())
        sticky = status.st_mode & stat.S_ISVTX and status.st_uid in (0, os.geteuid())
        if others and not sticky:
            raise CannotCompile(f"{path} can be replaced by other users, who can write to {above}; {_OTHER_FOLDER}")


def _open(folder: _Folder, name: str, flags: int) -> int:
    """A descriptor of a file of the folder, seen to be the user's own. A link is not followed, and a pipe not waited for."""
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder.descriptor)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CannotCompile(f"{folder.path / name} is no regular file; remove it")
        _check_own(folder.path / name, status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _whole(folder: _Folder, key: str) -> bool:
    """Whether the library is there and is what was written."""
    try:
        contents, digest = (_read(folder, f"{key}.{ending}") for ending in ("so", "sha256"))
    except FileNotFoundError:
        return False
    return _digest(contents) == digest


def _read(folder: _Folder, name: str) -> bytes:
    with open(_open(folder, name, os.O_RDONLY), "rb") as file:
        return file.read()


def _digest(contents: bytes) -> bytes:
    return hashlib.sha256(contents).hexdigest().encode()


@contextmanager
def _locked(folder: _Folder, key: str) -> Iterator[None]:
    """One thread of one process at a time. The system takes the lock from a process that ends, however it ends."""
    descriptor = _open(folder, f"{key}.lock", os.O_RDWR | os.O_CREAT)
    _locks.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # to close it is not enough while a forked child has it open
        _locks.discard(descriptor)
        os.close(descriptor)


def _make(folder: _Folder, key: str, compiler: Compiler, source: str) -> None:
    for left in folder.path.glob(f"{key}.*.part"):  # by a process that was killed: this one has the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{key}.", suffix=".part", dir=folder.path, ignore_cleanup_errors=True) as work:
        contents = compiled(compiler, source, Path(work))
        # Not the compiler's own file, which what a killed process has left running could still write to.
        for ending, data in (("so", contents), ("sha256", _digest(contents))):
            partial = Path(work, f"{key}.{ending}")
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, partial.name, dst_dir_fd=folder.descriptor)


def _in_a_forked_child() -> None:
    """Forgets the parent's locks, which end with the parent, and a folder that is the parent's alone."""
    while _locks:
        os.close(_locks.pop())
    _known.clear()


os.register_at_fork(after_in_child=_in_a_forked_child)
