import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import FUSED, KINDS, as_hx, assert_close, flat, only, pair, states_of, with_lengths
from torch import Tensor, nn

import sstkern
from sstkern.cells import CELLS, Cell, Weight
from sstkern.engines import reference
from sstkern.testing import assert_gradients


@given(
    kind=st.sampled_from(sorted(KINDS)),
    sizes=st.tuples(st.integers(1, 5), st.integers(3, 6), st.integers(1, 2)),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    steps=st.integers(1, 6),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_equals_torch_on_random_configurations(kind, sizes, bias, bidirectional, steps, lengths, seed):
    torch.manual_seed(seed)
    ours, theirs = pair(kind, *sizes, bias=bias, bidirectional=bidirectional)
    lengths = [min(length, steps) for length in lengths]
    x = torch.randn(steps, len(lengths), sizes[0], dtype=torch.float64, requires_grad=True)
    states = as_hx(states_of(ours, len(lengths)))
    theirs = with_lengths(theirs)
    with only("reference"):
        output, hx_n = ours(x, states, lengths)
    expected, expected_hx = theirs(x, states, lengths)
    assert_close([output, *flat(hx_n)], [expected, *flat(expected_hx)], 1e-12)
    assert_gradients(ours, x, states, lengths=lengths, reference=theirs, engine="reference", elements=0)


def _layer_normalised_step(gates_x: Tensor, gates_h: Tensor, states, parameters) -> tuple[Tensor]:
    (gain,) = parameters
    return (torch.tanh(gates_x + nn.functional.layer_norm(gates_h, gates_h.shape[-1:], gain)),)


LAYER_NORMALISED = Cell("normalised", gates=("h",), states=("h",), step=_layer_normalised_step, parameters=(Weight("gain", ("H",)),))


def test_a_cell_may_normalise_across_hidden_units_with_a_parameter_of_its_own():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    w_ih, w_hh, gain = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(5, 4), (5, 5), (5,)])
    h0 = torch.randn(1, 2, 5, dtype=torch.float64)
    output, (h_n,) = reference.layer(LAYER_NORMALISED, x, [w_ih, w_hh, gain], [h0], None, False, False)
    h = h0[0]
    for t in range(3):
        recurrent = h @ w_hh.T
        centred = recurrent - recurrent.mean(-1, keepdim=True)
        h = torch.tanh(x[t] @ w_ih.T + gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(h_n[0], h)
    assert torch.autograd.grad(output.sum(), gain)[0].abs().min() > 0


def test_every_derivative_exists():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(*shape, dtype=torch.float64) for shape in [(12, 2), (12, 3)]]
    hx = [torch.randn(1, 2, 3, dtype=torch.float64) for _ in range(2)]

    def third(x: Tensor) -> Tensor:
        value = reference.layer(CELLS["lstm"], x, weights, hx, torch.tensor([3, 1]), False, False)[0].sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.square().sum()
        return value

    assert torch.autograd.gradcheck(third, x)


@pytest.mark.parametrize("name", ["reference", FUSED])
@pytest.mark.parametrize("steps", [0, 3])
def test_states_of_sequences_without_any_step_can_be_differentiated(name, steps):
    layer = sstkern.LSTM(2, 3, bidirectional=True)
    with sstkern.backend(name):
        _, (h_n, c_n) = layer(torch.randn(steps, 2, 2), lengths=[0, 0])
    (h_n.sum() + c_n.sum()).backward()
    assert torch.equal(h_n, torch.zeros(2, 2, 3))
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in layer.parameters())
