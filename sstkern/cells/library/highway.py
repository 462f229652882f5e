"""The recurrent highway network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.library.base import LibraryCell, check_size


class RecurrentHighwayCell(LibraryCell):
    """`depth` highway layers within a time step, of which the first sees the input: Zilly, Srivastava, Koutnik and Schmidhuber 2017.

        n = tanh(U_n h + b_n)         and in the first layer + W_n x
        t = sigmoid(U_t h + b_t)      and in the first layer + W_t x
        h = t * n + (1 - t) * h       h' is what the last layer gives

    A product for each layer, one after the other, in each time step. input (B, input_size), state h. As in the authors' code for words all
    begins uniform from -0.04 to 0.04, and the biases b_t at -2; for characters they have -4.

    Raises ValueError for a depth below 1.
    """

    OPTIONS = ("depth",)

    def __init__(self, input_size: int, hidden_size: int, depth: int = 3):
        super().__init__(input_size, hidden_size)
        self.depth = check_size("depth", depth)
        self.x = nn.Linear(input_size, 2 * hidden_size, bias=False)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, 2 * hidden_size) for _ in range(depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.uniform_(parameter, -0.04, 0.04)
        for layer in self.layers:
            init.constant_(layer.get_parameter("bias")[self.hidden_size :], -2)

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        x = self.x(input)
        for place, layer in enumerate(self.layers):
            sums = layer(state)
            if place == 0:
                sums = sums + x
            n, t = sums.chunk(2, dim=1)
            t = torch.sigmoid(t)
            state = t * torch.tanh(n) + (1 - t) * state
        return state
