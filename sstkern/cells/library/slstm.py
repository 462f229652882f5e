"""The sLSTM of xLSTM."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.library.base import LibraryCell, check_size, zeros


class SLSTMCell(LibraryCell):
    """Exponential gates with a normaliser n and a stabiliser m, and a recurrent matrix for each head: Beck et al. 2024 (xLSTM).

        i, f, z, o = W x + U h + b, U without connections from one head to another
        m' = max(i, log sigmoid(f) + m)
        c' = exp(log sigmoid(f) + m - m') * c + exp(i - m') * tanh(z)
        n' = exp(log sigmoid(f) + m - m') * n + exp(i - m')
        h' = sigmoid(o) * c' / n'

    Where n is 0, before the first step, m' is i: the first step is written down in full. Each head has hidden_size / heads units, and its
    own rows of W, in the order i, f, z, o; weight_hh is (heads, hidden_size / heads, 4 hidden_size / heads). input (B, input_size),
    states (h, c, n, m), which begin at 0. As in the authors' code U begins at 0, W normal with a variance of 2 / (5 input_size), and the
    biases of f fall from 5 to -7 along the units of a head, in the curve of their first block; the other biases begin at 0.

    Raises ValueError for heads that do not divide hidden_size.
    """

    STATES = ("h", "c", "n", "m")
    OPTIONS = ("heads",)

    def __init__(self, input_size: int, hidden_size: int, heads: int = 4):
        super().__init__(input_size, hidden_size)
        if hidden_size % check_size("heads", heads):
            raise ValueError(f"heads: expected a divisor of hidden_size, {hidden_size}, got {heads}")
        self.heads, units = heads, hidden_size // heads
        self.x, self.weight_hh = nn.Linear(input_size, 4 * hidden_size), nn.Parameter(torch.empty(heads, units, 4 * units))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.x.weight, std=math.sqrt(2 / (5 * self.input_size)))
        zeros(self.weight_hh, self.x.bias)
        units = self.hidden_size // self.heads
        falling = 5 - 12 * torch.linspace(0, 1, units) ** 0.3
        with torch.no_grad():
            self.x.bias.view(self.heads, 4, units)[:, 1] = falling

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, c, n, m = state
        recurrent = torch.einsum("bhu,hug->bhg", h.unflatten(1, (self.heads, -1)), self.weight_hh)
        gates = self.x(input).unflatten(1, (self.heads, -1)) + recurrent
        i, f, z, o = (gate.flatten(1) for gate in gates.chunk(4, dim=2))
        f = nn.functional.logsigmoid(f) + m
        m = torch.where(n == 0, i, torch.maximum(i, f))
        i, f = torch.exp(i - m), torch.exp((f - m).clamp(max=0))  # above 0 in the first step only, where c and n are 0
        c, n = f * c + i * torch.tanh(z), f * n + i
        return torch.sigmoid(o) * c / n, c, n, m
