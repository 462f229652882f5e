"""LSTM and GRU with random masks in training: zoneout and recurrent dropout.

A mask is drawn for every time step, unit and sequence. In evaluation mode nothing is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sstkern.cells.library.base import LibraryCell, check_probability


class _LSTM(LibraryCell):
    """torch.nn.LSTMCell's products and initialisation, with one bias."""

    STATES = ("h", "c")

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.reset_parameters()


class _GRU(LibraryCell):
    """torch.nn.GRUCell's products and initialisation."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)
        self.reset_parameters()

    def gates(self, input: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """z and n."""
        x_r, x_z, x_n = self.x(input).chunk(3, dim=1)
        h_r, h_z, h_n = self.h(h).chunk(3, dim=1)
        return torch.sigmoid(x_z + h_z), torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)


def zoneout(before: Tensor, after: Tensor, p: float, training: bool) -> Tensor:
    """A state after a step, of which a unit keeps with probability p what it was before; in evaluation mode the mean of that."""
    if training:
        return torch.where(torch.empty_like(before, dtype=torch.bool).bernoulli_(p), before, after)
    return p * before + (1 - p) * after


class ZoneoutLSTMCell(_LSTM):
    """An LSTM whose units keep their old states at random: Krueger et al. 2017.

        i, f, g, o = W x + U h + b
        c~ = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h~ = sigmoid(o) * tanh(c~)
        c' = c with probability zoneout_c, else c~
        h' = h with probability zoneout_h, else h~

    In evaluation mode c' and h' are the means, p * c + (1 - p) * c~. The defaults are the paper's for characters. input (B, input_size),
    states (h, c). Initialised as torch.nn.LSTMCell.

    Raises ValueError for what is no probability.
    """

    OPTIONS = ("zoneout_h", "zoneout_c")

    def __init__(self, input_size: int, hidden_size: int, zoneout_h: float = 0.05, zoneout_c: float = 0.5):
        super().__init__(input_size, hidden_size)
        self.zoneout_h, self.zoneout_c = check_probability("zoneout_h", zoneout_h), check_probability("zoneout_c", zoneout_c)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x(input) + self.h(h)).chunk(4, dim=1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        new_h = torch.sigmoid(o) * torch.tanh(new_c)
        return zoneout(h, new_h, self.zoneout_h, self.training), zoneout(c, new_c, self.zoneout_c, self.training)


class ZoneoutGRUCell(_GRU):
    """A GRU whose units keep their old states at random: Krueger et al. 2017.

        h~ = torch.nn.GRUCell(x, h)
        h' = h with probability zoneout, else h~

    In evaluation mode h' is the mean, p * h + (1 - p) * h~. input (B, input_size), state h. Initialised as torch.nn.GRUCell.

    Raises ValueError for what is no probability.
    """

    OPTIONS = ("zoneout",)

    def __init__(self, input_size: int, hidden_size: int, zoneout: float = 0.1):
        super().__init__(input_size, hidden_size)
        self.zoneout = check_probability("zoneout", zoneout)

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        z, n = self.gates(input, state)
        return zoneout(state, (1 - z) * n + z * state, self.zoneout, self.training)


class RecurrentDropoutLSTMCell(_LSTM):
    """An LSTM that drops parts of what it writes to c, and of the h that its gates see: Semeniuta, Severyn and Barth 2016.

        i, f, g, o = W x + U dropout_h(h) + b
        c' = sigmoid(f) * c + sigmoid(i) * dropout_g(tanh(g))
        h' = sigmoid(o) * tanh(c')

    The paper's own is on g: what is in c already is never dropped. In evaluation mode it is torch.nn.LSTMCell. input (B, input_size),
    states (h, c). Initialised as torch.nn.LSTMCell.

    Raises ValueError for what is no probability.
    """

    OPTIONS = ("dropout_g", "dropout_h")

    def __init__(self, input_size: int, hidden_size: int, dropout_g: float = 0.25, dropout_h: float = 0.0):
        super().__init__(input_size, hidden_size)
        self.dropout_g, self.dropout_h = check_probability("dropout_g", dropout_g), check_probability("dropout_h", dropout_h)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x(input) + self.h(F.dropout(h, self.dropout_h, self.training))).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * F.dropout(torch.tanh(g), self.dropout_g, self.training)
        return torch.sigmoid(o) * torch.tanh(c), c


class RecurrentDropoutGRUCell(_GRU):
    """A GRU that drops parts of what it writes to h, and of the h that its gates see: Semeniuta, Severyn and Barth 2016.

        z, n = the update gate and candidate of torch.nn.GRUCell(x, dropout_h(h))
        h' = z * h + (1 - z) * dropout_g(n)

    The paper's own is on the candidate, its g. In evaluation mode it is torch.nn.GRUCell. input (B, input_size), state h. Initialised as
    torch.nn.GRUCell.

    Raises ValueError for what is no probability.
    """

    OPTIONS = ("dropout_g", "dropout_h")

    def __init__(self, input_size: int, hidden_size: int, dropout_g: float = 0.25, dropout_h: float = 0.0):
        super().__init__(input_size, hidden_size)
        self.dropout_g, self.dropout_h = check_probability("dropout_g", dropout_g), check_probability("dropout_h", dropout_h)

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        z, n = self.gates(input, F.dropout(state, self.dropout_h, self.training))
        return z * state + (1 - z) * F.dropout(n, self.dropout_g, self.training)


class WeightDrop(nn.Module):
    """Drops single weights of a recurrent matrix, once a call for all time steps: Merity, Keskar and Socher 2018.

    `torch.nn.utils.parametrize.register_parametrization(cell.h, "weight", WeightDrop(0.5))`; in evaluation mode it does nothing.

    Raises ValueError for what is no probability.
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = check_probability("p", p)

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, self.p, self.training)

    def extra_repr(self) -> str:
        return f"{self.p}"
