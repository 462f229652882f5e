"""PyTorch's matrix products, in the language: rows with a parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any, NoReturn

import torch

from sstkern.program.capture.prelude import Call, Ref
from sstkern.program.capture.reasons import refuse, refuse_mixing
from sstkern.program.capture.recording import Literal, Operand, Recording
from sstkern.program.capture.rows import selected, stacked
from sstkern.program.values import Value

aten = torch.ops.aten


def product(record: Recording, rows: Operand, weight: Operand) -> Operand:
    """rows (B, ..., I) with a weight (O, I) -> (B, ..., O). Of rows that are joined it is the sum of the parts' products."""
    parts = record.joined.get(rows.value)
    if parts is None:
        shape, gradient = (*rows.shape[:-1], weight.shape[0]), rows.gradient or weight.gradient
        return Operand(record.node("product", rows.value, weight.value), shape, record.result.dtype, gradient)
    products, start = [], 0
    for part in parts:
        width = record.own(part.shape)[-1]
        columns = record.call(aten.slice.Tensor, weight, 1, start, start + width, like=weight, shape=(weight.shape[0], width))
        products.append(product(record, replace(part, shape=(*rows.shape[:-1], width)), columns))
        start += width
    return reduce(lambda a, b: record.pointwise("add", a, b), products)


def transposed(record: Recording, weight: Operand) -> Operand:
    """A matrix of parameters, transposed; what the step has transposed already as it was before."""
    entry = record.prelude.entries[weight.value.place]
    shape = weight.shape[::-1]
    if isinstance(entry, Call) and _transposes(entry) and isinstance(entry.arguments[0], Ref):
        return replace(weight, value=record.entry(entry.arguments[0].place, shape), shape=shape)
    return record.call(aten.t.default, weight, like=weight, shape=shape)


def _transposes(entry: Call) -> bool:
    function, dims = entry.function, entry.arguments[1:]
    if function is aten.t.default:
        return True
    if function is aten.transpose.int:
        return {dim % 2 for dim in dims} == {0, 1}
    return function is aten.permute.default and [dim % 2 for dim in dims[0]] == [1, 0]


def _mm(record: Recording, a: Operand, b: Operand) -> Operand:
    if a.rows and b.rows:
        _two_rows(record)
    if a.rows and a.shape[0] == record.batch:
        return product(record, a, transposed(record, b))
    if b.rows and b.shape[1] == record.batch:
        result = product(record, replace(b, shape=b.shape[::-1]), a)
        return replace(result, shape=result.shape[::-1])
    refuse_mixing()


def _two_rows(record: Recording) -> NoReturn:
    refuse(
        "a matrix product of two values that differ between sequences", "a product is of a row with a parameter; multiply rows elementwise"
    )


def _addmm(record: Recording, bias: Operand, a: Operand, b: Operand, beta: Literal, alpha: Literal) -> Operand:
    if beta == 0:
        refuse("addmm with beta=0", "use mm")
    result = _mm(record, a, b) if a.rows or b.rows else record.call(aten.mm.default, a, b, like=a, shape=(a.shape[0], b.shape[1]))
    if alpha != 1:
        result = record.pointwise("mul", result, alpha)
    return record.pointwise("add", result, bias if beta == 1 else record.pointwise("mul", bias, beta))


def _mv(record: Recording, a: Operand, b: Operand) -> Operand:
    if not a.rows or b.rows or a.shape[0] != record.batch:
        _two_rows(record)
    row = record.call(aten.unsqueeze.default, b, 0, like=b, shape=(1, *b.shape))
    return record.reshaped(product(record, a, row), (record.batch,))


def _bmm(record: Recording, a: Operand, b: Operand) -> Operand:
    """A product for each matrix: einsum makes one, a parameter for each head several."""
    if a.shape[0] == 1:
        result = _mm(record, _without_first(record, a), _without_first(record, b))
        return record.reshaped(result, (1, *result.shape))
    if a.rows == b.rows or record.batch in (a.shape[0], b.shape[0]):
        refuse("a batch of matrix products", "use one product of (B, I) with a parameter (I, O) for each")
    return stacked(record, [_mm(record, _head(record, a, head), _head(record, b, head)) for head in range(a.shape[0])], 0)


def _head(record: Recording, operand: Operand, head: int) -> Operand:
    if operand.rows:
        return selected(record, operand, 0, head)
    return record.call(aten.select.int, operand, 0, head, like=operand, shape=operand.shape[1:])


def _without_first(record: Recording, operand: Operand) -> Operand:
    if operand.rows:
        return record.reshaped(operand, operand.shape[1:])
    entry = record.prelude.entries[operand.value.place]
    if isinstance(entry, Call) and entry.function is aten.unsqueeze.default and entry.arguments[1] == 0:
        return replace(operand, value=Value("p", entry.arguments[0].place), shape=operand.shape[1:])
    return record.call(aten.squeeze.dim, operand, 0, like=operand, shape=operand.shape[1:])


OPERATORS: dict[str, Callable[..., Any]] = {"mm": _mm, "addmm": _addmm, "mv": _mv, "bmm": _bmm}
