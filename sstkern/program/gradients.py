"""The derivative of each operation, in the language itself and as PyTorch has it, ties and edges included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sstkern.program.graph import Argument, Attribute, Builder, Value

Gradient = Value | None


class Call(NamedTuple):
    """A node, its result, the gradient of that, and the builder that writes down what follows."""

    build: Builder
    arguments: tuple[Argument, ...]
    attributes: tuple[Attribute, ...]
    result: Value
    gradient: Value

    def do(self, operation: str, *arguments: Argument, attributes: Sequence[Attribute] = ()) -> Value:
        return self.build.node(operation, *arguments, attributes=attributes)

    def times(self, *factors: Argument) -> Value:
        """The gradient times each, in this order."""
        found = self.gradient
        for factor in factors:
            found = self.do("mul", found, factor)
        return found

    def where(self, condition: Value, given: Argument = 0.0) -> Value:
        """The gradient where the condition holds, else the other."""
        return self.do("where", condition, self.gradient, given)

    def unless(self, condition: Value) -> Value:
        return self.do("where", condition, 0.0, self.gradient)


Rule = Callable[[Call], Sequence[Gradient]]
"""The gradients of a node's arguments, those of numbers left out of account."""


def _of_one(rule: Callable[[Call, Value, Value], Value]) -> Rule:
    """A rule of (call, argument, result)."""

    def gradients(call: Call) -> Sequence[Gradient]:
        (argument,) = call.arguments
        assert isinstance(argument, Value)
        return (rule(call, argument, call.result),)

    return gradients


def _none(call: Call) -> Sequence[Gradient]:
    return (None,) * len(call.arguments)


def _div(call: Call) -> Sequence[Gradient]:
    b = call.arguments[1]
    return call.do("div", call.gradient, b), call.do("mul", call.do("neg", call.gradient), call.do("div", call.result, b))


def _pow(call: Call) -> Sequence[Gradient]:
    base, exponent = call.arguments
    return _pow_base(call, base, exponent), _pow_exponent(call, base, exponent)


def _pow_base(call: Call, base: Argument, exponent: Argument) -> Gradient:
    if not isinstance(base, Value):
        return None
    if isinstance(exponent, bool | int | float):
        return None if exponent == 0 else call.times(call.do("mul", call.do("pow", base, exponent - 1), exponent))
    slope = call.do("mul", exponent, call.do("pow", base, call.do("sub", exponent, 1)))
    # Where the exponent is 0, the other factor may be infinite. A number of the call may be 0 too.
    spread = exponent if isinstance(exponent, Value) else call.do("full_like", base, attributes=(exponent,))
    return call.do("where", call.do("eq", spread, 0), 0.0, call.times(slope))


def _pow_exponent(call: Call, base: Argument, exponent: Argument) -> Gradient:
    if not isinstance(exponent, Value):
        return None
    if not isinstance(base, Value):
        return call.times(call.result, math.log(base)) if isinstance(base, int | float) and base > 0 else _refused(call)
    zero = call.do("logical_and", call.do("eq", base, 0), call.do("ge", exponent, 0))
    return call.do("where", zero, 0.0, call.times(call.do("mul", call.result, call.do("log", base))))


def _refused(call: Call) -> Gradient:
    raise NotImplementedError(f"{call.arguments[0]} ** tensor has no derivative in a program; write torch.exp(tensor * math.log(base))")


def _extremum(beyond: str) -> Rule:
    """Half of it each where both are equal; NaN passes."""

    def gradients(call: Call) -> Sequence[Gradient]:
        a, b = call.arguments
        shared = call.do("where", call.do("eq", a, b), call.do("div", call.gradient, 2), call.gradient)
        return tuple(call.do("where", call.do(beyond, one, other), 0.0, shared) for one, other in ((a, b), (b, a)))

    return gradients


def _atan2(call: Call) -> Sequence[Gradient]:
    a, b = call.arguments
    square = call.do("add", call.do("mul", a, a), call.do("mul", b, b))
    factor = call.do("where", call.do("eq", square, 0), 0.0, call.do("reciprocal", square))
    return call.times(call.do("mul", b, factor)), call.times(call.do("mul", call.do("neg", a), factor))


def _where(call: Call) -> Sequence[Gradient]:
    condition = call.arguments[0]
    assert isinstance(condition, Value)
    return None, call.where(condition), call.unless(condition)


def _cat(call: Call) -> Sequence[Gradient]:
    (dim,) = call.attributes
    return [call.do("cut", call.gradient, *call.arguments, attributes=(dim, place)) for place in range(len(call.arguments))]


def _silu(call: Call, a: Value, y: Value) -> Value:
    s = call.do("sigmoid", a)
    return call.times(call.do("mul", s, call.do("add", 1, call.do("mul", a, call.do("sub", 1, s)))))


def _mish(call: Call, a: Value, y: Value) -> Value:
    t = call.do("tanh", call.do("softplus", a, attributes=(1.0, 20.0)))
    inner = call.do("mul", call.do("mul", a, call.do("sigmoid", a)), call.do("sub", 1, call.do("mul", t, t)))
    return call.times(call.do("add", t, inner))


def _gelu(call: Call, a: Value, y: Value) -> Value:
    square = call.do("mul", a, a)
    if call.attributes == ("none",):
        cumulative = call.do("mul", 0.5, call.do("add", 1, call.do("erf", call.do("mul", a, math.sqrt(0.5)))))
        density = call.do("mul", 1 / math.sqrt(2 * math.pi), call.do("exp", call.do("mul", square, -0.5)))
        return call.times(call.do("add", cumulative, call.do("mul", a, density)))
    factor, cubic = math.sqrt(2 / math.pi), 0.044715
    t = call.do("tanh", call.do("mul", factor, call.do("mul", a, call.do("add", 1, call.do("mul", cubic, square)))))
    left = call.do("mul", 0.5, call.do("add", 1, t))
    slope = call.do("mul", factor, call.do("add", 1, call.do("mul", 3 * cubic, square)))
    right = call.do("mul", call.do("mul", 0.5, a), call.do("mul", call.do("sub", 1, call.do("mul", t, t)), slope))
    return call.times(call.do("add", left, right))


def _softplus(call: Call, a: Value, y: Value) -> Value:
    beta, threshold = call.attributes
    scaled = call.do("mul", a, beta)  # type: ignore[arg-type]
    return call.do("where", call.do("gt", scaled, threshold), call.gradient, call.times(call.do("sigmoid", scaled)))  # type: ignore[arg-type]


def _elu(call: Call, a: Value, y: Value) -> Value:
    alpha, scale, input_scale = (float(factor) for factor in call.attributes)  # type: ignore[arg-type]
    below = call.times(input_scale * alpha * scale, call.do("exp", call.do("mul", a, input_scale)))
    return call.do("where", call.do("gt", a, 0), call.times(scale), below)


def _leaky_relu(call: Call, a: Value, y: Value) -> Value:
    (slope,) = call.attributes
    return call.where(call.do("gt", a, 0), call.times(slope))  # type: ignore[arg-type]


def _between(call: Call, a: Value, lowest: Argument, highest: Argument) -> Value:
    return call.do("logical_and", call.do("gt", a, lowest), call.do("lt", a, highest))


def _hardtanh(call: Call, a: Value, y: Value) -> Value:
    lowest, highest = call.attributes
    return call.where(_between(call, a, lowest, highest))  # type: ignore[arg-type]


def _clamp(call: Call, a: Value, y: Value) -> Value:
    lowest, highest = call.attributes
    inside = call.do("logical_and", call.do("ge", a, lowest), call.do("le", a, highest))  # type: ignore[arg-type]
    return call.where(inside)


_SIXTH = 0.16666667163372040
"""A sixth as PyTorch has it in the derivative of hardsigmoid: float32's, in every dtype."""


def _hardsigmoid(call: Call, a: Value, y: Value) -> Value:
    return call.do("where", _between(call, a, -3, 3), call.times(_SIXTH), 0.0)


def _hardswish(call: Call, a: Value, y: Value) -> Value:
    middle = call.times(call.do("add", call.do("div", a, 3), 0.5))
    return call.do("where", call.do("le", a, -3), 0.0, call.do("where", call.do("ge", a, 3), call.gradient, middle))


def _asinh(call: Call, a: Value, y: Value) -> Value:
    return call.times(call.do("rsqrt", call.do("add", call.do("mul", a, a), 1)))


def _reshaped(call: Call, a: Value, y: Value) -> Value:
    return call.do("reshape_like", call.gradient, a)


def _part(call: Call, a: Value, y: Value) -> Value:
    dim, start, stop = call.attributes
    return call.do("placed", call.gradient, a, attributes=(dim, start, stop))


def _mean(call: Call, a: Value, y: Value) -> Value:
    return call.do("expand_like", call.do("div", call.gradient, call.do("count", a, attributes=call.attributes)), a)


def _one_where(call: Call, condition: Value, like: Value) -> Value:
    """1 where the condition holds, else 0."""
    return call.do("where", condition, call.do("full_like", like, attributes=(1.0,)), 0.0)


def _amax(call: Call, a: Value, y: Value) -> Value:
    """Equal parts for all that are the largest."""
    largest = _one_where(call, call.do("eq", a, y), a)
    return call.do("div", call.times(largest), call.do("sum", largest))


def _max(call: Call, a: Value, y: Value) -> Value:
    """Gives all of the gradient to the first that is the largest, or is NaN."""
    largest = call.do("logical_or", call.do("eq", a, y), call.do("isnan", a))
    before = call.do("cumsum", _one_where(call, largest, a), attributes=(False,))
    return call.where(call.do("logical_and", largest, call.do("eq", before, 1)))


_ONE: dict[str, Callable[[Call, Value, Value], Value]] = {
    "neg": lambda call, a, y: call.do("neg", call.gradient),
    "abs": lambda call, a, y: call.times(call.do("sign", a)),
    "reciprocal": lambda call, a, y: call.do("neg", call.times(call.do("mul", y, y))),
    "sqrt": lambda call, a, y: call.do("div", call.gradient, call.do("mul", 2, y)),
    "rsqrt": lambda call, a, y: call.times(-0.5, call.do("mul", call.do("mul", y, y), y)),
    "exp": lambda call, a, y: call.times(y),
    "expm1": lambda call, a, y: call.times(call.do("add", y, 1)),
    "log": lambda call, a, y: call.do("div", call.gradient, a),
    "log1p": lambda call, a, y: call.do("div", call.gradient, call.do("add", a, 1)),
    "sin": lambda call, a, y: call.times(call.do("cos", a)),
    "cos": lambda call, a, y: call.times(call.do("neg", call.do("sin", a))),
    "tan": lambda call, a, y: call.times(call.do("add", 1, call.do("mul", y, y))),
    "atan": lambda call, a, y: call.do("div", call.gradient, call.do("add", call.do("mul", a, a), 1)),
    "sinh": lambda call, a, y: call.times(call.do("cosh", a)),
    "cosh": lambda call, a, y: call.times(call.do("sinh", a)),
    "asinh": _asinh,
    "erf": lambda call, a, y: call.times(2 / math.sqrt(math.pi), call.do("exp", call.do("neg", call.do("mul", a, a)))),
    "sigmoid": lambda call, a, y: call.times(call.do("mul", call.do("sub", 1, y), y)),
    "tanh": lambda call, a, y: call.times(call.do("sub", 1, call.do("mul", y, y))),
    "relu": lambda call, a, y: call.unless(call.do("le", y, 0)),
    "log_sigmoid": lambda call, a, y: call.times(call.do("sigmoid", call.do("neg", a))),
    "silu": _silu,
    "mish": _mish,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "softplus": _softplus,
    "gelu": _gelu,
    "elu": _elu,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "cast": lambda call, a, y: call.gradient,
    "slice": _part,
    "reshape": _reshaped,
    "expand": lambda call, a, y: call.gradient,
    "sum": lambda call, a, y: call.do("expand_like", call.gradient, a),
    "mean": _mean,
    "amax": _amax,
    "max": _max,
    "cumsum": lambda call, a, y: call.do("cumsum", call.gradient, attributes=(not call.attributes[0],)),
    "transpose": lambda call, a, y: call.do("transpose", call.gradient, attributes=call.attributes),
}

_CONSTANT = (
    *("sign", "floor", "ceil", "round", "trunc", "logical_not", "isnan"),
    *("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or"),
)
"""Their derivative is 0 wherever they have one."""

RULES: dict[str, Rule] = {
    **{name: _of_one(rule) for name, rule in _ONE.items()},
    "add": lambda call: (call.gradient, call.gradient),
    "sub": lambda call: (call.gradient, call.do("neg", call.gradient)),
    "mul": lambda call: (call.times(call.arguments[1]), call.times(call.arguments[0])),
    "div": _div,
    "pow": _pow,
    "maximum": _extremum("lt"),
    "minimum": _extremum("gt"),
    "atan2": _atan2,
    "where": _where,
    "cat": _cat,
    # Of a parameter, a product's gradient is that of all rows together: `derive` has it.
    "product": lambda call: (call.do("transposed_product", call.gradient, call.arguments[1]), None),
    **dict.fromkeys((*_CONSTANT, "detach", "full", "count"), _none),
}
"""The rule of each operation. `chunk` has none: `derive` puts the gradients of all chunks together."""
