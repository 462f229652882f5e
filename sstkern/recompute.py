"""Less memory for more time: a layer that keeps its states at some steps only, and computes the gates again in its backward.

The time steps are cut into about sqrt(T) chunks. Forward, each is run without saving anything, and the states between them are kept.
Backward, from the last chunk to the first, each is run again, saving, and then backward: what is saved is that of one chunk at a time
(Chen et al. 2016). T time steps, B batch, I input_size, H hidden_size, P proj_size (H without a projection), D directions.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sstkern import autograd, engines, operators, private, transforms
from sstkern.cells import Cell
from sstkern.lengths import alone, batch_sizes, beginnings, check_later, check_packed, check_values, longest, packed_rows, with_beginnings

SHORTEST = 16  # steps of a chunk: a call of the operator takes about 50 us however short it is


def layer(
    cell: Cell, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None, has_bias: bool, bidirectional: bool
) -> tuple[Tensor, list[Tensor]]:
    """As `autograd.layer`, with the memory of a chunk."""
    _check(lengths, x)  # no chunk can: its own are cut to its steps
    count = len(weights) // (2 if bidirectional else 1)
    outputs, finals = [], []
    for d in range(2 if bidirectional else 1):
        call = _Call(cell.name, has_bias, reverse=d == 1, weights=count, states=len(cell.states))
        states = [state[d : d + 1] for state in hx]
        output, *final = _Chunked.apply(call, lengths, x, *weights[d * count : (d + 1) * count], *states)
        outputs.append(output)
        finals.append(final)
    if not bidirectional:
        return outputs[0], finals[0]
    return torch.cat(outputs, -1), [torch.cat(state) for state in zip(*finals, strict=True)]


def _check(lengths: Tensor | None, x: Tensor) -> None:
    """Checks the lengths as the engines do: on a GPU without waiting for it."""
    if x.dim() == 2:
        check_packed(lengths, x.size(0))
    elif lengths is not None and lengths.device.type == "cpu":
        check_values(alone(lengths), x.size(0))
    elif lengths is not None:
        check_later(alone(lengths), x.size(0))


class _Call(NamedTuple):
    cell: str
    has_bias: bool
    reverse: bool
    weights: int
    """How many of the tensors that follow x are weights."""
    states: int
    """How many states the cell has: so many first states follow the weights, and as many that sequences begin anew with, or none."""


class _Chunk(NamedTuple):
    """Some time steps of one direction, as the operator takes them: a reversed direction's are turned around."""

    span: slice
    """The chunk's place along the first dimension of x."""
    lengths: Tensor | None
    order: Tensor | None = None
    """Where each row of the turned chunk is in it; None without turning."""

    def of(self, sequence: Tensor) -> Tensor:
        """The chunk of a tensor (T, B, features) or (N, features)."""
        return self.turned(sequence[self.span])

    def turned(self, chunk: Tensor) -> Tensor:
        return chunk if self.order is None else chunk.gather(0, self.order[..., None].expand(chunk.shape))


def _chunks(x: Tensor, lengths: Tensor | None, call: _Call) -> Iterator[_Chunk]:
    """The chunks, in the order of the recurrence."""
    steps = _steps(x, lengths)
    size = max(SHORTEST, math.isqrt(steps))
    begins = range(0, steps, size)
    return (_chunk(x, begin, min(begin + size, steps), lengths, call) for begin in (reversed(begins) if call.reverse else begins))


def _steps(x: Tensor, lengths: Tensor | None) -> int:
    return x.size(0) if lengths is None or x.dim() == 3 else longest(alone(lengths))


def _chunk(x: Tensor, begin: int, end: int, lengths: Tensor | None, call: _Call) -> _Chunk:
    steps, marks = end - begin, beginnings(lengths)
    if lengths is None:
        return _Chunk(slice(begin, end), None, _turned_padded(steps, steps, x.device) if call.reverse else None)
    lengths = alone(lengths)
    mine = (lengths - begin).clamp(0, steps)
    of_chunk = mine if marks is None else with_beginnings(mine, _marks(marks, begin, end, lengths, mine, call.reverse))
    if x.dim() == 3:
        return _Chunk(slice(begin, end), of_chunk, _turned_padded(steps, mine.to(x.device), x.device) if call.reverse else None)
    first = int(lengths.clamp(max=begin).sum())
    return _Chunk(slice(first, first + int(mine.sum())), of_chunk, _turned_packed(mine, x.device) if call.reverse else None)


def _marks(marks: Tensor, begin: int, end: int, lengths: Tensor, mine: Tensor, reverse: bool) -> Tensor:
    """Where sequences begin anew within a chunk, (steps, B): turned around, with the step before one that begins anew."""
    if not reverse:
        return marks[begin:end]
    step = torch.arange(marks.size(0), device=marks.device)[:, None]
    later = torch.cat([marks & (step < lengths), torch.zeros_like(marks[:1])])
    turned = begin + mine - torch.arange(end - begin, device=marks.device)[:, None]
    return later.gather(0, turned.clamp(min=0))


def _turned_padded(steps: int, valid: int | Tensor, device: torch.device) -> Tensor:
    """For each step of a padded chunk (steps, B, features) the step that its row comes from, (steps, B) or (steps, 1)."""
    step = torch.arange(steps, device=device)[:, None]
    return torch.where(step < valid, valid - 1 - step, step)


def _turned_packed(lengths: Tensor, device: torch.device) -> Tensor:
    """For each row of a packed chunk the row that it comes from, (N,)."""
    sizes = batch_sizes(lengths)
    step, sequence = packed_rows(sizes)
    return ((sizes.cumsum(0) - sizes)[lengths[sequence] - 1 - step] + sequence).to(device)


class _Chunked(torch.autograd.Function):
    """One direction of a layer: x (T, B, I), weights and first states (1, B, ...) to the output (T, B, P) and the last states."""

    @staticmethod
    def forward(ctx: Any, call: _Call, lengths: Tensor | None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, (states, anew) = tensors[: call.weights], _states(call, tensors)
        kept, output = [], x.new_empty(*x.shape[:-1], states[0].size(-1))
        for chunk in _chunks(x, lengths, call):
            kept += states
            part, states, _ = _run(call, chunk, x, weights, [*states, *anew], save=False)
            output[chunk.span] = chunk.turned(part)
        ctx.call, ctx.given = call, len(tensors)
        ctx.save_for_backward(x, *tensors, lengths, *kept)
        return output, *(state.clone() if any(state is given for given in tensors) else state for state in states)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *grad_states: Tensor) -> tuple:
        call, count = (ctx.call.cell, ctx.call.has_bias, False), ctx.given
        x, *tensors = autograd.saved_tensors(ctx, call, ctx.call.weights, count - ctx.call.weights)
        given, (lengths, *kept) = tensors[:count], tensors[count:]
        needs = list(ctx.needs_input_grad[2:])
        with torch.autocast(x.device.type, enabled=False):  # the forward had its dtype
            grads = [grad_output, *grad_states]
            if engines.transformed(grads):
                return None, None, *_transformed(ctx.call, lengths, x, given, grads, needs)
            if torch.is_grad_enabled() or any(map(private.is_batch_of_gradients, grads)):
                return None, None, *_differentiable(ctx.call, lengths, x, given, grads, needs)
            return None, None, *_chunked_backward(ctx.call, lengths, x, given, kept, grad_output, list(grad_states), needs)


def _states(call: _Call, given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The first states, and what sequences begin anew with, after the weights."""
    split = call.weights + call.states
    return list(given[call.weights : split]), list(given[split:])


def _run(call: _Call, chunk: _Chunk, x: Tensor, weights: Sequence[Tensor], states: list[Tensor], save: bool) -> tuple:
    """Output, last states, and what is saved."""
    x = chunk.of(x)
    rows = operators.saved_rows(x.dim() == 2, chunk.lengths) if save else None
    with operators.undifferentiated():
        return torch.ops.sstkern.layer(call.cell, x, weights, states, chunk.lengths, call.has_bias, False, rows)


def _chunked_backward(
    call: _Call,
    lengths: Tensor | None,
    x: Tensor,
    given: list[Tensor],
    kept: list[Tensor],
    grad_output: Tensor,
    grad_states: list[Tensor],
    needs: list[bool],
) -> list[Tensor | None]:
    weights, states, (_, anew) = given[: call.weights], len(grad_states), _states(call, given)
    dx = torch.empty_like(x) if needs[0] else None
    sums: list[Tensor | None] = [None] * (call.weights + len(anew))
    of_weights, of_states, of_anew = (
        needs[1 : 1 + call.weights],
        needs[1 + call.weights : 1 + call.weights + states],
        needs[len(needs) - len(anew) :],
    )
    wanted = [needs[0], *of_weights, *[True] * states, *of_anew]
    for number, chunk in reversed(list(enumerate(_chunks(x, lengths, call)))):
        hx = [*kept[number * states : (number + 1) * states], *anew]
        output, _, saved = _run(call, chunk, x, weights, hx, save=True)
        with operators.undifferentiated():
            found = torch.ops.sstkern.layer_backward(
                call.cell,
                chunk.of(x),
                weights,
                hx,
                chunk.lengths,
                call.has_bias,
                False,
                output,
                saved,
                chunk.of(grad_output),
                grad_states,
                wanted,
                None,
            )
        gradients = iter(found)
        if dx is not None:
            dx[chunk.span] = chunk.turned(next(gradients))
        found = [next(gradients) if need else None for need in wanted[1:]]
        grad_states = found[call.weights : call.weights + states]
        parts = [*found[: call.weights], *found[call.weights + states :]]
        sums = [total if part is None else _added(total, part) for total, part in zip(sums, parts, strict=True)]
    summed = [
        None if not need else torch.zeros_like(tensor) if total is None else total.to(tensor.dtype)
        for tensor, total, need in zip([*weights, *anew], sums, [*of_weights, *of_anew], strict=True)
    ]
    dstates = [grad if need else None for grad, need in zip(grad_states, of_states, strict=True)]
    return [dx, *summed[: call.weights], *dstates, *summed[call.weights :]]


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    """The sum, in float32 at least: the gradients of many chunks are added."""
    part = part if part.dtype == torch.float64 else part.float()
    return part if total is None else total.add_(part)


def _transformed(
    call: _Call, lengths: Tensor | None, x: Tensor, given: list[Tensor], grads: list[Tensor], needs: list[bool]
) -> list[Tensor | None]:
    """The gradients within torch.func's transforms, as those of the ordinary layer."""
    whole = _chunk(x, 0, _steps(x, lengths), lengths, call)
    weights, states = given[: call.weights], given[call.weights :]
    grads = [whole.turned(grads[0]), *grads[1:]]
    dx, *others = transforms.gradients(call.cell, whole.of(x), weights, states, whole.lengths, call.has_bias, False, grads, needs)
    return [None if dx is None else whole.turned(dx), *others]


def _differentiable(
    call: _Call, lengths: Tensor | None, x: Tensor, given: list[Tensor], grads: list[Tensor], needs: list[bool]
) -> list[Tensor | None]:
    """The gradients, to be differentiated again or in a batch: those of the ordinary layer, with its memory."""
    again = torch.is_grad_enabled()
    whole = _chunk(x, 0, _steps(x, lengths), lengths, call)
    with torch.enable_grad():
        # Views: one of the caller's own tensors may have been computed from another, or be it, and its path is not this function's.
        x, *given = (tensor.view_as(tensor) for tensor in (x, *given))
        weights, states = given[: call.weights], given[call.weights :]
        output, hx_n = autograd.layer(call.cell, whole.of(x), weights, states, whole.lengths, call.has_bias, False)
        inputs = [tensor for tensor, need in zip([x, *given], needs, strict=True) if need]
        found = iter(torch.autograd.grad([whole.turned(output), *hx_n], inputs, grads, create_graph=again, materialize_grads=True))
    return [next(found) if need else None for need in needs]
