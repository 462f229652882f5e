"""PyTorch's operators that draw random numbers, in the language.

How numbers are drawn may not depend on a tensor; what is computed with them may. So `torch.bernoulli(p)` compares p with a uniform number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from sstkern.program.capture.reasons import refuse
from sstkern.program.capture.recording import Operand, Recording


def check(name: str, arguments: Iterable[Any]) -> None:
    """Raises Unfused for an operator that no program has."""
    if name not in IN_PLACE and name not in OPERATORS:
        refuse(f"{name.strip('_')} draws random numbers", "use F.dropout, torch.bernoulli, rand_like, randn_like")
    if any(isinstance(part, torch.Generator) for part in arguments):
        refuse(f"{name.strip('_')} draws with a generator of its own", "leave it out: torch.manual_seed sets PyTorch's")


def example(name: str, arguments: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """Ones in place of what an operator draws: PyTorch's random numbers are left to the caller, and to his other threads."""
    if name in IN_PLACE:
        return arguments[0].fill_(1)
    like = isinstance(arguments[0], Tensor)
    size = arguments[0] if like or name != "normal" else arguments[2]
    known = {key: part for key, part in options.items() if key != "generator"}
    return torch.ones_like(size, **known) if like else torch.ones(size, **known)


def refuse_shape(name: str) -> NoReturn:
    advice = "draw a number for each sequence, as in a tensor (B, H); what masks a weight belongs into a parametrization, once a call"
    refuse(f"{name.strip('_')} draws random numbers that are not a row for each sequence", advice)


def _drawn(record: Recording, method: str, *arguments: Any, dtype: torch.dtype | None = None, compared: bool = False) -> Operand:
    """A draw of as many numbers as the operator's result has, of its dtype or of another."""
    shape = tuple(record.result.shape)
    if shape.count(record.batch) != 1 or any(size != record.batch and size and size % record.batch == 0 for size in shape):
        refuse_shape(method)
    dtype = record.result.dtype if dtype is None else dtype
    return Operand(record.draw(method, arguments, record.own(shape), dtype, compared), shape, dtype, gradient=False)


def _bernoulli(record: Recording, p: Operand | float) -> Operand:
    """Ones with the probability, else zeros, and NaN for what is none: PyTorch raises an error there. Gradients to p are zeros, as its."""
    number = record.filling(p) if isinstance(p, Operand) else p
    if not isinstance(number, Operand):
        return record.cast(_drawn(record, "bernoulli_", number, dtype=torch.bool), record.result.dtype)
    p = record.detached(number) if number.gradient else number
    uniform = _drawn(record, "uniform_", 0.0, 1.0, dtype=torch.promote_types(p.dtype, torch.float32), compared=True)
    ones = record.pointwise("lt", uniform, p)
    possible = record.pointwise("logical_and", record.pointwise("ge", p, 0.0), record.pointwise("le", p, 1.0))
    drawn = record.pointwise("where", possible, record.cast(ones, p.dtype), math.nan)
    return record.cast(
        record.pointwise("add", drawn, record.pointwise("mul", number, 0.0)) if number.gradient else drawn, record.result.dtype
    )


def _rand(record: Recording, *_: Any) -> Operand:
    return _drawn(record, "uniform_", 0.0, 1.0)


def _randn(record: Recording, *_: Any) -> Operand:
    return _drawn(record, "normal_", 0.0, 1.0)


def _normal(record: Recording, mean: Operand | float, deviation: Operand | float, *_: Any) -> Operand:
    if isinstance(mean, Operand) or isinstance(deviation, Operand):
        refuse("torch.normal of a tensor", "multiply torch.randn_like by the deviation, and add the mean")
    return _drawn(record, "normal_", mean, deviation)


def _method(name: str) -> Callable[..., Operand]:
    return lambda record, *numbers: _drawn(record, name, *numbers[:-1])


OPERATORS: dict[str, Callable[..., Operand]] = {
    "rand": _rand,
    "rand_like": _rand,
    "randn": _randn,
    "randn_like": _randn,
    "normal": _normal,
    "bernoulli": lambda record, like, p=None, _=None: _bernoulli(record, like if p is None else p),
}
IN_PLACE: dict[str, Callable[..., Operand]] = {
    name: _method(name) for name in ("uniform_", "normal_", "exponential_", "cauchy_", "log_normal_", "geometric_")
} | {"bernoulli_": lambda record, p, _: _bernoulli(record, p)}
"""Operators that fill a tensor. Each gets what follows that tensor in the call, a generator last."""
