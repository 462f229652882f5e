"""Each cell's step and its derivative, on tiles of (units, rows)."""

from functools import cache
from importlib import import_module
from typing import NamedTuple

from triton.runtime.jit import JITFunction

from sstkern.cells import CELLS, Cell


class Kernels(NamedTuple):
    """A cell, for the time loop."""

    step: JITFunction
    derivative: JITFunction
    gates: int
    states: int
    saves: int
    """Tiles of H that `step` saves for `derivative`."""
    same_gate_gradients: bool = True


@cache
def kernels(name: str) -> Kernels:
    """The kernels that the registered cell `name` says it has. Raises ValueError where it has none."""
    if problem := lacks(CELLS[name]):
        raise ValueError(f"triton: {problem}")
    return _of(CELLS[name])


def lacks(cell: Cell) -> str | None:
    """Why the GPU engine cannot run the cell, or None."""
    if cell.triton is None:
        return f"it has no kernel for the cell '{cell.name}'"
    found = _of(cell)
    if found is None:
        return f"{cell.triton} has no kernel for the cell '{cell.name}'"
    if cell.parameters:
        return f"its kernels take no parameters of a cell's own, and '{cell.name}' has some"
    if (found.gates, found.states, found.same_gate_gradients) != (len(cell.gates), len(cell.states), cell.same_gate_gradients):
        return f"its kernel of '{cell.name}' is another cell's: {found.gates} gates, {found.states} states"
    return None


def _of(cell: Cell) -> Kernels | None:
    return import_module(cell.triton).KERNELS.get(cell.name)
