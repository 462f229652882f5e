"""Each cell's step against its formula, written out in numpy."""

import numpy as np
import pytest
import torch

from sstkern.cells import CELLS


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(x, h, states):
    i, f, g, o = np.split(x + h, 4, -1)
    c = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(x, h, states):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(x, 3, -1), np.split(h, 3, -1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    return ((1 - z) * np.tanh(x_n + r * h_n) + z * states[0],)


FORMULAS = {
    "lstm": lstm,
    "gru": gru,
    "rnn_tanh": lambda x, h, states: (np.tanh(x + h),),
    "rnn_relu": lambda x, h, states: (np.maximum(x + h, 0),),
}


@pytest.mark.parametrize("name", sorted(CELLS))
def test_step(name):
    cell, generator = CELLS[name], np.random.default_rng(0)
    gates_x, gates_h = generator.normal(size=(2, 3, len(cell.gates) * 5))
    states = generator.normal(size=(len(cell.states), 3, 5))
    stepped = cell.step(torch.tensor(gates_x), torch.tensor(gates_h), tuple(map(torch.tensor, states)), ())
    expected = FORMULAS[name](gates_x, gates_h, states)
    assert len(stepped) == len(expected) == len(cell.states)
    for state, value in zip(stepped, expected, strict=True):
        np.testing.assert_allclose(state.numpy(), value, rtol=1e-14, atol=1e-15)


def test_every_cell_has_a_formula_here():
    assert set(CELLS) == set(FORMULAS)
