"""Fused recurrent layers for PyTorch: torch.nn's LSTM, GRU and RNN with the same numbers, faster, and with variable lengths."""

from sstkern import functional, operators
from sstkern.conversion import convert
from sstkern.engines import backend
from sstkern.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "backend",
    "convert",
    "functional",
    "load",
    "operators",
]


def load(path: str):
    """The trained classifier that `sstkern train` left in the folder `path`. Needs the [train] extra."""
    from sstkern.checkpoint import load_model

    return load_model(path)
