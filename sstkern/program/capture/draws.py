"""What a step draws at random: an input of its program, drawn for all time steps before the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sstkern.program.capture.numbers import value


@dataclass(frozen=True)
class Draw:
    """Numbers of one step's rows.

    method: of torch.Tensor, in place, such as "uniform_". arguments: its numbers, or formulas of them. shape: of a row. dtype: of what is
    drawn, bool for "bernoulli_".
    """

    method: str
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, like: Tensor, lead: Sequence[int]) -> Tensor:
        """(*lead, *shape), on the device of `like`."""
        arguments, shape = list(map(value, self.arguments)), (*lead, *self.shape)
        if self.method == "bernoulli_":  # bernoulli_ itself takes three times as long
            return like.new_empty(shape, dtype=torch.float32).uniform_() < arguments[0]
        return getattr(like.new_empty(shape, dtype=self.dtype), self.method)(*arguments)

    def settled(self) -> Draw:
        """With the numbers that its formulas give now."""
        return replace(self, arguments=tuple(map(value, self.arguments)))
