"""Each cell's step and its derivative, on tiles of (units, rows)."""

from functools import cache
from importlib import import_module
from typing import NamedTuple

from triton.runtime.jit import JITFunction

from sstkern.cells import CELLS


class Kernels(NamedTuple):
    """A cell, for the time loop."""

    step: JITFunction
    derivative: JITFunction
    saves: int
    """Tiles of H that `step` saves for `derivative`."""
    same_gate_gradients: bool


@cache
def kernels(name: str) -> Kernels:
    """Those that the registered cell `name` says it has."""
    cell = CELLS[name]
    if cell.triton is None:
        raise ValueError(f"cell: '{name}' has no Triton kernels")
    module = import_module(f"{__name__}.{cell.triton.module}")
    return Kernels(getattr(module, cell.triton.step), getattr(module, cell.triton.derivative), module.SAVES, cell.same_gate_gradients)
