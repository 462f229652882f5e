"""Cells as their users write them, for the tests of what times them."""

from typing import Optional

import torch
from torch import Tensor, nn


class Leaky(nn.Module):
    """Its state begins with zeros of its hidden_size."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)
        self.unused, self.frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + torch.tanh(self.x(x) + self.frozen * self.h(h))


class Learned(Leaky):
    """Its first state is learned, and a pair; it returns an output beside it."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.first = nn.Parameter(torch.randn(hidden_size))

    def get_initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        return self.first.expand(batch_size, -1), torch.zeros(batch_size, self.hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        c = 0.5 * c + torch.tanh(self.x(x) + self.h(h))
        h = torch.sigmoid(c)
        return h * c, (h, c)


class Default(Leaky):
    """Its state may be left out."""

    def forward(self, x: Tensor, h: Optional[Tensor] = None) -> Tensor:  # noqa: UP045, TorchScript's word
        if h is None:
            h = torch.ones(x.size(0), self.hidden_size)
        return 0.5 * h + torch.tanh(self.x(x) + self.h(h))


class Stepped(Leaky):
    """No program holds it, for it looks at a number; TorchScript has no `try`, but can be traced."""

    def forward(self, x: Tensor, h: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        if h is None:
            h = torch.ones(x.size(0), self.hidden_size)
        try:
            scale = 1.0 if float(h.abs().max()) < 100 else 0.5
        finally:
            pass
        return scale * h + torch.tanh(self.x(x) + self.h(h))


class Broken(Leaky):
    """Fails in its first step."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        raise RuntimeError("out of order\nand more")


class Random(Leaky):
    """Does something else at each call."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + torch.tanh(self.x(x) + self.h(h)) + torch.rand(())


def no_cell(input_size: int, hidden_size: int) -> int:
    return input_size * hidden_size
