"""The simple recurrent network (Elman 1990) with tanh or relu, as torch.nn.RNN writes it."""

from collections.abc import Callable

import torch
from torch import Tensor

from sstkern.cells.cell import Cell, Parameters, States


def _cell(name: str, nonlinearity: Callable[[Tensor], Tensor]) -> Cell:
    def step(gates_x: Tensor, gates_h: Tensor, states: States, parameters: Parameters) -> States:
        return (nonlinearity(gates_x + gates_h),)

    return Cell(name=name, gates=("h",), states=("h",), step=step, triton="sstkern.engines.triton.cells.rnn", torch_mode=name.upper())


RNN_TANH = _cell("rnn_tanh", torch.tanh)
RNN_RELU = _cell("rnn_relu", torch.relu)
