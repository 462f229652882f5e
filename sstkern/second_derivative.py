"""Derivatives of a layer's gradients, of any order, by autograd through its forward in plain PyTorch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def second_derivative(
    forward: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Differentiates the first derivative, which took the gradients of forward(inputs) to those of the inputs that `needs` has a True for.

    grads: the gradients of those. Returns the gradients of `gradients` and of the inputs, which can be differentiated again.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        # The caller's own tensors: what is recorded here may itself be differentiated.
        aliases, given = ([_alias(tensor) for tensor in tensors] for tensors in (inputs, gradients))
        wanted = [tensor for tensor, need in zip(aliases, needs, strict=True) if need]
        first = torch.autograd.grad(forward(aliases), wanted, given, create_graph=True, materialize_grads=True)
        varied = [tensor for tensor in (*given, *aliases) if tensor.requires_grad]
        second = iter(torch.autograd.grad(first, varied, grads, create_graph=differentiable, allow_unused=True))
    found = [next(second) if tensor.requires_grad else None for tensor in (*given, *aliases)]
    return found[: len(gradients)], found[len(gradients) :]


def _alias(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor
