"""The cell that neural architecture search found."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.library.base import LibraryCell, zeros


class NASCell(LibraryCell):
    """A tree of eight sums of products, found by search: Zoph and Le 2017, as in TensorFlow's NASCell.

        s_k = W_k x + U_k h + b_k for k of 0, 1, 2, 4, 5, 6, 7, and s_3 = (W_3 x) * (U_3 h + b_3)
        a  = tanh(sigmoid(s_0) * relu(s_1))
        b  = tanh(sigmoid(s_2) + relu(s_3))
        d  = tanh(tanh(s_4) * sigmoid(s_5))
        e  = sigmoid(tanh(s_6) + sigmoid(s_7))
        c' = tanh(a + c) * b
        h' = tanh(c' * tanh(d + e))

    input (B, input_size), states (h, c). As in TensorFlow, where `use_biases=True` makes them, biases begin at 0, and matrices as Glorot
    and Bengio's.
    """

    STATES = ("h", "c")

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = nn.Linear(input_size, 8 * hidden_size, bias=False), nn.Linear(hidden_size, 8 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.xavier_uniform_(self.x.weight)
        init.xavier_uniform_(self.h.weight)
        zeros(self.h.bias)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        x, h = self.x(input).chunk(8, dim=1), self.h(h).chunk(8, dim=1)
        a = torch.tanh(torch.sigmoid(x[0] + h[0]) * torch.relu(x[1] + h[1]))
        b = torch.tanh(torch.sigmoid(x[2] + h[2]) + torch.relu(x[3] * h[3]))
        d = torch.tanh(torch.tanh(x[4] + h[4]) * torch.sigmoid(x[5] + h[5]))
        e = torch.sigmoid(torch.tanh(x[6] + h[6]) + torch.sigmoid(x[7] + h[7]))
        c = torch.tanh(a + c) * b
        return torch.tanh(c * torch.tanh(d + e)), c
