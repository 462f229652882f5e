"""Forward mode in plain PyTorch, where a tensor without a tangent is added to one that has one in 0.25 ms, ten times as long as if both
have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sstkern import engines, private


def with_tangents(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], hx: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """The same tensors. In forward mode each has a tangent, zeros where it had none, but for the matrices, whose products are no slower
    without."""
    if torch.compiler.is_compiling() or not engines.in_forward_mode([*inputs, *weights, *hx]) or not private.takes_tangents():
        return inputs, weights, hx
    vectors = [weight if weight.dim() > 1 else _with_tangent(weight) for weight in weights]
    return [_with_tangent(tensor) for tensor in inputs], vectors, [_with_tangent(state) for state in hx]


def _with_tangent(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or forward_ad.unpack_dual(tensor).tangent is not None:
        return tensor
    if 0 in tensor.stride():  # one state for all sequences
        tensor = tensor.contiguous()
    return forward_ad.make_dual(tensor, torch.zeros_like(tensor))
