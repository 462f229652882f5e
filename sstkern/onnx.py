"""Export to ONNX: `torch.onnx.export(model, arguments, dynamo=True)` makes of our layers the standard operators LSTM, GRU and RNN."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from sstkern import private
from sstkern.cells import CELLS, Cell
from sstkern.engines import reference
from sstkern.lengths import alone, beginnings
from sstkern.weights import Weights, by_direction

GATES = {"lstm": "iofg", "gru": "zrn", "rnn_tanh": "h", "rnn_relu": "h"}
"""The cells that ONNX has an operator for, and the order in which that has their gates; any other cell is exported as a Scan of its step,
since ONNX has no operator that would compute it."""


def reordered(cell: Cell, tensor: Tensor) -> Tensor:
    """A weight or bias with its gates, rows of the first dimension, in ONNX's order."""
    hidden_size = tensor.size(0) // len(cell.gates)
    places = [cell.gates.index(gate) for gate in GATES[cell.name]]
    # Slices, not chunks: those the exporter folds into constants.
    return torch.cat([tensor[place * hidden_size : (place + 1) * hidden_size] for place in places])


def attributes(cell: Cell, directions: int) -> dict[str, Any]:
    """That the operator needs to compute what the cell does."""
    if cell.torch_options:
        return {"activations": [cell.torch_options["nonlinearity"].capitalize()] * directions}
    # The GRU's reset gate scales the product with weight_hh, as in torch, not what is multiplied.
    return {"linear_before_reset": 1} if cell.name == "gru" else {}


def layer(
    cell: Cell,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    every: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """What `autograd.layer` is while a model is exported to ONNX.

    That is one operator, with the lengths as its `sequence_lens`, or a Scan of the cell's step: for a cell that is not in `GATES`, and for
    what ONNX's operators have not, a projection, sequences that begin anew, and other states than h of every step.
    """
    directions = by_direction(cell, weights, has_bias, bidirectional)
    cuts, standard = beginnings(lengths), cell.name in GATES and CELLS[cell.name] == cell
    if standard and directions[0].weight_hr is None and cuts is None and not every:
        return _standard(cell, x, directions, hx, lengths, has_bias)
    lengths = torch.full((x.size(1),), x.size(0), device=x.device) if lengths is None else alone(lengths).to(x.device)
    found, finals = [], []
    for d, w in enumerate(directions):
        final, results = _scanned(cell, x, w, [state[d] for state in hx], lengths, cuts, every, reverse=d == 1)
        found.append(results)
        finals.append(final)
    output, *others = [torch.cat(parts, -1) for parts in zip(*found, strict=True)]
    return output, [*(torch.stack(state) for state in zip(*finals, strict=True)), *others]


def _scanned(
    cell: Cell, x: Tensor, w: Weights, hx: list[Tensor], lengths: Tensor, cuts: Tensor | None, every: bool, reverse: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """One direction: the last states and the output, with `every` the other states too."""
    states, anew = hx[: len(cell.states)], hx[len(cell.states) :]

    def step(states: list[Tensor], at: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        gates_x, now, *cut = at
        before = (
            [torch.where(cut[0], new, old) for new, old in zip(anew or map(torch.zeros_like, states), states, strict=True)]
            if cut
            else states
        )
        stepped = reference.step_of(cell, gates_x, tuple(before), w)
        kept = [torch.where(now, new, old) for new, old in zip(stepped, states, strict=True)]
        return kept, [torch.where(now, state, 0) for state in (stepped if every else stepped[:1])]

    valid = (torch.arange(x.size(0), device=x.device)[:, None] < lengths)[..., None]
    given = [linear(x, w.weight_ih, w.bias_ih), valid]
    if cuts is not None:
        later = cuts[..., None] & valid
        given.append(torch.cat([later[1:], torch.zeros_like(later[:1])]) if reverse else cuts[..., None])
    return private.scan(step, states, given, reverse=reverse)


def _standard(
    cell: Cell, x: Tensor, directions: Sequence[Weights], hx: Sequence[Tensor], lengths: Tensor | None, has_bias: bool
) -> tuple[Tensor, list[Tensor]]:
    hidden_size = directions[0].output_size

    def stacked(name: str) -> Tensor:
        return torch.stack([reordered(cell, getattr(w, name)) for w in directions])

    bias = None
    if has_bias:
        bias = torch.cat([stacked("bias_ih"), stacked("bias_hh")], 1)
    output, *hx_n = torch.onnx.ops.symbolic_multi_out(
        cell.torch_class,
        (
            x,
            stacked("weight_ih"),
            stacked("weight_hh"),
            bias,
            None if lengths is None else lengths.to(x.device, torch.int32),
            *hx,
        ),
        {"hidden_size": hidden_size, "direction": "forward" if len(directions) == 1 else "bidirectional"}
        | attributes(cell, len(directions)),
        dtypes=[x.dtype] * (1 + len(hx)),
        shapes=[(x.size(0), len(directions), x.size(1), hidden_size), *(state.shape for state in hx)],
    )
    if lengths is not None:
        # What ONNX's last states of a sequence without a step are is not said; ours are the first ones.
        empty = (lengths == 0)[None, :, None]
        hx_n = [torch.where(empty, first, last) for first, last in zip(hx, hx_n, strict=True)]
    return output.transpose(1, 2).flatten(2), hx_n
