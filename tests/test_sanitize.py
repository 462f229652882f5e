"""The engine under sanitizers: what `make sanitize` runs turns red where code that it compiled is wrong."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import sanitize

from sstkern.engines import interpreting

HERE = Path(__file__).parent
UNIT = '#include "levels/baseline.h"\n#include "peephole_lstm.h"\n#include "levels/end.h"\n'
CALLS = """
import dataclasses, sys, torch, sstkern
from own_cells import PEEPHOLE
from sstkern import cells, engines

class Layer(sstkern.modules.Recurrent):
    cell = dataclasses.replace(PEEPHOLE, name="peephole_lstm")

engines.cpu.load_cells(sys.argv[1])
cells.register(Layer.cell)
with sstkern.backend("cpu"):
    Layer(4, int(sys.argv[2]))(torch.ones(3, 2, 4), lengths=[3, 0])[0].sum().backward()
"""
COMPILER = os.environ.get("CXX", "c++")


def flags(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What setup.py compiles with for AddressSanitizer, but without gaps: the extension of this process has none."""
    monkeypatch.setenv("SSTKERN_SANITIZE", "address")
    monkeypatch.setenv("SSTKERN_NO_EXTENSION", "1")
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.chdir(HERE.parent)
    return [flag for flag in runpy.run_path("setup.py")["sanitizer_flags"]() if flag != "-DSSTKERN_GAPS"]


@pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs instead of the C++ engine")
@pytest.mark.skipif(not sanitize.library("libasan.so"), reason=f"{COMPILER} has no libasan.so")
def test_an_overrun_of_one_float_turns_it_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cell's kernels whose vectors are stored with one float too many where they are cut off, at the last unit of a row."""
    kernels = shutil.copytree(HERE.parent / "csrc" / "kernels", tmp_path / "kernels")
    right, wrong = ": store_pieces(to, v, count)", ": store_pieces(to, v, count + 1)"
    text = (kernels / "vec.h").read_text()
    assert text.count(right) == 1
    (kernels / "vec.h").write_text(text.replace(right, wrong))
    (tmp_path / "unit.cpp").write_text(UNIT)
    options = ["-std=c++17", "-shared", "-fPIC", "-DSSTKERN_CELL_LIBRARY", *flags(monkeypatch)]
    folders = [f"-I{kernels}", f"-I{HERE / 'engines' / 'cells'}"]
    subprocess.run([COMPILER, *options, *folders, "unit.cpp", "-o", "cells.so"], cwd=tmp_path, check=True, timeout=300)
    path = {"PYTHONPATH": f"{HERE}:{HERE.parent}"}

    def found(hidden_size: int) -> list[str]:
        run = sanitize.Run("calls", ["-c", CALLS, str(tmp_path / "cells.so"), str(hidden_size)], path)
        return sanitize.found_in("address", tmp_path, [run])

    assert found(8) == []  # whole vectors
    failed, reported = found(9)
    assert failed == "calls failed"
    report = Path(reported.removeprefix("reported in ")).read_text()
    assert "heap-buffer-overflow" in report
    assert "WRITE of size 8" in report  # two lanes at once
    assert "vec.h" in report
