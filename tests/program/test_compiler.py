"""The system's C++ compiler: which one, and what comes of a text, or of it."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from compilers import COPYING, Scripted, ended, number

from sstkern.program import compiler
from sstkern.program.compiler import CannotCompile, Compiler


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def script(folder: Path, name: str = "c++") -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str = COPYING) -> compiler.Compiler:
    monkeypatch.setenv("CXX", str(Scripted(folder, body).path))
    return compiler.find()


def test_the_headers_are_those_of_the_sources_or_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert (compiler.headers() / "levels" / "baseline.h").is_file()
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "sstkern" / "program" / "compiler.py"))
    with pytest.raises(CannotCompile, match="the kernels' headers are not installed"):
        compiler.headers()
    for folder in (tmp_path / "csrc" / "kernels", tmp_path / "sstkern" / "kernels"):
        folder.mkdir(parents=True)
        (folder / "kernels.h").touch()
        assert compiler.headers() == folder


def test_the_first_compiler_on_path_or_the_one_in_cxx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        CannotCompile,
        match=r"no C\+\+ compiler: none of c\+\+, g\+\+, clang\+\+ is on PATH; install one \('apt-get install g\+\+'\), or name one",
    ):
        compiler.find()
    for name in ("clang++", "g++", "c++"):
        path = script(tmp_path, name)
        assert compiler.find().command == (str(path),)
    other = script(tmp_path, "a compiler")
    for given, words in (
        (str(other), (other,)),
        ("clang++ --target=x", (tmp_path / "clang++", "--target=x")),
        ("c++ g++", (path, tmp_path / "g++")),
    ):
        monkeypatch.setenv("CXX", given)
        assert compiler.find().command == tuple(map(str, words))


@pytest.mark.parametrize(("given", "message"), [("nothing", "names no program that can be run"), ("c++ 'x", "No closing quotation")])
def test_a_cxx_that_is_no_compiler(monkeypatch: pytest.MonkeyPatch, given: str, message: str):
    monkeypatch.setenv("CXX", given)
    with pytest.raises(CannotCompile, match=f"CXX=.*{message}"):
        compiler.find()


def test_another_compiler_or_version_has_another_identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path, twin = script(tmp_path), script(tmp_path, "g++")
    os.utime(path, (0, 0))
    os.utime(twin, (0, 0))
    found = []
    for given in (f"{path}", f"{path}", f"{twin}", f"{path} -m32", f"{path} {twin}"):
        monkeypatch.setenv("CXX", given)
        found.append(compiler.find().identity)
    path.write_text("#!/bin/zsh\n")  # other text, as long ago
    os.utime(path, (0, 0))
    monkeypatch.setenv("CXX", str(path))
    found.append(compiler.find().identity)
    os.utime(path, (1, 1))
    found.append(compiler.find().identity)
    assert found[0] == found[1]
    assert len(set(found)) == 6


def test_what_it_is_given(monkeypatch: pytest.MonkeyPatch, work: Path, optimised: None):
    """No more than its flags, no shell, and nothing that makes something else of them."""
    monkeypatch.setenv("CPATH", "/elsewhere")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    found = use(monkeypatch, work.parent, 'printf "%s\\n" "$@" "$CPATH" "$LC_ALL" "$TMPDIR" "$(cat source.cpp)" > library.so\n')
    told = compiler.compiled(found, "$(touch x) `touch x` µ", work).decode().splitlines()
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-g0", "-fPIC", "-shared", "-fvisibility=hidden", "-I", str(compiler.headers())]
    assert told == [*flags, "source.cpp", "-o", "library.so", "", "C", str(work), "$(touch x) `touch x` µ"]
    assert {path.name for path in work.iterdir()} == {"source.cpp", "library.so"}


FAILING = {
    "failed with exit code 3; its last lines:\nline 9\n.*\nline 20$": "for i in $(seq 20); do echo line $i >&2; done; exit 3",
    "was ended by signal 9 and printed nothing$": "kill -9 $$",
    "failed with exit code 1 and printed nothing$": "exit 1",
    "ended without an error and made nothing$": "exit 0",
}


@pytest.mark.parametrize("message", FAILING)
def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, work: Path, message: str):
    found = use(monkeypatch, work.parent, FAILING[message])
    with pytest.raises(CannotCompile, match=f"(?s)^{found.command[0]} {message}"):
        compiler.compiled(found, "", work)


def test_a_compiler_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, work: Path):
    found = use(monkeypatch, work.parent)
    Path(found.command[0]).write_bytes(b"#!/nowhere/shell\n")
    with pytest.raises(CannotCompile, match="compiler cannot be started: No such file"):
        compiler.compiled(found, "", work)


def test_an_error_in_the_text_is_told_in_the_compilers_words(work: Path):
    with pytest.raises(CannotCompile, match=r"(?s)failed with exit code 1; its last lines:\n.*error.*nonsense"):
        compiler.compiled(compiler.find(), "nonsense;", work)


SLEEPING = "sleep 60 &\necho $! > started\nwait\n"


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch, work: Path):
    monkeypatch.setattr(compiler, "SECONDS", 1.0)
    found = use(monkeypatch, work.parent, SLEEPING)
    with pytest.raises(CannotCompile, match="took more than 1 seconds, and was ended"):
        compiler.compiled(found, "", work)
    ended(number(work / "started"))


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_it_and_passes_on(monkeypatch: pytest.MonkeyPatch, work: Path):
    found = use(monkeypatch, work.parent, SLEEPING)
    interrupted = threading.Thread(target=lambda: (number(work / "started"), os.kill(os.getpid(), signal.SIGINT)))
    interrupted.start()
    with pytest.raises(KeyboardInterrupt):
        compiler.compiled(found, "", work)
    interrupted.join()
    ended(number(work / "started"))


def test_its_version_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = use(monkeypatch, tmp_path, 'echo "$1 5.0"; echo more')
    assert compiler.describe(found) == f"{found.command[0]} (--version 5.0)"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_it_is_started_ends_it_too(monkeypatch: pytest.MonkeyPatch, work: Path):
    class Interrupted(subprocess.Popen):
        def __init__(self, *given, **named) -> None:
            super().__init__(*given, **named)
            number(work / "started")
            os.kill(os.getpid(), signal.SIGINT)

    found = use(monkeypatch, work.parent, SLEEPING)
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiler.compiled(found, "", work)
    ended(number(work / "started"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_as_before_where_nothing_was_started(work: Path):
    with pytest.raises(ValueError, match="null byte"):
        compiler.compiled(Compiler(("nothing\0",), ()), "", work)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
