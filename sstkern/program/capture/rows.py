"""PyTorch's operators that look at tensors, join them or make them, in the language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from sstkern.program.capture.reasons import Unpacked, refuse, refuse_mixing
from sstkern.program.capture.recording import Literal, Operand, Recording
from sstkern.program.values import Value

aten = torch.ops.aten


def cut(record: Recording, operand: Operand, dim: int, start: int, stop: int) -> Operand:
    """Part of a row."""
    size = operand.shape[dim]
    if (start, stop) == (0, size):
        return operand
    at, width = record.own_dim(operand.shape, dim), stop - start
    if width <= 0:
        refuse("the step makes a row without elements", "leave it out")
    dim %= len(operand.shape)
    shape = (*operand.shape[:dim], width, *operand.shape[dim + 1 :])
    if size % width == 0 and start % width == 0:
        value = record.node("chunk", operand.value, attributes=(at, size // width, start // width))
    else:
        value = record.node("slice", operand.value, attributes=(at, start, stop))
    return replace(operand, value=value, shape=shape)


def _slice(record: Recording, operand: Operand, dim: int, start: int | None, stop: int | None, step: int) -> Operand:
    begin, end, step = slice(start, stop, step).indices(operand.shape[dim])
    if step != 1:
        refuse("slicing with a step", "take the parts of a row with steps of 1")
    return cut(record, operand, dim, begin, max(begin, end))


def selected(record: Recording, operand: Operand, dim: int, index: int) -> Operand:
    dim %= len(operand.shape)
    at = index % operand.shape[dim]
    if record.batch_dim(operand.shape) == dim:
        if operand.value.kind == "h":
            picked = "the step mixes sequences, taking one out of a state, as unpacking one Tensor does"
            refuse(picked, "give the state in the structure that the step takes, and let it work on each sequence by itself", Unpacked)
        refuse_mixing()
    part = cut(record, operand, dim, at, at + 1)
    return record.reshaped(part, (*part.shape[:dim], *part.shape[dim + 1 :]))


def _split_with_sizes(record: Recording, operand: Operand, sizes: Sequence[int], dim: int) -> tuple[Operand, ...]:
    ends = list(accumulate(sizes))
    return tuple(cut(record, operand, dim, end - size, end) for size, end in zip(sizes, ends, strict=True))


def _split(record: Recording, operand: Operand, size: int, dim: int) -> tuple[Operand, ...]:
    total = operand.shape[dim]
    return tuple(cut(record, operand, dim, start, min(start + size, total)) for start in range(0, total, size))


def _unbind(record: Recording, operand: Operand, dim: int) -> tuple[Operand, ...]:
    return tuple(selected(record, operand, dim, index) for index in range(operand.shape[dim]))


def _view(record: Recording, operand: Operand, _: Any) -> Operand:
    """Whatever the sizes or dimensions given, the result tells the shape."""
    if record.result.dtype != operand.dtype:
        refuse("viewing memory as another dtype", "use .to(dtype)")
    shape = record.result.shape
    if record.merges(operand.shape, shape):
        return operand
    count = shape[0] // record.batch if shape and shape[0] % record.batch == 0 else 1
    return record.reshaped(operand, (record.batch, count, *shape[1:]) if count > 1 else shape)


def _squeeze(record: Recording, operand: Operand, *_: Any) -> Operand:
    return record.reshaped(operand, record.result.shape)


def permuted(record: Recording, operand: Operand, dims: Sequence[int]) -> Operand:
    count = len(operand.shape)
    dims = [dim % count for dim in dims]
    batch = record.batch_dim(operand.shape)
    order = [record.own_dim(operand.shape, dim) + count - 1 for dim in dims if dim != batch]
    value, now = operand.value, sorted(order)
    for at, wanted in enumerate(order):  # by exchanges
        if (other := now.index(wanted)) != at:
            value = record.node("transpose", value, attributes=(at - len(order), other - len(order)))
            now[at], now[other] = now[other], now[at]
    return replace(operand, value=value, shape=tuple(operand.shape[dim] for dim in dims))


def _transpose(record: Recording, operand: Operand, first: int = 0, second: int = -1) -> Operand:
    dims = list(range(len(operand.shape)))
    dims[first], dims[second] = dims[second], dims[first]
    return permuted(record, operand, dims)


def expanded(record: Recording, operand: Operand, shape: Sequence[int]) -> Operand:
    """The operand in the shape: a row spread within itself, a parameter spread to the same row for each sequence."""
    shape = tuple(shape)
    if operand.shape == shape:
        return operand
    if not operand.rows:
        return record.repeated(operand, shape)
    padded = record.reshaped(operand, (*([1] * (len(shape) - len(operand.shape))), *operand.shape))
    if record.batch_dim(padded.shape) != record.batch_dim(shape):
        refuse_mixing()
    if padded.shape == shape:
        return padded
    return replace(padded, value=record.node("expand", padded.value, attributes=record.own(shape)), shape=shape)


def _expand(record: Recording, operand: Operand, *_: Any) -> Operand:
    return expanded(record, operand, record.result.shape)


def _repeat(record: Recording, operand: Operand, repeats: Sequence[int]) -> Operand:
    missing = len(repeats) - len(operand.shape)
    sizes = (*([1] * missing), *operand.shape)
    if not operand.rows:
        within = [1 if count % record.batch == 0 else count for count in repeats]
        shape = [size * count for size, count in zip(sizes, within, strict=True)]
        part = record.call(aten.repeat.default, operand, tuple(within), like=operand, shape=shape)
        return record.repeated(part, record.result.shape)
    result = record.reshaped(operand, sizes)
    for dim, count in enumerate(repeats):
        result = result if count == 1 else _cat(record, [result] * count, dim)
    return result


def _cat(record: Recording, parts: Sequence[Operand], dim: int) -> Operand:
    if not all(part.rows for part in parts):
        refuse_mixing("cat joins sequences")
    at, dim = record.own_dim(parts[0].shape, dim), dim % len(parts[0].shape)
    parts = [record.cast(part, record.result.dtype) for part in parts]
    value = record.node("cat", *(part.value for part in parts), attributes=(at,))
    if at == -1:
        record.joined[value] = tuple(parts)
    first = parts[0].shape
    shape = (*first[:dim], sum(part.shape[dim] for part in parts), *first[dim + 1 :])
    return Operand(value, shape, record.result.dtype, any(part.gradient for part in parts))


def stacked(record: Recording, parts: Sequence[Operand], dim: int) -> Operand:
    dim %= len(parts[0].shape) + 1
    return _cat(record, [record.reshaped(part, (*part.shape[:dim], 1, *part.shape[dim:])) for part in parts], dim)


def _same(record: Recording, operand: Operand, *_: Any) -> Operand:
    return operand


def _to_copy(record: Recording, operand: Operand, *_: Any) -> Operand:
    if record.result.device != record.device:
        refuse("a tensor moves to another device", "keep the step's tensors on one device")
    return record.cast(operand, record.result.dtype)


def filled(record: Recording, number: Literal) -> Operand:
    """The operator's result, which has one number everywhere."""
    result, shape = record.result, tuple(record.result.shape)
    kind = bool if result.dtype == torch.bool else float if result.dtype.is_floating_point else int
    like = Operand(Value("p", 0), shape, result.dtype, False)
    if not record.has_rows(shape):
        return record.call(aten.full.default, shape, kind(number), like=like, dtype=result.dtype, device=result.device)
    return replace(like, value=record.node("full", kind(number), attributes=(result.dtype, *record.own(shape))))


def written(record: Recording, source: Literal | Operand) -> Operand:
    """What a tensor, `record.result`, holds after a number or another tensor has been copied to it."""
    if not isinstance(source, Operand):
        return filled(record, source)
    shape, cast = tuple(record.result.shape), record.cast(source, record.result.dtype)
    if record.has_rows(shape):
        return expanded(record, cast, shape)
    return record.call(aten.expand.default, cast, shape, like=cast, shape=shape)


def _factory(value: Literal) -> Callable[..., Operand]:
    return lambda record, *_: filled(record, value)


def _full(record: Recording, _: Any, value: Literal, *__: Any) -> Operand:
    return filled(record, value)


def _new_full(record: Recording, _: Any, __: Any, value: Literal, *___: Any) -> Operand:
    return filled(record, value)


OPERATORS: dict[str, Callable[..., Any]] = {
    "slice": _slice,
    "select": selected,
    "split": _split,
    "unsafe_split": _split,
    "split_with_sizes": _split_with_sizes,
    "unsafe_split_with_sizes": _split_with_sizes,
    "unbind": _unbind,
    "view": _view,
    "_unsafe_view": _view,
    "_reshape_alias": _squeeze,
    "unsqueeze": _view,
    "squeeze": _squeeze,
    "permute": permuted,
    "transpose": _transpose,
    "t": _transpose,
    "expand": _expand,
    "repeat": _repeat,
    "cat": _cat,
    "stack": stacked,
    "alias": _same,
    "detach": _same,
    "clone": _same,
    "_to_copy": _to_copy,
    "zeros": _factory(0),
    "ones": _factory(1),
    "zeros_like": _factory(0),
    "ones_like": _factory(1),
    "new_zeros": _factory(0),
    "new_ones": _factory(1),
    "full": _full,
    "full_like": _full,
    "new_full": _new_full,
}
