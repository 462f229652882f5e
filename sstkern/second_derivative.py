"""Derivatives of a layer's gradients, of any order, by autograd through its forward in plain PyTorch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sstkern.forked import one_thread


@one_thread
def second_derivative(
    forward: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Differentiates the first derivative, which took the gradients of forward(inputs) to those of the inputs that `needs` has a True for.

    grads: the gradients of those, None where nothing depends on one: it is not computed again. wanted: a flag for each of `inputs` and then
    of `gradients`. Returns their gradients, None without the flag, which can be differentiated again.
    """
    known, differentiable = iter(grads), torch.is_grad_enabled()
    of_first = [next(known) if need else None for need in needs]
    if all(grad is None for grad in of_first):
        return [None] * len(wanted)
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        # The caller's own tensors: what is recorded here may itself be differentiated.
        given = [
            _alias(tensor) if want or grad is not None else tensor for tensor, want, grad in zip(inputs, wanted, of_first, strict=False)
        ]
        directions = [_alias(tensor) if want else tensor for tensor, want in zip(gradients, wanted[len(inputs) :], strict=True)]
        used = [tensor for tensor, grad in zip(given, of_first, strict=True) if grad is not None]
        first = torch.autograd.grad(forward(given), used, directions, create_graph=True, materialize_grads=True)
        varied = [tensor for tensor, want in zip((*given, *directions), wanted, strict=True) if want]
        outer = [grad for grad in of_first if grad is not None]
        second = iter(torch.autograd.grad(first, varied, outer, create_graph=differentiable, allow_unused=True))
    return [next(second) if want else None for want in wanted]


def _alias(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
