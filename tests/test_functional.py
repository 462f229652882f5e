import pytest
import torch
from layers import KINDS, as_hx, assert_close, flat, pair, states_of
from torch import nn

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
