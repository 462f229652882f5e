"""The pointwise operations of a program (`sstkern.program.language`) on tiles, in PyTorch's sense, ties, edges and NaN included.

Made of what Triton's own language has, so that the interpreter runs the same text as a GPU; tanh and sigmoid are those of `math`. Where
Triton's functions are rough, a formula that loses nothing of them stands here: Kahan's for expm1 and log1p, Cephes' for atan.
"""

import triton
import triton.language as tl

from sstkern.engines.triton.math import sigmoid as sigmoid
from sstkern.engines.triton.math import tanh as tanh


@triton.jit
def _like(x, value):
    """A number in x's own digits: `tl.where` takes one for a float32."""
    return tl.full(x.shape, value, x.dtype)


@triton.jit
def neg(x):
    return -x


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@triton.jit
def reciprocal(x):
    return 1.0 / x


@triton.jit
def sqrt(x):
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def rsqrt(x):
    return 1.0 / sqrt(x)


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit
def floor(x):
    return tl.floor(x)


@triton.jit
def ceil(x):
    return tl.ceil(x)


@triton.jit
def trunc(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round(x):
    """To the nearest whole number, of two the even one."""
    low = tl.floor(x)
    rest = x - low
    odd = low - 2.0 * tl.floor(low * 0.5)
    up = (rest > 0.5) | ((rest == 0.5) & (odd != 0))
    return tl.where(up, low + 1.0, low)


@triton.jit
def isnan(x):
    return x != x


@triton.jit
def maximum(x, y):
    return tl.where((x > y) | (x != x), x, y)


@triton.jit
def minimum(x, y):
    return tl.where((x < y) | (x != x), x, y)


@triton.jit
def clamp(x, low, high):
    """NaN where a bound is."""
    bounded = tl.where(x < low, low, tl.where(x > high, high, x))
    return tl.where((low != low) | (high != high), low + high, bounded)


@triton.jit
def hardtanh(x, low, high):
    return clamp(x, low, high)


@triton.jit
def exp(x):
    """In float32 of the two parts of the argument, as `math` has it; Triton's own rounds x * log2(e) once."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    bounded = tl.where(x < -120.0, -120.0, tl.where(x > 100.0, 100.0, x))
    n = tl.floor(bounded * 1.4426950408889634 + 0.5)
    r = (bounded - n * 0.693359375) + n * 2.12194440054690583e-4
    half = tl.floor(n * 0.5)  # 2^n itself may be too large or too small
    return tl.exp2(half) * tl.exp2(r * 1.4426950408889634) * tl.exp2(n - half)


@triton.jit
def expm1(x):
    """Kahan's: (u - 1) x / log(u), where u = exp(x) as it was rounded."""
    small = tl.where(tl.abs(x) < 0.5, x, 0.5)  # beyond, u - 1 loses at most a bit
    u = exp(small)
    near = tl.where(u == 1.0, x, (u - 1.0) * small / tl.log(tl.where(u == 1.0, 2.0, u)))
    return tl.where(tl.abs(x) < 0.5, near, exp(x) - 1.0)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def log1p(x):
    """Kahan's: log(u) x / (u - 1), where u = 1 + x as it was rounded."""
    u = 1.0 + x
    plain = (u == 1.0) | (x == float("inf")) | (x <= -1.0)
    quotient = tl.log(u) * (x / tl.where(plain, 1.0, u - 1.0))
    return tl.where(u == 1.0, x, tl.where(plain, tl.log(u), quotient))


@triton.jit
def sin(x):
    return tl.sin(x)


@triton.jit
def cos(x):
    return tl.cos(x)


@triton.jit
def tan(x):
    return tl.sin(x) / tl.cos(x)


@triton.jit
def sinh(x):
    """By expm1, so that nothing cancels near 0; with half of the exponent where exp(|x|) is too large."""
    size = tl.abs(x)
    e = expm1(tl.where(size < 20.0, size, 20.0))
    half = exp(size * 0.5)
    found = tl.where(size < 20.0, 0.5 * (e + e / (e + 1.0)), (0.5 * half) * half)
    return tl.where(x < 0, -found, tl.where(x == x, found, x))


@triton.jit
def cosh(x):
    half = exp(tl.abs(x) * 0.5)
    return (0.5 * half) * half + 0.5 / half / half


@triton.jit
def asinh(x):
    size = tl.abs(x)
    large = size > 1e9
    s = tl.where(large, 1.0, size)
    found = tl.where(large, tl.log(size) + 0.6931471805599453, log1p(s + s * s / (1.0 + sqrt(1.0 + s * s))))
    return tl.where(x < 0, -found, tl.where(x == x, found, x))


@triton.jit
def erf(x):
    return tl.erf(x)


@triton.jit
def atan(x):
    """Cephes': from 0 to tan(pi / 8), or to 0.66 in float64, by a polynomial, or a quotient of two."""
    size = tl.abs(x)
    if x.dtype == tl.float32:
        far, middle = size > 2.414213562373095, size > 0.4142135623730950
        at = tl.where(far, -1.0 / tl.where(far, size, 1.0), tl.where(middle, (size - 1.0) / (size + 1.0), size))
        z = at * at
        p = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
        found = p * z * at + at
        more = _like(x, 0.0)
    else:
        far, middle = size > 2.41421356237309504880, size > 0.66
        at = tl.where(far, -1.0 / tl.where(far, size, 1.0), tl.where(middle, (size - 1.0) / (size + 1.0), size))
        z = at * at
        p = (-8.750608600031904122785e-1 * z - 1.615753718733365076637e1) * z - 7.500855792314704667340e1
        p = (p * z - 1.228866684490136173410e2) * z - 6.485021904942025371773e1
        q = ((z + 2.485846490142306297962e1) * z + 1.650270098316988542046e2) * z + 4.328810604912902668951e2
        q = (q * z + 4.853903996359136964868e2) * z + 1.945506571482613964425e2
        found = at + at * (z * p / q)
        more = _like(x, 6.123233995736765886130e-17)  # of pi / 2
    start = tl.where(far, _like(x, 1.5707963267948966), tl.where(middle, _like(x, 0.7853981633974483), 0.0))
    lost = tl.where(far, more, tl.where(middle, 0.5 * more, 0.0))
    angle = start + (found + lost)
    return tl.where(x < 0, -angle, tl.where(x == x, angle, x))


@triton.jit
def atan2(y, x):
    both_infinite = (tl.abs(x) == float("inf")) & (tl.abs(y) == float("inf"))
    axis = (x == 0) | (tl.abs(y) == float("inf"))
    quotient = tl.where(axis, 0.0, y / tl.where(axis, 1.0, x))
    inside = atan(quotient)
    negative_y = (y < 0) | ((y == 0) & (1.0 / y < 0))
    half_turn = tl.where(negative_y, _like(x, -3.141592653589793), _like(x, 3.141592653589793))
    negative_x = (x < 0) | ((x == 0) & (1.0 / x < 0))
    turned = tl.where(negative_x, inside + half_turn, inside)
    on_axis = tl.where(y == 0, tl.where(negative_x, half_turn, y), 0.5 * half_turn)
    diagonal = tl.where(negative_x, 0.75 * half_turn, 0.25 * half_turn)
    found = tl.where(both_infinite, diagonal, tl.where(axis, on_axis, turned))
    return tl.where((x != x) | (y != y), x + y, found)


@triton.jit
def pow(x, y):
    """exp(y log|x|), in float64 for float32; in float64 its error is |y log x| times a rounding."""
    size, exponent = tl.abs(x).to(tl.float64), y.to(tl.float64)
    one = (x == 1.0) | (y == 0)
    raw = tl.exp(exponent * tl.log(tl.where(one | (size == 0), 1.0, size))).to(x.dtype)
    at_zero = tl.where(y > 0, 0.0, float("inf")).to(x.dtype)
    found = tl.where(size == 0, at_zero, raw)
    whole = tl.floor(y) == y  # an infinite one too
    odd = whole & (tl.abs(y) < float("inf")) & (y - 2.0 * tl.floor(y * 0.5) != 0)
    signed = tl.where(odd, -found, tl.where(whole | (tl.abs(x) == float("inf")), found, float("nan")))
    negative = (x < 0) | ((x == 0) & (1.0 / x < 0) & odd)
    at_one = (x == -1.0) & (tl.abs(y) == float("inf"))
    result = tl.where(negative & ~at_one, signed, found)
    result = tl.where(at_one, 1.0, result)
    return tl.where(one, 1.0, tl.where((x != x) | (y != y), x + y, result)).to(x.dtype)


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def log_sigmoid(x):
    return tl.where(x < 0, x, 0.0) - log1p(exp(-tl.abs(x)))


@triton.jit
def softplus(x, beta, threshold):
    scaled = x * beta
    near = tl.where(scaled < 0, 0.0, scaled) + log1p(exp(-tl.abs(scaled)))
    return tl.where(scaled > threshold, x, near / beta)


@triton.jit
def mish(x):
    """x tanh(log(1 + exp(x))), as csrc/kernels/functions/activations.h has it."""
    negative = x < 0
    e = exp(-tl.abs(x))
    more = e + 1.0
    below = tl.where(negative, e * (e + 2.0) + 2.0, e * more * 2.0 + 1.0)
    correction = e * tl.where(negative, more, 2.0) / below
    return x * (tl.where(negative, e, 1.0) - e * correction)


@triton.jit
def hardsigmoid(x):
    return tl.where(x + 3.0 < 0, 0.0, tl.where(x + 3.0 > 6.0, 6.0, x + 3.0)) / 6.0


@triton.jit
def hardswish(x):
    return x * tl.where(x + 3.0 < 0, 0.0, tl.where(x + 3.0 > 6.0, 6.0, x + 3.0)) / 6.0


@triton.jit
def gelu(x):
    return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    return x * 0.5 * (1.0 + tanh((x + x * x * x * 0.044715) * 0.7978845608028654))


@triton.jit
def elu(x, alpha, scale, input_scale):
    return tl.where(x >= 0, x * scale, expm1(x * input_scale) * (alpha * scale))


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0, x, x * slope)
