"""Rows cut into time steps and put together again, such that derivatives of any order take time that is linear in the steps.

The gradient of torch.cat and torch.stack takes the steps one by one from that of the whole, so the gradient of this gradient makes a
tensor as large as the whole for each step. Here each of the two functions is the other one's derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sstkern import private
from sstkern.forked import one_thread


@one_thread
def split(rows: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The steps of rows (N, ...), so many rows each; at least one step."""
    if _unrecorded():
        return rows.split(list(sizes))
    return (_SplitWithin if private.transforms_active() else _Split).apply(tuple(sizes), rows)


@one_thread
def cat(steps: Sequence[Tensor]) -> Tensor:
    """The rows of all steps, of which there is at least one."""
    if _unrecorded():
        return torch.cat(list(steps))
    return (_CatWithin if private.transforms_active() else _Cat).apply(*steps)


def _unrecorded() -> bool:
    """Whether PyTorch's own operators will do: no gradient is recorded, or a graph is made, which nobody differentiates twice."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled()


class _Split(Function):
    @staticmethod
    def forward(ctx: Any, sizes: tuple[int, ...], rows: Tensor) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        steps = rows.split(sizes)
        # In forward mode a result that is a view has to have a tangent that is one, which vmap's are not.
        return tuple([step.clone() for step in steps]) if private.in_dual_level() else tuple(steps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, cat(grads)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> tuple[Tensor, ...]:
        return tuple(split(tangent, ctx.sizes))


class _SplitWithin(_Split):
    """`_Split` within transforms. These want setup_context; every call then binds its arguments to a signature, 0.2 ms for 40 steps."""

    @staticmethod
    def forward(sizes: tuple[int, ...], rows: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override] # a form that goes by setup_context
        return tuple([step.clone() for step in rows.split(sizes)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.sizes, _ = inputs

    @staticmethod
    def vmap(info: Any, in_dims: tuple, sizes: tuple[int, ...], rows: Tensor) -> tuple:
        return split(rows.movedim(in_dims[-1], 1), sizes), (1,) * len(sizes)


class _Cat(Function):
    @staticmethod
    def forward(ctx: Any, *steps: Tensor) -> Tensor:
        ctx.shapes = [step.shape for step in steps]
        return torch.cat(steps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(split(grad, [shape[0] for shape in ctx.shapes]))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        like = next(tangent for tangent in tangents if tangent is not None)
        return cat([like.new_zeros(shape) if tangent is None else tangent for tangent, shape in zip(tangents, ctx.shapes, strict=True)])


class _CatWithin(_Cat):
    """`_Cat` within transforms, as `_SplitWithin`."""

    @staticmethod
    def forward(*steps: Tensor) -> Tensor:
        return torch.cat(steps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.shapes = [step.shape for step in inputs]

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *steps: Tensor) -> tuple:
        return cat([_second(step, dim, info.batch_size) for step, dim in zip(steps, in_dims, strict=True)]), 1


def _second(step: Tensor, dim: int | None, size: int) -> Tensor:
    """The step with the dimension that vmap adds as its second one."""
    return step.unsqueeze(1).expand(-1, size, *step.shape[1:]) if dim is None else step.movedim(dim, 1)
