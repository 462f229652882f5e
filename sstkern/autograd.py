"""The derivatives of `sstkern::layer` and `sstkern::layer_backward`, and the operator as the modules call it, differentiable."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sstkern import private, transforms
from sstkern.cells import CELLS
from sstkern.engines import reference, transformed
from sstkern.forked import one_thread
from sstkern.lengths import ALL_ROWS
from sstkern.operators import autocast, autocasting, flat_reference, savable, saved_rows, undifferentiated
from sstkern.second_derivative import second_derivative
from sstkern.weights import weight_names

# The overload itself: to find it takes the operator 2 microseconds.
_LAYER, _BACKWARD = torch.ops.sstkern.layer.default, torch.ops.sstkern.layer_backward.default


def _setup_layer(ctx, inputs, output):
    cell, x, weights, hx, lengths, has_bias, bidirectional, *_ = inputs
    result, _, saved = output
    ctx.call = cell, has_bias, bidirectional
    ctx.counts = len(weights), len(hx)
    ctx.save_for_backward(x, *weights, *hx, lengths, result, *saved)
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)


def _layer_gradient(ctx, grad_output, grad_hx, _grad_saved):
    needs = [ctx.needs_input_grad[1], *ctx.needs_input_grad[2], *ctx.needs_input_grad[3]]
    dx, dweights, dhx = _gradients(ctx, grad_output, grad_hx, needs)
    return None, dx, dweights, dhx, *[None] * (len(ctx.needs_input_grad) - 4)  # `every` is left out where it is False


Gradients = tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]
"""The gradients of x, of the weights and of the states."""


@one_thread
def _gradients(ctx, grad_output, grad_hx, needs: list[bool]) -> Gradients:
    if grad_output is None and all(grad is None for grad in grad_hx):
        # A second derivative comes by here, through `output`, an input of layer_backward; there is nothing to run.
        return None, [None] * ctx.counts[0], [None] * ctx.counts[1]
    x, weights, hx, others = _saved(ctx)
    return _run_backward(ctx.call, x, weights, hx, others, grad_output, _of_results(ctx.call, others[1], grad_hx, hx), needs)


def _saved(ctx) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """x, weights, states, and the others: lengths, the output and what the engine saved."""
    weights, states = ctx.counts
    x, *rest = saved_tensors(ctx, ctx.call, weights, states)
    return x, rest[:weights], rest[weights : weights + states], rest[weights + states :]


def _materialized(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(like, grads, strict=False)]


def _of_results(call, output: Tensor, grads: Sequence[Tensor | None], hx: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the last states, and of those of every step if any is there."""
    count = len(CELLS[call[0]].states)
    last, every = _materialized(grads[:count], hx), grads[count:]
    if all(grad is None for grad in every):
        return last
    shapes = [(*output.shape[:-1], state.size(0) * state.size(-1)) for state in hx[1:count]]
    return [*last, *(output.new_zeros(shape) if grad is None else grad for grad, shape in zip(every, shapes, strict=True))]


def _run_backward(call, x, weights, hx, others, grad_output, grad_hx, needs: list[bool]) -> Gradients:
    (cell, has_bias, bidirectional), (lengths, output, *saved) = call, others
    if not torch.compiler.is_compiling() and transformed(grad_hx if grad_output is None else [grad_output, *grad_hx]):
        grads = [torch.zeros_like(output) if grad_output is None else grad_output, *grad_hx]
        found = transforms.gradients(cell, x, weights, hx, lengths, has_bias, bidirectional, grads, needs)
        return found[0], found[1 : 1 + len(weights)], found[1 + len(weights) :]
    with undifferentiated(torch.is_grad_enabled()):
        grads = iter(_BACKWARD(cell, x, weights, hx, lengths, has_bias, bidirectional, output, saved, grad_output, grad_hx, needs, None))
    dx, *drest = [next(grads) if need else None for need in needs]
    return dx, drest[: len(weights)], drest[len(weights) :]


def saved_tensors(ctx, call: tuple[str, bool, bool], weights: int, states: int) -> Sequence[Tensor]:
    """The tensors that a call saved: x, so many weights and states, then the output, if it was saved; nothing else of them can a caller
    change."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        cell, *options = call
        given = [f"{of} {state}" for of in ("initial", "reset_to's") for state in CELLS[cell].states]
        names = ["input", *weight_names(CELLS[cell], weights, *options), *given[:states]]
        changed = next((names[place] for place in private.changed_places(ctx, len(names))), "output")
        raise RuntimeError(
            f"sstkern: the {changed} of a layer of '{cell}' was changed in place before the layer's backward, which reads it. Change it "
            "after the backward, change a clone() of it, or make a new tensor: y = y * 2 for y.mul_(2), x = x + y for x += y. "
            f"PyTorch says: {error}"
        ) from error


torch.library.register_autograd("sstkern::layer", _layer_gradient, setup_context=_setup_layer)


class _Layer(torch.autograd.Function):
    """The gradient that `sstkern::layer` registers, for eager calls: through the dispatcher it takes four times as long."""

    @staticmethod
    def forward(ctx, call, weights: int, every: bool, lengths, x, *tensors):
        ctx.call, ctx.counts = call, (weights, len(tensors) - weights)
        ctx.set_materialize_grads(False)
        cell, *options = call
        rows = saved_rows(x.dim() == 2, lengths)
        with undifferentiated():
            output, hx_n, saved = _LAYER(cell, x, tensors[:weights], tensors[weights:], lengths, *options, rows, every)
        ctx.save_for_backward(x, *tensors, lengths, output, *saved)
        return output, *hx_n

    @staticmethod
    def backward(ctx, grad_output, *grad_hx):
        dx, dweights, dhx = _gradients(ctx, grad_output, grad_hx, list(ctx.needs_input_grad[4:]))
        return None, None, None, None, dx, *dweights, *dhx


class _Step(torch.autograd.Function):
    """As `_Layer`, for one time step: x (B, I), the states and the result (B, ...), which shares no memory with what is saved."""

    @staticmethod
    def forward(ctx, call, weights: int, x, *tensors):
        ctx.call, ctx.counts = call, (weights, len(tensors) - weights)
        ctx.set_materialize_grads(False)
        hx_n, others = _run_step(call, x, tensors[:weights], tensors[weights:], True)
        ctx.save_for_backward(x, *tensors, None, *others)
        return tuple(hx_n)

    @staticmethod
    @one_thread
    def backward(ctx, *grad_hx):
        x, weights, hx, others = _saved(ctx)
        grads, states = ([tensor.unsqueeze(0) for tensor in tensors] for tensors in (_materialized(grad_hx, hx), hx))
        needs = list(ctx.needs_input_grad[2:])
        dx, dweights, dhx = _run_backward(ctx.call, x.unsqueeze(0), weights, states, others, None, grads, needs)
        return None, None, _squeezed(dx), *dweights, *map(_squeezed, dhx)


def _squeezed(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.squeeze(0)


def _run_step(call, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], save: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The new states, then the output and what is saved. The states are no views: a caller may detach them in place."""
    cell, has_bias, bidirectional = call
    with private.below_views():
        output, hx_n, saved = _LAYER(
            cell, x.unsqueeze(0), weights, [state.unsqueeze(0) for state in hx], None, has_bias, bidirectional, ALL_ROWS if save else None
        )
        return [state.squeeze(0) for state in hx_n], [output, *saved]


def step(cell: str, x: Tensor, weights: Sequence[Tensor], hx: Sequence[Tensor], has_bias: bool) -> Sequence[Tensor]:
    """One time step of an eager call: x (B, I), the states before and after it (B, ...)."""
    call = cell, has_bias, False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights, *hx)):
        return _Step.apply(call, len(weights), *savable([x, *weights, *hx]))
    return _run_step(call, x, weights, hx, False)[0]


def layer(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    every: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The operator `sstkern::layer` as the modules call it, differentiable: output and final states, with `every` those of every step.

    torch.compile, torch.export and torch.jit.trace see the operator itself; torch.func's transforms see what is in `transforms`.
    """
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights, *hx))
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
            raise NotImplementedError(
                "torch.onnx.export: with dynamo=False it does not know sstkern's operators; call it with dynamo=True, for which "
                "sstkern.onnx makes ONNX's own of them"
            )
        rows = saved_rows(x.dim() == 2, lengths) if differentiable else None
        return torch.ops.sstkern.layer(cell, x, weights, hx, lengths, has_bias, bidirectional, rows, every)[:2]
    call = cell, has_bias, bidirectional
    if not autocasting(x):
        return _eager(call, x, weights, hx, lengths, differentiable, every)
    x, *tensors = autocast([x, *weights, *hx])
    with private.without_autocast():
        return _eager(call, x, tensors[: len(weights)], tensors[len(weights) :], lengths, differentiable, every)


def _eager(
    call: tuple[str, bool, bool],
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    differentiable: bool,
    every: bool,
) -> tuple[Tensor, list[Tensor]]:
    if differentiable:
        output, *hx_n = _Layer.apply(call, len(weights), every, lengths, *savable([x, *weights, *hx]))
        return output, hx_n
    cell, *options = call
    with undifferentiated():
        return _LAYER(cell, x, weights, hx, lengths, *options, None, every)[:2]


def _setup_backward(ctx, inputs, output):
    cell, x, weights, hx, lengths, has_bias, bidirectional, result, saved, grad_output, grad_hx, needs, groups = inputs
    if groups is not None:
        raise NotImplementedError("sstkern::layer_backward: gradients of groups have no derivative")
    ctx.call = cell, lengths, has_bias, bidirectional, needs, len(saved)
    ctx.counts = len(weights), len(hx)
    ctx.save_for_backward(result, grad_output, x, *weights, *hx, *grad_hx)
    ctx.set_materialize_grads(False)


def _backward_gradient(ctx, grads):
    """Second derivatives, of any order: the reference engine's first derivative, differentiated."""
    (cell, lengths, has_bias, bidirectional, needs, saved), (weights, states) = ctx.call, ctx.counts
    output, given, *tensors = ctx.saved_tensors
    inputs, grad_hx = tensors[: 1 + weights + states], tensors[1 + weights + states :]
    gradients = [torch.zeros_like(output) if given is None else given, *grad_hx]
    every = len(grad_hx) > len(CELLS[cell].states)

    def forward(inputs: Sequence[Tensor], product: reference.Linear) -> Sequence[Tensor]:
        return flat_reference(cell, inputs, weights, lengths, has_bias, bidirectional, product=product, every=every)

    _, of_x, of_weights, of_hx, *_, of_output, of_grad_hx, _, _ = ctx.needs_input_grad
    wanted = [of_x, *of_weights, *of_hx, of_output, *of_grad_hx]
    found = iter(second_derivative(forward, inputs, gradients, needs, grads, wanted))
    dx, (dweights, dhx) = next(found), ([next(found) for _ in range(count)] for count in ctx.counts)
    dgrad_output, *dgrad_hx = found
    return (
        None,
        dx,
        dweights,
        dhx,
        None,
        None,
        None,
        None,
        [None] * saved,
        dgrad_output,
        dgrad_hx,
        None,
        None,
    )


torch.library.register_autograd("sstkern::layer_backward", _backward_gradient, setup_context=_setup_backward)
