"""Recurrent cells as other people write them, in plain PyTorch: one step, nothing of sstkern in it. `zoo.py` says what each takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Gated units of papers


class MGU(nn.Module):
    """Zhou, Wu, Zhang, Zhou 2016: the minimal gated unit."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.x_f, self.x_n = nn.Linear(input_size, hidden_size), nn.Linear(input_size, hidden_size)
        self.h_f, self.h_n = nn.Linear(hidden_size, hidden_size, bias=False), nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = torch.sigmoid(self.x_f(x) + self.h_f(h))
        return (1 - f) * h + f * torch.tanh(self.x_n(x) + self.h_n(f * h))


class ProjectedLSTM(nn.Module):
    """Sak, Senior, Beaufays 2014: h = W_r (o tanh(c)), narrower than c."""

    def __init__(self, input_size: int, hidden_size: int, projection_size: int):
        super().__init__()
        self.weight_ih, self.weight_hh = nn.Linear(input_size, 4 * hidden_size), nn.Linear(projection_size, 4 * hidden_size)
        self.weight_r = nn.Linear(hidden_size, projection_size, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.weight_ih(x) + self.weight_hh(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return self.weight_r(torch.sigmoid(o) * torch.tanh(c)), c


class ChoGRU(nn.Module):
    """Cho et al. 2014: the reset gate before the product, W (r h)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.gates, self.gates_h = nn.Linear(input_size, 2 * hidden_size), nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.new, self.new_h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = torch.sigmoid(self.gates(x) + self.gates_h(h)).chunk(2, dim=-1)
        return z * h + (1 - z) * torch.tanh(self.new(x) + self.new_h(r * h))


class MultiplicativeLSTM(nn.Module):
    """Krause, Lu, Murray, Renals 2016: the gates see m = (W_mx x) (W_mh h)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.mx, self.mh = nn.Linear(input_size, hidden_size, bias=False), nn.Linear(hidden_size, hidden_size, bias=False)
        self.x, self.m = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, u = torch.split(self.x(x) + self.m(self.mx(x) * self.mh(h)), h.size(1), dim=1)
        c = f.sigmoid() * c + i.sigmoid() * u
        return torch.tanh(c * o.sigmoid()), c


class RecurrentHighway(nn.Module):
    """Zilly, Srivastava, Koutnik, Schmidhuber 2017: `depth` highway layers within a step, the input in the first."""

    def __init__(self, input_size: int, hidden_size: int, depth: int = 3):
        super().__init__()
        self.x = nn.Linear(input_size, 2 * hidden_size, bias=False)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, 2 * hidden_size) for _ in range(depth))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        for depth, layer in enumerate(self.layers):
            sums = layer(s)
            if depth == 0:
                sums = sums + self.x(x)
            h, t = sums.chunk(2, -1)
            t = t.sigmoid()
            s = h.tanh() * t + s * (1 - t)
        return s


class IndRNN(nn.Module):
    """Li, Li, Cook, Zhu, Gao 2018: a vector in place of the recurrent matrix."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.weight, self.u = nn.Linear(input_size, hidden_size), nn.Parameter(torch.rand(hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return F.relu(self.weight(x) + self.u * h)


class Leaky(nn.Module):
    """A leaky integrator, whose decay is one learned number."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.decay = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.decay)
        return (1 - alpha) * h + alpha * torch.tanh(self.x(x) + self.h(h))


class SRU(nn.Module):
    """Lei, Zhang, Wang, Dai, Artzi 2018: no recurrent product, vectors on the state."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(input_size, 4 * hidden_size) / 4)
        self.v, self.bias = nn.Parameter(torch.randn(2, hidden_size)), nn.Parameter(torch.zeros(2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        candidate, f, r, skip = (x @ self.weight).chunk(4, dim=1)
        f_bias, r_bias = self.bias.chunk(2)
        f = torch.sigmoid(f + self.v[0] * c + f_bias)
        r = torch.sigmoid(r + self.v[1] * c + r_bias)
        c = f * c + (1 - f) * candidate
        return r * c + (1 - r) * skip, c


class SLSTM(nn.Module):
    """Beck et al. 2024 (xLSTM): exponential gates, a normaliser and a stabiliser. Nested states (h, (c, n, m))."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x: Tensor, state: tuple) -> tuple:
        h, (c, n, m) = state
        i, f, z, o = (self.x(x) + self.h(h)).chunk(4, dim=1)
        log_f = F.logsigmoid(f)
        next_m = torch.maximum(log_f + m, i)
        i, f = torch.exp(i - next_m), torch.exp(log_f + m - next_m)
        c, n = f * c + i * torch.tanh(z), f * n + i
        return torch.sigmoid(o) * c / n.abs().clamp(min=1.0), (c, n, next_m)


class LMU(nn.Module):
    """Voelker, Kajic, Eliasmith 2019: a memory with fixed matrices, which are buffers; vectors make a row one number."""

    def __init__(self, input_size: int, hidden_size: int, order: int = 4):
        super().__init__()
        q = torch.arange(order, dtype=torch.float32)
        i, j = torch.meshgrid(q, q, indexing="ij")
        a = torch.where(i < j, -1.0, (-1.0) ** (i - j + 1)) * (2 * q + 1)[:, None] / 8
        self.register_buffer("A", a + torch.eye(order))
        self.register_buffer("B", ((2 * q + 1) * (-1.0) ** q / 8)[:, None])
        self.e_x, self.e_h = nn.Parameter(torch.randn(1, input_size)), nn.Parameter(torch.randn(1, hidden_size))
        self.W_x, self.W_h = nn.Parameter(torch.randn(hidden_size, input_size)), nn.Parameter(torch.randn(hidden_size, hidden_size) / 3)
        self.W_m = nn.Parameter(torch.randn(hidden_size, order) / 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, m = state
        u = F.linear(x, self.e_x) + F.linear(h, self.e_h)
        m = F.linear(m, self.A) + F.linear(u, self.B)
        return torch.tanh(F.linear(x, self.W_x) + F.linear(h, self.W_h) + F.linear(m, self.W_m)), m


class ExpRNN(nn.Module):
    """Lezcano-Casado, Martinez-Rubio 2019: an orthogonal matrix, the exponential of a skew one, made in every step; modrelu."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.skew = nn.Linear(input_size, hidden_size), nn.Parameter(torch.randn(hidden_size, hidden_size) / 3)
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = self.x(x) + h @ torch.matrix_exp(self.skew.triu(1) - self.skew.triu(1).T)
        return torch.sign(z) * F.relu(torch.abs(z) + self.bias)


class WeightNormed(nn.Module):
    """Salimans, Kingma 2016, by hand: rows g v / |v|."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.v = nn.Linear(input_size, hidden_size), nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.g = nn.Parameter(torch.ones(hidden_size, 1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + F.linear(h, self.g * self.v / self.v.norm(dim=1, keepdim=True)))


# More than x


class AUGRU(nn.Module):
    """Zhou et al. 2019 (DIEN): an attention score of each step scales the update gate."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, inputs: tuple[Tensor, Tensor], h: Tensor) -> Tensor:
        x, score = inputs
        x_r, x_z, x_n = self.x(x).chunk(3, 1)
        h_r, h_z, h_n = self.h(h).chunk(3, 1)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        z = score.view(-1, 1) * torch.sigmoid(x_z + h_z)
        return (1 - z) * h + z * n


class GRUD(nn.Module):
    """Che et al. 2018: values that are missing, a mask that says which, and the time since each was seen. States (h, last x)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.decay_x, self.decay_h = nn.Parameter(torch.rand(input_size)), nn.Linear(input_size, hidden_size)
        self.register_buffer("mean", torch.randn(input_size))
        self.gates = nn.Linear(2 * input_size + hidden_size, 2 * hidden_size)
        self.new = nn.Linear(2 * input_size + hidden_size, hidden_size)

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor], state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, seen, gap = inputs
        h, last = state
        gamma = torch.exp(-torch.relu(self.decay_x * gap))
        last = torch.where(seen, x, last)
        x = torch.where(seen, x, gamma * last + (1 - gamma) * self.mean)
        h = torch.exp(-F.relu(self.decay_h(gap))) * h
        mask = seen.to(x.dtype)
        z, r = self.gates(torch.cat([x, h, mask], dim=1)).sigmoid().chunk(2, dim=1)
        return (1 - z) * h + z * torch.tanh(self.new(torch.cat([x, r * h, mask], dim=1))), last


class PhasedLSTM(nn.Module):
    """Neil, Pfeiffer, Liu 2016: each unit is open for a part of its own period of the time t."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)
        self.period, self.shift = nn.Parameter(torch.rand(hidden_size) + 1), nn.Parameter(torch.rand(hidden_size))
        self.open, self.leak = 0.4, 1e-3

    def forward(self, inputs: tuple[Tensor, Tensor], state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, t = inputs
        turns = (5 * t.unsqueeze(1) - self.shift) / self.period
        phase = turns - torch.floor(turns).detach()
        k = torch.where(phase < self.open / 2, 2 * phase / self.open, 2 - 2 * phase / self.open)
        k = torch.where(phase < self.open, k, self.leak * phase)
        h, c = self.cell(x, state)
        return k * h + (1 - k) * state[0], k * c + (1 - k) * state[1]


class Clockwork(nn.Module):
    """Koutnik, Greff, Gomez, Schmidhuber 2014: a unit moves where the step is a multiple of its period, and keeps its state elsewhere."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.register_buffer("periods", 2.0 ** (torch.arange(hidden_size) % 3) / 8)

    def forward(self, inputs: tuple[Tensor, Tensor], h: Tensor) -> Tensor:
        x, t = inputs
        t = (t[:, None] * 8).round() / 8
        moves = torch.floor(t / self.periods) * self.periods == t
        return torch.where(moves, torch.tanh(self.x(x) + self.h(h)), h)


# Frameworks


def hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clip(0.2 * x + 0.5, 0.0, 1.0)


class KerasLSTM(nn.Module):
    """Keras: kernels (I, 4H), states a list, the result (h, [h, c]); here its first versions' hard sigmoid, and softsign."""

    def __init__(self, input_size: int, units: int):
        super().__init__()
        self.units, self.state_size = units, [units, units]
        self.kernel = nn.Parameter(torch.randn(input_size, 4 * units) / 2)
        self.recurrent_kernel = nn.Parameter(torch.randn(units, 4 * units) / 2)
        self.bias = nn.Parameter(torch.zeros(4 * units))
        self.activation, self.recurrent_activation = F.softsign, hard_sigmoid

    def forward(self, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h_tm1, c_tm1 = states
        z = torch.matmul(inputs, self.kernel)
        z = torch.add(z, torch.matmul(h_tm1, self.recurrent_kernel))
        z0, z1, z2, z3 = torch.split(torch.add(z, self.bias), self.units, dim=1)
        i, f = self.recurrent_activation(z0), self.recurrent_activation(z1)
        c = f * c_tm1 + i * self.activation(z2)
        h = self.recurrent_activation(z3) * self.activation(c)
        return h, [h, c]


class KerasGRU(nn.Module):
    """Keras: `reset_after` is where the reset gate stands."""

    def __init__(self, input_size: int, units: int, reset_after: bool):
        super().__init__()
        self.units, self.reset_after = units, reset_after
        self.kernel = nn.Parameter(torch.randn(input_size, 3 * units) / 2)
        self.recurrent_kernel = nn.Parameter(torch.randn(units, 3 * units) / 2)
        self.bias = nn.Parameter(torch.zeros(2, 3 * units) if reset_after else torch.zeros(3 * units))

    def forward(self, inputs: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        h_tm1 = states[0]
        input_bias, recurrent_bias = torch.unbind(self.bias) if self.reset_after else (self.bias, None)
        x_z, x_r, x_h = torch.split(inputs @ self.kernel + input_bias, self.units, dim=-1)
        if self.reset_after:
            inner_z, inner_r, inner_h = torch.split(h_tm1 @ self.recurrent_kernel + recurrent_bias, self.units, dim=-1)
        else:
            inner_z, inner_r = torch.split(h_tm1 @ self.recurrent_kernel[:, : 2 * self.units], self.units, dim=-1)
        z, r = torch.sigmoid(x_z + inner_z), torch.sigmoid(x_r + inner_r)
        inner_h = r * inner_h if self.reset_after else torch.matmul(r * h_tm1, self.recurrent_kernel[:, 2 * self.units :])
        h = z * h_tm1 + (1 - z) * torch.tanh(x_h + inner_h)
        return h, [h]


class OnnxLSTM(nn.Module):
    """ONNX's operator: gates in the order i, o, f, c, peepholes, a clip of the sums, and three activations."""

    def __init__(self, input_size: int, hidden_size: int, activations: tuple[Callable, ...], clip: float = 0.0, input_forget: bool = False):
        super().__init__()
        self.W, self.R = nn.Parameter(torch.randn(4 * hidden_size, input_size)), nn.Parameter(torch.randn(4 * hidden_size, hidden_size))
        self.B, self.P = nn.Parameter(torch.zeros(8 * hidden_size)), nn.Parameter(torch.randn(3 * hidden_size))
        self.activations, self.clip, self.input_forget = activations, clip, input_forget

    def forward(self, X: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        H, C = state
        f, g, h = self.activations
        p_i, p_o, p_f = torch.chunk(self.P, 3)
        gates = torch.mm(X, self.W.T) + torch.mm(H, torch.transpose(self.R, 0, 1)) + torch.add(*self.B.chunk(2))
        if self.clip:
            gates = torch.clamp(gates, -self.clip, self.clip)
        i, o, forget, c = torch.chunk(gates, 4, -1)
        i = f(i + p_i * C)
        forget = 1 - i if self.input_forget else f(forget + p_f * C)
        C = forget * C + i * g(c)
        return f(o + p_o * C) * h(C), C


class OnnxGRU(nn.Module):
    """ONNX's operator: gates in the order z, r, h; `linear_before_reset` is where the reset gate stands."""

    def __init__(self, input_size: int, hidden_size: int, linear_before_reset: int, clip: float = math.inf):
        super().__init__()
        self.W, self.R = nn.Parameter(torch.randn(3 * hidden_size, input_size)), nn.Parameter(torch.randn(3 * hidden_size, hidden_size))
        self.B, self.linear_before_reset, self.clip = nn.Parameter(torch.zeros(6 * hidden_size)), linear_before_reset, clip

    def forward(self, X: Tensor, H: Tensor) -> Tensor:
        (w_z, w_r, w_h), (r_z, r_r, r_h) = self.W.chunk(3), self.R.chunk(3)
        b_z, b_r, b_h, rb_z, rb_r, rb_h = self.B.chunk(6)
        z = torch.sigmoid((X @ w_z.T + H @ r_z.T + b_z + rb_z).clamp(-self.clip, self.clip))
        r = torch.sigmoid((X @ w_r.T + H @ r_r.T + b_r + rb_r).clamp(-self.clip, self.clip))
        inner = r * (H @ r_h.T + rb_h) if self.linear_before_reset else (r * H) @ r_h.T + rb_h
        return (1 - z) * torch.tanh((X @ w_h.T + inner + b_h).clamp(-self.clip, self.clip)) + z * H


class ClippedLSTM(nn.Module):
    """TensorFlow's LSTMCell: cell_clip, a projection, and its clip."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.kernel, self.projection = nn.Linear(input_size + hidden_size, 4 * hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        c, m = state
        i, j, f, o = self.kernel(torch.concat([x, m], 1)).chunk(4, 1)
        c = torch.clamp(torch.sigmoid(f + 1.0) * c + torch.sigmoid(i) * torch.tanh(j), -0.5, 0.5)
        m = self.projection(torch.sigmoid(o) * torch.tanh(c)).clamp(min=-0.4, max=0.4)
        return m, (c, m)


# Styles


class TutorialLSTM(nn.Module):
    """One linear layer on cat([x, h]); the states in the other order, (c, h)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size, self.linear = hidden_size, nn.Linear(input_size + hidden_size, 4 * hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        c, h = state
        gates = self.linear(torch.cat((x, h), dim=1))
        i, f, o = torch.sigmoid(gates[:, : 3 * self.hidden_size]).split(self.hidden_size, dim=1)
        c = f * c + i * torch.tanh(gates[:, -self.hidden_size :])
        h = o * torch.tanh(c)
        return h, (c, h)


class FourLinears(nn.Module):
    """A dictionary of gates, each a linear layer of its own on cat([h, x])."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.gates = nn.ModuleDict({name: nn.Linear(hidden_size + input_size, hidden_size) for name in "ifgo"})

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        hx = torch.hstack([h, x])
        i, f, g, o = (layer(hx).tanh() if name == "g" else layer(hx).sigmoid() for name, layer in self.gates.items())
        c_new = f * c + i * g
        return o * c_new.tanh(), c_new


class InPlaceLSTM(nn.Module):
    """Gates changed in place in a buffer that is split before."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        gates = self.x(x)
        gates += self.h(h)
        i, f, g, o = gates.unsafe_chunk(4, 1)
        i.sigmoid_(), f.sigmoid_(), g.tanh_(), o.sigmoid_()
        c = (c * f).add_(i * g)
        return o.mul(c.tanh()), c


class State(NamedTuple):
    h: Tensor
    c: Tensor


class NamedStates(nn.Module):
    """States as a named tuple."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = self.cell(x, (state.h, state.c))
        return state._replace(h=h, c=c)


class Readout(nn.Module):
    """The output is not the state, and of another width."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.cell, self.readout = nn.RNNCell(input_size, hidden_size), nn.Sequential(nn.Linear(hidden_size, 4), nn.SiLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, h)
        return self.readout(h), h


class Tied(nn.Module):
    """One matrix in two places, and one bias in three."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x = nn.Linear(input_size, hidden_size)
        self.a, self.b = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.b.weight, self.a.bias, self.b.bias = self.a.weight, self.x.bias, self.x.bias

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + self.a(h) + self.b(torch.tanh(self.a(h))))


class EchoState(nn.Module):
    """Jaeger 2001: a frozen reservoir, of which a part is trained here."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.reservoir = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.x.bias.requires_grad_(False)
        self.reservoir.weight.requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(hidden_size), requires_grad=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.3 * h + 0.7 * torch.tanh(self.gain * (self.x(x) + self.reservoir(h)))


class LearnedStart(nn.Module):
    """Without a state it starts from a learned one."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.cell, self.h0 = nn.GRUCell(input_size, hidden_size), nn.Parameter(torch.randn(hidden_size))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = torch.tanh(self.h0).expand(x.shape[0], -1)
        return self.cell(x, h)


class TwoLayers(nn.Module):
    """A stack within a step: states a list of pairs."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(input_size, hidden_size), nn.LSTMCell(hidden_size, 2)])

    def forward(self, x: Tensor, states: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        after = []
        for cell, state in zip(self.cells, states, strict=True):
            after.append(cell(x, state))
            x = after[-1][0]
        return x, after


class Delay(nn.Module):
    """States that only move: the input, one and two steps before."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.taps = nn.Linear(3 * input_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.taps(torch.cat([x, *state], -1)), (x, state[0])


class Swapped(nn.Module):
    """Two states that change places, and a third that nothing changes."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        a, b, fixed = state
        return b, torch.tanh(self.x(x) + self.h(a)) * fixed, fixed


class Same(nn.Module):
    """One tensor as both states after the step."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.cell = nn.RNNCell(input_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = self.cell(x, state[0] - 0.5 * state[1])
        return h, h


class Heads(nn.Module):
    """Rows of two dimensions, two heads, which a product mixes."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, 2 * hidden_size), nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.gain = nn.Parameter(torch.ones(2, hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        mixed = self.h(h.transpose(1, 2).flatten(1)).view(h.shape)
        return torch.tanh(self.x(x).view(-1, *h.shape[1:]) + self.gain * h) * torch.sigmoid(mixed)


class BlockDiagonal(nn.Module):
    """A recurrent matrix for each head, as in the xLSTM (Beck 2024): two gates, two heads."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x = nn.Linear(input_size, 2 * 2 * hidden_size)
        self.matrices = nn.Parameter(torch.randn(2, hidden_size, 2 * hidden_size) / hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gates = self.x(x).unflatten(1, (2, -1)) + torch.einsum("bhi,hio->bho", h, self.matrices)
        update, candidate = gates.chunk(2, 2)
        update = torch.sigmoid(update)
        return update * h + (1 - update) * torch.tanh(candidate)


class SharedHeads(nn.Module):
    """Two heads that share one matrix: a product of rows of two dimensions."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, 2 * hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x).unflatten(1, (2, -1)) + self.h(h))


class Constants(nn.Module):
    """Numbers, and tensors made in the step."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h, self.slope = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size), 0.25

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        half, floor = torch.tensor(0.5, dtype=x.dtype), torch.zeros_like(h)
        n = torch.tanh(self.x(x) + self.h(h) * self.slope + math.log(2)) - half * torch.ones_like(h)
        return torch.maximum(n, floor) + h.new_full((h.size(0), 1), 0.1) + half * h


class StraightThrough(nn.Module):
    """Bengio, Leonard, Courville 2013: a binary output whose derivative is the sigmoid's."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        soft = torch.sigmoid(self.x(x) + self.h(h))
        return (soft > 0.5).to(soft.dtype) + soft - soft.detach()


class Activations(nn.Module):
    """One activation function in each part of the state."""

    def __init__(self, input_size: int, hidden_size: int, functions: tuple[Callable, ...]):
        super().__init__()
        self.functions = functions
        self.x, self.h = nn.Linear(input_size, len(functions) * hidden_size), nn.Linear(hidden_size, len(functions) * hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        parts = (self.x(x) + self.h(h)).chunk(len(self.functions), dim=1)
        for function, part in zip(self.functions, parts, strict=True):
            h = 0.7 * h + 0.3 * function(part)
        return h


class LowRank(nn.Module):
    """Two products in place of one, and every way to write them."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.W = nn.Parameter(torch.randn(hidden_size, input_size) / 2)
        self.U, self.V = nn.Parameter(torch.randn(hidden_size, 2) / 2), nn.Parameter(torch.randn(2, hidden_size) / 2)
        self.w, self.b = nn.Parameter(torch.randn(hidden_size)), nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        sums = torch.addmm(self.b, x, self.W.t(), beta=0.5, alpha=2.0) + h.matmul(self.V.t()).mm(self.U.t())
        return torch.tanh(sums + (self.W @ x.t()).t()) * torch.sigmoid(h @ self.w)[:, None]


class Einsum(nn.Module):
    """Products by torch.einsum."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(hidden_size, input_size)), nn.Parameter(torch.randn(hidden_size, hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("bi,oi->bo", x, self.W) + torch.einsum("bh,ho->bo", h, self.U))


class Stateless(nn.Module):
    """What does not look at its state."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x = nn.Linear(input_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x))


class Autonomous(nn.Module):
    """What does not look at its input."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.h = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.h(h))


class Dropped(nn.Module):
    """Dropout that is switched off."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.cell, self.dropout, self.none = nn.GRUCell(input_size, hidden_size), nn.Dropout(0.5), nn.Dropout(0.0)
        self.dropout.eval()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.none(self.cell(self.dropout(x), h))


class LayerNormRNN(nn.Module):
    """Ba, Kiros, Hinton 2016."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h, self.norm = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size), nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.x(x) + self.h(h)))


class LayerNormLSTM(nn.Module):
    """Ba, Kiros, Hinton 2016: both products and the cell's state are normalised."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = (nn.Linear(size, 4 * hidden_size, bias=False) for size in (input_size, hidden_size))
        self.norm_x, self.norm_h, self.norm_c = nn.LayerNorm(4 * hidden_size), nn.LayerNorm(4 * hidden_size), nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.norm_x(self.x(x)) + self.norm_h(self.h(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_c(c)), c


class NormalisedGRU(nn.Module):
    """Hafner 2023, DreamerV3's: one norm over all gates, of input and state together."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.product = nn.Linear(input_size + hidden_size, 3 * hidden_size, bias=False)
        self.norm = nn.RMSNorm(3 * hidden_size, eps=1e-3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset, candidate, update = self.norm(self.product(torch.cat([x, h], 1))).chunk(3, 1)
        update = torch.sigmoid(update - 1)
        return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * h


class Ordered(nn.Module):
    """Shen 2019, the ordered neurons of an LSTM: gates that fall and rise along the row."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, 3 * hidden_size), nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f, i, n = (self.x(x) + self.h(h)).chunk(3, 1)
        f, i = f.softmax(1).cumsum(1), 1 - i.softmax(1).cumsum(1)
        return f * h + i * torch.tanh(n)


class GroupNormed(nn.Module):
    """Each head is normalised by itself, as in the xLSTM (Beck 2024)."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h, self.norm = nn.Linear(input_size, 6), nn.Linear(6, 6), nn.GroupNorm(2, 6)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.x(x) + self.h(h)))


class Competing(nn.Module):
    """Sums, extrema and norms of a row, in one step."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        v = self.x(x) + self.h(h)
        winners = torch.where(v == v.amax(1, keepdim=True), v, 0.5 * v)
        surprise = v.logsumexp(1, keepdim=True) - v.max(1, keepdim=True).values + v.std(1, correction=0, keepdim=True)
        direction = torch.nn.functional.normalize(winners, dim=1)
        return torch.tanh(direction + x.sum(1, keepdim=True) * h.log_softmax(1) - surprise)


# Not in the language


class Sorted(nn.Module):
    """A row in order, which no operation of the language gives."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(torch.sort(self.x(x) + self.h(h), dim=1).values)


class FastWeights(nn.Module):
    """Schmidhuber 1992: the state is a matrix that the state is multiplied with."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x = nn.Linear(input_size, 3 * hidden_size)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        k, v, q = self.x(x).chunk(3, 1)
        memory = 0.9 * memory + v[:, :, None] * k[:, None, :]
        return torch.bmm(memory, q.unsqueeze(2)).squeeze(2), memory


class Surrogate(torch.autograd.Function):
    """A step whose derivative is said to be a triangle."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient * torch.relu(1 - v.abs())


class Spiking(nn.Module):
    """Neftci, Mostafa, Zenke 2019: leaky integrate and fire, with a surrogate derivative of its own."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.s = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        spike, v = state
        v = 0.9 * v * (1 - spike) + self.x(x) + self.s(spike)
        return Surrogate.apply(v - 1), v


class Reversal(torch.autograd.Function):
    """The identity, whose derivative is said to be -1."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v.view_as(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Adversarial(nn.Module):
    """Ganin, Lempitsky 2015: a gradient reversal layer, within the step."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + self.h(Reversal.apply(h)))


class ClippedGradients(nn.Module):
    """Graves 2013: the gradient of the sums is clipped, by a hook on the tensor."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.x, self.h = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        sums = self.x(x) + self.h(h)
        if sums.requires_grad:
            sums.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        return torch.tanh(sums)
