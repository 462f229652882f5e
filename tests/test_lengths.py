from contextlib import contextmanager

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


def nested(*lengths: int, **options) -> torch.Tensor:
    parts = [torch.randn(length, 3, dtype=torch.float64) for length in lengths]
    return torch.nested.nested_tensor(parts, layout=torch.jagged, **options)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [sstkern.LSTM, sstkern.GRU, sstkern.RNN])
def test_a_nested_input_is_its_sequences(kind, batch_first):
    torch.manual_seed(0)
    layer = kind(3, 4, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    given = nested(4, 0, 2, requires_grad=True)
    x = torch.nested.to_padded_tensor(given.detach(), 0.0)
    x = (x if batch_first else x.transpose(0, 1)).requires_grad_()
    hx = torch.randn(4, 3, 4, dtype=torch.float64)
    hx = (hx, hx) if kind is sstkern.LSTM else hx
    output, hx_n = layer(given, hx)
    expected, hx_n_expected = layer(x, hx, lengths=[4, 0, 2])
    assert output.is_nested
    assert output.shape[1] == given.shape[1]  # the same jagged dimension, so that they can be added
    torch.testing.assert_close(hx_n, hx_n_expected, rtol=0, atol=0)
    by_sequence = expected if batch_first else expected.transpose(0, 1)
    (dgiven,), (dx,) = (torch.autograd.grad(o.square().sum(), i) for o, i in ((output.values(), given), (expected, x)))
    dx = dx if batch_first else dx.transpose(0, 1)
    for of_nested, padded in ((output, by_sequence), (dgiven, dx)):
        for sequence, row in zip(of_nested.unbind(), padded, strict=True):
            assert torch.equal(sequence, row[: len(sequence)])


def test_nested_inputs_that_are_refused():
    layer = sstkern.GRU(3, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="lengths: a nested input has its own lengths"):
        layer(nested(4, 2), lengths=[4, 2])
    with pytest.raises(ValueError, match=r"input: expected a nested tensor of the layout torch\.jagged, got torch\.strided"):
        layer(torch.nested.nested_tensor([torch.zeros(2, 3)], layout=torch.strided))
    with pytest.raises(ValueError, match="without gaps between its sequences"):
        layer(torch.nested.narrow(torch.zeros(2, 4, 3), 1, torch.tensor([0, 1]), torch.tensor([2, 2]), layout=torch.jagged))
    with pytest.raises(ValueError, match=r"input: expected a nested tensor \(B, \*, I\)"):
        layer(nested(2, 1).transpose(1, 2))
    with pytest.raises(RuntimeError, match=r"input: expected 4 features \(input_size\), got 3"):
        sstkern.GRU(4, 5, dtype=torch.float64)(nested(4, 2))


@pytest.fixture(params=["device", "dtype"])
def another_default(request):
    """Another default device or dtype than the layer's and its input's, for as long as the test calls what is returned."""

    @contextmanager
    def default():
        torch.set_default_device("meta" if request.param == "device" else None)
        torch.set_default_dtype(torch.float16 if request.param == "dtype" else torch.float32)
        try:
            yield
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)

    return default


@pytest.mark.parametrize("given", ["list", "tuple", "packed", "nested"])
@pytest.mark.parametrize("options", [{}, {"recompute": True}], ids=["plain", "recompute"])
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_other_defaults_than_the_weights_are_not_noticed(given, options, engine, another_default):
    torch.manual_seed(0)
    layer = sstkern.LSTM(3, 4, 2, bidirectional=True, **options)
    x = torch.randn(4, 3, 3)
    calls = {
        "list": lambda: layer(x, lengths=[4, 1, 2])[0],
        "tuple": lambda: layer(x, lengths=(4, 1, 2))[0],
        "packed": lambda: layer(packed)[0].data,
        "nested": lambda: layer(sequences)[0].values(),
    }
    packed = pack_sequence([x[:4, 0], x[:2, 2], x[:1, 1]])
    sequences = torch.nested.nested_tensor([x[:4, 0], x[:1, 1], x[:2, 2]], layout=torch.jagged)

    def results() -> list[torch.Tensor]:
        with sstkern.backend(engine):
            output = calls[given]()
            return [output, *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]

    expected = results()
    with another_default():
        found = results()
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, expected, strict=True))


def test_a_cell_does_not_notice_other_defaults(another_default):
    cell, x = sstkern.LSTMCell(3, 4), torch.randn(2, 3)
    expected = torch.stack(cell(x, cell(x)))
    with another_default():
        found = torch.stack(cell(x, cell(x)))
    assert torch.equal(found, expected)
