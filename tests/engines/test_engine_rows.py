import pytest
import torch

from sstkern.engines.rows import Rows
from sstkern.lengths import to_batch


def test_padded_sequences_there_and_back():
    """Step by step, the longest sequence first; what is past a length is left out, and zero after the way back."""
    x = torch.arange(24.0).reshape(4, 3, 2)
    lengths = torch.tensor([2, 0, 4])
    rows = Rows([x], lengths, padded=True)
    found = rows.of(x)
    assert rows.sizes == [2, 2, 1, 1]
    assert torch.equal(found, torch.stack([x[0, 2], x[0, 0], x[1, 2], x[1, 0], x[2, 2], x[3, 2]]))
    valid = torch.arange(4)[:, None] < lengths
    assert torch.equal(rows.restored(found), torch.where(valid[..., None], x, 0))
    states = rows.states([torch.tensor([[0.0], [1.0], [2.0]])], reverse=False)
    assert states.states[0].flatten().tolist() == [2, 0, 1]
    assert rows.back(states.states[0]).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("features", [(2,), (), (0,), (2, 3)])
def test_lengths_count_whatever_a_row_s_shape(features):
    rows = Rows([torch.ones(3, 2, *features)], torch.tensor([1, 3]), padded=True)
    assert rows.sizes == [2, 1, 1]
    assert rows.restored(rows.of(torch.ones(3, 2, *features))).shape == (3, 2, *features)


@pytest.mark.parametrize("shape", [(0, 2, 3), (3, 0, 3), (0, 0, 3)])
def test_no_steps_and_no_sequences(shape):
    x, lengths = torch.ones(shape), torch.zeros(shape[1], dtype=torch.int64)
    for given in (None, lengths):
        rows = Rows([x], given, padded=True)
        assert sum(rows.sizes) == 0
        assert rows.restored(rows.of(x)).shape == shape


def test_without_lengths_and_packed_nothing_is_moved():
    x = torch.ones(3, 2, 4)
    assert Rows([x], None, padded=True).of(x).data_ptr() == x.data_ptr()
    batch = to_batch(torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:1, 1]]), None, False)
    rows = Rows([batch.x], batch.lengths, padded=False)
    assert rows.sizes == [2, 1, 1]
    assert rows.restored(rows.of(batch.x)) is batch.x


def test_lengths_that_a_transform_hides_are_masks():
    x = torch.ones(3, 2, 1)

    def kept(lengths):
        rows = Rows([x], lengths, padded=True)
        assert rows.valid is not None
        return rows.of(x).unflatten(0, (3, 2))

    found = torch.func.vmap(kept)(torch.tensor([[3, 1], [0, 2]]))
    assert found.sum((1, 3)).tolist() == [[3, 1], [0, 2]]


def test_what_comes_back_is_zero_past_lengths_that_a_transform_hides():
    """Also what has not gone through the loop over time steps."""
    found = torch.func.vmap(lambda lengths: Rows([torch.ones(3, 2, 1)], lengths, padded=True).restored(torch.ones(6, 1)))(
        torch.tensor([[3, 1], [0, 2]])
    )
    assert found.sum((1, 3)).tolist() == [[3, 1], [0, 2]]
