"""Export to ONNX: `torch.onnx.export(model, arguments, dynamo=True)` makes of our layers the standard operators LSTM, GRU and RNN."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from sstkern import private
from sstkern.cells import CELLS, Cell
from sstkern.engines import reference
from sstkern.weights import Weights, by_direction

# Where ONNX has the gates of torch's order: i, o, f, c of i, f, g, o, and z, r, h of r, z, n.
_OPERATORS: dict[str, tuple[str, tuple[int, ...], dict]] = {
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", (0,), {"activations": ["Relu"]}),
}


def layer(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
) -> tuple[Tensor, list[Tensor]]:
    """What `autograd.layer` is while a model is exported to ONNX.

    That is one operator, with the lengths as its `sequence_lens`, or, for a cell that ONNX has not and for a projection, which its LSTM has
    not, a Scan of the cell's step.
    """
    directions = by_direction(CELLS[cell], weights, has_bias, bidirectional)
    if cell in _OPERATORS and directions[0].weight_hr is None:
        return _standard(cell, x, directions, hx, lengths, has_bias)
    lengths = torch.full((x.size(1),), x.size(0), device=x.device) if lengths is None else lengths.to(x.device)
    outputs, finals = [], []
    for d, w in enumerate(directions):
        final, output = _scanned(CELLS[cell], x, w, [state[d] for state in hx], lengths, reverse=d == 1)
        outputs.append(output)
        finals.append(final)
    return torch.cat(outputs, -1), [torch.stack(state) for state in zip(*finals, strict=True)]


def _scanned(cell: Cell, x: Tensor, w: Weights, states: list[Tensor], lengths: Tensor, reverse: bool) -> tuple[list[Tensor], Tensor]:
    """One direction: the last states and the output."""

    def step(states: list[Tensor], at: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        gates_x, now = at
        stepped = reference._step(cell, gates_x, tuple(states), w)
        kept = [torch.where(now, new, old) for new, old in zip(stepped, states, strict=True)]
        return kept, torch.where(now, stepped[0], 0)

    valid = (torch.arange(x.size(0), device=x.device)[:, None] < lengths)[..., None]
    return private.scan(step, states, [linear(x, w.weight_ih, w.bias_ih), valid], reverse=reverse)


def _standard(
    cell: str, x: Tensor, directions: Sequence[Weights], hx: Sequence[Tensor], lengths: Tensor | None, has_bias: bool
) -> tuple[Tensor, list[Tensor]]:
    operator, order, attributes = _OPERATORS[cell]

    hidden_size = directions[0].weight_hh.size(1)

    def stacked(name: str) -> Tensor:
        # Slices, not chunks: those the exporter folds into constants.
        tensors = [getattr(w, name) for w in directions]
        return torch.stack([torch.cat([t[gate * hidden_size : (gate + 1) * hidden_size] for gate in order]) for t in tensors])

    bias = None
    if has_bias:
        bias = torch.cat([stacked("bias_ih"), stacked("bias_hh")], 1)
    output, *hx_n = torch.onnx.ops.symbolic_multi_out(
        operator,
        (
            x,
            stacked("weight_ih"),
            stacked("weight_hh"),
            bias,
            None if lengths is None else lengths.to(x.device, torch.int32),
            *hx,
        ),
        {"hidden_size": hidden_size, "direction": "forward" if len(directions) == 1 else "bidirectional"}
        | {name: value * len(directions) if isinstance(value, list) else value for name, value in attributes.items()},
        dtypes=[x.dtype] * (1 + len(hx)),
        shapes=[(x.size(0), len(directions), x.size(1), hidden_size), *(state.shape for state in hx)],
    )
    if lengths is not None:
        # What ONNX's last states of a sequence without a step are is not said; ours are the first ones.
        empty = (lengths == 0)[None, :, None]
        hx_n = [torch.where(empty, first, last) for first, last in zip(hx, hx_n, strict=True)]
    return output.transpose(1, 2).flatten(2), hx_n
