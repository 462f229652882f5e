"""The report on an installation."""

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sstkern
from sstkern import doctor, engines
from sstkern.engines import cpu
from sstkern.engines.triton import device
from sstkern.engines.triton.launch import Card


@pytest.fixture
def look_again() -> Iterator[None]:
    """Makes the engines look for the extension anew, during the test and after it."""
    cpu.load.cache_clear()
    yield
    cpu.load.cache_clear()


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SSTKERN_CACHE", str(tmp_path / "cache"))


def test_a_complete_installation():
    report = dict(doctor.report())
    assert report["python"] == platform.python_version()
    assert report["torch"] == torch.__version__
    assert report["C++ extension"] == "built"
    assert report["instruction set"].split(",")[0] == torch.ops.sstkern.cpu_capability()
    assert ("and avx2 for" in report["instruction set"]) == (torch.ops.sstkern.cpu_level_for(torch.float32, 8, 0) != engines.cpu.level())
    assert report["threads"].startswith(f"{torch.get_num_threads()} ")
    assert report["GPU engine"] == (engines.triton_problem() or "ready")
    assert report["training"] == "ready"


def test_what_fused_cells_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\necho "a compiler 1.0"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert dict(doctor.report())["fused cells"] == f"compiled with {compiler} (a compiler 1.0), kept in {tmp_path / 'cache'}"
    for name, value, reason in (
        ("CXX", "nothing", "no C++ compiler: CXX='nothing' names no program that can be run"),
        ("CXX", "false", "/false failed with exit code 1"),
        ("SSTKERN_CACHE", f"{compiler}/below", f"{compiler}/below cannot be used: "),
        ("SSTKERN_COMPILE", "0", "SSTKERN_COMPILE=0 turns compiling off"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            told = dict(doctor.report())["fused cells"]
            assert told.startswith("plain PyTorch: ")
            assert reason in told


def test_a_gpu_s_schedules(monkeypatch: pytest.MonkeyPatch):
    small = device.Device(Card(multiprocessors=20, shared_memory=101376), "cuda", print, lambda: True)
    monkeypatch.setattr(doctor, "triton_problem", lambda: None)
    monkeypatch.setattr(device, "of", lambda place: small)
    picked = "64 grid, 128 grid, 256 streamed, 512 stepwise, 1024 stepwise, 2048 stepwise"
    assert dict(doctor.report())["GPU schedules"] == f"LSTM, bfloat16, 64 sequences, by hidden_size: {picked}"


@pytest.mark.usefixtures("look_again")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LIBRARY", Path("none"), "its C++ extension is not built; build it with 'pip install"),
        ("OLDEST_TORCH", (9, 1), f"its C++ extension needs torch 9.1 or newer, and this is torch {torch.__version__}"),
    ],
    ids=["not built", "torch is too old"],
)
def test_without_the_extension(name: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, name, value)
    report = dict(doctor.report())
    assert message in report["C++ extension"]
    assert report["instruction set"] == "none: needs the C++ extension"
    assert report["fused cells"] == "plain PyTorch: the CPU kernels need the C++ extension"


def test_what_an_extra_lacks_is_named(monkeypatch: pytest.MonkeyPatch):
    find_spec, lacking = importlib.util.find_spec, ("pooch", "rich", "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in lacking else find_spec(name, *rest))
    report = dict(doctor.report())
    assert report["training"] == "lacks pooch, rich; get them with 'pip install \"sstkern[train]\"'"
    assert report["benchmarks"] == "lacks openvino, rich; get them with 'pip install \"sstkern[bench]\"'"


def test_a_missing_package_says_how_to_get_it():
    assert doctor.installed_version("no-such-package") is None
    assert doctor.version_or_advice("no-such-package") == "not installed; get it with 'pip install no-such-package'"


def test_the_doctor_sees_a_package_that_is_there_and_broken(tmp_path: Path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("raise AttributeError('made for another numpy')")
    ran = subprocess.run(
        [sys.executable, "-m", "sstkern", "doctor"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(sstkern.__file__).parents[1]}"},
    )
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("training: "))
    assert line.startswith("training: cannot be imported: AttributeError: made for another numpy; get them with")
