"""Sequences that begin anew at 3% of their steps: an LSTM with resets, and other libraries' ways of doing it, where they are installed.

sb3-contrib and CleanRL loop over time steps in Python, TorchRL splits sequences and pads the pieces. All have one set of weights, and give
the same output and gradients, or the row says by how much they differ.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import sstkern
from sstkern.bench import report, suite, timing
from sstkern.bench.cases import PHASES
from sstkern.bench.shapes import Shape

SHARE = 0.03
SHAPES: tuple[Shape, ...] = ((128, 128, 256), (64, 128, 128), (32, 128, 64), (16, 64, 64))
"""Sequences, time steps, input and hidden size; the first is that of TorchRL's own benchmark of its kernels."""
WITHOUT = "without resets"
"""Ours, of whole sequences: what resets cost."""
Way = Callable[[Tensor], Tensor]
"""Takes x (T, B, I) and gives the output (T, B, H)."""


@dataclass(frozen=True)
class Case:
    shape: Shape
    phase: str


def cases(shapes: Sequence[Shape] = SHAPES, phases: Collection[str] = PHASES) -> list[Case]:
    return [Case(shape, phase) for shape in shapes for phase in phases]


def problem(shape: Shape) -> tuple[nn.LSTM, Tensor, Tensor]:
    """torch.nn's layer, x and resets, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch, steps, size = shape
        return nn.LSTM(size, size), torch.randn(steps, batch, size), torch.rand(steps, batch) < SHARE


def ways(layer: nn.LSTM, resets: Tensor) -> tuple[dict[str, tuple[nn.Module, Way]], dict[str, str]]:
    """Each way's module and how it is called; and why other ways are left out."""
    found: dict[str, tuple[nn.Module, Way]] = {}
    left_out = {}
    for name, make in WAYS.items():
        try:
            found[name] = make(layer, resets)
        except ImportError as error:
            left_out[name] = str(error)
    return found, left_out


def _copy(layer: nn.LSTM, kind: Callable[..., nn.Module], **options: bool) -> nn.Module:
    copy = kind(layer.input_size, layer.hidden_size, **options)
    copy.load_state_dict(layer.state_dict())
    return copy


def _ours(layer: nn.LSTM, resets: Tensor) -> tuple[nn.Module, Way]:
    ours = _copy(layer, sstkern.LSTM)
    return ours, lambda x: ours(x, resets=resets)[0]


def _whole(layer: nn.LSTM, resets: Tensor) -> tuple[nn.Module, Way]:
    ours = _copy(layer, sstkern.LSTM)
    return ours, lambda x: ours(x)[0]


def _zeros(layer: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, batch, layer.hidden_size), torch.zeros(1, batch, layer.hidden_size)


def _sb3(layer: nn.LSTM, resets: Tensor) -> tuple[nn.Module, Way]:
    """RecurrentPPO's own function, which has the sequences one after the other."""
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    copy, starts = _copy(layer, nn.LSTM), resets.t().float().flatten()

    def run(x: Tensor) -> Tensor:
        states = _zeros(copy, x.size(1))
        output, _ = RecurrentActorCriticPolicy._process_sequence(x.transpose(0, 1).flatten(0, 1), states, starts, copy)
        return output.unflatten(0, (x.size(1), x.size(0))).transpose(0, 1)

    return copy, run


def _cleanrl(layer: nn.LSTM, resets: Tensor) -> tuple[nn.Module, Way]:
    """The way of Agent.get_states in CleanRL's ppo_atari_lstm.py, which is a script, no package."""
    copy, done = _copy(layer, nn.LSTM), resets.float()

    def run(x: Tensor) -> Tensor:
        state, new = _zeros(copy, x.size(1)), []
        for h, d in zip(x, done, strict=True):
            kept = (1.0 - d).view(1, -1, 1)
            h, state = copy(h.unsqueeze(0), (kept * state[0], kept * state[1]))
            new += [h]
        return torch.cat(new)

    return copy, run


def _torchrl(layer: nn.LSTM, resets: Tensor) -> tuple[nn.Module, Way]:
    """LSTMModule in its recurrent mode, with the backend that runs on a CPU."""
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    copy = _copy(layer, nn.LSTM, batch_first=True)
    module = LSTMModule(lstm=copy, in_keys=["x", "h", "c"], out_keys=["y", ("next", "h"), ("next", "c")])
    steps, batch = resets.shape
    zeros = torch.zeros(batch, steps, 1, layer.hidden_size)

    def run(x: Tensor) -> Tensor:
        given = {"x": x.transpose(0, 1), "h": zeros, "c": zeros, "is_init": resets.t().unsqueeze(-1)}
        with set_recurrent_mode(True):
            return module(TensorDict(given, [batch, steps]))["y"].transpose(0, 1)

    return copy, run


OURS = "sstkern"
WAYS = {OURS: _ours, WITHOUT: _whole, "sb3-contrib": _sb3, "CleanRL": _cleanrl, "TorchRL": _torchrl}


def results(module: nn.Module, way: Way, x: Tensor, training: bool) -> list[Tensor]:
    """The output and, in training, the gradients of x and of the weights."""
    with torch.set_grad_enabled(training):
        if not training:
            return [way(x)]
        given = x.requires_grad_()
        output = way(given)
        return [output.detach(), *torch.autograd.grad(output, [given, *module.parameters()], torch.ones_like(output))]


def measure(case: Case, seconds: float) -> dict:
    """One row: each way's time, and others' over ours."""
    layer, x, resets = problem(case.shape)
    found, left_out = ways(layer, resets)
    training = case.phase == "training"
    runs = {name: lambda module=module, way=way: results(module, way, x, training) for name, (module, way) in found.items()}
    expected = runs[OURS]()
    differences = {name: _difference(run(), expected) for name, run in runs.items() if name != WITHOUT}
    blocks = {name: lambda each, run=run: timing.block(run, each) for name, run in runs.items()}
    taken = timing.compare(blocks, seconds)
    engines = {name: report.figures(one, differences.get(name, 0.0), {}) for name, one in taken.items()}
    ratios = {name: figures["ms"] / engines[OURS]["ms"] for name, figures in engines.items() if name != OURS}
    batch, steps, size = case.shape
    shape = {"batch": batch, "steps": steps, "size": size}
    return {**shape, "phase": case.phase, "engines": engines, "left_out": left_out, "ratios": ratios}


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest, as a share of the largest number."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def run(wanted: Sequence[Case], seconds: float, folder: Path, tell: suite.Tell) -> dict:
    """Measure the cases into `resets.json` in `folder`; returns what it holds."""
    return suite.sweep(wanted, lambda case: measure(case, seconds), folder / "resets.json", tell)
