"""A user's type checker knows what our layers take and give."""

import os
import subprocess
import sys
from pathlib import Path

USE = """
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing import assert_type

import sstkern

x = torch.zeros(5, 3, 4)
output, (h, c) = sstkern.LSTM(4, 6).forward(x, lengths=[5, 0, 2])
assert_type(output, Tensor | PackedSequence)
assert_type(c, Tensor)
assert_type(sstkern.GRUCell(4, 6).forward(x[0]), Tensor)
assert_type(sstkern.functional.gru(x, []), tuple[Tensor | PackedSequence, Tensor])
assert_type(sstkern.convert(torch.nn.Linear(2, 2)), torch.nn.Linear)
with sstkern.backend("cpu"):
    pass
"""
WRONG = {
    "sstkern.convert(3)": 'Value of type variable "Module" of "convert" cannot be "int"',
    "sstkern.LSTM(4, 6).forward(3)": 'has incompatible type "int"; expected "Tensor | PackedSequence"',
    'sstkern.functional.gru(x, [], bidirectional="no")': 'has incompatible type "str"; expected "bool"',
    'sstkern.convert(torch.nn.Linear(2, 2), to="jax")': "has incompatible type",
}


def test_what_is_right_and_what_is_wrong(tmp_path: Path):
    (tmp_path / "use.py").write_text(USE + "\n".join(WRONG))
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--follow-imports", "silent", "--cache-dir", str(tmp_path), "use.py"]
    environment = os.environ | {"MYPYPATH": str(Path(__file__).parents[1])}
    told = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    ).stdout.splitlines()
    errors = {int(line.split(":")[1]): line for line in told if ": error: " in line}
    first = USE.count("\n") + 1
    assert list(errors) == list(range(first, first + len(WRONG))), told
    for line, message in zip(errors.values(), WRONG.values(), strict=True):
        assert message in line
