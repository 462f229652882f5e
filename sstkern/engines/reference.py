"""The specification: every layer in plain PyTorch, in any floating dtype, differentiable any number of times.

The other engines compute what this file says, faster. T time steps, B batch, I input_size, H hidden_size, P proj_size (H without a
projection), D directions, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from sstkern.cells import Cell
from sstkern.cells.cell import States
from sstkern.engines.loop import States as Loop
from sstkern.engines.loop import recurrence
from sstkern.engines.rows import Rows
from sstkern.engines.tangents import with_tangents
from sstkern.weights import Weights, by_direction

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""As torch's: rows (N, M), weight (K, M), bias (K,), to (N, K)."""


def layer(
    cell: Cell,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    product: Linear = linear,
    every: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """One recurrent layer, all its directions.

    x: (T, B, I), or packed, (N, I): the N valid steps alone, in the order of a PackedSequence. weights: as `by_direction` takes them. hx:
    the states before the first step, h (D, B, P) and the cell's others (D, B, H). lengths: int64 (B,) from 0 to T, or None where every
    sequence has T steps; a packed x needs them, on the CPU, and they fall. Where they say that sequences begin anew at some steps, as
    `sstkern.lengths` has it, what they begin with follows in hx, in the same shapes, or is zeros; a direction from the last step to the
    first begins anew at the step before. every: whether the states besides h after every step follow the last ones, (T, B, D * H) each, or
    (N, D * H).

    Returns the output (T, B, D * P), zero past a sequence's length, or (N, D * P), and the states after each sequence's last step, (D, B,
    ...). What x holds past a length is never used. product: multiplies the rows of a state with a weight, and adds the bias.
    """
    (x,), weights, hx = with_tangents([x], weights, hx)
    rows = Rows([x], lengths, padded=x.dim() == 3)
    given, outputs, others, finals = rows.of(x), [], [], []
    for d, direction in enumerate(by_direction(cell, weights, has_bias, bidirectional)):
        given_hx = [state[d] for state in hx]
        count = len(cell.states)
        states = rows.states(given_hx[:count], d == 1, given_hx[count:])
        output, *beside = map(rows.restored, _recurrence(cell, given, states, direction, d == 1, product, every))
        outputs.append(output)
        others.append(beside)
        finals.append([rows.back(state) for state in states.last()])
    hx_n = [torch.stack(state) for state in zip(*finals, strict=True)]
    return torch.cat(outputs, dim=-1), [*hx_n, *(torch.cat(state, dim=-1) for state in zip(*others, strict=True))]


def _recurrence(cell: Cell, x: Tensor, states: Loop, w: Weights, reverse: bool, product: Linear, every: bool) -> Sequence[Tensor]:
    """The output of one direction, rows (N, P) of x (N, I), and with `every` its other states; `states` end as its last ones."""
    gates_x = linear(x, w.weight_ih, w.bias_ih)  # (N, G * H)

    def step(gates: Tensor, before: States) -> tuple[States, States]:
        stepped = step_of(cell, gates, before, w, product)
        return stepped if every else stepped[:1], stepped

    return recurrence(step, gates_x, states, reverse)


def step_of(cell: Cell, gates_x: Tensor, states: States, w: Weights, product: Linear = linear) -> States:
    """The cell's stages, with the step between them."""
    gates_h = product(states[0], w.weight_hh, w.bias_hh)
    stepped = cell.step(gates_x, gates_h, states, w.parameters)
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        _check(cell, stepped, (gates_h.size(0), gates_h.size(1) // len(cell.gates)))
    h, *others = stepped
    if w.weight_hr is not None:
        h = product(h, w.weight_hr, None)
    return h, *others


def _check(cell: Cell, stepped: States, shape: tuple[int, int]) -> None:
    """What a step of somebody's own returns: a tensor of another shape would be spread over the batch."""
    whole = isinstance(stepped, tuple | list) and all(isinstance(state, Tensor) for state in stepped)
    if not whole or len(stepped) != len(cell.states) or any(state.shape != shape for state in stepped):
        shapes = [tuple(state.shape) for state in stepped] if whole else type(stepped).__name__
        raise ValueError(f"step of '{cell.name}': expected the states ({', '.join(cell.states)}), each of shape {shape}, got {shapes}")
