"""The LSTM's step and its derivative. Saved for the backward: the gates before their activation, and the new c.

Before the activation, because sigmoid(a) rounded to bfloat16 is 1 from a = 6.25 on, and 1 - sigmoid(a) then is 0; from a rounded to 8 bits
it still comes out to within |a| / 256 of itself.
"""

import triton
import triton.language as tl

from sstkern.engines.triton.cells import Kernels
from sstkern.engines.triton.math import sigmoid, tanh, tanh_and_slope


@triton.jit
def step(x, h, states):
    i, f, g, o = x[0] + h[0], x[1] + h[1], x[2] + h[2], x[3] + h[3]
    c = sigmoid(f) * states[1] + sigmoid(i) * tanh(g)
    return (sigmoid(o) * tanh(c), c), (i, f, g, o, c)


@triton.jit
def derivative(saved, previous, d):
    i, f, g, o, c = saved
    tanh_c, slope_c = tanh_and_slope(c)
    new, slope_g = tanh_and_slope(g)
    open_i, open_f, open_o = sigmoid(i), sigmoid(f), sigmoid(o)
    dc = d[1] + d[0] * open_o * slope_c
    di = dc * new * open_i * sigmoid(-i)
    df = dc * previous[1] * open_f * sigmoid(-f)
    dg = dc * open_i * slope_g
    do = d[0] * tanh_c * open_o * sigmoid(-o)
    gates = (di, df, dg, do)
    return gates, gates, (tl.zeros_like(dc), dc * open_f)


KERNELS = {"lstm": Kernels(step, derivative, gates=4, states=2, saves=5)}
