"""The cells: what each of them is, by the name under which the operators know it; and the library of cells from the literature.

`CELLS` has the definitions of the cells whose kernels are written by hand. The library's cells, `LayerNormLSTMCell` and the others whose
names end in Cell, are modules for `sstkern.fuse`; they are imported when one of them is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sstkern.cells.cell import PROJECTION, RECURRENT, Cell, Stage, Weight
from sstkern.cells.gru import GRU
from sstkern.cells.lstm import LSTM
from sstkern.cells.rnn import RNN_RELU, RNN_TANH

if TYPE_CHECKING:
    from sstkern.cells.library import (
        LIBRARY,
        AUGRUCell,
        CfCCell,
        ChoGRUCell,
        CoupledLSTMCell,
        DreamerGRUCell,
        IndRNNCell,
        LayerNormGRUCell,
        LayerNormLSTMCell,
        LibraryCell,
        LightGRUCell,
        MGUCell,
        MinGRUCell,
        MinLSTMCell,
        MultiplicativeLSTMCell,
        NASCell,
        PeepholeLSTMCell,
        RecurrentDropoutGRUCell,
        RecurrentDropoutLSTMCell,
        RecurrentHighwayCell,
        SLSTMCell,
        WeightDrop,
        ZoneoutGRUCell,
        ZoneoutLSTMCell,
    )

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


def __getattr__(name: str) -> Any:
    """The library's names."""
    if name in __all__:
        return getattr(importlib.import_module("sstkern.cells.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "CELLS",
    "LIBRARY",
    "PROJECTION",
    "RECURRENT",
    "AUGRUCell",
    "Cell",
    "CfCCell",
    "ChoGRUCell",
    "CoupledLSTMCell",
    "DreamerGRUCell",
    "IndRNNCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LibraryCell",
    "LightGRUCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "MultiplicativeLSTMCell",
    "NASCell",
    "PeepholeLSTMCell",
    "RecurrentDropoutGRUCell",
    "RecurrentDropoutLSTMCell",
    "RecurrentHighwayCell",
    "SLSTMCell",
    "Stage",
    "Weight",
    "WeightDrop",
    "ZoneoutGRUCell",
    "ZoneoutLSTMCell",
    "register",
]
