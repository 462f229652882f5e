import pytest
import torch
from torch import nn

from sstkern.cells import CELLS
from sstkern.weights import by_direction


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_flat_list_is_split_by_name(bidirectional, bias, proj_size):
    layer = nn.LSTM(3, 5, bias=bias, bidirectional=bidirectional, proj_size=proj_size)
    directions = by_direction(CELLS["lstm"], layer._flat_weights, bias, bidirectional)
    assert len(directions) == 1 + bidirectional
    for weights, suffix in zip(directions, ["", "_reverse"], strict=False):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
            assert getattr(weights, name) is getattr(layer, f"{name}_l0{suffix}", None)
        assert weights.parameters == ()
        assert weights.output_size == (proj_size or 5)


def test_a_projection_is_the_lstms_alone():
    weights = [torch.zeros(15, 3), torch.zeros(15, 5), torch.zeros(2, 5)]
    with pytest.raises(ValueError, match="a gru layer with bias=False has 2 tensors for each direction, got 3 for 1"):
        by_direction(CELLS["gru"], weights, False, False)
