"""Cells of `zoo_cells.py`, torch.nn's and all of the package torchrecurrent, with what each takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchrecurrent
import zoo_cells as cells
from torch import Tensor, nn
from torch.nn import functional as F

from sstkern.structure import mapped


@dataclass(frozen=True)
class Row:
    """What one sequence has at one step. kind: "normal", "positive", "unit" (0 to 1), or "bool"."""

    shape: tuple[int, ...]
    kind: str = "normal"

    def drawn(self, *batch: int) -> Tensor:
        shape = (*batch, *self.shape)
        if self.kind == "bool":
            return torch.rand(shape) < 0.5
        drawn = torch.randn(shape, dtype=torch.float64) if self.kind == "normal" else torch.rand(shape, dtype=torch.float64)
        return drawn.requires_grad_()


@dataclass(frozen=True)
class Entry:
    """make, inputs and state are of the sizes input_size and hidden_size. inputs, state: a Row, or tuples and lists of them. returns: as of
    sstkern.fuse. sizes: those to test with. unfused: what the reason names, where the cell is no program."""

    make: Callable[[int, int], nn.Module]
    state: Callable[[int, int], Any]
    inputs: Callable[[int, int], Any] = lambda i, h: Row((i,))
    returns: str = "state"
    sizes: tuple[int, int] = (3, 5)
    has_default: bool = False
    unfused: str | None = None

    def cell(self, input_size: int | None = None, hidden_size: int | None = None) -> nn.Module:
        """In float64, no parameter at a special value such as 0."""
        cell = self.make(*(self.sizes if input_size is None else (input_size, hidden_size))).double()
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return cell

    def drawn(self, steps: int, batch: int, input_size: int | None = None, hidden_size: int | None = None) -> tuple[Any, Any]:
        """Random input and first state."""
        sizes = self.sizes if input_size is None else (input_size, hidden_size)
        return mapped(self.inputs(*sizes), lambda row: row.drawn(steps, batch)), mapped(self.state(*sizes), lambda row: row.drawn(batch))


def one(i: int, h: int) -> Row:
    return Row((h,))


def two(i: int, h: int) -> tuple[Row, Row]:
    return Row((h,)), Row((h,))


OPTIONS: dict[str, tuple[Callable, ...]] = {
    "smooth": (torch.sigmoid, F.softplus, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.logsigmoid, F.tanhshrink, torch.erf),
    "kinked": (F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardsigmoid, F.hardswish, F.softsign, torch.abs),
    "conditions": (
        lambda v: F.threshold(v, 0.1, 0.2),
        lambda v: torch.where(v > 0, v, 0.1 * v),
        lambda v: v.masked_fill(v < 0, 0.0),
        lambda v: torch.where((v > -1) & (v < 1), v.sin(), v.sign()),
        lambda v: v.clamp(min=-0.5) * (v != 0.25),
    ),
    "functions": (
        torch.sin,
        torch.cos,
        torch.atan,
        torch.asinh,
        lambda v: torch.square(v.sin()),
        lambda v: torch.expm1(v.tanh()),
        lambda v: torch.sinh(v.tanh()),
        lambda v: torch.cosh(v.tanh()),
        lambda v: torch.tan(v.tanh()),
    ),
    "of two": (
        lambda v: torch.max(v, -v),
        lambda v: torch.min(v, v.sin()),
        lambda v: torch.lerp(v, -v, 0.3),
        lambda v: torch.pow(v.sin().abs() + 1, 1.5),
        lambda v: torch.pow(1.5, v.tanh()),
        lambda v: torch.addcmul(v, v.sin(), v, value=0.1),
        lambda v: torch.addcdiv(v, v, 2 + v.cos(), value=0.5),
        lambda v: torch.atan2(v, 1 + v * v),
        lambda v: F.glu(torch.cat([v, 2 * v], -1)),
        lambda v: F.gelu(v, approximate="tanh"),
    ),
    "rational": (
        lambda v: v / (1 + v.abs()),
        lambda v: 1 / (1 + v * v),
        lambda v: torch.rsqrt(1 + v**2),
        lambda v: (v**2 + 1).sqrt(),
        lambda v: v.tanh() ** 3,
        lambda v: torch.log1p(v * v),
        lambda v: torch.log(1 + v.tanh().exp()),
        lambda v: (v * v + 1).reciprocal() - v.neg(),
    ),
}
"""Activations by kind, beside each other in one cell."""
PEEPHOLES = {"default": (torch.sigmoid, torch.tanh, torch.tanh), "relu": (F.hardsigmoid, F.relu, F.softsign)}


def _mask(i: int, h: int) -> tuple[Row, Row, Row]:
    return Row((i,)), Row((i,), "bool"), Row((i,), "positive")


def _with_number(i: int, h: int) -> tuple[Row, Row]:
    return Row((i,)), Row((), "unit")


OWN: dict[str, Entry] = {
    "LSTMCell": Entry(nn.LSTMCell, two, has_default=True),
    "LSTMCell without bias": Entry(lambda i, h: nn.LSTMCell(i, h, bias=False), two, has_default=True),
    "GRUCell": Entry(nn.GRUCell, one, has_default=True),
    "RNNCell": Entry(nn.RNNCell, one, has_default=True),
    "RNNCell relu": Entry(lambda i, h: nn.RNNCell(i, h, nonlinearity="relu"), one, has_default=True),
    "MGU": Entry(cells.MGU, one),
    "ProjectedLSTM": Entry(lambda i, h: cells.ProjectedLSTM(i, h, 2), lambda i, h: (Row((2,)), Row((h,)))),
    "ChoGRU": Entry(cells.ChoGRU, one),
    "MultiplicativeLSTM": Entry(cells.MultiplicativeLSTM, two),
    "RecurrentHighway": Entry(cells.RecurrentHighway, one),
    "IndRNN": Entry(cells.IndRNN, one),
    "Leaky": Entry(cells.Leaky, one),
    "SRU": Entry(cells.SRU, one, returns="output_and_state"),
    "SLSTM": Entry(cells.SLSTM, lambda i, h: (Row((h,)), (Row((h,)), Row((h,)), Row((h,))))),
    "LMU": Entry(cells.LMU, lambda i, h: (Row((h,)), Row((4,)))),
    "ExpRNN": Entry(cells.ExpRNN, one),
    "WeightNormed": Entry(cells.WeightNormed, one),
    "AUGRU": Entry(cells.AUGRU, one, _with_number),
    "GRUD": Entry(cells.GRUD, lambda i, h: (Row((h,)), Row((i,))), _mask),
    "PhasedLSTM": Entry(cells.PhasedLSTM, two, _with_number),
    "Clockwork": Entry(cells.Clockwork, one, _with_number),
    "KerasLSTM": Entry(cells.KerasLSTM, lambda i, h: [Row((h,)), Row((h,))], returns="output_and_state"),
    "KerasGRU": Entry(lambda i, h: cells.KerasGRU(i, h, True), lambda i, h: [Row((h,))], returns="output_and_state"),
    "KerasGRU reset before": Entry(lambda i, h: cells.KerasGRU(i, h, False), lambda i, h: [Row((h,))], returns="output_and_state"),
    "OnnxGRU": Entry(lambda i, h: cells.OnnxGRU(i, h, 0), one),
    "OnnxGRU linear before reset": Entry(lambda i, h: cells.OnnxGRU(i, h, 1, clip=0.8), one),
    "ClippedLSTM": Entry(cells.ClippedLSTM, two, returns="output_and_state"),
    "TutorialLSTM": Entry(cells.TutorialLSTM, two, returns="output_and_state"),
    "FourLinears": Entry(cells.FourLinears, two),
    "InPlaceLSTM": Entry(cells.InPlaceLSTM, two),
    "NamedStates": Entry(cells.NamedStates, lambda i, h: cells.State(*two(i, h))),
    "Readout": Entry(cells.Readout, one, returns="output_and_state"),
    "Tied": Entry(cells.Tied, one),
    "EchoState": Entry(cells.EchoState, one),
    "LearnedStart": Entry(cells.LearnedStart, one, has_default=True),
    "TwoLayers": Entry(cells.TwoLayers, lambda i, h: [two(i, h), two(i, 2)], returns="output_and_state"),
    "Delay": Entry(cells.Delay, lambda i, h: (Row((i,)), Row((i,))), returns="output_and_state"),
    "Swapped": Entry(cells.Swapped, lambda i, h: (Row((h,)), Row((h,)), Row((h,)))),
    "Same": Entry(cells.Same, two),
    "Heads": Entry(cells.Heads, lambda i, h: Row((2, h))),
    "BlockDiagonal": Entry(cells.BlockDiagonal, lambda i, h: Row((2, h))),
    "SharedHeads": Entry(cells.SharedHeads, lambda i, h: Row((2, h))),
    "Constants": Entry(cells.Constants, one),
    "StraightThrough": Entry(cells.StraightThrough, one),
    "LowRank": Entry(cells.LowRank, one),
    "Einsum": Entry(cells.Einsum, one),
    "Stateless": Entry(cells.Stateless, one),
    "Autonomous": Entry(cells.Autonomous, one),
    "Dropped": Entry(cells.Dropped, one),
    "LayerNormRNN": Entry(cells.LayerNormRNN, one),
    "LayerNormLSTM": Entry(cells.LayerNormLSTM, two),
    "NormalisedGRU": Entry(cells.NormalisedGRU, one),
    "Ordered": Entry(cells.Ordered, one),
    "GroupNormed": Entry(cells.GroupNormed, lambda i, h: Row((6,))),
    "Competing": Entry(cells.Competing, one),
    "Sorted": Entry(cells.Sorted, one, unfused="sort"),
    "FastWeights": Entry(cells.FastWeights, lambda i, h: Row((h, h)), returns="output_and_state", unfused="matrix products"),
    "Spiking": Entry(cells.Spiking, two, unfused="autograd.Function"),
    "Adversarial": Entry(cells.Adversarial, one, unfused="autograd.Function"),
    "ClippedGradients": Entry(cells.ClippedGradients, one, unfused="requires_grad"),
}
OWN |= {f"Activations {name}": Entry(lambda i, h, f=functions: cells.Activations(i, h, f), one) for name, functions in OPTIONS.items()}
OWN |= {
    f"OnnxLSTM {name}{' coupled' * coupled}": Entry(lambda i, h, f=f, coupled=coupled: cells.OnnxLSTM(i, h, f, 0.9 * coupled, coupled), two)
    for name, f in PEEPHOLES.items()
    for coupled in (False, True)
}


def _of_torchrecurrent(cell_class: type) -> Entry:
    """What it takes and returns, found by calling it."""
    sizes = (3, 5)
    try:
        result = cell_class(*sizes)(torch.zeros(1, 3))
    except ValueError:  # the one whose input is as wide as its state
        sizes = (5, 5)
        result = cell_class(*sizes)(torch.zeros(1, 5))
    pair = issubclass(cell_class, torchrecurrent.base.DecoupledSingleStateCellBase | torchrecurrent.base.DecoupledDoubleStateCellBase)
    state = result[1] if pair else result
    as_wide_as_input = mapped(state, lambda part: part.size(1) != 5)

    def rows(i: int, h: int) -> Any:
        return mapped(as_wide_as_input, lambda of_input: Row((i if of_input else h,)))

    return Entry(cell_class, rows, returns="output_and_state" if pair else "state", sizes=sizes, has_default=True)


RECURRENT = {
    name: _of_torchrecurrent(value) for name, value in vars(torchrecurrent).items() if isinstance(value, type) and name.endswith("Cell")
}
"""The whole of torchrecurrent, at the sizes of `Entry.sizes`."""
ZOO = OWN | RECURRENT
ASKED_FOR_STATES = set(list(ZOO)[::2])
"""Every second cell. The gradients of all states make another program of the backward, and to compile both for each cell took a minute."""
