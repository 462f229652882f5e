"""The cells of sstkern.cells beside their own loop in Python, and beside the layers of other packages, each case in one interleaved run.

    python benchmarks/library_beside_peers.py --output benchmarks/results/MACHINE --threads 2

writes library_beside_peers.json there, and prints a line for each case: milliseconds of a training step, the loop's and the peer's time
over ours, and the share of one large torch.mm's rate that our matrix products reach. Peers are packages that pip has; one that is not
installed is left out. What they compute is compared in tests/cells/test_library_peers.py; here they have weights of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from sstkern.bench import machine, peers, report, suite, timing, ways
from sstkern.bench.own_cases import OwnCase, OwnProblem
from sstkern.bench.shapes import Shape, parse_shape
from sstkern.cells import LIBRARY

SHAPES: tuple[Shape, ...] = ((1, 50, 128), (32, 20, 128), (32, 100, 256))
HEADS = 4


def torchrecurrents(name: str) -> Callable[[int], nn.Module]:
    return lambda size: getattr(import_module("torchrecurrent"), name)(size, size)


class SLSTM(nn.Module):
    """The products of the input, and xlstm's loop in plain PyTorch."""

    def __init__(self, size: int):
        super().__init__()
        self.functions = import_module("xlstm.blocks.slstm.src.vanilla")
        units = size // HEADS
        self.x, self.recurrent = nn.Linear(size, 4 * size), nn.Parameter(torch.randn(HEADS, units, 4 * units) / units)

    def forward(self, x: Tensor) -> Tensor:
        first, bias = x.new_zeros(4, x.size(1), self.x.in_features), torch.zeros_like(self.x.bias)
        pointwise = self.functions.slstm_pointwise_function_registry["slstm"]
        return self.functions.slstm_forward(self.x(x), first, self.recurrent.transpose(1, 2), bias, pointwise)[0][0, 1:]


def ncps(size: int) -> nn.Module:
    return import_module("ncps.torch").CfC(size, size, batch_first=False, backbone_units=size, backbone_layers=1, backbone_dropout=0.0)


class OverBatches(nn.Module):
    """A layer of minGRU-pytorch, which takes (B, T, I) and runs all time steps at once, as a scan."""

    def __init__(self, name: str, size: int):
        super().__init__()
        self.layer = getattr(import_module(f"minGRU_pytorch.{name}"), name)(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


PEERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "peephole_lstm": ("torchrecurrent", torchrecurrents("PeepholeLSTM")),
    "multiplicative_lstm": ("torchrecurrent", torchrecurrents("MultiplicativeLSTM")),
    "nas": ("torchrecurrent", torchrecurrents("NAS")),
    "light_gru": ("torchrecurrent", torchrecurrents("LiGRU")),
    "mgu": ("torchrecurrent", torchrecurrents("MGU")),
    "indrnn": ("torchrecurrent", torchrecurrents("IndRNN")),
    "slstm": ("xlstm", SLSTM),
    "cfc": ("ncps", ncps),
    "min_gru": ("minGRU-pytorch", lambda size: OverBatches("minGRU", size)),
    "min_lstm": ("minGRU-pytorch", lambda size: OverBatches("minLSTM", size)),
}
"""The package, and its layer of that size: (T, B, size) to the outputs, or to them and the last states."""


def training_step(layer: nn.Module, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    result = layer(x)
    (result if isinstance(result, Tensor) else result[0]).sum().backward()


def peer_of(case: OwnCase) -> nn.Module | None:
    """The cell's peer; None where there is none, or where its package is not installed."""
    try:
        return PEERS[case.cell][1](case.size) if case.cell in PEERS else None
    except ImportError:
        return None


def measure(case: OwnCase, threads: int, seconds: float) -> dict:
    """One row."""
    problem, peer = OwnProblem.of(case, threads), peer_of(case)
    blocks = {peers.OURS: ways.ours(problem).block, ways.LOOP: problem.eager().block}
    if peer is not None:
        x = problem.x
        blocks["peer"] = lambda seconds: timing.block(lambda: training_step(peer, x), seconds)
    taken = timing.compare(blocks, seconds)
    ours = taken[peers.OURS].median
    rate = machine.product_rate(torch.float32, threads)
    return {
        **case.as_row(),
        "peer": PEERS[case.cell][0] if peer is not None else None,
        "ms": {name: one.median * 1e3 for name, one in taken.items()},
        "ratio": {name: one.median / ours for name, one in taken.items() if name != peers.OURS},
        "rate_share": None if case.flops is None else case.flops / ours / 1e9 / rate,
        "disturbed": [name for name, one in taken.items() if one.disturbed],
    }


def line(row: dict) -> str:
    ratios = "  ".join(f"{row['peer'] if name == 'peer' else name} {ratio:5.1f}" for name, ratio in row["ratio"].items())
    share = "" if row["rate_share"] is None else f"{row['rate_share']:4.0%} of torch.mm"
    star = " *" if row["disturbed"] else ""
    return f"{row['cell']:22} {report.shape(row):11} {row['ms'][peers.OURS]:8.3f} ms {share:15} over ours: {ratios}{star}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", action="append", choices=LIBRARY, help="can be given again; all by default")
    parser.add_argument("--shape", action="append", type=parse_shape, help="B,T,H; can be given again")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for a case")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder")
    chosen = parser.parse_args(given)
    torch.set_num_threads(chosen.threads)
    cases = [OwnCase(cell, *shape, training=True) for cell, shape in product(chosen.cell or LIBRARY, chosen.shape or SHAPES)]

    suite.sweep_with_lines(
        cases, lambda case: measure(case, chosen.threads, chosen.seconds), chosen.output / "library_beside_peers.json", line
    )


if __name__ == "__main__":
    main()
