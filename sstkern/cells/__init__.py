"""The cells: what each of them is, by the name under which the operators know it."""

from collections.abc import Mapping
from types import MappingProxyType

from sstkern.cells.cell import PROJECTION, RECURRENT, Cell, Stage, Weight
from sstkern.cells.gru import GRU
from sstkern.cells.lstm import LSTM
from sstkern.cells.rnn import RNN_RELU, RNN_TANH

_registered: dict[str, Cell] = {}
CELLS: Mapping[str, Cell] = MappingProxyType(_registered)
"""Every registered cell by its name: this library's and those that `register` added."""


def register(cell: Cell) -> Cell:
    """Adds a cell to `CELLS`, and returns it. Raises ValueError where another definition has its name."""
    if _registered.setdefault(cell.name, cell) != cell:
        raise ValueError(
            f"cell: '{cell.name}' is the name of another cell, which only a new process can replace; there are {', '.join(CELLS)}"
        )
    return cell


for _cell in (LSTM, GRU, RNN_TANH, RNN_RELU):
    register(_cell)

__all__ = ["CELLS", "PROJECTION", "RECURRENT", "Cell", "Stage", "Weight", "register"]
