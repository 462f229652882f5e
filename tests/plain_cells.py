"""Cells in plain PyTorch, one of each kind that `fuse` takes, and the loop that their layers are compared with."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sstkern.structure import flatten, mapped, unflatten


class MGU(nn.Module):
    """A state, which is the output."""

    def __init__(self, input_size: int = 3, hidden_size: int = 4):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.x_f, self.x_n = nn.Linear(input_size, hidden_size), nn.Linear(input_size, hidden_size)
        self.h_f, self.h_n = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = torch.sigmoid(self.x_f(x) + self.h_f(h))
        return (1 - f) * h + f * torch.tanh(self.x_n(x) + self.h_n(f * h))


class Stepped(MGU):
    """No program, since it asks for a value: a layer steps it in Python."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return super().forward(x, h) if x.sum() < 1e9 else h


class Memory(nn.Module):
    """An input with a score, nested states of two shapes, an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.read = nn.Linear(7, 4), nn.Linear(12, 2)

    def forward(self, input: tuple[Tensor, Tensor], state: tuple[Tensor, list[Tensor]]) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
        (x, score), (h, [memory]) = input, state
        h = torch.tanh(self.mix(torch.cat([x, h], -1)))
        memory = (1 - score[:, None, None]) * memory + h[:, :, None] * x[:, None, :]
        return self.read(memory.flatten(1)), (h, [memory])


class Pair(NamedTuple):
    h: Tensor
    c: Tensor


class Named(nn.Module):
    """A named tuple, whose names the cell uses, as state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: Tensor, state: Pair) -> Pair:
        return Pair(*self.cell(x, (state.h, state.c)))


class InPlace(nn.Module):
    """Changes its input and its state, and returns the state it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        x.mul_(2).tanh_()
        return h.add_(x @ self.weight.T).tanh_()


class Learned(nn.Module):
    """A first state of its own, where it is given none."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.h0 = MGU(), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return self.step(x, self.h0.expand(x.size(0), -1) if h is None else h)


def loop(cell: nn.Module, input: Any, hx: Any, lengths: list[int], reverse: bool = False, pair: bool = False) -> tuple[Tensor, Any, Any]:
    """The output, the last states and all states of a plain loop, of each sequence alone: padded, zero past a length.

    input: (T, B, ...), one or a tuple of them. hx: (B, ...) each, or None. pair: whether the cell returns an output and a state.
    """
    tensors, steps, finals, outputs, states = flatten(input), flatten(input)[0].size(0), [], [], []
    for b, length in enumerate(lengths):
        state = None if hx is None else mapped(hx, lambda leaf, b=b: leaf[b : b + 1])
        mine: list[Any] = [None] * steps
        for t in reversed(range(length)) if reverse else range(length):
            now = unflatten(input, [tensor[t, b : b + 1].clone() for tensor in tensors])
            result = cell(now) if state is None else cell(now, mapped(state, torch.clone))
            output, state = result if pair else (flatten(result)[0], result)
            mine[t] = output, flatten(state)
        finals.append(state)
        outputs.append([None if step is None else step[0] for step in mine])
        states.append([None if step is None else step[1] for step in mine])
    structure, count = finals[0], len(flatten(finals[0]))
    last = unflatten(structure, [torch.cat([flatten(final)[i] for final in finals]) for i in range(count)])
    every = unflatten(structure, [_padded([[step and step[i] for step in mine] for mine in states]) for i in range(count)])
    return _padded(outputs), last, every


def _padded(sequences: list[list[Tensor | None]]) -> Tensor:
    """(T, B, ...) of each sequence's rows (1, ...), with zeros for None."""
    like = next(row for rows in sequences for row in rows if row is not None)
    return torch.stack([torch.cat([torch.zeros_like(like) if row is None else row for row in rows]) for rows in sequences], 1)
