"""Fused recurrent layers for PyTorch: any cell by `fuse`, and torch.nn's LSTM, GRU and RNN, with lengths and resets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sstkern import functional, operators, renamed
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
    "operators",
    "stack",
]


def load(path: str | Path) -> TextClassifier:
    """Deprecated: `sstkern.text.load_classifier`."""
    from sstkern.text import load_classifier

    renamed.warn("sstkern.load", "sstkern.text.load_classifier")
    return load_classifier(path)
