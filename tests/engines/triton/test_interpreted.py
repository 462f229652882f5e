"""Runs the tests that need Triton's interpreter, each file in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
FILES = {
    "layer": ["engines/triton/test_layer.py"],
    "math": ["engines/triton/test_math.py", "engines/triton/test_functions.py"],
    # Two processes for the two cores that a machine has at least.
    "own cells, resident": ["engines/triton/test_programs.py", "-k", "not stepwise"],
    "random cells": ["test_random_cells.py", "-k", "loop"],
    "own cells, stepwise": ["engines/triton/test_programs.py", "-k", "stepwise"],
    # The C++ engine's own tests, on these kernels: those that run them a few times, and not in bfloat16, whose products the interpreter
    # gets wrong.
    "operators": [
        "test_operators.py",
        "-k",
        "refused or checks or only_the or in_place or strided or compiled or ((opcheck or groups) and gru and dtype0)",
    ],
    "transforms": ["test_transforms.py", "-k", "(GRU or LSTM) and (each_sample or learning or penalty)"],
    "recompute": ["test_recompute.py", "-k", "keep_their_bits and GRU and dtype1 and True-lengths"],
}


@pytest.mark.parametrize("name", FILES)
def test_under_the_interpreter(name):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *FILES[name]]
    run = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout
