"""Compiled libraries on disk: each is made once, found again, and loaded only where nobody else can have changed it."""

import ctypes
import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from compilers import COPYING, Scripted, ended, names, number, wait_until

import sstkern
from sstkern.program import cache, compiler
from sstkern.program.cache import CannotCompile, library

FORK = multiprocessing.get_context("fork")
KEPT = {"so", "sha256", "lock"}
ONCE_OPENED = 'for _ in $(seq 1500); do [ -e "{gate}" ] && break; sleep 0.02; done\n' + COPYING
"""A compiler that waits for a file, for half a minute at most: a test that fails leaves nothing running."""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SSTKERN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SSTKERN_COMPILE", raising=False)
    monkeypatch.setattr(cache, "_known", {})
    return tmp_path / "cache"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Scripted]:
    def use(body: str = COPYING) -> Scripted:
        found = Scripted(tmp_path, body)
        monkeypatch.setenv("CXX", str(found.path))
        return found

    return use


@pytest.fixture
def gated(scripted: Callable[..., Scripted], tmp_path: Path) -> Scripted:
    return scripted(f'echo $$ > "{tmp_path}/started"\n' + ONCE_OPENED.format(gate=tmp_path / "gate"))


def as_a_new_process() -> None:
    cache._known.clear()


def refused(message: str, source: str = "text") -> None:
    as_a_new_process()
    with pytest.raises(CannotCompile, match=message):
        library(source, "baseline")


def test_a_text_becomes_a_library_that_can_be_loaded(folder: Path):
    text = '#include "kernels.h"\nextern "C" __attribute__((visibility("default"))) int version() { return sstkern::kKernelsVersion + 40; }'
    path = library(text, "baseline")
    assert ctypes.CDLL(str(path)).version() > 40
    assert (path.parent, names(folder)) == (folder, KEPT)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_it_is_compiled_once_and_found_quickly(scripted: Callable[..., Scripted]):
    found = scripted()
    path, threads = library("text", "avx2"), torch.get_num_threads()
    seconds = {"again": [], "in a new process": []}
    try:
        torch.set_num_threads(threads + 1)
        for _ in range(20):
            for kind, known in (("again", {("text", "avx2"): path}), ("in a new process", {})):
                cache._known.clear()
                cache._known.update(known)
                began = time.perf_counter()
                assert library("text", "avx2") == path
                seconds[kind].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    assert found.runs == 1
    assert min(seconds["again"]) < 50e-6  # 3 on a quiet machine
    assert min(seconds["in a new process"]) < 5e-3  # 1.5


def test_all_that_it_is_made_from_is_its_key(scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = scripted()
    paths = [library("text", "avx2"), library("other", "avx2"), library("text", "avx512"), library("texta", "vx2")]

    def again() -> None:
        as_a_new_process()
        paths.append(library("text", "avx2"))

    monkeypatch.setattr(cache, "_package_version", lambda: "another")
    again()
    copied = shutil.copytree(compiler.headers(), tmp_path / "kernels")
    monkeypatch.setattr(cache, "headers", lambda: copied)
    again()
    assert paths.pop() == paths[-1]  # the same headers elsewhere
    (copied / "cells" / "gru.h").write_text("changed")
    again()
    (copied / "cells" / "gru.h").rename(copied / "cells" / "gru2.h")  # the same order
    again()
    found.path.write_text(found.path.read_text() + "# a newer one\n")
    again()
    assert found.runs == len(set(paths)) == len(paths) == 8


def test_who_ask_at_once_compile_once(scripted: Callable[..., Scripted], folder: Path):
    found = scripted("sleep 0.3\n" + COPYING)
    processes = [FORK.Process(target=library, args=("text", "avx2")) for _ in range(4)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(lambda _: cache._library("text", "avx2"), range(4)))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(paths) == found.runs == 1
    assert names(folder) == KEPT


def test_texts_do_not_wait_for_each_other(gated: Scripted, tmp_path: Path):
    with ThreadPoolExecutor(2) as threads:
        made = [threads.submit(library, text, "avx2") for text in ("one", "two")]
        wait_until(lambda: gated.runs == 2)
        (tmp_path / "gate").touch()
        assert made[0].result() != made[1].result()


def test_one_that_waits_takes_over_from_one_that_dies(gated: Scripted, folder: Path, tmp_path: Path):
    """Even while the dead one's compiler still runs."""
    holder = FORK.Process(target=library, args=("text", "avx2"))
    holder.start()
    left = number(tmp_path / "started")
    with ThreadPoolExecutor(1) as threads:
        made = threads.submit(library, "text", "avx2")
        time.sleep(0.1)
        assert gated.runs == 1
        holder.kill()
        wait_until(lambda: gated.runs == 2)
        (tmp_path / "gate").touch()
        assert made.result().read_text() == "text"
    ended(left)
    assert names(folder) == KEPT


def test_a_forked_child_has_no_part_in_a_lock(gated: Scripted, tmp_path: Path):
    def child(found) -> None:
        found.put((cache._locks, [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]))
        library("other", "avx2")

    found = FORK.SimpleQueue()
    with ThreadPoolExecutor(1) as threads:
        made = threads.submit(library, "text", "avx2")
        number(tmp_path / "started")
        process = FORK.Process(target=child, args=(found,))
        process.start()
        locks, files = found.get()
        (tmp_path / "gate").touch()
        assert made.result().exists()
    process.join()
    assert process.exitcode == 0
    assert locks == set()
    assert files
    assert not [file for file in files if file.endswith(".lock")]


def test_a_lock_ends_whoever_has_its_file_open(gated: Scripted, folder: Path, tmp_path: Path):
    """As a child has that was forked between two lines of a thread."""
    with ThreadPoolExecutor(1) as threads:
        made = threads.submit(library, "text", "avx2")
        number(tmp_path / "started")
        copy = os.dup(*cache._locks)
        (tmp_path / "gate").touch()
        made.result()
    assert_free(folder)
    os.close(copy)


def assert_free(folder: Path) -> None:
    (lock,) = folder.glob("*.lock")
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_it_compiles(gated: Scripted, folder: Path, tmp_path: Path):
    thread = threading.Thread(target=lambda: (number(tmp_path / "started"), os.kill(os.getpid(), signal.SIGINT)))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        library("text", "avx2")
    thread.join()
    ended(number(tmp_path / "started"))
    assert (names(folder), cache._locks) == ({"lock"}, set())
    assert_free(folder)
    (tmp_path / "gate").touch()
    assert library("text", "avx2").read_text() == "text"


DAMAGES = {
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "changed": lambda path: path.write_bytes(b"T" + path.read_bytes()[1:]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("ending", [".so", ".sha256"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(scripted: Callable[..., Scripted], damage: str, ending: str):
    found = scripted()
    path = library("text", "avx2")
    DAMAGES[damage](path.with_suffix(ending))
    for _ in range(2):
        as_a_new_process()
        assert library("text", "avx2").read_text() == "text"
    assert found.runs == 2


@pytest.mark.parametrize("ending", ["so", "sha256", "lock"])
def test_a_file_that_others_could_have_put_there_is_refused(scripted: Callable[..., Scripted], ending: str, tmp_path: Path):
    found = scripted()
    path = library("text", "baseline").with_suffix(f".{ending}")
    if ending == "lock":  # is opened only where something is to be made
        path.with_suffix(".so").unlink()
    for mode in (0o620, 0o602):
        path.chmod(mode)
        refused(rf"{path} can be changed by other users \(mode {mode:o}\); 'chmod go-w' forbids it")
    path.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o600)
    path.symlink_to(tmp_path / "elsewhere")
    refused(f"cannot be used: .*symbolic links: '{path.name}'; SSTKERN_CACHE can name another folder")
    path.unlink()
    os.mkfifo(path)
    refused(f"{path} is no regular file; remove it" if ending != "lock" else f"{path} is no regular file")
    assert found.runs == 1


def test_a_folder_that_others_can_change_is_refused(scripted: Callable[..., Scripted], folder: Path, monkeypatch: pytest.MonkeyPatch):
    found = scripted()
    folder.mkdir()
    for mode in (0o720, 0o702):
        folder.chmod(mode)
        refused(f"{folder} can be changed by other users")
    folder.chmod(0o700)
    folder.parent.chmod(0o777)
    refused(f"{folder} can be replaced by other users, who can write to {folder.parent}; SSTKERN_CACHE")
    folder.parent.chmod(0o770)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getegid", lambda: folder.parent.stat().st_gid + 1)
        refused("can be replaced by other users")
    assert found.runs == 0
    for mode in (0o770, 0o1777):  # a group of the user's own; as /tmp
        folder.parent.chmod(mode)
        as_a_new_process()
        assert library("text", "baseline").parent == folder
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    refused(f"{folder} belongs to user {folder.stat().st_uid}, and this process to user {folder.stat().st_uid + 1}; SSTKERN_CACHE")


def test_a_link_to_a_folder_is_checked_where_it_leads(scripted: Callable[..., Scripted], folder: Path, tmp_path: Path):
    scripted()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    assert library("text", "avx2").parent == elsewhere
    elsewhere.chmod(0o777)
    refused(f"{elsewhere} can be changed by other users")


def test_a_read_only_folder_gives_what_it_has(scripted: Callable[..., Scripted], folder: Path, monkeypatch: pytest.MonkeyPatch):
    scripted()
    path, opened, access = library("text", "baseline"), os.open, os.access

    def read_only(name, flags, *rest, **options):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)
        return opened(name, flags, *rest, **options)

    # Not by the folder's mode, which does not hold root.
    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "access", lambda name, mode: mode != os.W_OK and access(name, mode))
    as_a_new_process()
    assert library("text", "baseline") == path
    refused(f"^{folder} cannot be used: .*Read-only file system: .*; SSTKERN_CACHE can name another folder$", "other")
    with pytest.raises(CannotCompile, match=f"^{folder} is not writable"):
        cache.place()


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSTKERN_CACHE", str(tmp_path / "file" / "below"))
    refused(f"^{tmp_path}/file/below cannot be used: .*Not a directory")


def test_a_full_disk(scripted: Callable[..., Scripted], folder: Path, monkeypatch: pytest.MonkeyPatch):
    found = scripted()

    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, name in ((os, "fsync"), (tempfile, "mkdtemp")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            refused("No space left on device")
    assert (names(folder), found.runs) == ({"lock"}, 1)
    assert library("text", "baseline").read_text() == "text"


def test_a_file_system_without_executable_files(scripted: Callable[..., Scripted], folder: Path, monkeypatch: pytest.MonkeyPatch):
    found, asked = scripted(), os.fstatvfs

    class NoExec:
        def __init__(self, descriptor: int):
            self.f_flag = asked(descriptor).f_flag | os.ST_NOEXEC

    monkeypatch.setattr(os, "fstatvfs", NoExec)
    refused(rf"{folder} is on a file system without executable files \(noexec\); SSTKERN_CACHE")
    assert found.runs == 0


def test_what_the_system_does_not_load(scripted: Callable[..., Scripted]):
    scripted()
    path = library("no library", "avx2")
    with pytest.raises(OSError) as error:
        ctypes.CDLL(str(path))
    assert str(cache.cannot_load(path, error.value)).startswith(f"{path} was compiled and cannot be loaded: {path}: ")


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [
        ({"SSTKERN_CACHE": "{0}/own", "XDG_CACHE_HOME": "{0}/xdg", "HOME": "{0}/home"}, "own"),
        ({"SSTKERN_CACHE": "", "XDG_CACHE_HOME": "{0}/xdg", "HOME": "{0}/home"}, "xdg/sstkern/cells"),
        ({"XDG_CACHE_HOME": "not/absolute", "HOME": "{0}/home"}, "home/.cache/sstkern/cells"),
        ({"HOME": "{0}/home"}, "home/.cache/sstkern/cells"),
    ],
)
def test_the_folder_is_the_users(set_to: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("SSTKERN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    before = os.umask(0)
    try:
        assert cache.place() == tmp_path / expected
    finally:
        os.umask(before)
    assert (tmp_path / expected).parent.stat().st_mode & 0o777 in (0o700, tmp_path.stat().st_mode & 0o777)


WITHOUT_A_HOME = """
import os, sys
from sstkern.program.cache import library
path = library("text", "avx2")
child = os.fork()
if not child:
    other = library("text", "avx2")
    assert other.parent != path.parent and other.exists()
    print(other, flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert path.exists() and library("text", "avx2") == path
print(path)
"""


def test_without_a_home_each_process_has_a_folder_until_it_ends(scripted: Callable[..., Scripted], tmp_path: Path):
    found = scripted()
    environment = {name: value for name, value in os.environ.items() if name not in ("SSTKERN_CACHE", "XDG_CACHE_HOME", "HOME")}
    environment |= {"PYTHONPATH": str(Path(sstkern.__file__).parents[1]), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_HOME], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    paths = [Path(line) for line in done.stdout.split()]
    assert [path.parents[1] for path in paths] == [tmp_path] * 2
    assert found.runs == 2
    assert not [path for path in paths if path.parent.exists()]


def test_a_compiler_that_fails_leaves_nothing_and_is_asked_again(scripted: Callable[..., Scripted], folder: Path):
    found = scripted("echo no memory >&2\nexit 4\n")
    for _ in range(2):
        refused("failed with exit code 4; its last lines:\nno memory$")
    assert (names(folder), found.runs) == ({"lock"}, 2)


def test_it_can_be_turned_off(scripted: Callable[..., Scripted], folder: Path, monkeypatch: pytest.MonkeyPatch):
    scripted()
    library("text", "avx2")
    monkeypatch.setenv("SSTKERN_COMPILE", "0")
    with pytest.raises(CannotCompile, match=r"^SSTKERN_COMPILE=0 turns compiling off$"):
        library("text", "avx2")
    monkeypatch.setenv("SSTKERN_COMPILE", "1")
    assert library("text", "avx2").parent == folder


@pytest.mark.parametrize("given", ["maybe", "false", "off", "00", " 0"])
def test_what_is_neither_0_nor_1_is_refused_by_name(given: str, scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch):
    compiler = scripted()
    monkeypatch.setenv("SSTKERN_COMPILE", given)
    with pytest.raises(CannotCompile, match=rf"^SSTKERN_COMPILE: expected 0 or 1, got '{given}'$"):
        library("text", "avx2")
    assert compiler.runs == 0
    monkeypatch.setenv("SSTKERN_COMPILE", "")  # as if it were not there
    library("text", "avx2")
    assert compiler.runs == 1


def test_what_is_remembered_is_bounded(scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch):
    compiler = scripted()
    monkeypatch.setattr(cache, "_MOST_KNOWN", 3)
    for text in "abcdab":
        assert library(text, "avx2").read_text() == text
        assert len(cache._known) <= 3
    assert compiler.runs == 4


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    refused(r"^no C\+\+ compiler")
