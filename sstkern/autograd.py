"""The derivatives of `sstkern::layer` and `sstkern::layer_backward`, and the operator as the modules call it, differentiable."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sstkern import transforms
from sstkern.engines import transformed
from sstkern.operators import flat_reference, undifferentiated


def _setup_layer(ctx, inputs, output):
    cell, x, weights, hx, lengths, has_bias, bidirectional, _ = inputs
    result, _, saved = output
    ctx.call = cell, has_bias, bidirectional
    ctx.counts = len(weights), len(hx)
    ctx.save_for_backward(x, *weights, *hx, lengths, result, *saved)
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)


def _layer_gradient(ctx, grad_output, grad_hx, _grad_saved):
    dx, dweights, dhx = _gradients(ctx, grad_output, grad_hx, [ctx.needs_input_grad[1], *ctx.needs_input_grad[2], *ctx.needs_input_grad[3]])
    return None, dx, dweights, dhx, None, None, None, None


def _gradients(ctx, grad_output, grad_hx, needs: list[bool]) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    (cell, has_bias, bidirectional), (weights, states) = ctx.call, ctx.counts
    if grad_output is None and all(grad is None for grad in grad_hx):
        # A second derivative comes by here, through `output`, an input of layer_backward; there is nothing to run.
        return None, [None] * weights, [None] * states
    x, *rest = ctx.saved_tensors
    weights, hx, (lengths, output, *saved) = rest[:weights], rest[weights : weights + states], rest[weights + states :]
    grad_hx = [torch.zeros_like(state) if grad is None else grad for state, grad in zip(hx, grad_hx, strict=True)]
    if not torch.compiler.is_compiling() and transformed(grad_hx if grad_output is None else [grad_output, *grad_hx]):
        grads = [torch.zeros_like(output) if grad_output is None else grad_output, *grad_hx]
        found = transforms.gradients(cell, x, weights, hx, lengths, has_bias, bidirectional, grads, needs)
        return found[0], found[1 : 1 + len(weights)], found[1 + len(weights) :]
    with undifferentiated(torch.is_grad_enabled()):
        grads = iter(
            torch.ops.sstkern.layer_backward(
                cell, x, weights, hx, lengths, has_bias, bidirectional, output, saved, grad_output, grad_hx, needs, None
            )
        )
    dx, *drest = [next(grads) if need else None for need in needs]
    return dx, drest[: len(weights)], drest[len(weights) :]


torch.library.register_autograd("sstkern::layer", _layer_gradient, setup_context=_setup_layer)


class _Layer(torch.autograd.Function):
    """The gradient that `sstkern::layer` registers, for eager calls: through the dispatcher it takes four times as long."""

    @staticmethod
    def forward(ctx, call, weights: int, lengths, x, *tensors):
        ctx.call, ctx.counts = call, (weights, len(tensors) - weights)
        ctx.set_materialize_grads(False)
        cell, *options = call
        with undifferentiated():
            output, hx_n, saved = torch.ops.sstkern.layer(cell, x, tensors[:weights], tensors[weights:], lengths, *options, True)
        ctx.save_for_backward(x, *tensors, lengths, output, *saved)
        return output, *hx_n

    @staticmethod
    def backward(ctx, grad_output, *grad_hx):
        dx, dweights, dhx = _gradients(ctx, grad_output, grad_hx, list(ctx.needs_input_grad[3:]))
        return None, None, None, dx, *dweights, *dhx


def layer(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The operator `sstkern::layer` as the modules call it, differentiable: output and final states.

    torch.compile, torch.export and torch.jit.trace see the operator itself, as does autocast; torch.func's transforms see what is in
    `transforms`.
    """
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights, *hx))
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled(x.device.type):
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
            raise NotImplementedError(
                "torch.onnx.export: with dynamo=False it does not know sstkern's operators; call it with dynamo=True, for which "
                "sstkern.onnx makes ONNX's own of them"
            )
        return torch.ops.sstkern.layer(cell, x, weights, hx, lengths, has_bias, bidirectional, differentiable)[:2]
    if differentiable:
        output, *hx_n = _Layer.apply((cell, has_bias, bidirectional), len(weights), lengths, x, *weights, *hx)
        return output, hx_n
    with undifferentiated():
        return torch.ops.sstkern.layer(cell, x, weights, hx, lengths, has_bias, bidirectional, False)[:2]


def _setup_backward(ctx, inputs, output):
    cell, x, weights, hx, lengths, has_bias, bidirectional, result, saved, grad_output, grad_hx, needs, groups = inputs
    if groups is not None:
        raise NotImplementedError("sstkern::layer_backward: gradients of groups have no derivative")
    ctx.call = cell, lengths, has_bias, bidirectional, needs, len(saved)
    ctx.counts = len(weights), len(hx)
    ctx.save_for_backward(result, grad_output, x, *weights, *hx, *grad_hx)


def _backward_gradient(ctx, grads):
    """Second derivatives, of any order: the reference engine's first derivative, differentiated."""
    (cell, lengths, has_bias, bidirectional, needs, saved), (weights, states) = ctx.call, ctx.counts
    output, given_grad_output, *tensors = ctx.saved_tensors
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(output.device.type, enabled=False):
        # The caller's own tensors: what is recorded here may itself be differentiated.
        aliases = [tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in tensors]
        inputs, grad_hx = aliases[: 1 + weights + states], aliases[1 + weights + states :]
        grad_output = torch.zeros_like(output) if given_grad_output is None else given_grad_output
        grad_output = grad_output.view_as(grad_output) if grad_output.requires_grad else grad_output.detach().requires_grad_()
        results = flat_reference(cell, inputs, weights, lengths, has_bias, bidirectional)
        wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
        first = torch.autograd.grad(results, wanted, [grad_output, *grad_hx], create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(first, [grad_output, *aliases], grads, create_graph=differentiable, allow_unused=True)
    dgrad_output, dx, *rest = second
    dweights, dhx, dgrad_hx = rest[:weights], rest[weights : weights + states], rest[weights + states :]
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
        None if given_grad_output is None else dgrad_output,
        dgrad_hx,
        None,
        None,
    )


torch.library.register_autograd("sstkern::layer_backward", _backward_gradient, setup_context=_setup_backward)
