"""Whether work is linear in the number of time steps: operators and allocated bytes are counted."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sstkern import private

STEPS = (50, 100, 200)
MOST = 2.05


class Counted(private.DispatchMode):
    """How many operators run, and how many bytes they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        self.operators += 1
        given = {tensor.untyped_storage()._cdata for tensor in _tensors(arguments)}
        for tensor in _tensors([result]):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self.bytes += storage.nbytes()
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield from () if value.is_nested else (value,)
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def assert_linear(work: Callable[..., Any], prepare: Callable[[int], Any], steps: tuple[int, ...] = STEPS) -> None:
    """Twice the steps take at most `MOST` times the operators and the bytes. What `prepare` makes of the steps is not counted."""
    counts = []
    for count in steps:
        torch.manual_seed(0)
        given = prepare(count)
        with Counted() as counted:
            work(given)
        counts.append((counted.operators, counted.bytes))
    ratios = [after / before for fewer, more in pairwise(counts) for before, after in zip(fewer, more, strict=True)]
    assert max(ratios) <= MOST, f"operators and bytes at {steps} steps: {counts}"


def differentiate(value: Tensor, inputs: list[Tensor], order: int) -> None:
    """Derivatives up to an order, each of the squares of the ones before."""
    for left in reversed(range(order)):
        found = torch.autograd.grad(value, inputs, create_graph=left > 0, allow_unused=True)
        value = sum(gradient.square().sum() for gradient in found if gradient is not None)
