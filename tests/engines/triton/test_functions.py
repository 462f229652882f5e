"""The pointwise functions of generated kernels, interpreted, beside PyTorch's in float64 and at the edges."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sstkern.engines.triton import sources

ONE = [
    "neg",
    "abs",
    "sign",
    "reciprocal",
    "sqrt",
    "rsqrt",
    "relu",
    "floor",
    "ceil",
    "trunc",
    "round",
    "exp",
    "expm1",
    "log",
    "log1p",
    "sin",
    "cos",
    "tan",
    "sinh",
    "cosh",
    "asinh",
    "erf",
    "atan",
    "silu",
    "log_sigmoid",
    "mish",
    "hardsigmoid",
    "hardswish",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
]
TWO = ["maximum", "minimum", "atan2", "pow"]
WITH_NUMBERS = {
    "softplus(v, 1.5, 20.0)": lambda v: F.softplus(v, 1.5, 20.0),
    "elu(v, 1.3, 1.1, 0.7)": lambda v: torch.ops.aten.elu(v, 1.3, 1.1, 0.7),
    "leaky_relu(v, 0.1)": lambda v: F.leaky_relu(v, 0.1),
    "clamp(v, -0.5, 1.5)": lambda v: torch.clamp(v, -0.5, 1.5),
    "hardtanh(v, -1.0, 2.0)": lambda v: F.hardtanh(v, -1.0, 2.0),
}
OTHERS = {"silu": F.silu, "log_sigmoid": F.logsigmoid, "mish": F.mish, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish}
OTHERS |= {"gelu": F.gelu, "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"), "sigmoid": torch.sigmoid}
# Their formulas cancel below 0, as PyTorch's do.
CANCELS = ("gelu", "gelu_tanh")
EDGES = (0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 30.0, -30.0, 1e30, -1e30, 3.0, -3.0)


def module():
    lines = ["import triton", "import triton.language as tl", "", "from sstkern.engines.triton import functions as f", ""]
    calls = {name: f"{name}(v)" for name in ONE} | {name: f"{name}(v, w)" for name in TWO}
    calls |= {call.partition("(")[0]: call for call in WITH_NUMBERS}
    for name, call in calls.items():
        lines += ["", "@triton.jit", f"def apply_{name}(x, z, y, SIZE: tl.constexpr):", "    at = tl.arange(0, SIZE)"]
        lines += ["    v, w = tl.load(x + at)[None, :], tl.load(z + at)[None, :]", f"    tl.store(y + at[None, :], f.{call})", ""]
    return sources.module("\n".join(lines))


def apply(name: str, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    with np.errstate(all="ignore"):
        getattr(module(), f"apply_{name}")[(1,)](x, z, y, len(x))
    return y


def samples(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4096 - 6 * len(EDGES), generator=generator, dtype=torch.float64)
    sizes = 10 ** (torch.rand(len(drawn), generator=generator, dtype=torch.float64) * 8 - 6)
    return torch.cat([drawn * sizes, torch.tensor(EDGES * 6)]).to(dtype)


def assert_like(found: torch.Tensor, function, arguments: list[torch.Tensor], rounding: float, absolute: float) -> None:
    """NaN and infinities where PyTorch has them, and elsewhere within some roundings of float64's."""
    exact, theirs = function(*(argument.double() for argument in arguments)), function(*arguments)
    # PyTorch's vectors overflow before the result does in sinh and cosh, and lose gelu(inf).
    plain = theirs.isfinite() & exact.isfinite()
    assert torch.equal(found.isnan() & ~theirs.isnan(), torch.zeros_like(plain))
    infinite = theirs.isinf() & exact.to(theirs.dtype).isinf()
    assert torch.equal(found[infinite], theirs[infinite])
    bound = torch.finfo(found.dtype).eps * (rounding * exact.abs() + absolute) + torch.finfo(found.dtype).tiny * 100
    wrong = (found.double() - exact).abs()[plain] > bound[plain]
    assert not wrong.any(), [argument[plain][wrong][:4].tolist() for argument in arguments]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one(name: str, dtype: torch.dtype):
    x = samples(dtype)
    function = OTHERS.get(name) or getattr(torch, name)
    assert_like(apply(name, x, x), function, [x], 6, 2 if name in CANCELS else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("call", WITH_NUMBERS)
def test_functions_with_numbers(call: str, dtype: torch.dtype):
    x = samples(dtype)
    # exp(1.5 x) has the rounding of 1.5 x, up to 90 and 710, in its exponent.
    assert_like(apply(call.partition("(")[0], x, x), WITH_NUMBERS[call], [x], 6 if "softplus" not in call else 800, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TWO)
def test_functions_of_two(name: str, dtype: torch.dtype):
    x, z = torch.tensor(EDGES, dtype=dtype).repeat_interleave(len(EDGES)), torch.tensor(EDGES, dtype=dtype).repeat(len(EDGES))
    more = 4096 - len(x)
    x, z = torch.cat([x, samples(dtype)[:more]]), torch.cat([z, samples(dtype).roll(7)[:more].clamp(-30, 30)])
    function = {"pow": torch.pow, "atan2": torch.atan2, "maximum": torch.maximum, "minimum": torch.minimum}[name]
    assert_like(apply(name, x, z), function, [x, z], 1000 if (name, dtype) == ("pow", torch.float64) else 6, 0)
