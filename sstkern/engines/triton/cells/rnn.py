"""The simple recurrent network's step and its derivative, with tanh or relu. Saved for the backward: what goes into the activation."""

import triton
import triton.language as tl

from sstkern.engines.triton.cells import Kernels
from sstkern.engines.triton.math import tanh, tanh_and_slope, where_positive


@triton.jit
def step_tanh(x, h, states):
    a = x[0] + h[0]
    return (tanh(a),), (a,)


@triton.jit
def derivative_tanh(saved, previous, d):
    _, slope = tanh_and_slope(saved[0])
    gates = (d[0] * slope,)
    return gates, gates, (tl.zeros_like(d[0]),)


@triton.jit
def step_relu(x, h, states):
    a = x[0] + h[0]
    return (tl.where(a < 0.0, 0.0, a),), (a,)


@triton.jit
def derivative_relu(saved, previous, d):
    gates = (where_positive(saved[0], d[0]),)
    return gates, gates, (tl.zeros_like(d[0]),)


KERNELS = {
    "rnn_tanh": Kernels(step_tanh, derivative_tanh, gates=1, states=1, saves=1),
    "rnn_relu": Kernels(step_relu, derivative_relu, gates=1, states=1, saves=1),
}
