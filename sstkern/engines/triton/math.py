"""tanh and sigmoid to a few units in the last place, in float32 and float64.

Triton's own exp in float32 loses bits as |x| grows (it rounds x * log2(e) once), and the interpreter has no tanh. These reduce the argument
in two parts, as the C++ engine does. They neither overflow nor lose a NaN, and their slopes at infinity are 0.
"""

import triton
import triton.language as tl


@triton.jit
def _exp(x):
    """exp(x), for finite x; far out 0 or infinity."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    # ln(2) in two parts, of which the first has so few digits that its product with n is exact.
    r = (x - n * 0.693359375) + n * 2.12194440054690583e-4
    return tl.exp2(n) * tl.exp2(r * 1.4426950408889634)


@triton.jit
def sigmoid(x):
    limit = 100.0 if x.dtype == tl.float32 else 800.0  # where exp is 0 and infinity
    bounded = tl.where(x < -limit, -limit, tl.where(x > limit, limit, x))
    return 1.0 / (1.0 + _exp(-bounded))


@triton.jit
def tanh(x):
    return tanh_and_slope(x)[0]


@triton.jit
def tanh_and_slope(x):
    """tanh(x) and its derivative, which keeps its digits where 1 - tanh(x)^2 has none left.

    Cephes' two pieces: below 0.625 an odd polynomial (a quotient in float64), above it (1 - e) / (1 + e) with e = exp(-2 |x|).
    """
    square = x * x
    if x.dtype == tl.float32:
        p = (-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2
        near = x + x * square * ((p * square + 1.33314422036e-1) * square - 3.33332819422e-1)
        limit = 60.0  # where e is 0
    else:
        p = (-9.64399179425052238628e-1 * square - 9.92877231001918586564e1) * square - 1.61468768441708447952e3
        q = ((square + 1.12811678491632931402e2) * square + 2.23548839060100448583e3) * square + 4.84406305325125486048e3
        near = x + x * square * (p / q)
        limit = 400.0
    size = tl.abs(x)
    e = _exp(-2.0 * tl.where(size > limit, limit, size))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(size < 0.625, near, tl.where(x < 0, -far, far)), 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def where_positive(x, y):
    """y where x > 0 (or x is NaN), else 0; y may be infinite.

    In the numbers' bits, since a condition is one bit wide: on its way to a product Triton 3.9 would take it through shared memory, whose
    elements are bytes, and fails.
    """
    bits: tl.constexpr = x.dtype.primitive_bitwidth
    integer: tl.constexpr = tl.int64 if bits == 64 else tl.int32
    number = x.to(integer, bitcast=True)
    sign = number >> (bits - 1)
    nonzero = (number | -number) >> (bits - 1)
    return (y.to(integer, bitcast=True) & nonzero & ~sign).to(y.dtype, bitcast=True)


@triton.jit
def as_operand(x, STORED: tl.constexpr, PRECISION: tl.constexpr):
    """x for a product of STORED numbers. Tensor cores cut float32 off at TF32: rounded, an RNN's output has a third of the error."""
    x = x.to(STORED)
    if PRECISION == "tf32":
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000  # 10 of 23 digits stay
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # the sum would carry a NaN's digits over to 0
    return x
