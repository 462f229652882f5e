"""Cells that the library does not have, as one defines them."""

import torch
from torch import Tensor, nn

from sstkern.cells import Cell, Weight


def peephole_step(gates_x: Tensor, gates_h: Tensor, states: tuple, parameters: tuple) -> tuple[Tensor, Tensor]:
    weight_ci, weight_cf, weight_co = parameters
    i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
    before = states[1]
    c = torch.sigmoid(f + weight_cf * before) * before + torch.sigmoid(i + weight_ci * before) * torch.tanh(g)
    return torch.sigmoid(o + weight_co * c) * torch.tanh(c), c


PEEPHOLES = ("weight_ci", "weight_cf", "weight_co")
PEEPHOLE = Cell(
    name="own_peephole_lstm",
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    parameters=(
        Weight("weight_ci", ("H",)),
        Weight("weight_cf", ("H",)),
        Weight("weight_co", ("H",), lambda parameter, hidden_size: nn.init.constant_(parameter, 1 / hidden_size)),
    ),
    step=peephole_step,
)


def coupled_step(gates_x: Tensor, gates_h: Tensor, states: tuple, parameters: tuple) -> tuple[Tensor, Tensor]:
    f, g, o = (gates_x + gates_h).chunk(3, dim=-1)
    f = torch.sigmoid(f)
    c = f * states[1] + (1 - f) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


COUPLED = Cell(name="own_coupled_lstm", gates=("f", "g", "o"), states=("h", "c"), step=coupled_step)
