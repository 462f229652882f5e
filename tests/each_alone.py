"""What a layer of a cell should give: the cell in a Python loop, one sequence after the other, a batch of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from layers import assert_close, fused_runs, gradients
from torch import Tensor, nn

from sstkern import engines
from sstkern.structure import flatten, mapped


def loop(
    cell: nn.Module, input: Any, hx: Any, lengths: list[int], reverse: bool = False, returns: str = "state"
) -> tuple[Tensor, Any, Any]:
    """(output, hx_n, states) of inputs (T, B, ...) and states (B, ...), as `sstkern.fuse(cell)(input, hx, return_states=True)` has them."""
    found = [
        _sequence(cell, mapped(input, lambda x, b=b: x[:, b]), mapped(hx, lambda h, b=b: h[b]), n, reverse, returns)
        for b, n in enumerate(lengths)
    ]
    output, hx_n, states = zip(*found, strict=True)
    return torch.stack(output, 1), _joined(hx_n, 0), _joined(states, 1)


def _joined(structures: tuple, dim: int) -> Any:
    leaves = iter(zip(*map(flatten, structures), strict=True))
    return mapped(structures[0], lambda _: torch.stack(next(leaves), dim))


def _sequence(cell: nn.Module, input: Any, state: Any, length: int, reverse: bool, returns: str) -> tuple[Tensor, Any, Any]:
    state = mapped(state, lambda h: h[None])
    steps = len(flatten(input)[0])
    outputs, states = [_padding(cell, input, state, returns)] * steps, [mapped(state, torch.zeros_like)] * steps
    for t in reversed(range(length)) if reverse else range(length):
        outputs[t], state = step(cell, mapped(input, lambda x, t=t: x[t : t + 1]), state, returns)
        states[t] = state
    leaves = iter(zip(*map(flatten, states), strict=True))
    return torch.cat(outputs), mapped(state, lambda h: h[0]), mapped(state, lambda _: torch.cat(next(leaves)))


def step(cell: nn.Module, x: Any, state: Any, returns: str) -> tuple[Tensor, Any]:
    result = cell(x, state)
    return result if returns == "output_and_state" else (flatten(result)[0], result)


def _padding(cell: nn.Module, input: Any, state: Any, returns: str) -> Tensor:
    with torch.no_grad():
        ones = mapped(input, lambda x: x.new_ones(1, *x.shape[1:]))
        return torch.zeros_like(step(cell, ones, mapped(state, torch.zeros_like), returns)[0])


def wanted(cell: nn.Module, input: Any, hx: Any) -> list[Tensor]:
    """All tensors that have a gradient: inputs, states, parameters, each once."""
    return [tensor for tensor in [*flatten(input), *flatten(hx), *cell.parameters()] if tensor.requires_grad]


def gradients_of(results: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Gradients of a random weighting of the results. Where it depends on none of the tensors the gradient is 0."""
    return gradients([result if result.requires_grad else result.detach().requires_grad_() for result in results], tensors)


def assert_is_the_loop(
    layer: nn.Module,
    input: Any,
    hx: Any,
    lengths: list[int],
    reverse: bool = False,
    returns: str = "state",
    tolerance: float = 1e-10,
    every: bool = True,
) -> None:
    """Outputs, last states and every gradient of a layer are those of the loop of its cell; with `every` all states too, whose gradients
    make another program of the backward.

    A fused layer's are computed by the C++ engine, unless another one is forced.
    """
    with by_the_engine(layer, "forward"):
        found = flatten(layer(input, hx, lengths=lengths, return_states=every))
    expected = flatten(loop(layer.cell, input, hx, lengths, reverse, returns)[: 3 if every else 2])
    assert_close(found, expected, tolerance)
    tensors = wanted(layer.cell, input, hx)
    with by_the_engine(layer, "backward") if any(result.requires_grad for result in found) else nullcontext():
        ours = gradients_of(found, tensors)
    assert_close(ours, gradients_of(expected, tensors), tolerance)


@contextmanager
def by_the_engine(layer: nn.Module, direction: str) -> Iterator[None]:
    """direction: "forward" or "backward"."""
    before = fused_runs()[direction]
    yield
    there = engines.interpreting() or engines.extension_problem() is None
    compiled = layer.fused and there and engines.forced() != "reference"
    assert (fused_runs()[direction] > before) == compiled
