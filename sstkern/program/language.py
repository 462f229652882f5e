"""The operations of a program: what each takes, computes and costs.

Pointwise operations follow torch's function of that name, in PyTorch's types: a number does not raise a tensor's dtype. A dimension in an
attribute is negative, -1 the last. `docs/language.md` lists them for users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sstkern.program.graph import Node, Size, Value

CHEAP, COSTLY = 1.0, 8.0
"""Of a pointwise result, in units of an addition: one on the processor's own instructions, and one by a polynomial (exp, tanh). Measured
in AVX2 registers: 0.25 and 2 nanoseconds for eight float32."""
STORED = 4.0
"""To store a result in the forward and load it in the backward."""
PRODUCT = 1e6
"""More than any save."""


@dataclass(frozen=True)
class Operation:
    """compute: of the arguments' tensors or numbers, then the attributes' values, to a tensor.

    arity: how many arguments it takes, None for any number. attributes: likewise; one of the two is a number. cost: of computing it again
    in the backward. views: whether it only looks at its argument, which costs nothing.
    """

    compute: Callable[..., Tensor]
    arity: int | None = 1
    attributes: int | None = 0
    cost: float = CHEAP

    def check(self, node: Node) -> None:
        takes = len(node.arguments) if self.arity is None else self.arity
        has = len(node.attributes) if self.attributes is None else self.attributes
        if len(node.arguments) != takes or len(node.attributes) != has:
            raise ValueError(f"program: '{node}' has {len(node.arguments)} arguments and {len(node.attributes)} attributes, not {takes} and {has}")


def _slice(v: Tensor, dim: int, start: int, stop: int) -> Tensor:
    return v.narrow(dim, start, stop - start)


def _chunk(v: Tensor, dim: int, parts: int, index: int) -> Tensor:
    width = v.size(dim) // parts
    return v.narrow(dim, index * width, width)


def _cat(*parts: Any) -> Tensor:
    *tensors, dim = parts
    return torch.cat(tensors, dim)


def _pow(base: Any, exponent: Any) -> Tensor:
    return torch.pow(base, exponent)


def _where(condition: Tensor, a: Any, b: Any) -> Tensor:
    return torch.where(condition, a, b)


def _product(v: Tensor, weight: Tensor) -> Tensor:
    return F.linear(v, weight)


def _binary(function: Callable[[Tensor, Any], Tensor]) -> Operation:
    return Operation(function, arity=2)


def _costly(function: Callable[..., Tensor], attributes: int = 0) -> Operation:
    return Operation(function, attributes=attributes, cost=COSTLY)


OPERATIONS: dict[str, Operation] = {
    # Products: rows (..., I) with a parameter (O, I) to rows (..., O).
    "product": Operation(_product, arity=2, cost=PRODUCT),
}
