"""LSTM and GRU with layer normalisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.library.base import LibraryCell, orthogonal, zeros


class LayerNormLSTMCell(LibraryCell):
    """The sums of both products and the cell state are normalised along the row: Ba, Kiros and Hinton 2016.

        i, f, g, o = norm_x(W x) + norm_h(U h) + b
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(norm_c(c'))

    The first two norms are over all four gates together and have gains only: b is their bias. input (B, input_size), states (h, c). As in
    the authors' code for skip-thoughts gains begin at 1, biases at 0, recurrent matrices orthogonal, the others uniform from -0.1 to 0.1;
    there a square one begins orthogonal too.
    """

    STATES = ("h", "c")

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = (nn.Linear(size, 4 * hidden_size, bias=False) for size in (input_size, hidden_size))
        self.norm_x, self.norm_h = nn.LayerNorm(4 * hidden_size, bias=False), nn.LayerNorm(4 * hidden_size, bias=False)
        self.norm_c, self.bias = nn.LayerNorm(hidden_size), nn.Parameter(torch.empty(4 * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.uniform_(self.x.weight, -0.1, 0.1)
        orthogonal(self.h.weight, self.hidden_size)
        for norm in (self.norm_x, self.norm_h, self.norm_c):
            norm.reset_parameters()
        zeros(self.bias)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.norm_x(self.x(input)) + self.norm_h(self.h(h)) + self.bias).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c


class LayerNormGRUCell(LibraryCell):
    """The sums of the products are normalised along the row, the gates' and the candidate's apart: Ba, Kiros and Hinton 2016.

        z, r = sigmoid(norm_1(W h) + norm_2(V x) + b)
        n  = tanh(norm_3(W_n x) + r * norm_4(U_n h))
        h' = (1 - z) * h + z * n

    norm_1 and norm_2 have gains only: b is their bias. input (B, input_size), state h. Initialised as `LayerNormLSTMCell`.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = (nn.Linear(size, 3 * hidden_size, bias=False) for size in (input_size, hidden_size))
        self.norm_x, self.norm_h = nn.LayerNorm(2 * hidden_size, bias=False), nn.LayerNorm(2 * hidden_size, bias=False)
        self.norm_x_n, self.norm_h_n = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.bias = nn.Parameter(torch.empty(2 * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.uniform_(self.x.weight, -0.1, 0.1)
        orthogonal(self.h.weight, self.hidden_size)
        for norm in (self.norm_x, self.norm_h, self.norm_x_n, self.norm_h_n):
            norm.reset_parameters()
        zeros(self.bias)

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        x_gates, x_n = self.x(input).split([2 * self.hidden_size, self.hidden_size], dim=1)
        h_gates, h_n = self.h(state).split([2 * self.hidden_size, self.hidden_size], dim=1)
        z, r = torch.sigmoid(self.norm_x(x_gates) + self.norm_h(h_gates) + self.bias).chunk(2, dim=1)
        n = torch.tanh(self.norm_x_n(x_n) + r * self.norm_h_n(h_n))
        return (1 - z) * state + z * n


class DreamerGRUCell(LibraryCell):
    """The normalised GRU of DreamerV3's world model: Hafner, Pasukonis, Ba and Lillicrap 2023.

        r, n, z = norm(W [x, h])
        n  = tanh(sigmoid(r) * n)
        z  = sigmoid(z - 1)
        h' = z * n + (1 - z) * h

    One norm over the row of all three, with an epsilon of 0.001. input (B, input_size), state h. As in the first release of the authors'
    code the matrix begins with a truncated normal of variance 1 over the mean of its sides; later ones have another norm.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = (nn.Linear(size, 3 * hidden_size, bias=False) for size in (input_size, hidden_size))
        self.norm = nn.LayerNorm(3 * hidden_size, eps=1e-3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        sides = self.input_size + self.hidden_size, 3 * self.hidden_size
        std = math.sqrt(2 / sum(sides)) / 0.87962566103423978  # of a normal that is cut at two standard deviations
        for weight in (self.x.weight, self.h.weight):
            init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        self.norm.reset_parameters()

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        r, n, z = self.norm(self.x(input) + self.h(state)).chunk(3, dim=1)
        n = torch.tanh(torch.sigmoid(r) * n)
        z = torch.sigmoid(z - 1)
        return z * n + (1 - z) * state
