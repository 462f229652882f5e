"""tanh and sigmoid as the kernels compute them, interpreted, against float64 of twice the digits."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from sstkern.engines.triton.layer import _as_tf32
from sstkern.engines.triton.math import as_operand, sigmoid, tanh, tanh_and_slope, where_positive

SIZE = 4096


@triton.jit
def _apply(x, y, slope, FUNCTION: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    tl.store(y + at, FUNCTION(value))
    tl.store(slope + at, tanh_and_slope(value)[1])


def apply(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y, slope = torch.empty_like(x), torch.empty_like(x)
    _apply[(1,)](x, y, slope, function, SIZE)
    return y, slope


def ulp(result: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error in units of the last place of `exact`, among normal numbers."""
    spacing = torch.from_numpy(np.spacing(np.abs(exact.to(result.dtype).numpy()))).double()
    normal = exact.abs() > torch.finfo(result.dtype).tiny
    return ((result.double() - exact).abs() / spacing)[normal].max().item()


def samples(dtype: torch.dtype, limit: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(SIZE // 2, generator=generator, dtype=torch.float64)
    x = torch.cat([10 ** (sizes * 6 - 5), sizes * limit])[:SIZE]
    return (x * torch.where(torch.rand(SIZE, generator=generator) < 0.5, -1, 1)).to(dtype)


@pytest.mark.parametrize(("function", "exact", "limit"), [(tanh, torch.tanh, 12), (sigmoid, torch.sigmoid, 80)])
def test_a_few_units_in_the_last_place_in_float32(function, exact, limit):
    x = samples(torch.float32, limit)
    assert ulp(apply(function, x)[0], exact(x.double())) < 4


@pytest.mark.parametrize(("function", "exact"), [(tanh, torch.tanh), (sigmoid, torch.sigmoid)])
def test_float64(function, exact):
    x = samples(torch.float64, 30)
    torch.testing.assert_close(apply(function, x)[0], exact(x), rtol=1e-14, atol=1e-300)


def test_the_slope_of_tanh_keeps_its_digits_where_tanh_is_1():
    x = samples(torch.float32, 40)
    assert ulp(apply(tanh, x)[1], 1 / torch.cosh(x.double()) ** 2) < 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_infinite_and_not_a_number(dtype):
    x = torch.zeros(SIZE, dtype=dtype)
    x[:6] = torch.tensor([1e4, -1e4, float("inf"), -float("inf"), float("nan"), 3e38])
    assert apply(tanh, x)[0][:4].tolist() == [1, -1, 1, -1]
    assert apply(sigmoid, x)[0][[0, 2, 5]].tolist() == [1, 1, 1]
    assert apply(sigmoid, x)[0][[1, 3]].max() < 1e-37
    for function in (tanh, sigmoid):
        assert apply(function, x)[0].isnan().nonzero().tolist() == [[4]]


@triton.jit
def _choose(x, y, chosen, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(chosen + at, where_positive(tl.load(x + at), tl.load(y + at)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_positive_is_a_choice_and_not_a_product(dtype):
    tiny, infinity, nan = torch.finfo(dtype).smallest_normal / 2, float("inf"), float("nan")
    x = torch.tensor([1.0, tiny, infinity, nan, 0.0, -0.0, -tiny, -infinity], dtype=dtype)
    for value in (3.0, -infinity):
        chosen = torch.empty_like(x)
        _choose[(1,)](x, torch.full_like(x, value), chosen, len(x))
        assert chosen.tolist() == [value] * 4 + [0.0] * 4
    _choose[(1,)](x, torch.full_like(x, nan), chosen, len(x))
    assert chosen.isnan().tolist() == [True] * 4 + [False] * 4


@triton.jit
def _rounded(x, y, PRECISION: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, as_operand(tl.load(x + at), tl.float32, PRECISION))


def test_operands_are_rounded_to_the_10_digits_of_tf32():
    x = torch.zeros(SIZE)
    # A half of the last place goes away from zero, a little less towards it; the last NaN is the one that GPUs compute.
    x[:7] = torch.tensor([1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23, 3.0, float("inf"), -float("inf"), float("nan")])
    x[7:8].view(torch.int32).fill_(0x7FFFFFFF)
    expected = [1 + 2**-10, -1 - 2**-10, 1, 3, float("inf"), -float("inf")]
    y = torch.empty_like(x)
    _rounded[(1,)](x, y, "tf32", SIZE)
    for rounded in (y, _as_tf32(x)):
        assert rounded[:6].tolist() == expected
        assert rounded[6:8].isnan().all()
    _rounded[(1,)](x, y, "ieee", SIZE)
    assert y[:6].equal(x[:6])
