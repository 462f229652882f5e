"""`import sstkern` costs little beside `import torch`, and what is not needed yet is not imported."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import sstkern
from sstkern import private

SECONDS = 0.6  # it takes 0.1 to 0.4, as busy as the machine is; with torch's compiler 1.7
SCRIPT = """
import json, sys, time
import torch
before, began = set(sys.modules), time.process_time()
import sstkern
seconds = time.process_time() - began
{use}
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""
OPTIONAL = ("sstkern.text", "sstkern.bench", "sstkern.cells.library", "sstkern.engines.triton")
STEP = """
for options in ({}, {"recompute": True}):
    layer = sstkern.LSTM(3, 4, **options)
    layer(torch.ones(5, 2, 3), lengths=[5, 0])[0].sum().backward()
with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), sstkern.backend("reference"):
    sstkern.convert(torch.nn.GRU(3, 4))(torch.ones(5, 2, 3))
"""


@cache
def imported(use: str, attempt: int = 0) -> tuple[float, list[str]]:
    """In a new process: the seconds that `import sstkern` takes after torch, and the modules it adds, with those that `use` adds."""
    command = [sys.executable, "-c", SCRIPT.format(use=use)]
    found = subprocess.run(command, cwd=Path(sstkern.__file__).parents[1], capture_output=True, text=True, check=True, timeout=300)
    return tuple(json.loads(found.stdout.splitlines()[-1]))


@pytest.mark.parametrize("use", ["", STEP], ids=["import", "first training step"])
def test_no_other_package_is_imported_nor_the_compiler(use: str):
    added = imported(use)[1]
    packages = {name.split(".")[0] for name in added}
    assert "sstkern" in packages
    assert packages - {"sstkern", "torch"} - sys.stdlib_module_names == set()
    assert [name for name in added if name.startswith(("torch._dynamo", "torch._inductor"))] == []


def test_optional_parts_wait_until_they_are_asked_for():
    parts = [name for name in imported("")[1] if name.startswith(OPTIONAL)]
    assert parts == []
    assert "sstkern.text.tsv" in imported("import sstkern.text")[1]


def test_it_takes_little_time():
    found = imported(""), imported("", 1), imported("", 2)
    assert min(seconds for seconds, _ in found) < SECONDS


def test_a_constant_is_marked_as_torch_marks_one():
    def marked_by_torch():
        pass

    def marked_by_us():
        pass

    torch.compiler.assume_constant_result(marked_by_torch)
    assert private.constant(marked_by_us) is marked_by_us
    assert vars(marked_by_us) == vars(marked_by_torch) != {}
