"""A cell of somebody's own by its name on the command line, "module:Class"."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import nn

from sstkern.cells import CELLS
from sstkern.fuse import fuse


def own_cell(name: str, input_size: int, hidden_size: int) -> nn.Module:
    """The cell that Class(input_size, hidden_size) makes. ValueError for a name that leads to none."""
    make = _own_class(name)
    try:
        cell = make(input_size, hidden_size)
        fuse(cell)  # which refuses what is no cell
    except TypeError as error:
        raise ValueError(f"cell: {name}({input_size}, {hidden_size}) makes no cell: {error}") from error
    return cell


def _own_class(name: str) -> Any:
    module, _, kind = name.partition(":")
    if not module or not kind:
        raise ValueError(f"cell: '{name}' is unknown; there are {', '.join(CELLS)}, or module:Class for one of your own")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the folder one is in, as for `python -m`
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise ValueError(f"cell: {module} cannot be imported: {error}") from error
    except AttributeError:
        raise ValueError(f"cell: the module {module} has no {kind}") from None
