"""What a step draws at random: an input of its program, drawn for all time steps before the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sstkern.program.capture.numbers import value

_OF_THEIR_OWN = {("uniform_", (0.0, 1.0)): torch.rand, ("normal_", (0.0, 1.0)): torch.randn}


@dataclass(frozen=True)
class Draw:
    """Numbers of one step's rows.

    method: of torch.Tensor, in place, such as "uniform_". arguments: its numbers, or formulas of them. shape: of a row. dtype: of what is
    drawn, bool for "bernoulli_". compared: whether probabilities of any size are compared with it: it is in float32 at least.
    """

    method: str
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    compared: bool = False

    def cast(self, before: torch.dtype, after: torch.dtype) -> Draw:
        """What is drawn where autocast has the step in another dtype: what is rounded to 16 bits afterwards may be 1."""
        return replace(self, dtype=after) if self.dtype == before and not self.compared else self

    def tensor(self, like: Tensor, lead: Sequence[int]) -> Tensor:
        """(*lead, *shape), on the device of `like`. Raises what PyTorch does for numbers that are none of the distribution's."""
        arguments, shape = tuple(map(value, self.arguments)), (*lead, *self.shape)
        if self.method == "bernoulli_":  # bernoulli_ itself takes three times as long
            (p,) = arguments
            if not 0 <= p <= 1:
                raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
            return torch.rand(shape, device=like.device) < p
        if (self.method, arguments) in _OF_THEIR_OWN:  # which torch.func.vmap takes where no input is batched
            return _OF_THEIR_OWN[self.method, arguments](shape, dtype=self.dtype, device=like.device)
        return getattr(like.new_empty(shape, dtype=self.dtype), self.method)(*arguments)

    def settled(self) -> Draw:
        """The draw with the numbers that its formulas give now."""
        return replace(self, arguments=tuple(map(value, self.arguments)))
