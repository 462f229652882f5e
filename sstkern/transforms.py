"""torch.func's grad, vjp, jacrev and vmap, in any combination, and autograd's batches of gradients, over the fused engines.

A dimension that vmap adds becomes part of the batch, and the gradients of each of its members' weights are groups of one backward. Where
the weights have the dimension, each member has a call of its own. A gradient runs the forward again: an engine's saved tensors belong to
the batch they were made for. Derivatives of gradients come from the reference engine, as does forward mode.
T time steps, B batch, I input_size, D directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vjp, vmap

from sstkern import engines, operators, private
from sstkern.cells import Cell
from sstkern.lengths import padding

Dims = tuple[int | None, ...]
BATCH = 1  # the dimension of the batch in x, the states and the output


@dataclass(frozen=True)
class _Call:  # no NamedTuple: vmap would look for dimensions in it
    cell: str
    has_bias: bool
    bidirectional: bool
    weights: int
    """How many of the tensors that follow x."""
    needs: tuple[bool, ...] = ()
    """For x, every weight and every state, whether its gradient is wanted."""
    groups: int | None = None
    """Shares of the batch that have weight gradients of their own."""


def layer(
    cell: Cell, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None, has_bias: bool, bidirectional: bool
) -> tuple[Tensor, list[Tensor]]:
    """As `autograd.layer`, within transforms."""
    output, *hx_n = _Layer.apply(_Call(cell.name, has_bias, bidirectional, len(weights)), lengths, x, *weights, *hx)
    return output, hx_n


def gradients(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    grads: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Of x, every weight and every state, where they are needed; `grads` are those of the output and of the last states."""
    return _gradients(_Call(cell, has_bias, bidirectional, len(weights), tuple(needs)), lengths, [x, *weights, *hx, *grads])


def _batched_backward(cell, x, weights, hx, lengths, has_bias, bidirectional, _output, _saved, grad_output, grad_hx, needs, groups):
    """`sstkern::layer_backward` where some of the tensors are batches of gradients."""
    if groups is not None:
        raise NotImplementedError("sstkern::layer_backward: gradients of groups have no batches")
    output = x.new_zeros(*x.shape[:-1], weights[1].size(1) * (1 + bidirectional)) if grad_output is None else grad_output
    tensors = [x, *weights, *hx, output, *grad_hx]
    dims = [0 if private.is_batch_of_gradients(tensor) else None for tensor in tensors]
    given = [tensor if dim is None else private.gradients_in_batch(tensor) for tensor, dim in zip(tensors, dims, strict=True)]
    call = _Call(cell, has_bias, bidirectional, len(weights), tuple(needs))
    found = vmap(lambda *tensors: _apply(call, lengths, *tensors), tuple(dims))(*given)
    return [private.as_batch_of_gradients(gradient) for gradient in found]


_library = torch.library.Library("sstkern", "IMPL")
_library.impl("layer_backward", _batched_backward, "Batched")


class _OfCall(Function):
    """Keeps its arguments: the call, lengths, tensors."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.call, lengths, *tensors = inputs
        ctx.save_for_backward(lengths, *tensors)


class _Layer(_OfCall):
    """x (T, B, I), weights and states (D, B, ...) to the output and the last states."""

    @staticmethod
    def forward(call: _Call, lengths: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        output, hx_n, _ = _run(call, lengths, x, tensors, save=False)
        return output, *hx_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        lengths, *tensors = ctx.saved_tensors
        call = replace(ctx.call, needs=tuple(ctx.needs_input_grad[2:]))
        return None, None, *_gradients(call, lengths, [*tensors, *grads])

    @staticmethod
    def vmap(info: Any, in_dims: Dims, call: _Call, lengths: Tensor | None, *tensors: Tensor) -> tuple:
        size, (_, of_lengths, *dims) = info.batch_size, in_dims
        if _has_dims(call, dims):
            return _each(_Layer, size, in_dims, call, lengths, *tensors)
        lengths = None if lengths is None else _folded(lengths, of_lengths, 0, size)
        results = _Layer.apply(call, lengths, *_fold(call, tensors, dims, size))
        return tuple(_unfolded(result, BATCH, size) for result in results), (BATCH,) * len(results)


class _Gradients(_OfCall):
    """x, weights, states and the gradients of the output and of the last states, to the gradients that the call needs."""

    @staticmethod
    def forward(call: _Call, lengths: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        states = len(call.needs) - 1 - call.weights
        inputs, (grad_output, *grad_hx) = tensors[: call.weights + states], tensors[call.weights + states :]
        output, _, saved = _run(call, lengths, x, inputs, save=True)
        weights, hx = inputs[: call.weights], inputs[call.weights :]
        options = call.has_bias, call.bidirectional
        with operators.undifferentiated(), torch.autocast(x.device.type, enabled=False):
            found = torch.ops.sstkern.layer_backward(
                call.cell, x, weights, hx, lengths, *options, output, saved, grad_output, grad_hx, call.needs, call.groups
            )
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        lengths, *tensors = ctx.saved_tensors
        pullback = vjp(lambda *tensors: _reference_gradients(ctx.call, lengths, *tensors), *tensors)[1]
        return None, None, *pullback(grads)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, call: _Call, lengths: Tensor | None, *tensors: Tensor) -> tuple:
        size, (_, of_lengths, *dims) = info.batch_size, in_dims
        if _has_dims(call, dims):
            return _each(_Gradients, size, in_dims, call, lengths, *tensors)
        lengths = None if lengths is None else _folded(lengths, of_lengths, 0, size)
        grouped = replace(call, groups=size * (call.groups or 1))
        results = iter(_Gradients.apply(grouped, lengths, *_fold(call, tensors, dims, size)))
        found, out_dims = [], []
        for place, need in enumerate(call.needs):
            if not need:
                continue
            of_weight = 1 <= place <= call.weights
            result, dim = next(results), 0 if of_weight else BATCH
            found.append(result if of_weight and call.groups is None else _unfolded(result, dim, size))
            out_dims.append(dim)
        return tuple(found), tuple(out_dims)


def _run(call: _Call, lengths: Tensor | None, x: Tensor, tensors: Sequence[Tensor], save: bool) -> tuple:
    weights, hx = tensors[: call.weights], tensors[call.weights :]
    rows = operators.saved_rows(x.dim() == 2, lengths) if save else None
    with operators.undifferentiated(), torch.autocast(x.device.type, enabled=False):
        return torch.ops.sstkern.layer(call.cell, x, weights, hx, lengths, call.has_bias, call.bidirectional, rows)


def _gradients(call: _Call, lengths: Tensor | None, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    if engines.in_forward_mode(tensors):
        found = iter(_reference_gradients(call, lengths, *tensors))
    else:
        found = iter(_apply(call, lengths, *tensors))
    return [next(found) if need else None for need in call.needs]


def _apply(call: _Call, lengths: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """`_Gradients`, whose dimensions are those of a padded batch."""
    if x.dim() == 3 or lengths is None:
        return _Gradients.apply(call, lengths, x, *tensors)
    pad, unpad = padding(lengths, x.device)
    inputs = len(call.needs) - 1
    found = _Gradients.apply(call, lengths, pad(x), *tensors[:inputs], pad(tensors[inputs]), *tensors[inputs + 1 :])
    return (unpad(found[0]), *found[1:]) if call.needs[0] else found


def _reference_gradients(call: _Call, lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What `_Gradients` gives, by transforms of plain PyTorch: it can be transformed again."""
    if call.groups is not None:
        return _reference_groups(call, lengths, *tensors)
    inputs, grads = tensors[: len(call.needs)], tensors[len(call.needs) :]

    def results(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(operators.flat_reference(call.cell, inputs, call.weights, lengths, call.has_bias, call.bidirectional))

    pullback = vjp(results, *inputs)[1]
    return tuple(gradient for gradient, need in zip(pullback(tuple(grads)), call.needs, strict=True) if need)


def _reference_groups(call: _Call, lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    groups = call.groups or 1
    dims = [None if 1 <= place <= call.weights else BATCH for place in range(len(tensors))]
    split = [tensor if dim is None else _unfolded(tensor, dim, groups) for tensor, dim in zip(tensors, dims, strict=True)]
    of_lengths = None if lengths is None else _unfolded(lengths, 0, groups)

    def of_group(lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _reference_gradients(replace(call, groups=None), lengths, *tensors)

    places = [place for place, need in enumerate(call.needs) if need]
    out_dims = tuple(0 if dims[place] is None else BATCH for place in places)
    found = vmap(of_group, (None if lengths is None else 0, *dims), out_dims)(of_lengths, *split)
    return tuple(result if dims[place] is None else result.flatten(BATCH, BATCH + 1) for result, place in zip(found, places, strict=True))


def _has_dims(call: _Call, dims: Sequence[int | None]) -> bool:
    """Whether any weight has the dimension that vmap adds; `dims` are x's and those of the tensors that follow it."""
    return any(dim is not None for dim in dims[1 : 1 + call.weights])


def _fold(call: _Call, tensors: Sequence[Tensor], dims: Sequence[int | None], size: int) -> list[Tensor]:
    """The dimension that vmap adds as part of the batch of all tensors, of which weights have none."""
    return [
        tensor if 1 <= place <= call.weights else _folded(tensor, dim, BATCH, size)
        for place, (tensor, dim) in enumerate(zip(tensors, dims, strict=True))
    ]


def _folded(tensor: Tensor, dim: int | None, at: int, size: int) -> Tensor:
    shape = *tensor.shape[:at], size, *tensor.shape[at:]
    moved = tensor.unsqueeze(at).expand(shape) if dim is None else tensor.movedim(dim, at)
    return moved.flatten(at, at + 1)


def _unfolded(tensor: Tensor, at: int, size: int) -> Tensor:
    return tensor.unflatten(at, (size, tensor.size(at) // size))


def _each(function: type[Function], size: int, in_dims: Dims, *arguments: Any) -> tuple:
    """One call for each member."""
    results = [
        function.apply(*(given if dim is None else given.select(dim, i) for given, dim in zip(arguments, in_dims, strict=True)))
        for i in range(size)
    ]
    stacked = tuple(torch.stack(members) for members in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
