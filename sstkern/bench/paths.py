"""How the time of what runs in plain PyTorch grows with the time steps, ours alone: it has to be linear."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, vmap

import sstkern
from sstkern.bench import suite, timing
from sstkern.bench.cases import LAYERS, LENGTHS, Case

STEPS = (250, 500, 1000, 2000)
MOST = 2.3
"""The largest factor by which twice the steps may take longer."""
BASE = Case("LSTM", batch=4, steps=STEPS[0], size=24, training=True)
STACK = {"num_layers": 2, "bidirectional": True}


def _output(layer: nn.Module, case: Case, x: Tensor) -> Tensor:
    return layer(x, lengths=case.valid)[0]


def _derivatives(order: int) -> Callable[[nn.Module, Case, Tensor], object]:
    """The gradient of all, and with order 2 the gradient of its square."""

    def run(layer: nn.Module, case: Case, x: Tensor) -> object:
        x = x.detach().requires_grad_()
        value, wanted = _output(layer, case, x).square().sum(), [x, *layer.parameters()]
        for left in reversed(range(order)):
            found = torch.autograd.grad(value, wanted, create_graph=left > 0)
            value = torch.stack([gradient.square().sum() for gradient in found]).sum()
        return value

    return run


def _forward_mode(layer: nn.Module, case: Case, x: Tensor) -> object:
    with forward_ad.dual_level(), torch.no_grad():
        return forward_ad.unpack_dual(_output(layer, case, forward_ad.make_dual(x, torch.ones_like(x))))


def _each_sample(layer: nn.Module, case: Case, x: Tensor) -> object:
    return vmap(grad(lambda x: layer(x)[0].square().sum()), 1)(x.unsqueeze(2))


def _cells(layer: nn.Module, case: Case, x: Tensor) -> object:
    cell, hx, value = getattr(sstkern, f"{case.cell}Cell")(case.size, case.size), None, torch.zeros(())
    for now in x.unbind():
        hx = cell(now, hx)
        value = value + (hx[0] if isinstance(hx, tuple) else hx).square().sum()
    return torch.autograd.grad(value, list(cell.parameters()))


@dataclass(frozen=True)
class Way:
    run: Callable[[nn.Module, Case, Tensor], object]
    engine: str | None = None
    """The one that is forced."""
    options: tuple[tuple[str, object], ...] = ()
    """Options of the layer."""
    lengths: bool = True
    """Whether it has them."""


WAYS = {
    "reference, training": Way(_derivatives(1), "reference"),
    "second derivative": Way(_derivatives(2)),
    "second derivative of a stack, both directions": Way(_derivatives(2), options=tuple(STACK.items())),
    "second derivative, recompute": Way(_derivatives(2), options=(("recompute", True),)),
    "forward mode": Way(_forward_mode),
    "gradient of each sample": Way(_each_sample, lengths=False),
    "gradient of each sample, reference": Way(_each_sample, "reference", lengths=False),
    "cells in a loop, training": Way(_cells, lengths=False),
}


@dataclass(frozen=True)
class Point:
    way: str
    case: Case

    def __str__(self) -> str:
        return f"{self.case.cell} T{self.case.steps} {self.case.lengths}: {self.way}"


def points(cells: Collection[str] = tuple(LAYERS), lengths: Collection[str] = LENGTHS) -> list[Point]:
    """All ways of all cells, each with growing steps."""
    return [
        Point(name, replace(BASE, cell=cell, lengths=length, steps=steps))
        for cell in cells
        for name, way in WAYS.items()
        for length in lengths
        if way.lengths or length == "full"
        for steps in STEPS
    ]


def measure(point: Point, seconds: float) -> dict:
    """One row: processor time of a call on one thread, the shortest of those that fit into three times so many seconds."""
    way, case, before = WAYS[point.way], point.case, torch.get_num_threads()
    layer = getattr(sstkern, case.cell)(case.size, case.size, **dict(way.options))
    x = torch.randn(case.steps, case.batch, case.size)
    torch.set_num_threads(1)
    try:
        with sstkern.backend(way.engine) if way.engine else nullcontext():
            way.run(layer, replace(case, steps=8), x[:8])  # what a first call imports and makes
            taken = [min(timing.block(lambda: way.run(layer, case, x), seconds, time.process_time)) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    return {"way": point.way, **case.as_row(), "ms": min(taken) * 1e3}


def growth(rows: Sequence[dict]) -> list[tuple[dict, float]]:
    """Each row whose way was measured with fewer steps just before, and how many times that one's time it took."""
    same = ("way", "cell", "lengths")
    return [(row, row["ms"] / before["ms"]) for before, row in pairwise(rows) if all(before[name] == row[name] for name in same)]


def run(wanted: Sequence[Point], seconds: float, folder: Path, tell: suite.Tell) -> dict:
    """Measure the points into `paths.json` in `folder`; returns what it holds."""
    return suite.sweep(wanted, lambda point: measure(point, seconds), folder / "paths.json", tell)
