"""The operations of a program: what each takes, computes and costs.

Pointwise operations are torch's functions of that name, in PyTorch's types: a number does not raise a tensor's dtype. A dimension among the
attributes is negative, -1 the last. docs/language.md lists for users what of theirs becomes which.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sstkern.program.values import Node, Number, Size, Value

CHEAP, COSTLY, PRODUCT = 1.0, 8.0, 1e6
"""Costs of computing an element again in the backward: by the processor's own instructions, by a polynomial (exp, tanh), by a matrix
product."""
PRODUCTS = ("product", "transposed_product")
SUMS = ("sum", "mean")
REDUCTIONS = (*SUMS, "amax", "max", "cumsum")
"""Along the last dimension of a row, which stays, of width 1; `cumsum` keeps its width. All that are the largest share the gradient of
`amax`; the first of them has that of `max`."""
STORED = 4.0
"""Cost of storing an element in the forward and loading it in the backward instead."""


@dataclass(frozen=True)
class Operation:
    """compute: of the arguments, tensors or numbers, and then the attributes, to a tensor.

    arity, attributes: how many it takes; None for any number, of one of the two. cost: see `CHEAP`. makes_rows: whether `compute` is given
    a tensor of rows first, whose number of rows and device the result gets.
    """

    compute: Callable[..., Tensor]
    arity: int | None = 1
    attributes: int | None = 0
    cost: float = CHEAP
    makes_rows: bool = False

    def takes(self, words: int) -> int:
        """How many of a node's words are arguments."""
        return self.arity if self.arity is not None else words - (self.attributes or 0)

    def check(self, node: Node) -> None:
        """Raises ValueError for a node with too much or too little."""
        arity = len(node.arguments) if self.arity is None else self.arity
        attributes = len(node.attributes) if self.attributes is None else self.attributes
        if len(node.arguments) != arity or len(node.attributes) != attributes:
            raise ValueError(f"program: '{node}': {node.operation} takes {arity} arguments and {attributes} attributes")
        if self.cost == PRODUCT and not (isinstance(node.arguments[1], Value) and node.arguments[1].kind == "p"):
            raise ValueError(f"program: '{node}': {node.operation} takes a parameter, the same for all rows, as its second argument")


def _chunk(v: Tensor, dim: int, parts: int, index: int) -> Tensor:
    width = v.size(dim) // parts
    return v.narrow(dim, index * width, width)


def _cat(*given: Any) -> Tensor:
    *parts, dim = given
    return torch.cat(parts, dim)


def _cut(v: Tensor, *given: Any) -> Tensor:
    """One part, by its place, of what has the width of all parts."""
    *parts, dim, index = given
    return v.narrow(dim, sum(part.size(dim) for part in parts[:index]), parts[index].size(dim))


def _placed(v: Tensor, like: Tensor, dim: int, start: int, stop: int) -> Tensor:
    """Zeros like the second, and the first in their middle."""
    ends = [0, 0] * (-dim - 1) + [start, like.size(dim) - stop]
    return F.pad(v, ends)


def _sum_to(v: Tensor, like: Tensor) -> Tensor:
    """Sums over what was spread, in each row."""
    return v.sum_to_size(v.size(0), *like.shape[1:])


def _cumsum(v: Tensor, back: bool) -> Tensor:
    """back: from the last number to the first."""
    return v.flip(-1).cumsum(-1).flip(-1) if back else v.cumsum(-1)


def divisor(width: int, less: Any) -> int:
    """The number that a sum over `width` numbers is divided by: `less` fewer."""
    return max(0, width - less)


def _mean(v: Tensor, less: int) -> Tensor:
    return v.mean(-1, keepdim=True) if less == 0 else v.sum(-1, keepdim=True) / divisor(v.size(-1), less)


def _count(v: Tensor, less: int) -> Tensor:
    """What `_mean` divides by."""
    return torch.full_like(v[..., :1], divisor(v.size(-1), less))


def _expand_like(v: Tensor, like: Tensor) -> Tensor:
    return v.expand(v.size(0), *like.shape[1:])


def _full(rows: Tensor, value: float, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.full((rows.size(0), *shape), value, dtype=dtype, device=rows.device)


def _costly(function: Callable[..., Tensor], attributes: int = 0) -> Operation:
    return Operation(function, attributes=attributes, cost=COSTLY)


_CHEAP_FUNCTIONS = "neg abs sign reciprocal sqrt rsqrt relu floor ceil round trunc logical_not isnan"
_COSTLY_FUNCTIONS = "exp expm1 log log1p sin cos tan atan sinh cosh asinh erf sigmoid tanh"
_OPERATORS = {name: getattr(operator, name) for name in ("add", "sub", "mul", "lt", "le", "gt", "ge", "eq", "ne")}
"""Python's, which take a number on either side."""
_OF_TENSORS = "maximum minimum logical_and logical_or"


OPERATIONS: dict[str, Operation] = {
    # Products of rows (..., I) with a parameter (O, I) to rows (..., O), and with the same parameter back.
    "product": Operation(F.linear, arity=2, cost=PRODUCT),
    "transposed_product": Operation(lambda v, weight: v @ weight, arity=2, cost=PRODUCT),
    **{name: Operation(getattr(torch, name)) for name in _CHEAP_FUNCTIONS.split()},
    **{name: _costly(getattr(torch, name)) for name in _COSTLY_FUNCTIONS.split()},
    **{name: Operation(function, arity=2) for name, function in _OPERATORS.items()},
    **{name: Operation(getattr(torch, name), arity=2) for name in _OF_TENSORS.split()},
    "div": Operation(operator.truediv, arity=2),
    "pow": Operation(operator.pow, arity=2, cost=COSTLY),
    "atan2": Operation(torch.atan2, arity=2, cost=COSTLY),
    "where": Operation(torch.where, arity=3),
    "log_sigmoid": _costly(F.logsigmoid),
    "silu": _costly(F.silu),
    "mish": _costly(F.mish),
    "hardsigmoid": Operation(F.hardsigmoid),
    "hardswish": Operation(F.hardswish),
    "softplus": _costly(F.softplus, attributes=2),
    "gelu": _costly(lambda v, approximate: F.gelu(v, approximate=approximate), attributes=1),
    "elu": _costly(torch.ops.aten.elu.default, attributes=3),
    "leaky_relu": Operation(F.leaky_relu, attributes=1),
    "hardtanh": Operation(F.hardtanh, attributes=2),
    "clamp": Operation(torch.clamp, attributes=2),
    "cast": Operation(lambda v, dtype: v.to(dtype), attributes=1),
    "detach": Operation(torch.detach, cost=0),
    # Parts of a row.
    "chunk": Operation(_chunk, attributes=3, cost=0),
    "slice": Operation(lambda v, dim, start, stop: v.narrow(dim, start, stop - start), attributes=3, cost=0),
    "cat": Operation(_cat, arity=None, attributes=1),
    "reshape": Operation(lambda v, *shape: v.reshape(v.size(0), *shape), attributes=None, cost=0),
    "transpose": Operation(torch.transpose, attributes=2, cost=0),
    "expand": Operation(lambda rows, v, *shape: v.expand(rows.size(0), *shape), attributes=None, cost=0, makes_rows=True),
    "full": Operation(_full, attributes=None, makes_rows=True),
    # Along the last dimension.
    "sum": Operation(lambda v: v.sum(-1, keepdim=True), cost=COSTLY),
    "mean": Operation(_mean, attributes=1, cost=COSTLY),
    "amax": Operation(lambda v: v.amax(-1, keepdim=True), cost=COSTLY),
    "max": Operation(lambda v: v.max(-1, keepdim=True).values, cost=COSTLY),
    "cumsum": Operation(_cumsum, attributes=1, cost=COSTLY),
    "count": Operation(_count, attributes=1, cost=0),
    # What derivatives are made of besides.
    "expand_like": Operation(_expand_like, arity=2, cost=0),
    "full_like": Operation(torch.full_like, attributes=1),
    "reshape_like": Operation(lambda v, like: v.reshape(like.shape), arity=2, cost=0),
    "sum_to": Operation(_sum_to, arity=2),
    "cut": Operation(_cut, arity=None, attributes=2, cost=0),
    "placed": Operation(_placed, arity=2, attributes=3),
}


def read(node: Node) -> list[Value]:
    """The values whose numbers a node computes with: others give it a shape only."""
    if node.operation in ("full_like", "count"):
        return []
    return node.values()[:1] if node.operation in ("reshape_like", "expand_like", "sum_to", "cut", "placed") else node.values()


def resolved(part: Value | Number | Size | Any, sizes: Sequence[int], numbers: Sequence[float]) -> Any:
    """What stands for an argument or attribute that is no value."""
    if isinstance(part, Size):
        return sizes[part.place]
    return numbers[part.place] if isinstance(part, Number) else part
