"""Cells by their names on the command line: "module:Class" for somebody's own, or that of one of the library."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor, nn

from sstkern.cells import CELLS, LIBRARY, AUGRUCell
from sstkern.fuse import fuse


def own_cell(name: str, input_size: int, hidden_size: int) -> nn.Module:
    """The cell that Class(input_size, hidden_size) makes, or one of the library's, by its name. ValueError for a name that leads to none.

    The library's take one input each: of AUGRU's two see `Scored`.
    """
    make = LIBRARY.get(name) or _own_class(name)
    try:
        cell = make(input_size, hidden_size)
        fuse(cell)  # which refuses what is no cell
    except TypeError as error:
        raise ValueError(f"cell: {name}({input_size}, {hidden_size}) makes no cell: {error}") from error
    return Scored(cell) if isinstance(cell, AUGRUCell) else cell


class Scored(nn.Module):
    """A cell of (x, score), for what has x only: the score is the sigmoid of its first feature."""

    def __init__(self, step: AUGRUCell):
        super().__init__()
        self.step, self.input_size, self.hidden_size = step, step.input_size, step.hidden_size

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step((x, torch.sigmoid(x[:, 0])), h)


def _own_class(name: str) -> Any:
    module, _, kind = name.partition(":")
    if not module or not kind:
        raise ValueError(f"cell: '{name}' is unknown; there are {', '.join([*CELLS, *LIBRARY])}, or module:Class for one of your own")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the folder one is in, as for `python -m`
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise ValueError(f"cell: {module} cannot be imported: {error}") from error
    except AttributeError:
        raise ValueError(f"cell: the module {module} has no {kind}") from None
