"""The simple recurrent network's step and its derivative, with tanh or relu. Saved for the backward: what goes into the activation."""

import triton
import triton.language as tl

from sstkern.engines.triton.math import tanh, tanh_and_slope, where_positive

SAVES = 1
"""Tiles of H that a step saves for its derivative."""


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
