"""The closed-form continuous-time cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.library.base import LibraryCell, check_pair, check_size


class CfCCell(LibraryCell):
    """The closed form of a liquid network, for steps that are not evenly spaced in time: Hasani et al. 2022.

        y  = 1.7159 tanh(0.666 (B [x, h] + b))
        s  = sigmoid(t * (W_a y + b_a) + W_b y + b_b), t the time since the step before
        h' = (1 - s) * tanh(W_f y + b_f) + s * tanh(W_g y + b_g)

    Two products, one after the other, in each time step. input (B, input_size), with t = 1, or a pair (x, t), t (B,) or (B, 1); over
    sequences `layer((x, t))`, (T, B, input_size) and (T, B). State h. backbone_size: the width of y, 128 in the authors' code. As there
    matrices begin as Glorot and Bengio's, and biases as torch.nn.Linear's.
    """

    OPTIONS = ("backbone_size",)

    def __init__(self, input_size: int, hidden_size: int, backbone_size: int = 128):
        super().__init__(input_size, hidden_size)
        self.backbone_size = check_size("backbone_size", backbone_size)
        self.backbone = nn.Linear(input_size + hidden_size, backbone_size)
        self.heads = nn.Linear(backbone_size, 4 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.backbone, self.heads):
            layer.reset_parameters()
        init.xavier_uniform_(self.backbone.weight)
        for head in self.heads.weight.split(self.hidden_size):
            init.xavier_uniform_(head)

    def forward(self, input: Tensor | tuple[Tensor, Tensor], state: Tensor) -> Tensor:
        if not isinstance(input, Tensor):
            check_pair(input, "t")
        x, t = (input, 1.0) if isinstance(input, Tensor) else (input[0], input[1].view(-1, 1))
        y = 1.7159 * torch.tanh(0.666 * self.backbone(torch.cat([x, state], dim=1)))
        f, g, a, b = self.heads(y).chunk(4, dim=1)
        s = torch.sigmoid(t * a + b)
        return (1 - s) * torch.tanh(f) + s * torch.tanh(g)
