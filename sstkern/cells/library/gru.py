"""GRUs with other gates: reset before the product, an attention score, one gate, none that resets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.library.base import LibraryCell, check_pair, orthogonal, zeros


class ChoGRUCell(LibraryCell):
    """The reset gate stands before the product: Cho et al. 2014, Keras's `reset_after=False`, ONNX's `linear_before_reset=0`.

        r  = sigmoid(W_r x + U_r h + b_r)
        z  = sigmoid(W_z x + U_z h + b_z)
        n  = tanh(W_n x + U_n (r * h) + b_n)
        h' = z * h + (1 - z) * n

    Two products, one after the other, in each time step. input (B, input_size), state h. As in the paper and the authors' code the
    recurrent matrices begin orthogonal and the others normal with a standard deviation of 0.01; biases begin at 0.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x_gates, self.h_gates = nn.Linear(input_size, 2 * hidden_size), nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.x_new, self.h_new = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for x, h in ((self.x_gates, self.h_gates), (self.x_new, self.h_new)):
            init.normal_(x.weight, std=0.01)
            orthogonal(h.weight, self.hidden_size)
            zeros(x.bias)

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        r, z = torch.sigmoid(self.x_gates(input) + self.h_gates(state)).chunk(2, dim=1)
        n = torch.tanh(self.x_new(input) + self.h_new(r * state))
        return z * state + (1 - z) * n


class AUGRUCell(LibraryCell):
    """A score of each time step, such as attention's, scales the update gate: Zhou et al. 2018 (DIEN).

        r  = sigmoid(W_r x + U_r h + b_r)
        z  = score * sigmoid(W_z x + U_z h + b_z)
        n  = tanh(W_n x + r * (U_n h + b_hn) + b_n)
        h' = (1 - z) * h + z * n

    input: a pair (x, score), (B, input_size) and (B,) or (B, 1); state h. Over sequences: `layer((x, score))`, (T, B, input_size) and
    (T, B). A step of score 0 leaves the state as it is: the paper's formula. The authors' code has (1 - score) * sigmoid(...) as the share
    that is kept, which is another one. Initialised as torch.nn.GRUCell.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)
        self.reset_parameters()

    def forward(self, input: tuple[Tensor, Tensor], state: Tensor) -> Tensor:
        check_pair(input, "score")
        x, score = input
        x_r, x_z, x_n = self.x(x).chunk(3, dim=1)
        h_r, h_z, h_n = self.h(state).chunk(3, dim=1)
        r, z = torch.sigmoid(x_r + h_r), score.view(-1, 1) * torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        return (1 - z) * state + z * n


class MGUCell(LibraryCell):
    """The minimal gated unit, a GRU with one gate: Zhou, Wu, Zhang and Zhou 2016.

        f  = sigmoid(W_f x + U_f h + b_f)
        n  = tanh(W_n x + U_n (f * h) + b_n)
        h' = (1 - f) * h + f * n

    Two products, one after the other, in each time step. input (B, input_size), state h. Initialised as torch.nn.GRUCell.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x = nn.Linear(input_size, 2 * hidden_size)
        self.h_f, self.h_n = nn.Linear(hidden_size, hidden_size, bias=False), nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        x_f, x_n = self.x(input).chunk(2, dim=1)
        f = torch.sigmoid(x_f + self.h_f(state))
        n = torch.tanh(x_n + self.h_n(f * state))
        return (1 - f) * state + f * n


class LightGRUCell(LibraryCell):
    """The light GRU: no reset gate, relu, and the input's part normalised. Ravanelli, Brakel, Omologo and Bengio 2018.

        z  = sigmoid(norm(W_z x) + U_z h)
        n  = relu(norm(W_n x) + U_n h)
        h' = z * h + (1 - z) * n

    The paper's norm is over the batch, which couples sequences; here it is a layer norm over the rows of both gates together. It depends on
    the input only, and so stands outside the loop over time steps. input (B, input_size), state h. As in the paper the recurrent matrices
    begin orthogonal and the others as Glorot and Bengio's; the authors' code scales the others in other ways, which the norm undoes.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__(input_size, hidden_size)
        self.x, self.h = (nn.Linear(size, 2 * hidden_size, bias=False) for size in (input_size, hidden_size))
        self.norm = nn.LayerNorm(2 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for gate in self.x.weight.split(self.hidden_size):
            init.xavier_uniform_(gate)
        orthogonal(self.h.weight, self.hidden_size)
        self.norm.reset_parameters()

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        z, n = (self.norm(self.x(input)) + self.h(state)).chunk(2, dim=1)
        z = torch.sigmoid(z)
        return z * state + (1 - z) * torch.relu(n)
