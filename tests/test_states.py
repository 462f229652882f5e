"""return_states of layers: the states after every step. tests/test_resets.py compares them, and their gradients, with those of pieces."""

import pytest
import torch
from layers import ENGINES, KINDS, as_hx, assert_close, definition_of, flat, gradients, pair, states_of
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import sstkern
from sstkern.engines import interpreting

LENGTHS = [6, 0, 3]


def stepped(layer: nn.RNNBase, x: torch.Tensor, hx: list[torch.Tensor]) -> list[torch.Tensor]:
    """All states of a layer of one direction, by calls of one step."""
    found = []
    for step in x:
        _, new = layer(step.unsqueeze(0), as_hx(tuple(hx)))
        hx = flat(new)
        found.append(hx)
    return [torch.stack(states) for states in zip(*found, strict=True)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_single_steps(kind, engine):
    torch.manual_seed(0)
    layer, theirs = pair(kind, 3, 4, 2)
    x, hx = torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True), states_of(layer, 3)
    with sstkern.backend(engine):
        output, hx_n, states = layer(x, as_hx(hx), return_states=True)
        found = gradients([output, *flat(states)], [x, *hx, *layer.parameters()])
    expected = stepped(theirs, x, list(hx))
    outputs = expected[0][:, -1]
    assert_close([output, *flat(states)], [outputs, *expected], 1e-12)
    assert_close(flat(hx_n), [state[-1] for state in flat(states)], 0)
    assert_close(found, gradients([outputs, *expected], [x, *hx, *theirs.parameters()]), 1e-11)


@pytest.mark.parametrize("kind", ["lstm", "lstm_projected", "gru"])
def test_both_directions_belong_to_their_inputs(kind):
    torch.manual_seed(0)
    layer, _ = pair(kind, 3, 4, 2, bidirectional=True)
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    output, hx_n, states = layer(x, lengths=LENGTHS, return_states=True)
    width = output.size(-1) // 2
    assert torch.equal(flat(states)[0][:, 2], output[..., :width])
    assert torch.equal(flat(states)[0][:, 3], output[..., width:])
    for state, last in zip(flat(states), flat(hx_n), strict=True):
        assert state.shape == (6, 4, *last.shape[1:])
        assert torch.equal(state[0, 1::2, [0, 2]], last[1::2, [0, 2]])  # the other direction ends with step 0
        assert torch.equal(state[5, 0::2, 0], last[0::2, 0])
        assert torch.equal(state[2, 0::2, 2], last[0::2, 2])
        assert (state[:, :, 1] == 0).all()
        assert (state[3:, :, 2] == 0).all()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_forms_of_the_input(kind):
    torch.manual_seed(0)
    layer, _ = pair(kind, 3, 4, 2, bidirectional=True)
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    lengths = [6, 4, 5]
    expected = flat(layer(x, lengths=lengths, return_states=True)[2])
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    assert_close(flat(layer(packed, return_states=True)[2]), expected, 1e-12)
    nested = torch.nested.nested_tensor([x[:length, b] for b, length in enumerate(lengths)], layout=torch.jagged)
    assert_close(flat(layer(nested, return_states=True)[2]), expected, 1e-12)
    layer.batch_first = True
    assert_close(flat(layer(x.transpose(0, 1), lengths=lengths, return_states=True)[2]), expected, 0)
    layer.batch_first = False
    assert_close(flat(layer(x[:, 0], return_states=True)[2]), [state[:, :, 0] for state in expected], 1e-12)


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_float32_rounded(dtype):
    torch.manual_seed(0)
    layer = sstkern.LSTM(3, 16, bidirectional=True, dtype=dtype)
    wide = sstkern.LSTM(3, 16, bidirectional=True)
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(700, 5, 3).to(dtype)  # several spans
    lengths = [700, 3, 0, 256, 600]
    _, _, (h, c) = layer(x, lengths=lengths, return_states=True)
    _, _, (h_wide, c_wide) = wide(x.float(), lengths=lengths, return_states=True)
    for mine, exact in ((h, h_wide), (c, c_wide)):
        assert mine.dtype == dtype
        assert (mine.float() - exact).norm() < 0.005 * exact.norm()  # measured: 0.0018


def test_gradients_of_c_alone():
    torch.manual_seed(0)
    layer, x = sstkern.LSTM(3, 4, dtype=torch.float64), torch.randn(6, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    found = []
    for engine in ENGINES:
        with sstkern.backend(engine):
            found.append(gradients([layer(x, lengths=LENGTHS, return_states=True)[2][1]], inputs))
    assert_close(found[0], found[-1], 1e-12)
    assert found[0][0].abs().sum() > 0


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
def test_what_pytorch_makes_of_them():
    torch.manual_seed(0)
    layer, x = sstkern.LSTM(3, 4, dtype=torch.float64), torch.randn(6, 3, 3, dtype=torch.float64)

    def function(x):
        output, _, (h, c) = layer(x, return_states=True)
        return output.square().sum() + (h * c).sum() + c.pow(3).sum()

    given = x.clone().requires_grad_()
    torch.autograd.gradcheck(function, (given,))
    torch.autograd.gradgradcheck(function, (given,))
    expected = torch.autograd.grad(function(given), given)[0]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(given), given)[0], expected)
    torch.testing.assert_close(torch.func.grad(function)(x), expected)
    batched = torch.vmap(torch.func.grad(function))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(batched[0], expected)
    tangent = torch.randn_like(x)
    torch.testing.assert_close(torch.func.jvp(function, (x,), (tangent,))[1], (expected * tangent).sum())
    recomputing = sstkern.LSTM(3, 4, dtype=torch.float64, recompute=True)
    recomputing.load_state_dict(layer.state_dict())
    for a, b in zip(flat(recomputing(given, return_states=True)[2]), flat(layer(given, return_states=True)[2]), strict=True):
        assert torch.equal(a, b)


def test_a_layer_of_ones_own_has_them():
    class Own(sstkern.modules.Recurrent):
        cell = sstkern.cells.CELLS["lstm"]

    layer = Own(3, 4)
    assert [tuple(state.shape) for state in layer(torch.randn(5, 2, 3), return_states=True)[2]] == [(5, 1, 2, 4)] * 2
    assert definition_of(layer).states == ("h", "c")
