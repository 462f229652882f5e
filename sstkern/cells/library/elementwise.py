"""Cells without a product of the state: in the loop over time steps each unit is by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import init

from sstkern.cells.library.base import LibraryCell, zeros


class IndRNNCell(LibraryCell):
    """The independently recurrent network, with a vector in place of the recurrent matrix: Li, Li, Cook, Zhu and Gao 2018.

        h' = relu(W x + u * h + b)

    input (B, input_size), state h. As in the authors' code u begins uniform from 0 to 1, and b at 0; W begins as torch.nn.Linear, theirs
    differs from task to task. They keep u within 2^(1/T) of 0 while they train: clamp it after an optimizer's step.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.u = nn.Linear(input_size, hidden_size), nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.x.reset_parameters()
        zeros(self.x.bias)
        init.uniform_(self.u)

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        return torch.relu(self.x(input) + self.u * state)


def positive(v: Tensor) -> Tensor:
    """v + 0.5 from 0 on, sigmoid(v) below: what keeps the states of minGRU and minLSTM above 0."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


class MinGRUCell(LibraryCell):
    """A GRU whose gate and candidate see the input only: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi 2024, with the candidate above 0.

        z  = sigmoid(W_z x + b_z)
        h' = (1 - z) * h + z * g(W_n x + b_n), g(v) = v + 0.5 from 0 on, sigmoid(v) below

    input (B, input_size), state h. Initialised as torch.nn.Linear, as in the authors' code.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x = nn.Linear(input_size, 2 * hidden_size)

    def reset_parameters(self) -> None:
        self.x.reset_parameters()

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        n, z = self.x(input).chunk(2, dim=1)
        z = torch.sigmoid(z)
        return (1 - z) * state + z * positive(n)


class MinLSTMCell(LibraryCell):
    """An LSTM whose gates see the input only, and share 1 between them: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi 2024.

        f  = sigmoid(W_f x + b_f)
        i  = sigmoid(W_i x + b_i)
        h' = f / (f + i) * h + i / (f + i) * g(W_n x + b_n), g as of `MinGRUCell`

    input (B, input_size), state h. Initialised as torch.nn.Linear, as in the authors' code, which can raise the biases of f.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x = nn.Linear(input_size, 3 * hidden_size)

    def reset_parameters(self) -> None:
        self.x.reset_parameters()

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        n, f, i = self.x(input).chunk(3, dim=1)
        share = F.logsigmoid(f) - F.logsigmoid(i)  # f / (f + i) = sigmoid(share), also where both are 0 in floating point
        return torch.sigmoid(share) * state + torch.sigmoid(-share) * positive(n)
