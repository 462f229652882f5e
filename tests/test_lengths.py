import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import sstkern


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([4, 2, 1], ValueError, r"expected one for each of 2 sequences, got shape \(3,\)"),
        (torch.tensor([[4, 2]]), ValueError, r"got shape \(1, 2\)"),
        (torch.tensor(4), ValueError, r"got shape \(\)"),
        ([4.0, 2.0], TypeError, "expected integers, got torch.float32"),
        (["4", "2"], TypeError, r"expected integers, got \['4', '2'\]"),
        (torch.tensor([True, False]), TypeError, "expected integers, got torch.bool"),
        ([4, 5], ValueError, r"lengths\[1\] is 5; allowed are 0 to 4"),
        ([-1, 4], ValueError, r"lengths\[0\] is -1; allowed are 0 to 4"),
    ],
)
def test_wrong_lengths(lengths, error, message):
    with pytest.raises(error, match=message):
        sstkern.GRU(3, 5)(torch.zeros(4, 2, 3), lengths=lengths)


def test_lengths_beside_a_packed_or_unbatched_input_are_refused():
    layer = sstkern.GRU(3, 5)
    with pytest.raises(ValueError, match="a PackedSequence has its own lengths"):
        layer(pack_sequence([torch.zeros(2, 3)]), lengths=[2])
    with pytest.raises(ValueError, match="an unbatched input"):
        layer(torch.zeros(4, 3), lengths=[4])


def test_no_sequences_have_no_lengths():
    output, h_n = sstkern.GRU(3, 5)(torch.zeros(4, 0, 3), lengths=[])
    assert output.shape == (4, 0, 5)
    assert h_n.shape == (1, 0, 5)
