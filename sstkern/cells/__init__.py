"""The cells, by the name under which the operators know them."""

from sstkern.cells.cell import Cell
from sstkern.cells.gru import GRU
from sstkern.cells.lstm import LSTM
from sstkern.cells.rnn import RNN_RELU, RNN_TANH

CELLS: dict[str, Cell] = {cell.name: cell for cell in (LSTM, GRU, RNN_TANH, RNN_RELU)}

__all__ = ["CELLS", "Cell"]
