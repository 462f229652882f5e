"""The cells whose figures are published: six of the package torchrecurrent, three of sstkern.cells, and three in plain PyTorch.

    python benchmarks/published_cells.py --output benchmarks/results/MACHINE

writes own_cells.json and two pictures of it there. `--shape`, `--phase`, `--cell` and the other options of `sstkern bench` choose what is
measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

NEAREST = {
    "torchrecurrent:MGUCell": "GRU",
    "torchrecurrent:JANETCell": "LSTM",
    "torchrecurrent:LEMCell": "LSTM",
    "torchrecurrent:IndRNNCell": "GRU",
    "torchrecurrent:MUT1Cell": "GRU",
    "torchrecurrent:MultiplicativeLSTMCell": "LSTM",
    "benchmarks.published_cells:LSTM": "LSTM",
    "benchmarks.published_cells:GRU": "GRU",
    "peephole_lstm": "LSTM",
    "coupled_lstm": "LSTM",
    "cho_gru": "GRU",
    "benchmarks.published_cells:ProjectedLSTM": "LSTM",
}
"""The cells, and the layer written by hand that each is nearest to in structure. A product that needs another one's result first, two
stages, have MGUCell, MUT1Cell, MultiplicativeLSTMCell, cho_gru and ProjectedLSTM; IndRNNCell has no product in the loop."""
CELLS = tuple(NEAREST)


class LSTM(nn.Module):
    """torch.nn.LSTMCell, written out."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.x, self.h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)

    def get_initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch_size, self.hidden_size), torch.zeros(batch_size, self.hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class ProjectedLSTM(nn.Module):
    """Sak, Senior, Beaufays 2014: h = W_r (o tanh(c)), half as wide as c."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size, self.projection_size = hidden_size, hidden_size // 2
        self.x, self.h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(self.projection_size, 4 * hidden_size)
        self.r = nn.Linear(hidden_size, self.projection_size, bias=False)

    def get_initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch_size, self.projection_size), torch.zeros(batch_size, self.hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return self.r(torch.sigmoid(o) * torch.tanh(c)), c


class GRU(nn.Module):
    """torch.nn.GRUCell, written out."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.x, self.h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x_r, x_z, x_n = self.x(x).chunk(3, 1)
        h_r, h_z, h_n = self.h(h).chunk(3, 1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (1 - z) * n + z * h


def arguments(given: list[str]) -> list[str]:
    """The arguments of `sstkern bench`, with all cells where none is given."""
    chosen = [] if "--cell" in given else [part for cell in CELLS for part in ("--cell", cell)]
    return ["bench", *chosen, *given]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # where `benchmarks` is
    from sstkern.cli import app

    app(arguments(sys.argv[1:]))
