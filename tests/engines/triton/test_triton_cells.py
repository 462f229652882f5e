"""Which cells the GPU engine has, and that a definition and its kernels agree."""

import dataclasses

import pytest

from sstkern.cells import CELLS, Weight
from sstkern.engines.triton.cells import kernels, lacks

GRU = CELLS["gru"]


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.torch_mode])
def test_every_cell_of_the_library_has_kernels_of_its_own(name: str):
    cell, found = CELLS[name], kernels(name)
    assert lacks(cell) is None
    assert (found.gates, found.states, found.same_gate_gradients) == (len(cell.gates), len(cell.states), cell.same_gate_gradients)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"triton": None}, "it has no kernel for the cell 'gru'"),
        ({"name": "mine"}, "sstkern.engines.triton.cells.gru has no kernel for the cell 'mine'"),
        ({"parameters": (Weight("gain", ("H",)),)}, "its kernels take no parameters of a cell's own, and 'gru' has some"),
        ({"same_gate_gradients": True}, "its kernel of 'gru' is another cell's: 3 gates, 1 states"),
        ({"gates": ("r", "z")}, "its kernel of 'gru' is another cell's: 3 gates, 1 states"),
    ],
)
def test_kernels_that_are_not_the_cells_are_refused(change: dict, problem: str):
    assert lacks(dataclasses.replace(GRU, **change)) == problem
