"""A cell of one's own on the adding problem (Hochreiter and Schmidhuber 1997): as a fused layer, and beside it as a loop in Python.

The cell is the minimal gated unit (Zhou, Wu, Zhang and Zhou 2016), written from its formulas. Two copies of one model are trained on the
same batches. One of them steps the cell in a Python loop; their losses must agree. After some steps the fused one goes on alone.

python examples/own_cell.py [--steps 300] [--beside 30] [--length 150] [--batch 32] [--units 48]
"""

import argparse
import copy
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sstkern


class MGU(nn.Module):
    """f = sigmoid(W_f x + U_f h + b_f), n = tanh(W_n x + U_n (f * h) + b_n), and the new h = (1 - f) * h + f * n."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.x_f, self.x_n = nn.Linear(input_size, hidden_size), nn.Linear(input_size, hidden_size)
        self.h_f, self.h_n = nn.Linear(hidden_size, hidden_size, bias=False), nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # (B, I), (B, H) -> (B, H)
        f = torch.sigmoid(self.x_f(x) + self.h_f(h))
        return (1 - f) * h + f * torch.tanh(self.x_n(x) + self.h_n(f * h))


class Loop(nn.Module):
    """What one writes without `sstkern.fuse`: the cell step by step, and the old state where a sequence has ended."""

    def __init__(self, cell: MGU):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = x.new_zeros(x.size(1), self.cell.hidden_size)
        for t, step in enumerate(x):
            h = torch.where((t < lengths)[:, None], self.cell(step, h), h)
        return h


class Fused(nn.Module):
    def __init__(self, cell: MGU):
        super().__init__()
        self.layer = sstkern.fuse(cell, strict=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.layer(x, lengths=lengths)[1]


class Trained:
    """A model with its optimizer, its latest loss, and the time that its steps took."""

    def __init__(self, recurrent: nn.Module, units: int):
        torch.manual_seed(1)
        self.model = nn.ModuleList([recurrent, nn.Linear(units, 1)])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, x: Tensor, lengths: Tensor, sums: Tensor) -> None:
        began = time.perf_counter()
        recurrent, read = self.model
        self.optimizer.zero_grad()
        loss = (read(recurrent(x, lengths))[:, 0] - sums).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - began)

    def told(self) -> str:
        """The mean loss of the latest 20 steps, and the median time of all."""
        latest = self.losses[-20:]
        return f"{sum(latest) / len(latest):.6f} ({1e3 * sorted(self.seconds)[len(self.seconds) // 2]:.1f} ms a step)"


def batch(length: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, B, 2), numbers and marks, of which each half of a sequence has one; lengths (B,), from T/2 to T; the sums (B,)."""
    lengths = torch.randint(length // 2, length + 1, (size,), generator=generator)
    half = lengths // 2
    numbers, marks = torch.rand(length, size, generator=generator), torch.zeros(length, size)
    places = torch.rand(2, size, generator=generator)
    marks[(places[0] * half).long(), torch.arange(size)] = 1
    marks[half + (places[1] * (lengths - half)).long(), torch.arange(size)] = 1
    return torch.stack([numbers, marks], -1), lengths, (numbers * marks).sum(0)


def main(arguments: Sequence[str] | None = None) -> tuple[Trained, Trained]:
    """Both as they are at the end, the fused one first. The mean square error of always guessing 1 is 0.167."""
    parser = argparse.ArgumentParser(description="Train a cell of one's own, fused and as a Python loop.")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the fused layer")
    parser.add_argument("--beside", type=int, default=30, help="how many of them the loop makes too")
    parser.add_argument("--length", type=int, default=150, help="time steps of the longest sequence")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a batch")
    parser.add_argument("--units", type=int, default=48, help="hidden units")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    cell = MGU(2, options.units)
    nn.init.constant_(cell.x_f.bias, -2.0)  # begin with a long memory
    fused, loop = Trained(Fused(cell), options.units), Trained(Loop(copy.deepcopy(cell)), options.units)
    generator = torch.Generator().manual_seed(2)
    for step in range(1, options.steps + 1):
        data = batch(options.length, options.batch, generator)
        fused.step(*data)
        if step <= options.beside:
            loop.step(*data)
        if step == options.beside:
            torch.testing.assert_close(torch.tensor(fused.losses), torch.tensor(loop.losses), rtol=1e-3, atol=1e-5)
            print(f"step {step:4}: fused {fused.told()}, loop {loop.told()}")
        elif step % 100 == 0 or step == options.steps:
            print(f"step {step:4}: fused {fused.told()}")
    return fused, loop


if __name__ == "__main__":
    main()
