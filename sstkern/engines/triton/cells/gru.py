"""The GRU's step and its derivative. Saved for the backward: the gates before their activation, and the state's part of n's."""

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it in every file with a kernel

from sstkern.engines.triton.cells import Kernels
from sstkern.engines.triton.math import sigmoid, tanh, tanh_and_slope


@triton.jit
def step(x, h, states):
    r, z = x[0] + h[0], x[1] + h[1]
    n = x[2] + sigmoid(r) * h[2]
    new = tanh(n)
    return (new + sigmoid(z) * (states[0] - new),), (r, z, n, h[2])


@triton.jit
def derivative(saved, previous, d):
    r, z, n, h_n = saved
    reset, update = sigmoid(r), sigmoid(z)
    new, slope_n = tanh_and_slope(n)
    dn = d[0] * sigmoid(-z) * slope_n
    dr = dn * h_n * reset * sigmoid(-r)
    dz = d[0] * (previous[0] - new) * update * sigmoid(-z)
    return (dr, dz, dn), (dr, dz, dn * reset), (d[0] * update,)


KERNELS = {"gru": Kernels(step, derivative, gates=3, states=1, saves=4, same_gate_gradients=False)}
