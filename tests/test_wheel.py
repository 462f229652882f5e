"""The wheel, installed outside the source tree where no compiler is.

SSTKERN_WHEEL names one that is made already (`make wheel`). Without it one is made of what `make build` has compiled.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HAS_ALL = """
import torch, sstkern, warnings
from sstkern import engines
assert sstkern.__file__.startswith({place!r}), sstkern.__file__
lstm, reference = sstkern.LSTM(5, 7), torch.nn.LSTM(5, 7)
reference.load_state_dict(lstm.state_dict())
x = torch.randn(4, 3, 5)
with sstkern.backend("cpu"):
    output = lstm(x)[0]
torch.testing.assert_close(output, reference(x)[0])
output.square().sum().backward()
reference(x)[0].square().sum().backward()
for ours, right in zip(lstm.parameters(), reference.parameters(), strict=True):
    torch.testing.assert_close(ours.grad, right.grad)
runs = engines.cpu_runs()
assert (runs["forward"], runs["backward"]) == (1, 1), runs
print("layers run")
"""
OWN_CELL = """
import sys, torch, sstkern, warnings
warnings.simplefilter("always")
cell = torch.nn.GRUCell(5, 7)
layer, x = sstkern.fuse(cell), torch.randn(4, 3, 5)
output, h = layer(x)
expected = torch.zeros(3, 7)
for row in x:
    expected = cell(row, expected)
torch.testing.assert_close(h, expected)
output.sum().backward()
print(sstkern.engines.cpu_runs()["forward"], "calls of the engine")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("SSTKERN_WHEEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder, "build", "--build-lib", folder / "lib"]
    environ = os.environ | {"SSTKERN_NO_EXTENSION": "1"}  # nothing is compiled again: that takes minutes
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    shutil.copy(ROOT / "sstkern" / "_cpu.so", folder / "lib" / "sstkern")
    command += ["bdist_wheel", "--bdist-dir", folder / "bdist", "--dist-dir", folder]
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, that sees the packages of this one but for the source tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(command, check=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    (site,) = (folder / "venv" / "lib").glob("*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(folder: Path, *command: str, **variables: str) -> str:
    """What it printed, on both streams. No program is on its PATH but the environment's."""
    inside = folder / "venv" / "bin"
    environ = {"PATH": str(inside), "HOME": str(folder), "SSTKERN_CACHE": str(folder / "cells"), "OMP_NUM_THREADS": "1", **variables}
    words = [str(inside / command[0]), *command[1:]]
    done = subprocess.run(words, cwd=folder, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_has_what_it_needs_and_no_more(wheel: Path):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if not name.endswith("/")}
    information = {name for name in names if ".dist-info/" in name}
    headers = {f"sstkern/kernels/{path.relative_to(ROOT / 'csrc' / 'kernels')}" for path in ROOT.glob("csrc/kernels/**/*.h")}
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "sstkern").rglob("*.py")}
    others = {"sstkern_command.py", "sstkern/_build_info.json", "sstkern/py.typed", "sstkern/text/study/report.md.jinja"}
    assert names - information == {"sstkern/_cpu.so"} | headers | python | others
    assert {name.partition("/")[2] for name in information} >= {"METADATA", "WHEEL", "licenses/LICENSE", "entry_points.txt"}
    assert wheel.stat().st_size < 3e6  # 1.2 on x86-64


def test_layers_run_without_a_compiler(installed: Path):
    assert run(installed, "python", "-c", HAS_ALL.format(place=str(installed))) == "layers run\n"


def test_without_a_compiler_own_cells_run_in_plain_pytorch_and_say_so(installed: Path):
    told = run(installed, "python", "-c", OWN_CELL)
    assert "sstkern runs GRUCell" in told
    assert "in plain PyTorch, which is slow: no C++ compiler: none of c++, g++, clang++ is on PATH; install one" in told
    assert told.endswith("0 calls of the engine\n")


def test_with_a_compiler_own_cells_find_the_headers(installed: Path):
    told = run(installed, "python", "-c", OWN_CELL, PATH=os.environ["PATH"])
    assert told == "1 calls of the engine\n"


def test_the_command_runs(installed: Path):
    pytest.importorskip("typer")
    told = run(installed, "sstkern", "doctor")
    assert re.search(r"C\+\+ extension\W+built\b", told)
    assert "no C++ compiler: none of c++, g++, clang++ is on PATH" in told
