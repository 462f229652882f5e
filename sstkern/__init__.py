"""Fused recurrent layers for PyTorch: any cell by `fuse`, and torch.nn's LSTM, GRU and RNN, with lengths and resets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sstkern import functional, operators
from sstkern.conversion import convert
from sstkern.engines import backend
from sstkern.fuse import fuse
from sstkern.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from sstkern.stack import stack

if TYPE_CHECKING:
    from sstkern.text.checkpoint import TextClassifier

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
    "fuse",
    "load",
    "operators",
    "stack",
]


def load(path: str | Path) -> TextClassifier:
    """The trained classifier that `sstkern train` left in the folder `path`. Needs the [train] extra."""
    from sstkern.text.checkpoint import load_model

    return load_model(path)
