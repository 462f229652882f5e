"""The adding problem (Hochreiter and Schmidhuber 1997): add the two marked numbers of a long sequence; ours, and torch.nn's in turns.

python examples/adding_problem.py [STEPS]
"""

import sys
import time

import torch
from torch import Tensor, nn

import sstkern

LENGTH, BATCH, UNITS = 40, 64, 64


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (T, B, 2): numbers and marks, one mark in each half. The sums (B,)."""
    numbers = torch.rand(LENGTH, BATCH, generator=generator)
    marks = torch.zeros(LENGTH, BATCH)
    for half in (0, LENGTH // 2):
        marks[half + torch.randint(LENGTH // 2, (BATCH,), generator=generator), torch.arange(BATCH)] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


class Adder(nn.Module):
    def __init__(self, recurrent: type[nn.Module]):
        super().__init__()
        self.recurrent, self.sum = recurrent(2, UNITS), nn.Linear(UNITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, (h_n, _) = self.recurrent(x)
        return self.sum(h_n[-1])[:, 0]


def main(steps: int = 600) -> float:
    """Train both on the same batches; the mean square error of ours at the end (always guessing 1 has 0.167)."""
    models, seconds = {}, {}
    for name, recurrent in (("sstkern", sstkern.LSTM), ("torch.nn", nn.LSTM)):
        torch.manual_seed(0)
        models[name] = Adder(recurrent)
        seconds[name] = 0.0
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=1e-2) for name, model in models.items()}
    generator, errors = torch.Generator().manual_seed(1), {}
    for step in range(1, steps + 1):
        x, sums = batch(generator)
        for name, model in models.items():
            began = time.perf_counter()
            optimizers[name].zero_grad()
            loss = (model(x) - sums).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers[name].step()
            seconds[name] += time.perf_counter() - began
            errors[name] = loss.item()
        if step % 100 == 0 or step == steps:
            print(
                f"step {step:4}: " + ", ".join(f"{name} {errors[name]:.4f} ({1e3 * seconds[name] / step:.1f} ms a step)" for name in models)
            )
    return errors["sstkern"]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
