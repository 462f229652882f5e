"""LSTMs with other gates: peepholes, coupled gates, gates of a multiplicative state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.library.base import LibraryCell


class PeepholeLSTMCell(LibraryCell):
    """The gates see the cell state too, unit by unit: Gers, Schraudolph and Schmidhuber 2002, with Graves' tanh on c (2013).

        i  = sigmoid(W_i x + U_i h + p_i * c + b_i)
        f  = sigmoid(W_f x + U_f h + p_f * c + b_f)
        c' = f * c + i * tanh(W_g x + U_g h + b_g)
        o  = sigmoid(W_o x + U_o h + p_o * c' + b_o)
        h' = o * tanh(c')

    input (B, input_size), states (h, c). All parameters begin uniform from -0.1 to 0.1, as the paper's weights.
    """

    STATES = ("h", "c")

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.p_i, self.p_f, self.p_o = (nn.Parameter(torch.empty(hidden_size)) for _ in range(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.uniform_(parameter, -0.1, 0.1)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x(input) + self.h(h)).chunk(4, dim=1)
        i, f = torch.sigmoid(i + self.p_i * c), torch.sigmoid(f + self.p_f * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.p_o * c) * torch.tanh(c), c


class CoupledLSTMCell(LibraryCell):
    """What is not written is kept, f = 1 - i: the CIFG of Greff, Srivastava, Koutnik, Steunebrink and Schmidhuber 2015, without peepholes.

        i  = sigmoid(W_i x + U_i h + b_i)
        o  = sigmoid(W_o x + U_o h + b_o)
        c' = (1 - i) * c + i * tanh(W_g x + U_g h + b_g)
        h' = o * tanh(c')

    input (B, input_size), states (h, c). All parameters begin normal with a standard deviation of 0.1, as in the paper.
    """

    STATES = ("h", "c")

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            init.normal_(parameter, std=0.1)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, g, o = (self.x(input) + self.h(h)).chunk(3, dim=1)
        i = torch.sigmoid(i)
        c = (1 - i) * c + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class MultiplicativeLSTMCell(LibraryCell):
    """An LSTM whose gates see, in place of h, a state that the input multiplies: Krause, Lu, Murray and Renals 2016.

        m  = (V x) * (U h)
        i, f, o = sigmoid(W x + R m + b), for each gate its own
        c' = f * c + i * tanh(W_g x + R_g m + b_g)
        h' = o * tanh(c')

    Two products, one after the other, in each time step. input (B, input_size), states (h, c). Initialised as torch.nn.LSTMCell.
    """

    STATES = ("h", "c")

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.m_x, self.m_h = nn.Linear(input_size, hidden_size, bias=False), nn.Linear(hidden_size, hidden_size, bias=False)
        self.x, self.m = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.reset_parameters()

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        m = self.m_x(input) * self.m_h(h)
        i, f, g, o = (self.x(input) + self.m(m)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
