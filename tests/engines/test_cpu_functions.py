"""What a generated step calls in C++: PyTorch's semantics, accuracy beside PyTorch's own, and the same bits wherever a number stands."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cpu_functions import COUNTS, EXPRESSIONS, Functions, compiled
from torch.nn import functional as F

from sstkern.program.language import OPERATIONS, PRODUCT

LEVELS = ["baseline", *["avx2"] * torch.cpu._is_avx2_supported(), *["avx512"] * torch.cpu._is_avx512_supported()]
DTYPES = [np.float32, np.float64]
NUMBER = 0.75
COMPARISONS = ["lt", "le", "gt", "ge", "eq", "ne"]
OF_ROWS = (
    "detach chunk slice cat reshape transpose expand full full_like reshape_like expand_like sum_to cut placed cast "
    "sum mean amax max cumsum count"
)
"""No function of numbers; `cast` is numbers and truth."""
Function = Callable[[torch.Tensor], torch.Tensor]


def named(names: str) -> dict[str, Function]:
    return {name: getattr(torch, name) for name in names.split()}


def number_second(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, y: function(x, torch.full_like(x, NUMBER))


def number_first(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda x, y: function(torch.full_like(x, NUMBER), x)


CHEAP: dict[str, Function] = {
    **named("neg abs sign reciprocal sqrt relu floor ceil round trunc logical_not isnan"),
    "truth": lambda v: v != 0,
    "square": lambda v: v**2,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": lambda v: F.leaky_relu(v, 0.125),
    "hardtanh": lambda v: F.hardtanh(v, -0.5, 2),
    "clamp": lambda v: torch.clamp(v, -0.5, 2),
    "clamp_below": lambda v: torch.clamp(v, max=2),
    "clamp_crossed": lambda v: torch.clamp(v, 2, -0.5),
}
"""Equal to PyTorch's in the same dtype, to the last bit: but the sqrt of its float32, which is not the nearest number."""
COSTLY: dict[str, Function] = {
    **named("rsqrt exp expm1 log log1p sin cos tan atan sinh cosh asinh erf sigmoid tanh"),
    "log_sigmoid": F.logsigmoid,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "steep_softplus": lambda v: F.softplus(v, 4, 2),
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "elu": lambda v: torch.ops.aten.elu.default(v, 1.5, 1.25, 0.75),
}
OF_TWO = {
    **{name: getattr(torch, name) for name in ("add", "sub", "mul", "div", "logical_and", "logical_or")},
    **{name: getattr(torch, name) for name in (*COMPARISONS, "maximum", "minimum")},
    **{f"{name}_number": number_second(getattr(torch, name)) for name in (*COMPARISONS, "maximum", "minimum")},
    **{f"number_{name}": number_first(getattr(torch, name)) for name in (*COMPARISONS, "maximum", "minimum")},
    "mask_not": lambda x, y: ~(x < y),
    "mask_and": lambda x, y: (x < y) & (y != 0),
    "mask_or": lambda x, y: (x != 0) | (x < y),
    "where": lambda x, y: torch.where(x < y, x, y),
    "where_number": lambda x, y: torch.where(x < y, x, NUMBER),
    "number_where": lambda x, y: torch.where(x < y, NUMBER, y),
    "where_numbers": lambda x, y: torch.where(x < y, torch.full_like(x, NUMBER), 2),
    "where_mask": lambda x, y: torch.where(x < y, y != 0, x.isnan()),
}
LIBRARY = {"atan2": torch.atan2, "pow": torch.pow}
ULPS = {"tanh": 2.6, "sigmoid": 2.4, "silu": 2.2, "mish": 3.5, "elu": 2.6, "gelu": 3.0, "gelu_tanh": 3.0}
"""2 elsewhere. In float64 tanh is one formula, fast rather than exact; the others are made of several roundings, as PyTorch's."""
MEANS = {"mish": 1.2}
"""Times PyTorch's own mean error in float32; 1.1 elsewhere."""


@pytest.fixture(scope="module", params=LEVELS)
def functions(request: pytest.FixtureRequest) -> Functions:
    return Functions(compiled(request.param))


def of_torch(function: Callable[..., torch.Tensor], *arrays: np.ndarray) -> np.ndarray:
    """The function's result in the dtype of the arrays."""
    with np.errstate(all="ignore"):
        tensors = [torch.from_numpy(array) for array in arrays]
        return function(*tensors).to(tensors[0].dtype).numpy()


def truth(name: str, x: np.ndarray) -> np.ndarray:
    """The result in float64. PyTorch's is not always right: for the smallest numbers, and just below where the result is infinite."""
    with np.errstate(all="ignore"):
        if name in ("log1p", "sinh", "cosh"):
            return getattr(np, name)(x.astype(np.float64))
        return of_torch(COSTLY[name], x.astype(np.float64))


def least(name: str, x: np.ndarray) -> np.ndarray:
    """The size below which a result's error counts as of one of this size.

    1 + erf and 1 + tanh cancel for negative x. sigmoid and what is made of an exponential is 0 where the exponential of -x is infinite.
    """
    info = np.finfo(x.dtype)
    if name.startswith("gelu"):
        return np.maximum(np.abs(x) / 2, info.tiny)
    return np.full_like(x, info.tiny * (64 / info.eps if name in ("sigmoid", "silu", "mish") else 1))


def ulps(name: str, x: np.ndarray, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The distance of results in the dtype's steps at the expected ones; 0 where neither is a finite number, infinite where one is."""
    with np.errstate(all="ignore"):
        nearest = expected.astype(x.dtype)
        step = np.spacing(np.maximum(np.abs(nearest), least(name, x)))
        same = (found == nearest) & ~np.isfinite(nearest) | np.isnan(found) & np.isnan(nearest)
        distance = np.abs(found.astype(np.float64) - expected) / step.astype(np.float64)
    return np.where(same, 0, np.where(np.isfinite(distance), distance, np.inf))


def edges(dtype: type) -> np.ndarray:
    info = np.finfo(dtype)
    whole = 2.0**info.nmant  # from here on no number has a fraction
    ties = [0.5, 1.5, 2.5, 0.49999997, 0.49999999999999994, 1.5000001, whole, whole / 2 + 0.5, whole / 2 + 1.5, whole - 1, 2.0**40]
    ranges = [7 / 16, 11 / 16, 19 / 16, 39 / 16, math.pi / 2, math.pi, 4.0, 5.95, 6.0, 20.0, 20.1, 6434.0, 1e5, 1.1e5]
    ends = [87.0, 87.3, 88.7, 88.8, 100.0, 103.9, 104.1, 708.0, 709.7, 709.8, 710.4, 744.0, 745.2, 746.0]
    sizes = [0.0, 1e-30, 1e-9, 1e-5, 1.0, 2.0, 3.0, info.tiny, info.tiny / 4, info.smallest_subnormal, info.max, np.inf, np.nan]
    sides = np.array([*ties, *ranges, *ends, *sizes], dtype)
    return np.concatenate([sides, -sides])


def every_size(dtype: type, size: int = 40_000) -> np.ndarray:
    """Finite numbers with random bits."""
    bits = np.dtype(f"i{np.dtype(dtype).itemsize}")
    x = np.random.default_rng(0).integers(np.iinfo(bits).min, np.iinfo(bits).max, size, bits).view(dtype)
    return x[np.isfinite(x)]


def ordinary(dtype: type, spread: float, size: int = 40_000) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(size) * spread).astype(dtype)


def test_every_pointwise_operation_is_there():
    pointwise = {name for name, operation in OPERATIONS.items() if operation.cost != PRODUCT} - set(OF_ROWS.split())
    assert pointwise <= set(EXPRESSIONS)
    tested = {*CHEAP, *COSTLY, *OF_TWO, *LIBRARY, *(f"{name}_number" for name in LIBRARY), *(f"number_{name}" for name in LIBRARY)}
    assert tested == set(EXPRESSIONS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CHEAP)
def test_cheap_ones_are_pytorchs(functions: Functions, name: str, dtype: type):
    x = np.concatenate([edges(dtype), every_size(dtype), ordinary(dtype, 3)])
    found, expected = functions(name, x), of_torch(CHEAP[name], x)
    if name == "sqrt":
        with np.errstate(all="ignore"):
            expected = np.sqrt(x)
    np.testing.assert_array_equal(found, expected)
    known = ~np.isnan(expected) & ((name != "relu") | (x != 0))  # of -0 PyTorch's relu makes -0 on x86-64 and 0 on aarch64
    np.testing.assert_array_equal(np.signbit(found)[known], np.signbit(expected)[known])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", COSTLY)
def test_costly_ones_are_accurate(functions: Functions, name: str, dtype: type):
    # What float64 is compared with has an error too.
    bound = ULPS.get(name, 2.0) + (ULPS.get(name, 1.0) if dtype == np.float64 else 0.0)
    for x in (edges(dtype), every_size(dtype), ordinary(dtype, 2), ordinary(dtype, 20), ordinary(dtype, 1e-3)):
        found, expected = functions(name, x), truth(name, x)
        far = ulps(name, x, found, expected)
        worst = far.argmax()
        assert far[worst] <= bound, (far[worst], x[worst], found[worst], expected[worst])
        zero = x == 0
        np.testing.assert_array_equal(np.signbit(found[zero]), np.signbit(expected[zero]))


@pytest.mark.parametrize("name", COSTLY)
def test_the_mean_error_is_pytorchs(functions: Functions, name: str):
    for spread in (0.5, 2):
        x = ordinary(np.float32, spread, 200_000)
        ours, theirs = (np.nanmean(ulps(name, x, found, truth(name, x))) for found in (functions(name, x), of_torch(COSTLY[name], x)))
        assert ours <= MEANS.get(name, 1.1) * theirs


def pairs(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(edges(dtype), edges(dtype))
    return np.concatenate([x.ravel(), ordinary(dtype, 3)]), np.concatenate([y.ravel(), ordinary(dtype, 3)[::-1]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OF_TWO)
def test_those_of_two_are_pytorchs(functions: Functions, name: str, dtype: type):
    x, y = pairs(dtype)
    np.testing.assert_array_equal(functions(name, x, y, NUMBER), of_torch(OF_TWO[name], x, y))


def assert_near(x: np.ndarray, found: np.ndarray, expected: np.ndarray):
    assert ulps("", x, found, expected).max() <= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LIBRARY)
def test_those_of_the_c_library(functions: Functions, name: str, dtype: type):
    x, y = pairs(dtype)
    number = np.full_like(x, NUMBER)
    double = [array.astype(np.float64) for array in (x, y, number)]
    assert_near(x, functions(name, x, y), of_torch(LIBRARY[name], double[0], double[1]))
    assert_near(x, functions(f"{name}_number", x, n=NUMBER), of_torch(LIBRARY[name], double[0], double[2]))
    assert_near(x, functions(f"number_{name}", x, n=NUMBER), of_torch(LIBRARY[name], double[2], double[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 1.7, -3, math.inf, -math.inf, math.nan])
def test_numbers_as_exponents(functions: Functions, exponent: float, dtype: type):
    x = np.concatenate([edges(dtype), ordinary(dtype, 3)])
    found, expected = functions("pow_number", x, n=exponent), of_torch(lambda v: v**exponent, x)
    assert_near(x, found, expected.astype(np.float64))
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found)[known], np.signbit(expected)[known])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_same_bits_in_every_lane_and_count(functions: Functions, name: str, dtype: type):
    x = np.concatenate([edges(dtype), ordinary(dtype, 3, 301), every_size(dtype, 100)])
    y = x[::-1].copy()
    bits = functions(name, x, y, NUMBER)
    known = ~np.isnan(bits)
    for seed, count in enumerate((*COUNTS[dtype], 4)):
        order = np.random.default_rng(seed).permutation(x.size)
        moved = np.empty_like(bits)
        moved[order] = functions(name, x[order], y[order], NUMBER, count=count)
        assert moved[known].tobytes() == bits[known].tobytes()
        assert np.isnan(moved[~known]).all()
