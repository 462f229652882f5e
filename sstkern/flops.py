"""What torch.utils.flop_counter counts for a layer: two for each multiplication of its matrix products, as for those of torch.nn's layers.

Steps past a sequence's length are not counted where the lengths are on the CPU. T time steps, B batch, I input_size, H hidden_size, P the
width of h, G the number of gates.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sstkern import private
from sstkern.cells import CELLS
from sstkern.lengths import alone
from sstkern.weights import by_direction

_COUNTER = "torch.utils.flop_counter"


def _layer(cell: str, x: Tensor, weights: Sequence[Tensor], _hx, lengths, has_bias: bool, bidirectional: bool, *_others, **_kwargs) -> int:
    steps, total = _steps(x, lengths)[0], 0
    for w in by_direction(CELLS[cell], weights, has_bias, bidirectional):
        total += w.weight_ih.numel() + w.weight_hh.numel() + (0 if w.weight_hr is None else w.weight_hr.numel())
    return 2 * steps * total


def _layer_backward(
    cell: str, x: Tensor, weights: Sequence[Tensor], hx, lengths, has_bias: bool, bidirectional: bool, *others, **_kwargs
) -> int:
    """The gradients of x and of each weight where they are needed; that of the states from step to step, and the projection's, always."""
    needs, (steps, sequences) = others[4], _steps(x, lengths)
    needs_weights, needs_states = needs[1 : 1 + len(weights)], any(needs[1 + len(weights) :])
    total = steps * sum(weight.numel() for weight, need in zip(weights, needs_weights, strict=True) if need and weight.dim() == 2)
    for w in by_direction(CELLS[cell], weights, has_bias, bidirectional):
        total += steps * needs[0] * w.weight_ih.numel()
        total += (steps if needs_states else steps - sequences) * w.weight_hh.numel()
        total += steps * (0 if w.weight_hr is None else w.weight_hr.numel())
    return 2 * total


def _steps(x: Tensor, lengths: Any) -> tuple[int, int]:
    """The time steps of all sequences together, and how many sequences have any; of a packed x, how many sequences there are."""
    if x.dim() == 2:
        return x.size(0), lengths.size(0)
    if lengths is None or lengths.device.type != "cpu" or private.is_fake(lengths):
        return x.size(0) * x.size(1), x.size(1) * (x.size(0) > 0)
    lengths = alone(lengths)
    return int(lengths.sum()), int((lengths > 0).sum())


def _register(counter: ModuleType) -> None:
    for operator, formula in ((torch.ops.sstkern.layer, _layer), (torch.ops.sstkern.layer_backward, _layer_backward)):
        counter.register_flop_formula(operator, get_raw=True)(formula)


class _Waiting(MetaPathFinder):
    """Registers the formulas when somebody imports the counter. It imports Triton, which takes four times as long as all of sstkern."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Now, where the counter is imported, or with its import."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _Waiting())
