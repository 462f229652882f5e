import pytest
import torch
from layers import KINDS, as_hx, assert_close, flat, pair, states_of
from torch import nn

import sstkern
from sstkern import functional

FUNCTIONS = {
    "lstm": functional.lstm,
    "lstm_projected": functional.lstm,
    "gru": functional.gru,
    "rnn_tanh": functional.rnn_tanh,
    "rnn_relu": functional.rnn_relu,
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_functions_equal_torchs_layers(kind):
    torch.manual_seed(0)
    _, theirs = pair(kind, 3, 5, num_layers=2, bidirectional=True, batch_first=True)
    x, states = torch.randn(4, 6, 3, dtype=torch.float64), states_of(theirs, 4)
    expected, expected_hx = theirs(x, as_hx(states))
    output, hx_n = FUNCTIONS[kind](x, theirs._flat_weights, as_hx(states), num_layers=2, bidirectional=True, batch_first=True)
    assert_close([output, *flat(hx_n)], [expected, *flat(expected_hx)], 1e-12)


def test_a_cell_step_equals_torchs_cell():
    cell = nn.GRUCell(3, 5, dtype=torch.float64)
    x, h = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    (stepped,) = functional.cell_step("gru", x, (h,), list(cell.parameters()))
    torch.testing.assert_close(stepped, cell(x, h))


def test_a_wrong_number_of_weights_is_named():
    layer = nn.LSTM(3, 5)
    with pytest.raises(ValueError, match=r"has 4 tensors for each direction \(one more with a projection\), got 3 for 1 direction"):
        functional.lstm(torch.zeros(4, 2, 3), layer._flat_weights[:3])
    with pytest.raises(ValueError, match="4 tensors do not divide over num_layers=3"):
        functional.lstm(torch.zeros(4, 2, 3), layer._flat_weights, num_layers=3)


class Seen:
    """No tensor, but what torch.overrides hands a function to."""

    calls: list = []  # noqa: RUF012 -- of all instances

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        cls.calls.append((function, types, arguments, options or {}))
        return "output", "hx"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_input_with_torch_function_is_given_the_function(kind):
    layer, input, hx = pair(kind, 3, 5, num_layers=2, dropout=0.5)[0], Seen(), object()
    Seen.calls.clear()
    assert layer(input, hx, [1]) == ("output", "hx")
    ((function, types, arguments, options),) = Seen.calls
    assert function is functional.layer
    assert set(types) == {Seen}
    assert arguments == (layer.cell, input, layer._flat_weights, hx)
    expected = {"lengths": [1], "bias": True, "num_layers": 2, "dropout": 0.5, "training": True, "bidirectional": False}
    assert options == {**expected, "batch_first": False, "recompute": False, "resets": None, "reset_to": None, "return_states": False}


def test_a_cells_input_and_a_weight_with_torch_function_are_given_it():
    cell, input = sstkern.LSTMCell(3, 5), Seen()
    Seen.calls.clear()
    assert cell(input, ("h", "c")) == ("output", "hx")
    assert Seen.calls[0][0] is functional.cell_step
    assert Seen.calls[0][2] == (cell.cell, input, ("h", "c"), list(cell.parameters()), True)
    assert functional.gru(torch.zeros(4, 2, 3), [input] * 4) == ("output", "hx")
    assert Seen.calls[1][0] is functional.layer


class Marked(torch.Tensor):
    pass


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_results_of_a_subclass_of_tensor_are_of_it(kind):
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for layer in pair(kind, 3, 5):
        output, hx_n = layer(x.as_subclass(Marked))
        assert {type(tensor) for tensor in (output, *flat(hx_n))} == {Marked}
        assert torch.equal(output.as_subclass(torch.Tensor), layer(x)[0])


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, nn.RNNBase | nn.RNNCellBase)


@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_symbolic_traces_are_told_what_to_do(name):
    layer = getattr(sstkern, name)(3, 5)
    model, x = nn.Sequential(layer), torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match=r"give it a torch\.fx\.Tracer whose is_leaf_module is true of them$"):
        torch.fx.symbolic_trace(model)
    traced = torch.fx.GraphModule(model, Leaves().trace(model))
    assert torch.equal(flat(traced(x))[0], flat(layer(x))[0])


def test_an_error_of_a_hook_for_saved_tensors_comes_through_a_cell():
    cell, calls = sstkern.LSTMCell(3, 4), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        raise RuntimeError("the disk is full")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), pytest.raises(RuntimeError, match="the disk is full"):
        cell(torch.randn(2, 3), (torch.zeros(2, 4), torch.zeros(2, 4)))
    assert len(calls) == 1
