"""torch.func's grad, vjp, jacrev and vmap, in any combination, and autograd's batches of gradients, over the fused engines.

A dimension that vmap adds becomes part of the batch, and the gradients of each of its members' weights are groups of one backward. Where
the weights have the dimension, each member has a call of its own. A gradient runs the forward again: an engine's saved tensors belong to
the batch they were made for. Derivatives of gradients come from plain PyTorch, as does forward mode.

A `Call` says what runs: a layer of a cell here, one of a program in `program.operator`.
T time steps, B batch, I input_size, D directions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vjp, vmap

from sstkern import engines, operators, private
from sstkern.cells import CELLS, Cell
from sstkern.forked import one_thread
from sstkern.lengths import alone, padding

Dims = tuple[int | None, ...]
BATCH = 1  # its dimension in inputs and outputs


@dataclass(frozen=True, kw_only=True)
class Call(ABC):  # no NamedTuple: vmap would look for dimensions in it
    """A layer's call without its tensors: inputs, weights and states, in that order. The results are outputs, then the last states."""

    inputs: int
    """How many inputs there are."""
    weights: int
    states: int
    """How many states are given: as many as there are last ones, or twice as many, with those that sequences begin anew with."""
    last: int
    outputs: int
    of_states: int
    """The dimension of the batch in states."""
    packed: bool
    """Whether inputs and outputs are (N, ...): they are padded for the engine."""
    needs: tuple[bool, ...] = ()
    """Whether each tensor's gradient is wanted."""
    groups: int | None = None
    """Shares of the batch that have weight gradients of their own."""

    @abstractmethod
    def forward(self, lengths: Tensor | None, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results, by an engine."""

    @abstractmethod
    def backward(self, lengths: Tensor | None, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients that `needs` has a True for, by an engine, from those of the results; weights' as `groups` says."""

    @abstractmethod
    def plain(self, lengths: Tensor | None, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results, in plain PyTorch, which every transform goes through."""

    @property
    def given(self) -> int:
        return self.inputs + self.weights + self.states

    @property
    def dims(self) -> Dims:
        """The dimension of the batch in every tensor, and then in the gradient of every result."""
        return (BATCH,) * self.inputs + (None,) * self.weights + (self.of_states,) * self.states + self.of_results

    @property
    def of_results(self) -> tuple[int, ...]:
        """The dimension of the batch in every result."""
        return (BATCH,) * self.outputs + (self.of_states,) * self.last


def run(call: Call, lengths: Tensor | None, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of a call within transforms, none of which is forward mode."""
    return _padded(_Layer, call, lengths, tensors)


def gradients_of(
    call: Call, lengths: Tensor | None, tensors: Sequence[Tensor], grads: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradient of every tensor, where it is needed; `grads` are those of the results."""
    return _gradients(replace(call, needs=tuple(needs)), lengths, [*tensors, *grads])


def in_batches(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The function's results, by vmap, where some of the tensors are batches that autograd.grad(is_grads_batched=True) made."""
    dims = tuple(0 if private.is_batch_of_gradients(tensor) else None for tensor in tensors)
    given = [tensor if dim is None else private.gradients_in_batch(tensor) for tensor, dim in zip(tensors, dims, strict=True)]
    return [private.as_batch_of_gradients(result) for result in vmap(function, dims)(*given)]


class _OfCall(Function):
    """Keeps its arguments: the call, lengths, tensors."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.call, lengths, *tensors = inputs
        ctx.save_for_backward(lengths, *tensors)


class _Layer(_OfCall):
    """A call's tensors to its results."""

    @staticmethod
    def forward(call: Call, lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(call.forward(lengths, tensors))

    @staticmethod
    @one_thread
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        lengths, *tensors = ctx.saved_tensors
        call = replace(ctx.call, needs=tuple(ctx.needs_input_grad[2:]))
        return None, None, *_gradients(call, lengths, [*tensors, *grads])

    @staticmethod
    def vmap(info: Any, in_dims: Dims, call: Call, lengths: Tensor | None, *tensors: Tensor) -> tuple:
        size, (_, of_lengths, *dims) = info.batch_size, in_dims
        if _has_dims(call, dims):
            return _each(_Layer, size, in_dims, call, lengths, *tensors)
        lengths = None if lengths is None else _folded(lengths, of_lengths, 0, size)
        results = _Layer.apply(call, lengths, *_fold(call, tensors, dims, size))
        return tuple(_unfolded(result, dim, size) for result, dim in zip(results, call.of_results, strict=True)), call.of_results


class _Gradients(_OfCall):
    """A call's tensors and the gradients of its results, to the gradients that the call needs."""

    @staticmethod
    def forward(call: Call, lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(call.backward(lengths, tensors[: call.given], tensors[call.given :]))

    @staticmethod
    @one_thread
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        lengths, *tensors = ctx.saved_tensors
        found = _pullback(lambda *tensors: plain_gradients(ctx.call, lengths, *tensors), tensors, ctx.needs_input_grad[2:], grads)
        return None, None, *found

    @staticmethod
    def vmap(info: Any, in_dims: Dims, call: Call, lengths: Tensor | None, *tensors: Tensor) -> tuple:
        size, (_, of_lengths, *dims) = info.batch_size, in_dims
        if _has_dims(call, dims):
            return _each(_Gradients, size, in_dims, call, lengths, *tensors)
        lengths = None if lengths is None else _folded(lengths, of_lengths, 0, size)
        grouped = replace(call, groups=size * (call.groups or 1))
        results = _Gradients.apply(grouped, lengths, *_fold(call, tensors, dims, size))
        found, out_dims = [], []
        for result, dim in zip(results, _needed(call, call.dims), strict=True):
            found.append(result if dim is None and call.groups is None else _unfolded(result, dim or 0, size))
            out_dims.append(dim or 0)
        return tuple(found), tuple(out_dims)


def _gradients(call: Call, lengths: Tensor | None, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    if engines.in_forward_mode(tensors):
        found = iter(plain_gradients(call, lengths, *tensors))
    else:
        found = iter(_padded(_Gradients, call, lengths, tensors))
    return [next(found) if need else None for need in call.needs]


def _padded(function: type[Function], call: Call, lengths: Tensor | None, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The function, whose dimensions are those of a padded batch."""
    if not call.packed or lengths is None:
        return function.apply(call, lengths, *tensors)
    pad, unpad = padding(alone(lengths), tensors[0].device)
    packed = {*range(call.inputs), *range(call.given, call.given + call.outputs)}
    given = [pad(tensor) if place in packed else tensor for place, tensor in enumerate(tensors)]
    found = function.apply(replace(call, packed=False), lengths, *given)
    count = call.outputs if function is _Layer else sum(call.needs[: call.inputs])
    return *map(unpad, found[:count]), *found[count:]


def plain_gradients(call: Call, lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What `_Gradients` gives, by transforms of plain PyTorch: it can be transformed again."""
    if call.groups is not None:
        return _plain_groups(call, lengths, *tensors)
    given, grads = tensors[: call.given], tensors[call.given :]
    found = _pullback(lambda *tensors: call.plain(lengths, tensors), given, call.needs, grads)
    return tuple(gradient for gradient in found if gradient is not None)


def _plain_groups(call: Call, lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    groups = call.groups or 1
    split = [tensor if dim is None else _unfolded(tensor, dim, groups) for tensor, dim in zip(tensors, call.dims, strict=True)]
    of_lengths = None if lengths is None else _unfolded(lengths, 0, groups)

    def of_group(lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        return plain_gradients(replace(call, groups=None), lengths, *tensors)

    dims = _needed(call, call.dims)
    found = vmap(of_group, (None if lengths is None else 0, *call.dims), tuple(dim or 0 for dim in dims))(of_lengths, *split)
    return tuple(result if dim is None else result.flatten(dim, dim + 1) for result, dim in zip(found, dims, strict=True))


def _pullback(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], needs: Sequence[bool], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of the tensors that `needs` has a True for, from those of the function's results. The others may have any dtype."""
    places = [place for place, need in enumerate(needs) if need]

    def of_needed(*needed: Tensor) -> tuple[Tensor, ...]:
        given = dict(enumerate(tensors)) | dict(zip(places, needed, strict=True))
        return tuple(function(*given.values()))

    found = iter(vjp(of_needed, *(tensors[place] for place in places))[1](tuple(grads)) if places else ())
    return [next(found) if need else None for need in needs]


def _needed(call: Call, of_each: Sequence) -> list:
    return [part for part, need in zip(of_each, call.needs, strict=False) if need]


def _has_dims(call: Call, dims: Sequence[int | None]) -> bool:
    """Whether any weight has the dimension that vmap adds; `dims` are those of all tensors."""
    return any(dim is not None for dim in dims[call.inputs : call.inputs + call.weights])


def _fold(call: Call, tensors: Sequence[Tensor], dims: Sequence[int | None], size: int) -> list[Tensor]:
    """The dimension that vmap adds as part of the batch of all tensors, of which weights have none."""
    return [tensor if at is None else _folded(tensor, dim, at, size) for tensor, dim, at in zip(tensors, dims, call.dims, strict=False)]


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


# Layers of cells


@dataclass(frozen=True, kw_only=True)
class _OfCell(Call):
    """The outputs are the layer's, and those of its states after every step that are wanted."""

    cell: str
    has_bias: bool
    bidirectional: bool

    def forward(self, lengths: Tensor | None, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        output, hx_n, _ = self._run(lengths, tensors, save=False)
        return output, *hx_n[self.last :], *hx_n[: self.last]

    def backward(self, lengths: Tensor | None, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        output, _, saved = self._run(lengths, tensors, save=True)
        (x, weights, hx), options = self._split(tensors), (self.has_bias, self.bidirectional)
        with operators.undifferentiated(), torch.autocast(x.device.type, enabled=False):
            return torch.ops.sstkern.layer_backward(
                self.cell,
                x,
                weights,
                hx,
                lengths,
                *options,
                output,
                saved,
                grads[0],
                [*grads[self.outputs :], *grads[1 : self.outputs]],
                self.needs,
                self.groups,
            )

    def plain(self, lengths: Tensor | None, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        output, *hx_n = operators.flat_reference(
            self.cell, tensors, self.weights, lengths, self.has_bias, self.bidirectional, every=self.outputs > 1
        )
        return output, *hx_n[self.last :], *hx_n[: self.last]

    def _run(self, lengths: Tensor | None, tensors: Sequence[Tensor], save: bool) -> tuple:
        x, weights, hx = self._split(tensors)
        rows = operators.saved_rows(x.dim() == 2, lengths) if save else None
        with operators.undifferentiated(), torch.autocast(x.device.type, enabled=False):
            every = self.outputs > 1
            return torch.ops.sstkern.layer(self.cell, x, weights, hx, lengths, self.has_bias, self.bidirectional, rows, every)

    def _split(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        return tensors[0], tensors[1 : 1 + self.weights], tensors[1 + self.weights :]


def _of_cell(
    cell: str, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], has_bias: bool, bidirectional: bool, every: bool
) -> _OfCell:
    """x (T, B, I) or (N, I), weights, and states (D, B, ...), to the output, with `every` other states, and the last states."""
    last = len(CELLS[cell].states)
    return _OfCell(
        inputs=1,
        weights=len(weights),
        states=len(hx),
        last=last,
        outputs=last if every else 1,
        of_states=1,
        packed=x.dim() == 2,
        cell=cell,
        has_bias=has_bias,
        bidirectional=bidirectional,
    )


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
    """As `autograd.layer`, within transforms."""
    call = _of_cell(cell.name, x, weights, hx, has_bias, bidirectional, every)
    output, *states = run(call, lengths, [x, *weights, *hx])
    return output, [*states[call.outputs - 1 :], *states[: call.outputs - 1]]


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
    """The gradients of x, every weight and every state, where they are needed; `grads` are those of the output, of the last states, and of
    those of every step, if there are any."""
    call, grads = _with_grads(cell, x, weights, hx, has_bias, bidirectional, grads)
    return gradients_of(call, lengths, [x, *weights, *hx], grads, needs)


def _with_grads(cell, x, weights, hx, has_bias, bidirectional, grads: Sequence[Tensor]) -> tuple[_OfCell, list[Tensor]]:
    """The call whose results have these gradients, and these in the order that a Call has."""
    last = 1 + len(CELLS[cell].states)
    call = _of_cell(cell, x, weights, hx, has_bias, bidirectional, every=len(grads) > last)
    return call, [grads[0], *grads[last:], *grads[1:last]]


def _batched_backward(cell, x, weights, hx, lengths, has_bias, bidirectional, _output, _saved, grad_output, grad_hx, needs, groups):
    """`sstkern::layer_backward` where some of the tensors are batches of gradients."""
    if groups is not None:
        raise NotImplementedError("sstkern::layer_backward: gradients of groups have no batches")
    output = x.new_zeros(*x.shape[:-1], weights[1].size(1) * (1 + bidirectional)) if grad_output is None else grad_output
    of_results, grads = _with_grads(cell, x, weights, hx, has_bias, bidirectional, [output, *grad_hx])
    call = replace(of_results, needs=tuple(needs))
    return in_batches(lambda *tensors: _padded(_Gradients, call, lengths, tensors), [x, *weights, *hx, *grads])


_library = torch.library.Library("sstkern", "IMPL")
_library.impl("layer_backward", _batched_backward, "Batched")
