"""What a compiled loop keeps on the stack because it has no registers for it: vectors are to be computed side by side, not put aside."""

import platform
import re
import subprocess

import pytest
import torch
from programs import captured

from sstkern.engines import interpreting
from sstkern.program import compiler, engine
from sstkern.program.cpp import code
from sstkern.program.derive import derive
from sstkern.program.lower import lowered

pytestmark = [
    pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads the assembly of x86"),
    pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs instead of the C++ engine"),
]
CELLS = ["LSTMCell", "GRUCell", "ChoGRU", "SLSTM", "KerasLSTM", "NASCell", "LEMCell", "WMCLSTMCell"]
LEVEL = "avx2"
"""Compiled for, not run: 16 registers are the fewest."""
MOST = 4.5
"""Accesses for each vector of each value that the text names; measured were 0.2 to 3.8. A sigmoid or tanh is one value and needs some 20
registers for two vectors and its coefficients: most of these accesses are the latter's. Of one, two or four vectors side by side none was
the fastest for all of these cells; they were mostly within 8% of each other."""
_ON_THE_STACK = re.compile(r"\s+v\w+\s.*\(%r[sb]p\).*%ymm|\s+v\w+\s.*%ymm.*\(%r[sb]p\)")


def texts(name: str) -> tuple[str, str]:
    """Of a training step: forward and backward."""
    program, leaves = captured(name, 64, 64, torch.float32)
    derivative = derive(program, leaves)
    backward, of_backward = derivative.backward, engine.leaves_of_backward(program, leaves, derivative)
    sums = tuple(engine.wanted_sum(derivative, part) for part in derivative.sums)
    outputs = tuple(backward.outputs[place] for place in derivative.inputs if place is not None)
    return (
        code(lowered(program, leaves, (*program.outputs, *derivative.kept))).text,
        code(lowered(backward, of_backward, outputs, sums)).text,
    )


def accesses(text: str) -> dict[int, int]:
    """Of vectors on the stack, by the number of the loop: in the function for whole vectors and in that for the last ones."""
    source = f'#include "levels/{LEVEL}.h"\n{text}#include "levels/end.h"\n'
    command = [
        *compiler.find().command,
        "-std=c++17",
        "-O3",
        "-g0",
        "-fPIC",
        "-S",
        "-I",
        str(compiler.headers()),
        "-x",
        "c++",
        "-",
        "-o",
        "-",
    ]
    assembly = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    found: dict[int, int] = {}
    loop = None
    for line in assembly.split("\n"):
        if label := re.match(r"([^.\s]\S*):", line):
            of_loop = re.search(r"loop_(\d+)", label[1])
            loop = int(of_loop[1]) if of_loop else None
        elif loop is not None:
            found[loop] = found.get(loop, 0) + bool(_ON_THE_STACK.match(line))
    return found


@pytest.mark.parametrize("name", CELLS)
def test_few_vectors_are_put_aside(name: str):
    for direction, text in zip(("forward", "backward"), texts(name), strict=True):
        found = accesses(text)
        bodies = re.split(r"constexpr int kTogether_\d+ = ", text)[1:]
        assert sorted(found) == [*range(len(bodies))]
        for loop, body in enumerate(bodies):
            values = body.count("const auto")
            together = _together(int(re.match(r"vectors_together\((\d+)\)", body)[1]))
            share = found[loop] / max(1, 2 * together * values)
            print(
                f"{name:12} {direction:8} loop {loop}: {together} vectors of {values:2} values, {found[loop]:3} accesses, {share:.2f} each"
            )
            assert share < MOST or found[loop] < 16


def _together(alive: int) -> int:
    """As csrc/kernels/units.h has it for 16 registers."""
    return 4 if alive <= 8 else 2 if alive <= 16 else 1
