"""The cells of `sstkern.cells` at tiny sizes, with layers of them that the tests share: a program is compiled once."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import sstkern
from sstkern.cells import LIBRARY, LibraryCell
from sstkern.structure import Structure, mapped

INPUT, HIDDEN = 3, 4
OPTIONS = {"slstm": {"heads": 2}, "cfc": {"backbone_size": 5}, "recurrent_highway": {"depth": 2}}
"""Options that keep a cell tiny."""


def made(name: str, **options: Any) -> LibraryCell:
    """A cell in float64 and evaluation mode, with no parameter at a special value such as 0."""
    torch.manual_seed(0)
    cell = LIBRARY[name](INPUT, HIDDEN, **(OPTIONS.get(name, {}) | options)).double().eval()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return cell


@cache
def layer_of(name: str) -> nn.Module:
    return sstkern.fuse(made(name))


def drawn(name: str, steps: int, batch: int) -> tuple[Any, Structure]:
    """Random input and first state, which want gradients. AUGRU's input has a score, CfC's the time since the step before."""
    x: Any = torch.randn(steps, batch, INPUT, dtype=torch.float64).requires_grad_()
    if name in ("augru", "cfc"):
        x = x, torch.rand(steps, batch, dtype=torch.float64).requires_grad_()
    state = made(name).get_initial_state(batch)
    return x, mapped(state, lambda zeros: (torch.rand_like(zeros) + 0.1).requires_grad_())  # sLSTM's n is above 0


def stepped(cell: nn.Module, x: Any, state: Structure) -> tuple[Tensor, Structure]:
    """The cell in a Python loop: the outputs (T, B, H), and the last state."""
    outputs = []
    for t in range(len(x[0] if isinstance(x, tuple) else x)):
        state = cell(mapped(x, lambda part, t=t: part[t]), state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), state
