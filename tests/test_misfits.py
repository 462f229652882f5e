"""What a cell's step failed for, and whose words say it. tests/test_fuse.py has the layer's errors."""

import pytest
import torch
from plain_cells import MGU
from torch import nn

from sstkern import misfits, stepping
from sstkern.misfits import StepFailed


def failed(cell: nn.Module, x: torch.Tensor, h: torch.Tensor) -> StepFailed:
    with pytest.raises(StepFailed) as raised:
        stepping.layer(cell, x, h, None, padded=True, returns="auto", reverse=False, every=False)
    return raised.value


@pytest.mark.parametrize(
    ("x", "h", "message"),
    [
        (torch.zeros(3, 5, 3, dtype=torch.float64), torch.zeros(5, 4), "input: expected dtype torch.float32 like the cell's parameters"),
        (torch.zeros(3, 5, 3), torch.zeros(5, 4, dtype=torch.float64), "hx: expected dtype torch.float32 like the cell's parameters"),
        (torch.zeros(3, 5, 3, device="meta"), torch.zeros(5, 4), "input: is on meta, but the cell's parameters are on cpu"),
    ],
)
def test_a_cell_that_fails_for_a_dtype_or_device(x, h, message):
    found = misfits.of_step(MGU(), failed(MGU(), x, h), True)
    assert type(found) is ValueError
    assert str(found).startswith(f"{message}")
    assert "(MGU's step raised " in str(found)


def test_a_state_of_another_structure_is_a_type_error():
    class OfNames(nn.Module):
        def forward(self, x, state):
            return torch.tanh(x + state.h)

    found = misfits.of_step(OfNames(), failed(OfNames(), torch.zeros(3, 5, 4), torch.zeros(5, 4)), True)
    assert type(found) is TypeError
    assert "OfNames's step raised AttributeError: 'Tensor' object has no attribute 'h' (" in str(found)
    assert str(found).endswith("given input (B, 4) and hx (B, 4)")


def test_tokens_are_not_counted_as_features():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_size, self.embedding = 10, nn.Embedding(10, 4)

        def forward(self, token, h):
            return torch.tanh(self.embedding(token.squeeze(-1)) + h)

    tokens = torch.full((3, 5, 1), 10)
    found = misfits.of_step(Reading(), failed(Reading(), tokens, torch.zeros(5, 4)), True)
    assert str(found).startswith("input, hx: Reading's step raised IndexError: index out of range in self")


def test_a_get_initial_state_that_fails_hides_nothing():
    class Broken(MGU):
        def get_initial_state(self, batch_size, dtype):
            raise RuntimeError("boom")

    found = misfits.of_step(Broken(), failed(Broken(), torch.zeros(3, 5, 3), torch.zeros(5, 7)), True)
    assert str(found).startswith("input, hx: Broken's step raised RuntimeError: mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize("error", [RuntimeError("mine"), ValueError("mine"), TypeError("mine")], ids=repr)
def test_what_a_cell_raises_itself_is_its_own(error: Exception):
    class Raising(nn.Module):
        def forward(self, x, h):
            raise error

    class Asserting(nn.Module):
        def forward(self, x, h):
            assert x.size(1) == 3, "mine"

    class Typing(nn.Module):
        def forward(self, x, h):
            return self.lost

    for cell, kind, words in (
        (Raising(), type(error), "mine"),
        (Asserting(), AssertionError, "mine"),
        (Typing(), AttributeError, "'lost'"),
    ):
        with pytest.raises(kind, match=words):
            stepping.layer(cell, torch.zeros(3, 5, 4), torch.zeros(5, 4), None, padded=True, returns="auto", reverse=False, every=False)
