"""PyTorch's elementwise operators, in the language: those that it does not have by those that it has, with the same gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from sstkern.program.capture.reasons import refuse
from sstkern.program.capture.recording import Literal, Operand, Recording
from sstkern.program.capture.rows import cut, filled

Handler = Callable[..., Any]
Part = Operand | Literal

_PLAIN = (
    *("neg", "abs", "sign", "reciprocal", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "atan", "sinh", "cosh"),
    *("asinh", "erf", "sigmoid", "tanh", "relu", "silu", "hardsigmoid", "hardswish", "mish", "floor", "ceil", "trunc", "isnan"),
    *("maximum", "minimum", "atan2", "lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not"),
)


def _plain(operation: str) -> Handler:
    return lambda record, *operands: record.pointwise(operation, *operands)


def _add(record: Recording, a: Part, b: Part, alpha: Literal = 1) -> Operand:
    return record.pointwise("add", a, b if alpha == 1 else record.pointwise("mul", b, alpha))


def _sub(record: Recording, a: Part, b: Part, alpha: Literal = 1) -> Operand:
    return record.pointwise("sub", a, b if alpha == 1 else record.pointwise("mul", b, alpha))


def _rsub(record: Recording, a: Operand, b: Part, alpha: Literal = 1) -> Operand:
    return _sub(record, b, a, alpha)


def _mul(record: Recording, a: Part, b: Part) -> Operand:
    both = all(isinstance(part, Operand) and part.dtype == torch.bool for part in (a, b))
    return record.pointwise("logical_and" if both else "mul", a, b)


def _div(record: Recording, a: Part, b: Part, rounding_mode: str | None = None) -> Operand:
    if rounding_mode is not None:
        refuse(f"div with rounding_mode={rounding_mode!r}", "divide, then round")
    return record.pointwise("div", a, b)


def _pow(record: Recording, a: Part, b: Part) -> Operand:
    if isinstance(a, Operand) and a.dtype == torch.bool:
        refuse("a power of a bool", "use .to(dtype) first")
    if not isinstance(a, Operand) and a <= 0:
        refuse("a number that is not positive to the power of a tensor", "multiply, or use torch.where")
    return record.pointwise("mul", a, a) if not isinstance(b, Operand) and b == 2 else record.pointwise("pow", a, b)


def _round(record: Recording, a: Operand, decimals: int = 0) -> Operand:
    if decimals:
        refuse("round with decimals", "round to integers")
    return record.pointwise("round", a)


def _of_bools(operation: str) -> Handler:
    def handler(record: Recording, *operands: Operand) -> Operand:
        if any(getattr(operand, "dtype", torch.bool) != torch.bool for operand in operands):
            refuse("arithmetic on the bits of integers", "use it on bools only")
        return record.pointwise(operation, *operands)

    return handler


def _where(record: Recording, condition: Operand, a: Operand, b: Operand) -> Operand:
    number = record.number(a)
    if number is not None and record.number(b) is not None:
        a = filled(record, number)  # two numbers would leave the dtype open
    return record.pointwise("where", condition, a, b)


def _masked_fill(record: Recording, a: Operand, mask: Operand, value: Part) -> Operand:
    return record.pointwise("where", mask, value, a)


def _addcmul(record: Recording, a: Operand, b: Operand, c: Operand, value: Literal) -> Operand:
    return record.pointwise("add", a, record.pointwise("mul", _scaled(record, b, value), c))


def _addcdiv(record: Recording, a: Operand, b: Operand, c: Operand, value: Literal) -> Operand:
    return record.pointwise("add", a, _scaled(record, record.pointwise("div", b, c), value))


def _scaled(record: Recording, a: Operand, value: Literal) -> Operand:
    return a if value == 1 else record.pointwise("mul", a, value)


def _lerp(record: Recording, a: Operand, b: Operand, weight: Part) -> Operand:
    """Computes from the end that is nearer, as PyTorch does."""
    difference = record.pointwise("sub", b, a)
    from_a = record.pointwise("add", a, record.pointwise("mul", difference, weight))
    if isinstance(weight, Operand):
        from_b = record.pointwise("sub", b, record.pointwise("mul", difference, record.pointwise("sub", 1, weight)))
        return record.pointwise("where", record.pointwise("lt", record.pointwise("abs", weight), 0.5), from_a, from_b)
    if abs(weight) < 0.5:
        return from_a
    return record.pointwise("sub", b, record.pointwise("mul", difference, 1 - weight))


def _softplus(record: Recording, a: Operand, beta: Literal, threshold: Literal) -> Operand:
    return record.pointwise("softplus", a, attributes=(float(beta), float(threshold)))


def _log_sigmoid(record: Recording, a: Operand) -> tuple[Operand, None]:
    return record.pointwise("log_sigmoid", a), None


def _gelu(record: Recording, a: Operand, approximate: str) -> Operand:
    return record.pointwise("gelu", a, attributes=(approximate,))


def _elu(record: Recording, a: Operand, alpha: Literal, scale: Literal, input_scale: Literal) -> Operand:
    return record.pointwise("elu", a, attributes=(float(alpha), float(scale), float(input_scale)))


def _celu(record: Recording, a: Operand, alpha: Literal) -> Operand:
    return _elu(record, a, alpha, 1, 1 / alpha)


def _leaky_relu(record: Recording, a: Operand, slope: Literal) -> Operand:
    return record.pointwise("leaky_relu", a, attributes=(float(slope),))


def _prelu(record: Recording, a: Operand, weight: Operand) -> Operand:
    return record.pointwise("where", record.pointwise("gt", a, 0), a, record.pointwise("mul", weight, a))


def _hardtanh(record: Recording, a: Operand, low: Literal, high: Literal) -> Operand:
    return record.pointwise("hardtanh", a, attributes=(float(low), float(high)))


def _clamp(record: Recording, a: Operand, low: Part | None = None, high: Part | None = None) -> Operand:
    if not a.dtype.is_floating_point:
        refuse("clamp of integers", "use torch.maximum and torch.minimum, or .to(dtype) first")
    if isinstance(low, Operand) or isinstance(high, Operand):
        refuse("clamp between tensors", "use torch.maximum and torch.minimum")
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return record.pointwise("clamp", a, attributes=(low, high))


def _clamp_max(record: Recording, a: Operand, high: Part) -> Operand:
    return _clamp(record, a, None, high)


def _threshold(record: Recording, a: Operand, threshold: Literal, value: Literal) -> Operand:
    return record.pointwise("where", record.pointwise("le", a, threshold), value, a)


def _softshrink(record: Recording, a: Operand, limit: Literal) -> Operand:
    below = record.pointwise("where", record.pointwise("lt", a, -limit), record.pointwise("add", a, limit), record.pointwise("mul", a, 0.0))
    return record.pointwise("where", record.pointwise("gt", a, limit), record.pointwise("sub", a, limit), below)


def _hardshrink(record: Recording, a: Operand, limit: Literal) -> Operand:
    """NaN stays, and its derivative is 0."""
    outside = record.pointwise("logical_or", record.pointwise("lt", a, -limit), record.pointwise("gt", a, limit))
    within = record.pointwise("where", record.pointwise("isnan", a), record.pointwise("detach", a), 0.0)
    return record.pointwise("where", outside, a, within)


def _glu(record: Recording, a: Operand, dim: int) -> Operand:
    half = a.shape[dim] // 2
    first, second = (cut(record, a, dim, start, start + half) for start in (0, half))
    return record.pointwise("mul", first, record.pointwise("sigmoid", second))


def _isinf(record: Recording, a: Operand) -> Operand:
    return record.pointwise("eq", record.pointwise("abs", a), math.inf)


def _nan_to_num(record: Recording, a: Operand, nan: Literal | None, posinf: Literal | None, neginf: Literal | None) -> Operand:
    most = torch.finfo(a.dtype).max
    low = record.pointwise("where", record.pointwise("eq", a, -math.inf), -most if neginf is None else neginf, a)
    high = record.pointwise("where", record.pointwise("eq", a, math.inf), most if posinf is None else posinf, low)
    return record.pointwise("where", record.pointwise("isnan", a), 0.0 if nan is None else nan, high)


OPERATORS: dict[str, Handler] = {name: _plain(name) for name in _PLAIN} | {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "round": _round,
    "sgn": _plain("sign"),
    "bitwise_and": _of_bools("logical_and"),
    "bitwise_or": _of_bools("logical_or"),
    "bitwise_xor": _of_bools("ne"),
    "bitwise_not": _of_bools("logical_not"),
    "where": _where,
    "masked_fill": _masked_fill,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    "softplus": _softplus,
    "log_sigmoid_forward": _log_sigmoid,
    "gelu": _gelu,
    "elu": _elu,
    "celu": _celu,
    "leaky_relu": _leaky_relu,
    "_prelu_kernel": _prelu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "threshold": _threshold,
    "softshrink": _softshrink,
    "hardshrink": _hardshrink,
    "glu": _glu,
    "isinf": _isinf,
    "nan_to_num": _nan_to_num,
}
