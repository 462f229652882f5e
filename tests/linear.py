"""Whether work is linear in the number of time steps: operators and allocated bytes are counted."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sstkern import private

STEPS = (20, 60, 100)
MORE_STEPS = (40, 120, 200)
MOST = 1.02


class Counted(private.DispatchMode):
    """Counts the operators that run and the bytes that they allocate."""

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
    """The second so many steps more take at most `MOST` times the operators and the bytes of the first: what a call takes whatever its
    steps hides nothing. What `prepare` makes of the steps is not counted.

    steps: three numbers at equal distances.
    """
    counts = []
    for count in steps:
        torch.manual_seed(0)
        given = prepare(count)
        with Counted() as counted:
            work(given)
        counts.append((counted.operators, counted.bytes))
    first, second = ([after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(counts))
    within = all(more <= MOST * less for less, more in zip(first, second, strict=True))
    assert within, f"operators and bytes at {steps} steps: {counts}"


def differentiate(value: Tensor, inputs: list[Tensor], order: int) -> None:
    """Derivatives up to an order, each of the squares of the ones before."""
    for left in reversed(range(order)):
        found = torch.autograd.grad(value, inputs, create_graph=left > 0, allow_unused=True)
        value = sum(gradient.square().sum() for gradient in found if gradient is not None)
