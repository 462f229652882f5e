from contextlib import contextmanager

import numpy as np
import pytest
import torch
from layers import ENGINES, FUSED, KINDS, as_hx, assert_close, flat, gradients, only, pair, states_of
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import sstkern
from sstkern.engines import interpreting, reference
from sstkern.lengths import to_batch, to_batches


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


def test_values_of_a_nested_input_that_belong_to_no_sequence():
    """Between the sequences, and after the last: not used, without a gradient, and 0 in the output."""
    torch.manual_seed(0)
    layer, x = sstkern.GRU(3, 4, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    expected, h_n_expected = layer(x.transpose(0, 1), lengths=[3, 2])
    gaps = torch.nested.narrow(x, 1, torch.tensor([0, 0]), torch.tensor([3, 2]), layout=torch.jagged)
    spare = torch.nested.nested_tensor_from_jagged(torch.cat([x[0, :3], x[1, :2], x[1]]), torch.tensor([0, 3, 5]))
    for given, first in ((gaps, 5), (spare, 3)):
        values = given.values().detach().clone().requires_grad_()
        unused = torch.ones(len(values), dtype=torch.bool)
        unused[:3] = unused[first : first + 2] = False
        with torch.no_grad():
            values[unused] = torch.nan
        output, h_n = layer(torch.nested.nested_tensor_from_jagged(values, given.offsets(), lengths=given.lengths()))
        assert torch.equal(h_n, h_n_expected)
        assert torch.equal(output.values()[:3], expected[:3, 0])
        assert torch.equal(output.values()[first : first + 2], expected[:2, 1])
        assert not output.values()[unused].any()
        output.values().sum().backward()
        assert not values.grad[unused].any()
        assert values.grad[~unused].all()


SKEWED = [40, *[1] * 39]


def skewed(form: str, **options) -> tuple:
    """A batch of 79 valid steps in 40 x 40 places, as an input and lengths."""
    torch.manual_seed(0)
    x = torch.randn(40, 40, 3, **options)
    if form == "padded":
        return x, SKEWED
    if form == "packed":
        return pack_padded_sequence(x, torch.tensor(SKEWED)), None
    return torch.nested.nested_tensor([x[:length, b] for b, length in enumerate(SKEWED)], layout=torch.jagged), None


def saved_bytes(layer, *arguments) -> int:
    """Of what a call keeps for its backward, and of what that is a part of."""
    sizes = {}

    def note(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(*arguments)
    return sum(sizes.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("form", ["packed", "nested"])
@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_that_of_the_valid_steps(engine, form, recompute):
    layer = sstkern.LSTM(3, 64, bidirectional=True, recompute=recompute)
    input, _ = skewed(form)
    with sstkern.backend(engine):
        found, whole = saved_bytes(layer, input), saved_bytes(layer, torch.randn(2, 40, 3))
    # 80 steps as a rectangle. Beside them each sequence has its states, and each of 40 steps a tensor of its own on the reference engine.
    assert found < 2 * whole


def test_lengths_of_a_padded_batch_save_valid_steps():
    layer, (x, lengths) = sstkern.LSTM(3, 64), skewed("padded")
    with sstkern.backend(FUSED):
        found, whole = saved_bytes(layer, x, None, lengths), saved_bytes(layer, torch.randn(2, 40, 3))
    assert found < whole + 2 * x.nbytes // 3 * 64  # the output is padded as x is


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16 if interpreting() else torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES)
def test_packed_input_is_the_padded_one(engine, dtype, kind):
    """Results and gradients, without an order and in one; a step of its own number of rows may round differently, but on our kernels."""
    torch.manual_seed(0)
    layer, _ = pair(kind, 3, 5, 2, bidirectional=True, dtype=dtype)
    lengths = torch.tensor([2, 7, 1, 7, 3])
    x = torch.randn(7, 5, 3, dtype=dtype, requires_grad=True)
    hx = states_of(layer, 5, dtype)
    with only(engine):
        packed, hx_n = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), as_hx(hx))
        output, hx_n_expected = layer(x, as_hx(hx), lengths)
        inputs = [x, *hx, *layer.parameters()]
        found, expected = ([pad_packed_sequence(packed)[0], *flat(hx_n)], [output, *flat(hx_n_expected)])
        found, expected = (results + gradients(results, inputs) for results in (found, expected))
    tolerance = 0 if engine == "cpu" else 16 * torch.finfo(dtype).eps
    assert_close(found, expected, tolerance)


def test_lengths_are_copied():
    """A data loader may fill its buffer anew before the backward, and numpy's memory has no version."""
    torch.manual_seed(0)
    layer, x, buffer = sstkern.LSTM(4, 5), torch.randn(3, 2, 4), np.array([3, 1])
    expected = torch.autograd.grad(layer(x, lengths=[3, 1])[0].sum(), layer.weight_ih_l0)
    output, _ = layer(x, lengths=torch.from_numpy(buffer))
    buffer[:] = [1, 3]
    assert torch.equal(torch.autograd.grad(output.sum(), layer.weight_ih_l0)[0], expected[0])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (None, "lengths"),
        ([3, 3], "sum is"),
        ([2, 3], "fall"),
        ([6, -1], "lengths"),
        ([2**62, 2**62], "lengths"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_lengths_that_do_not_fit_a_packed_input(engine, lengths, message):
    layer = sstkern.GRU(3, 4)
    lengths = None if lengths is None else torch.tensor(lengths)
    arguments = layer.cell, torch.randn(5, 3), list(layer.parameters()), [torch.zeros(1, 2, 4)], lengths, True, False
    run = reference.layer if engine == "reference" else lambda cell, *rest: torch.ops.sstkern.layer(cell.name, *rest, None)
    with pytest.raises((ValueError, RuntimeError), match=message):
        run(*arguments)


def test_nested_inputs_that_are_refused():
    layer = sstkern.GRU(3, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="lengths: a nested input has its own lengths"):
        layer(nested(4, 2), lengths=[4, 2])
    with pytest.raises(ValueError, match=r"input: expected a nested tensor of the layout torch\.jagged, got torch\.strided"):
        layer(torch.nested.nested_tensor([torch.zeros(2, 3)], layout=torch.strided))
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


def test_a_packed_sequence_whose_batch_sizes_rise():
    with pytest.raises(ValueError, match=r"input: the batch_sizes of a PackedSequence fall, got \[2, 3\]"):
        sstkern.GRU(4, 6)(PackedSequence(torch.randn(5, 4), torch.tensor([2, 3])))


def beside(*parts, lengths=None, batch_first=False):
    """x of each part, as a layer of any cell takes them."""
    return to_batches(parts if len(parts) > 1 else parts[0], lengths, batch_first)


@pytest.mark.parametrize("row", [(3,), (2, 3)])
@pytest.mark.parametrize("form", ["padded", "batch_first", "packed", "nested"])
def test_rows_of_any_shape_there_and_back(form, row):
    x = torch.randn(4, 2, *row)
    by_sequence = [x[:4, 0], x[:2, 1]]
    given = {
        "padded": x,
        "batch_first": x.transpose(0, 1),
        "packed": pack_sequence(by_sequence),
        "nested": torch.nested.nested_tensor(by_sequence, layout=torch.jagged),
    }[form]
    found, batch = beside(given, batch_first=form == "batch_first")
    assert found.shape == ((6, *row) if batch.packed else x.shape)
    assert torch.equal(values(batch.restore(found)), values(given))
    with pytest.raises((ValueError, RuntimeError), match="input: expected"):
        to_batch(given if len(row) > 1 else x[:, 0, 0], None, form == "batch_first")


def test_a_packed_sequence_of_numbers():
    packed = pack_sequence([torch.arange(3.0), torch.arange(2.0)])
    x, batch = beside(packed)
    assert x.tolist() == [0, 0, 1, 1, 2]
    assert torch.equal(batch.restore(x).data, x)


def values(sequences):
    """The numbers of sequences in any form."""
    if isinstance(sequences, PackedSequence):
        return sequences.data
    return sequences.values() if sequences.is_nested else sequences


def test_sequences_that_go_together():
    x, score = torch.randn(4, 2, 3), torch.randn(4, 2)
    (a, b), batch = beside(x, score, lengths=[4, 1])
    assert a is x
    assert b is score
    assert batch.lengths.tolist() == [4, 1]
    (a, b), batch = beside(x.transpose(0, 1), score.T, batch_first=True)
    assert torch.equal(a, x)
    assert torch.equal(b, score)
    (a, b), batch = beside(x[:, 0], score[:, 0])
    assert not batch.batched
    assert torch.equal(a, x[:, :1])
    assert torch.equal(b, score[:, :1])
    lengths = torch.tensor([2, 4])
    packed = [pack_padded_sequence(part, lengths, enforce_sorted=False) for part in (x, score[..., None])]
    (a, b), batch = beside(*packed)
    assert torch.equal(b, packed[1].data)
    jagged = [torch.nested.nested_tensor([part[:2, 0], part[:, 1]], layout=torch.jagged) for part in (x, score[..., None])]
    (c, d), batch = beside(*jagged)
    assert torch.equal(c, a)
    assert torch.equal(d, b)


X = torch.zeros(4, 2, 3)


@pytest.mark.parametrize(
    ("parts", "batch_first", "error", "message"),
    [
        (((),), False, ValueError, "input: expected at least one Tensor in the tuple"),
        ((X, None), False, TypeError, r"input\[1\]: expected a Tensor or a PackedSequence, got NoneType"),
        ((X, (X, X)), False, TypeError, r"input\[1\]: expected a Tensor or a PackedSequence, got tuple"),
        (([X, X],), False, TypeError, "input: expected a Tensor or a PackedSequence, got list"),
        ((X[:, 0, 0],), False, ValueError, r"input: expected 2-D \(unbatched\) or 3-D or more \(batched\), got 1-D"),
        ((X, X[:3]), False, ValueError, r"input\[1\]: expected shape \(4, 2, \.\.\.\) like input\[0\], got \(3, 2, 3\)"),
        ((X, X[:, :1]), False, ValueError, r"input\[1\]: expected shape \(4, 2, \.\.\.\) like input\[0\], got \(4, 1, 3\)"),
        ((X, X[:, 0, 0]), False, ValueError, r"input\[1\]: expected shape \(4, 2, \.\.\.\) like input\[0\], got \(4,\)"),
        ((X, X.transpose(0, 1)), True, ValueError, r"input\[1\]: expected shape \(4, 2, \.\.\.\) like input\[0\], got \(2, 4, 3\)"),
        ((X[:, 0], X[:3]), False, ValueError, r"input\[1\]: expected shape \(4, \.\.\.\) like input\[0\], got \(3, 2, 3\)"),
        ((X, pack_sequence([X[:, 0]])), False, TypeError, r"input\[1\]: expected a Tensor like input\[0\], got a PackedSequence"),
        ((nested(4, 2), X), False, TypeError, r"input\[1\]: expected a nested Tensor like input\[0\], got a Tensor"),
        ((nested(4, 2), nested(2, 4)), False, ValueError, r"input\[1\]: expected sequences of the same lengths as input\[0\]"),
        ((pack_sequence([X[:, 0]]), pack_sequence([X[:2, 0]])), False, ValueError, r"input\[1\]: expected sequences of the same lengths"),
        ((torch.zeros(2, 3), torch.zeros(())), False, ValueError, r"input\[1\]: expected shape \(2, \.\.\.\) like input\[0\], got \(\)"),
    ],
)
def test_sequences_that_do_not_go_together(parts, batch_first, error, message):
    with pytest.raises(error, match=message):
        beside(*parts, batch_first=batch_first)
