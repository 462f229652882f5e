"""PyTorch's operators that sum along a row or look for its largest number, in the language, and those that normalise a row with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from sstkern.program.capture.reasons import refuse, refuse_mixing
from sstkern.program.capture.recording import Literal, Operand, Recording
from sstkern.program.capture.rows import permuted
from sstkern.program.values import Attribute

aten = torch.ops.aten
Dims = int | Sequence[int] | None
"""Dimensions of a tensor; None and () are all of them."""


def _dims(operand: Operand, dims: Dims) -> list[int]:
    """The dimensions of its shape, from the first on, that those of the tensor are."""
    count = len(operand.shape) - operand.merged
    given = [dims] if isinstance(dims, int) else list(dims or range(count))
    return sorted({dim % count + operand.merged if dim % count else 0 for dim in given}) if count else []


def _along(record: Recording, name: str, operand: Operand, dims: Dims) -> Operand:
    """The rows with these dimensions, all of which must be a row's own, as their last, and as one."""
    own = _dims(operand, dims)
    if not own or record.batch_dim(operand.shape) in own:
        refuse_mixing(f"{name} mixes sequences")
    kept = [dim for dim in range(len(operand.shape)) if dim not in own]
    moved = permuted(record, operand, [*kept, *own])
    return record.reshaped(moved, (*moved.shape[: len(kept)], math.prod(moved.shape[len(kept) :])))


def _back(record: Recording, rows: Operand, operand: Operand, dims: Dims) -> Operand:
    """The inverse of `_along`: its rows in the operand's shape."""
    count, own = len(operand.shape), _dims(operand, dims)
    order = [*(dim for dim in range(count) if dim not in own), *own]
    apart = record.reshaped(rows, [operand.shape[dim] for dim in order])
    return permuted(record, apart, [order.index(dim) for dim in range(count)])


def _reduced(record: Recording, operation: str, rows: Operand, attributes: Sequence[Attribute] = ()) -> Operand:
    """Along the last dimension, which stays."""
    width = rows.shape[-1] if operation == "cumsum" else 1
    return replace(rows, value=record.node(operation, rows.value, attributes=attributes), shape=(*rows.shape[:-1], width))


def _result(record: Recording, reduced: Operand) -> Operand:
    """The value in the shape of the operator's result, which keeps the dimension or not."""
    first = reduced.shape[: 1 + reduced.merged] if reduced.merged else record.result.shape[:1]
    return record.reshaped(reduced, (*first, *record.result.shape[1:]))


def _total(name: str, *attributes: Attribute) -> Callable[..., Operand]:
    """A sum or a mean."""

    def handler(record: Recording, operand: Operand, dims: Dims = None, *_: Any) -> Operand:
        if not isinstance(dims, int | tuple | None):
            dims = None
        operand = record.cast(operand, record.result.dtype)
        return _result(record, _reduced(record, name, _along(record, name, operand, dims), attributes))

    return handler


def _largest_of(record: Recording, operation: str, name: str, operand: Operand, dims: Dims) -> Operand:
    """operation: "amax" or "max"; name: PyTorch's."""
    if not operand.dtype.is_floating_point:
        refuse(f"{name} of numbers that are not floating point", "use .to(dtype) first")
    rows = _along(record, name, operand, dims)
    if "min" not in name:
        return _result(record, _reduced(record, operation, rows))
    return _result(record, record.pointwise("neg", _reduced(record, operation, record.pointwise("neg", rows))))


def _amax(record: Recording, operand: Operand, dims: Dims = None, *_: Any) -> Operand:
    return _largest_of(record, "amax", "amax", operand, dims)


def _amin(record: Recording, operand: Operand, dims: Dims = None, *_: Any) -> Operand:
    return _largest_of(record, "amax", "amin", operand, dims)


def _max(record: Recording, operand: Operand, dim: Dims = None, *_: Any) -> tuple[Operand, None]:
    """The numbers; where they stand, the second result, is an integer that a program has no use for."""
    return _largest_of(record, "max", "max", operand, dim), None


def _min(record: Recording, operand: Operand, dim: Dims = None, *_: Any) -> tuple[Operand, None]:
    return _largest_of(record, "max", "min", operand, dim), None


def _aminmax(record: Recording, operand: Operand, dim: Dims = None, *_: Any) -> tuple[Operand, Operand]:
    return _amin(record, operand, dim), _amax(record, operand, dim)


def _cumsum(record: Recording, operand: Operand, dim: int, *_: Any) -> Operand:
    operand = record.cast(operand, record.result.dtype)
    return _back(record, _reduced(record, "cumsum", _along(record, "cumsum", operand, dim), (False,)), operand, dim)


# Softmax.


def _largest(record: Recording, rows: Operand) -> Operand:
    """What exponents are lowered by. No result depends on it, so that it has no gradient."""
    return record.detached(_reduced(record, "amax", rows))


def _powers(record: Recording, exponents: Operand) -> tuple[Operand, Operand]:
    """The powers of e, and their sum."""
    powers = record.pointwise("exp", exponents)
    return powers, _reduced(record, "sum", powers)


def _softmax(record: Recording, operand: Operand, dim: int, *_: Any) -> Operand:
    operand = record.cast(operand, record.result.dtype)
    rows = _along(record, "softmax", operand, dim)
    powers, total = _powers(record, record.pointwise("sub", rows, _largest(record, rows)))
    return _back(record, record.pointwise("div", powers, total), operand, dim)


def _log_softmax(record: Recording, operand: Operand, dim: int, *_: Any) -> Operand:
    operand = record.cast(operand, record.result.dtype)
    rows = _along(record, "log_softmax", operand, dim)
    lowered = record.pointwise("sub", rows, _largest(record, rows))
    total = _powers(record, lowered)[1]
    return _back(record, record.pointwise("sub", lowered, record.pointwise("log", total)), operand, dim)


def _logsumexp(record: Recording, operand: Operand, dims: Dims, *_: Any) -> Operand:
    """The logarithm of a sum of powers of e. Exponents are lowered by the largest one, unless that is infinite."""
    rows = _along(record, "logsumexp", operand, dims)
    largest = _largest(record, rows)
    infinite = record.pointwise("eq", record.pointwise("abs", largest), math.inf)
    finite = record.pointwise("where", infinite, 0.0, largest)
    total = _powers(record, record.pointwise("sub", rows, finite))[1]
    return _result(record, record.pointwise("add", record.pointwise("log", total), finite))


# Norms, and what they normalise.


def _root(record: Recording, a: Operand) -> Operand:
    """The root of a sum of squares; its derivative at 0 is 0, as PyTorch has it."""
    none = record.pointwise("eq", a, 0)
    return record.pointwise("where", none, 0.0, record.pointwise("sqrt", record.pointwise("where", none, 1.0, a)))


def _centred(record: Recording, rows: Operand) -> tuple[Operand, Operand]:
    """The rows minus their mean, and the mean."""
    mean = _reduced(record, "mean", rows, (0,))
    return record.pointwise("sub", rows, mean), mean


def _variance(record: Recording, name: str, operand: Operand, dims: Dims, correction: Literal | None) -> tuple[Operand, Operand]:
    """And the mean."""
    rows = _along(record, name, operand, dims)
    centred, mean = _centred(record, rows)
    less = 1 if correction is None else int(correction)
    if correction not in (None, less):
        refuse(f"{name} with a correction of {correction}", "use a whole number")
    return _reduced(record, "mean", record.pointwise("mul", centred, centred), (less,)), mean


def _var(record: Recording, operand: Operand, dims: Dims = None, correction: Literal | None = None, *_: Any) -> Operand:
    return _result(record, _variance(record, "var", operand, dims, correction)[0])


def _std(record: Recording, operand: Operand, dims: Dims = None, correction: Literal | None = None, *_: Any) -> Operand:
    return _result(record, _root(record, _variance(record, "std", operand, dims, correction)[0]))


def _var_mean(record: Recording, operand: Operand, dims: Dims = None, correction: Literal | None = None, *_: Any) -> tuple[Operand, ...]:
    return tuple(_result(record, part) for part in _variance(record, "var_mean", operand, dims, correction))


def _std_mean(record: Recording, operand: Operand, dims: Dims = None, correction: Literal | None = None, *_: Any) -> tuple[Operand, ...]:
    variance, mean = _variance(record, "std_mean", operand, dims, correction)
    return _result(record, _root(record, variance)), _result(record, mean)


def _norm(record: Recording, operand: Operand, order: Literal | None = 2, dims: Dims = None, *_: Any) -> Operand:
    rows = _along(record, "norm", record.cast(operand, record.result.dtype), dims)
    order = 2 if order is None else order
    if order == 2:
        return _result(record, _root(record, _reduced(record, "sum", record.pointwise("mul", rows, rows))))
    size = record.pointwise("abs", rows)
    if order == 1:
        return _result(record, _reduced(record, "sum", size))
    if order == math.inf:
        return _result(record, _reduced(record, "amax", size))
    refuse(f"a norm of order {order}", "use the orders 1, 2 and inf, or write it with powers and a sum")


def _normalised(record: Recording, rows: Operand, eps: Literal) -> Operand:
    """The rows with mean 0 and variance 1, but for `eps`."""
    centred, _ = _centred(record, rows)
    variance = _reduced(record, "mean", record.pointwise("mul", centred, centred), (0,))
    return record.pointwise("mul", centred, record.pointwise("rsqrt", record.pointwise("add", variance, eps)))


def _scaled(record: Recording, rows: Operand, weight: Operand | None, bias: Operand | None) -> Operand:
    scaled = rows if weight is None else record.pointwise("mul", rows, weight)
    return scaled if bias is None else record.pointwise("add", scaled, bias)


def _layer_norm(
    record: Recording, operand: Operand, shape: Sequence[int], weight: Operand | None, bias: Operand | None, eps: Literal
) -> tuple[Operand, None, None]:
    dims = tuple(range(-len(shape), 0))
    normal = _normalised(record, _along(record, "layer_norm", operand, dims), eps)
    return _scaled(record, _back(record, normal, operand, dims), weight, bias), None, None


def _group_norm(
    record: Recording,
    operand: Operand,
    weight: Operand | None,
    bias: Operand | None,
    _: Any,
    channels: int,
    __: Any,
    groups: int,
    eps: Literal,
) -> tuple[Operand, None, None]:
    """Normalises (B, C, ...), each group of channels by itself."""
    if record.batch_dim(operand.shape) != 0:
        refuse_mixing("group_norm mixes sequences")
    size = math.prod(operand.shape[1:])
    normal = _normalised(record, record.reshaped(operand, (operand.shape[0], groups, size // groups)), eps)
    rows = record.reshaped(normal, (operand.shape[0], channels, size // channels))
    gain, shift = (
        None if part is None else record.call(aten.unsqueeze.default, part, 1, like=part, shape=(channels, 1)) for part in (weight, bias)
    )
    return record.reshaped(_scaled(record, rows, gain, shift), operand.shape), None, None


OPERATORS: dict[str, Callable[..., Any]] = {
    "sum": _total("sum"),
    "mean": _total("mean", 0),
    "amax": _amax,
    "amin": _amin,
    "max": _max,
    "min": _min,
    "aminmax": _aminmax,
    "cumsum": _cumsum,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "std_mean": _std_mean,
    "linalg_vector_norm": _norm,
    "norm": _norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
}
