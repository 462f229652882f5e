"""What setup.py would build, without building it."""

import importlib.util
import json
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from setuptools import Distribution
from torch.utils.cpp_extension import BuildExtension

ROOT = Path(__file__).parent.parent
LEVELS = ["avx2", "avx512", "avx512_bf16", "baseline"] if platform.machine() == "x86_64" else ["baseline"]

ARGUMENTS: dict = {}
"""Of the call of setup()."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, its call of setup() left out."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", ARGUMENTS.update)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # setup.py adds to it where there is no torch
    spec = importlib.util.spec_from_file_location("sstkern_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_extension_is_built_where_torch_is(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SSTKERN_NO_EXTENSION", raising=False)
    (extension,) = script.arguments()["ext_modules"]
    assert extension.name == "sstkern._cpu"
    driver = {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.cpp")}
    units = {f"build/units/{header}_{level}.cpp" for header in ("products", "lstm", "gru", "rnn") for level in LEVELS}
    assert driver | units == set(extension.sources)
    assert len(extension.sources) == len(driver | units)
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.h")} == set(extension.depends)
    assert "-fopenmp" not in extension.extra_link_args
    # Nothing of PyTorch's C++ library, and what 2.11 has of its C functions.
    assert extension.libraries == ["torch_cpu"]
    assert extension.define_macros == [("TORCH_TARGET_VERSION", "0x20b000000000000")]


def test_one_file_and_one_wheel_are_for_every_python(script: ModuleType):
    commands = script.extension_arguments()["cmdclass"]
    build = commands["build_ext"](Distribution())
    assert build.get_ext_filename("sstkern._cpu") == str(Path("sstkern", "_cpu.so"))
    wheel = commands["bdist_wheel"](Distribution({"name": "sstkern", "ext_modules": script.extension_arguments()["ext_modules"]}))
    wheel.ensure_finalized()
    python, abi, platform_tag = wheel.get_tag()
    assert (python, abi) == ("py3", "none")
    assert platform_tag != "any"


COMPILERS = {"gcc": "", "clang": "echo '#define __clang__ 1'", "without": "exit 1"}


@pytest.mark.parametrize(("compiler", "openmp"), [("gcc", True), ("clang", False), ("without", False)])
def test_only_the_openmp_that_is_torchs_is_used(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, openmp: bool
):
    (tmp_path / "c++").write_text(f"#!/bin/sh\necho '#define _OPENMP 201511'\n{COMPILERS[compiler]}\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.delenv("SSTKERN_NO_OPENMP", raising=False)
    monkeypatch.setenv("CXX", f"env {tmp_path / 'c++'}")
    assert script.has_torchs_openmp() == openmp
    (extension,) = script.extension_arguments()["ext_modules"]
    assert ("-fopenmp" in extension.extra_compile_args) == openmp
    monkeypatch.setenv("SSTKERN_NO_OPENMP", "1")
    assert not script.has_torchs_openmp()
    monkeypatch.delenv("SSTKERN_NO_OPENMP")
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert not script.has_torchs_openmp()


@pytest.mark.parametrize("sanitizer", ["", "thread"])
def test_the_build_notes_openmp_and_sanitizers(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sanitizer: str):
    monkeypatch.setenv("SSTKERN_SANITIZE", sanitizer)
    monkeypatch.setattr(BuildExtension, "run", lambda self: None)
    build = script.extension_arguments()["cmdclass"]["build_ext"](Distribution())
    build.inplace, build.build_lib = False, str(tmp_path)
    (tmp_path / "sstkern").mkdir()
    build.run()
    found = json.loads((tmp_path / "sstkern" / "_build_info.json").read_text())
    assert found == {"flags": script.sanitizer_flags(), "openmp": script.has_torchs_openmp()}
    assert ("-fsanitize=thread" in found["flags"]) == bool(sanitizer)


def test_an_extension_with_sanitizers_never_replaces_the_one_in_use(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSTKERN_SANITIZE", "address")
    monkeypatch.setattr(BuildExtension, "run", lambda self: pytest.fail("it was built"))
    build = script.extension_arguments()["cmdclass"]["build_ext"](Distribution())
    build.inplace = True
    with pytest.raises(SystemExit, match="SSTKERN_SANITIZE the extension in use is not replaced; give --build-lib instead of --inplace"):
        build.run()
    monkeypatch.setenv("SSTKERN_SANITIZE", "memory")
    with pytest.raises(SystemExit, match="SSTKERN_SANITIZE is 'memory'; allowed are address, thread, or nothing"):
        script.extension_arguments()


def test_nothing_is_built_without_torch(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.delenv("SSTKERN_NO_EXTENSION", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not script.has_torch()
    assert script.arguments() == {}
    assert "torch is not installed here, so the CPU engine is not built; install torch, then sstkern again" in capsys.readouterr().err


def test_nothing_is_built_where_that_is_asked_for(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("SSTKERN_NO_EXTENSION", "1")
    assert script.arguments() == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("system", "built"), [("Linux", True), ("Darwin", True), ("Windows", False)])
def test_a_system_without_the_engine_is_told_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, system: str, built: bool
):
    monkeypatch.delenv("SSTKERN_NO_EXTENSION", raising=False)
    monkeypatch.setattr(platform, "system", lambda: system)
    assert bool(script.arguments()) == built
    message = "" if built else "sstkern: not built on Windows yet: the reference engine runs, in plain PyTorch\n"
    assert capsys.readouterr().err == message


def test_a_cell_is_a_header_and_what_has_not_changed_is_not_compiled_again(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    monkeypatch.chdir(tmp_path)
    before = script.write_units(tmp_path / "units")
    times = {path: Path(path).stat().st_mtime_ns for path in before}
    (tmp_path / "csrc" / "kernels" / "cells" / "another.h").write_text("")
    after = script.write_units(tmp_path / "units")
    assert {Path(path).name for path in set(after) - set(before)} == {f"another_{level}.cpp" for level in LEVELS}
    text = '#include "levels/baseline.h"\n#include "cells/another.h"\n#include "levels/end.h"\n'
    assert (tmp_path / "units" / "another_baseline.cpp").read_text() == text
    assert times == {path: Path(path).stat().st_mtime_ns for path in before}


def test_two_headers_with_one_name_are_refused(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The second would end every process that loads the extension."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    monkeypatch.chdir(tmp_path)
    cells = tmp_path / "csrc" / "kernels" / "cells"
    shutil.copy(cells / "lstm.h", cells / "mine.h")
    with pytest.raises(SystemExit, match=r"the cell 'lstm' stands in .*lstm\.h and in .*mine\.h; give one of them another name"):
        script.write_units(tmp_path / "units")
    (cells / "mine.h").write_text("")
    script.write_units(tmp_path / "units")
    (cells / "mine.h").unlink()
    script.write_units(tmp_path / "units")
    assert not list((tmp_path / "units").glob("mine*"))


@pytest.mark.usefixtures("script")
def test_the_package_has_the_kernels_headers(tmp_path: Path):
    parts = {name: ARGUMENTS[name] for name in ("packages", "package_dir", "package_data")}
    build = Distribution(parts | {"script_name": "setup.py"}).get_command_obj("build_py")
    build.build_lib, build.compile = str(tmp_path), False
    build.ensure_finalized()
    build.run()
    found = {path.relative_to(tmp_path / "sstkern" / "kernels"): path.read_text() for path in tmp_path.rglob("*.h")}
    assert found == {path.relative_to(ROOT / "csrc" / "kernels"): path.read_text() for path in ROOT.glob("csrc/kernels/**/*.h")}
    assert Path("levels", "baseline.h") in found
    assert (tmp_path / "sstkern" / "program" / "compiler.py").is_file()
