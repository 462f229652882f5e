"""Sequences that begin anew at some steps: layers and own cells, on every engine, and what PyTorch makes of them."""

import pytest
import torch
from layers import ENGINES, KINDS, assert_close, gradients, pair, states_of
from pieces import check_pieces, of_cell, of_layer, random_states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import sstkern
from sstkern.cells import library
from sstkern.engines import interpreting

LENGTHS = [9, 4, 0, 1, 9, 7]
OWN = {
    "lstm": (lambda: nn.LSTMCell(3, 5), (5, 5)),
    "gru": (lambda: nn.GRUCell(3, 18), (18,)),
    "layer_norm_lstm": (lambda: library.LayerNormLSTMCell(3, 4), (4, 4)),
    "cho_gru": (lambda: library.ChoGRUCell(3, 4), (4,)),
}


class Mixing(nn.Module):
    """Stepped in Python: its step looks at all sequences."""

    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x, h):
        if x.sum() > 1e9:
            return h
        return self.cell(x, h)


def resets_of(steps: int, batch: int, share: float = 0.3) -> torch.Tensor:
    torch.manual_seed(1)
    resets = torch.rand(steps, batch) < share
    resets[0, 0], resets[0, 1:] = True, False
    for b, length in enumerate(LENGTHS[:batch]):
        if length < steps:
            resets[length, b] = True  # behind a sequence's end, where nothing begins anew
    return resets


def checked(case, batch: int, lengths, dtype: torch.dtype, engine: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, batch, 3, dtype=dtype, requires_grad=True)
    lengths = lengths and lengths[:batch]
    hx, anew = random_states(case, batch, dtype), random_states(case, batch, dtype)
    with sstkern.backend(engine):
        check_pieces(case, x, resets_of(9, batch), lengths, hx, anew, engine == "cpu", 1e-12 if dtype == torch.float64 else 1e-5)


# Of few sequences the pieces are dealt out to more lanes.
@pytest.mark.parametrize("batch", [1, 3, 6])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_each_piece_is_a_sequence_of_its_own(kind, dtype, lengths, batch):
    layer, _ = pair(kind, 3, 5, 2, bidirectional=True, dtype=dtype)
    for engine in ENGINES:
        checked(of_layer(layer), batch, lengths, dtype, engine)


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_each_piece_of_an_own_cell(name, reverse, lengths, batch):
    make, widths = OWN[name]
    torch.manual_seed(0)
    for dtype, engines in ((torch.float64, ("reference", "cpu")), (torch.float32, ("cpu",))):
        case = of_cell(make().to(dtype), widths, reverse)
        for engine in engines:
            checked(case, batch, lengths, dtype, engine)
        assert case.layer.fused


@pytest.mark.filterwarnings("ignore:sstkern steps Mixing")
@pytest.mark.parametrize("reverse", [False, True])
def test_each_piece_of_a_cell_that_is_stepped(reverse):
    case = of_cell(Mixing().double(), (4,), reverse)
    checked(case, 6, LENGTHS, torch.float64, "reference")
    assert not case.layer.fused


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("batch", [2, 40])
def test_16_bits_over_many_spans(kind, dtype, batch):
    # So many rows that the engine takes some time steps after the other (csrc/spans.cpp).
    torch.manual_seed(0)
    layer, _ = pair(kind, 3, 16, dtype=torch.float32, bidirectional=True)
    steps = 1200 if batch == 2 else 90
    x, resets = torch.randn(steps, batch, 3), torch.rand(steps, batch) < 0.03
    lengths = torch.randint(0, steps + 1, (batch,))
    narrow = layer.__class__(3, 16, dtype=dtype, bidirectional=True)
    narrow.load_state_dict({name: value.to(dtype) for name, value in layer.state_dict().items()})
    layer.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    results = {}
    for which, x_given in ((narrow, x.to(dtype)), (layer, x.to(dtype).float())):
        given = x_given.clone().requires_grad_()
        output, hx_n, states = which(given, lengths=lengths, resets=resets, return_states=True)
        found = [output, *(hx_n if kind == "lstm" else [hx_n]), *(states if kind == "lstm" else [states])]
        results[which] = [*found, *gradients(found, [given, *which.parameters()])]
    for mine, exact in zip(results[narrow], results[layer], strict=True):
        error = (mine.float() - exact).norm() / exact.norm()
        assert error < 0.02, error  # measured: at most 0.008


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_a_number_stays_in_its_piece(engine):
    torch.manual_seed(0)
    for layer in (sstkern.LSTM(3, 4, 2, bidirectional=True), sstkern.GRU(3, 4), sstkern.fuse(nn.LSTMCell(3, 4))):
        resets = torch.zeros(8, 3, dtype=torch.bool)
        resets[3], resets[5] = True, True
        clean = torch.randn(8, 3, 3)
        dirty = clean.clone()
        dirty[3, 0], dirty[4, 1], dirty[3, 2, 1] = torch.nan, torch.inf, -torch.inf
        found = []
        for x in (clean, dirty):
            x.requires_grad_()
            with sstkern.backend(engine):
                output = layer(x, resets=resets)[0]
                (gradient,) = torch.autograd.grad(output, x, torch.ones_like(output))
            found.append((output, gradient))
        others = [0, 1, 2, 5, 6, 7]
        for a, b in zip(*found, strict=True):
            assert torch.equal(a[others], b[others])
        assert found[1][0][3:5].isnan().any()


def test_gradients_that_are_not_numbers_stay_in_their_piece():
    layer = sstkern.LSTM(3, 4)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[3] = True
    x = torch.randn(6, 2, 3, requires_grad=True)
    for engine in ENGINES:
        with sstkern.backend(engine):
            output = layer(x, resets=resets)[0]
            (gradient,) = torch.autograd.grad(output, x, torch.where(torch.arange(6)[:, None, None] < 3, 1.0, torch.nan).expand(6, 2, 4))
        assert gradient[:3].isfinite().all()
        assert gradient[3:].isnan().all()


def forms_of(layer, x, resets, reset_to):
    """The same call in all forms: its output and last states, padded."""
    lengths = torch.tensor(LENGTHS)
    yield layer(x, lengths=lengths, resets=resets, reset_to=reset_to)
    layer.batch_first = True
    output, hx_n = layer(x.transpose(0, 1), lengths=lengths, resets=resets.t(), reset_to=reset_to)
    yield output.transpose(0, 1), hx_n
    layer.batch_first = False


@pytest.mark.parametrize("make", [lambda: sstkern.LSTM(3, 4, 2, bidirectional=True), lambda: sstkern.fuse(nn.LSTMCell(3, 4))])
@pytest.mark.parametrize("engine", ENGINES)
def test_forms_of_the_input(make, engine):
    torch.manual_seed(0)
    layer, x, resets = make().double(), torch.randn(9, 6, 3, dtype=torch.float64), resets_of(9, 6)
    own = isinstance(layer, sstkern.fuse(nn.GRUCell(1, 1)).__class__)
    anew = torch.randn(1, 4, dtype=torch.float64) if own else torch.randn(4, 1, 4, dtype=torch.float64)
    reset_to = anew, 2 * anew
    with sstkern.backend(engine):
        first, second = forms_of(layer, x, resets, reset_to)
        assert_close([first[0], *first[1]], [second[0], *second[1]], 0)
        lengths = torch.tensor(LENGTHS)
        present = lengths > 0
        packed = pack_padded_sequence(x[:, present], lengths[present], enforce_sorted=False)
        packed_resets = pack_padded_sequence(resets[:, present], lengths[present], enforce_sorted=False)
        output, hx_n = layer(packed, resets=packed_resets, reset_to=reset_to)
        padded = nn.utils.rnn.pad_packed_sequence(output, total_length=9)[0]
        at = (lambda state: state[present]) if own else (lambda state: state[:, present])
        assert_close([padded, *hx_n], [first[0][:, present], *map(at, first[1])], 1e-12)
        nested, nested_resets = (
            torch.nested.nested_tensor([part[:length, b] for b, length in enumerate(LENGTHS)], layout=torch.jagged) for part in (x, resets)
        )
        output, hx_n = layer(nested, resets=nested_resets, reset_to=reset_to)
        assert_close(
            [torch.nested.to_padded_tensor(output, 0.0, (6, 9, output.size(-1))).transpose(0, 1), *hx_n], [first[0], *first[1]], 1e-12
        )
        one = tuple(state.squeeze(0 if own else 1) for state in reset_to)
        output, hx_n = layer(x[:, 0], resets=resets[:, 0], reset_to=one)
        assert_close([output, *hx_n], [first[0][:, 0], *(state[0] if own else state[:, 0] for state in first[1])], 1e-12)


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
def test_zeros_by_default_and_a_learned_first_state():
    torch.manual_seed(0)
    layer, x, resets = sstkern.LSTM(3, 4, dtype=torch.float64), torch.randn(9, 6, 3, dtype=torch.float64), resets_of(9, 6)
    hx = states_of(layer, 6)
    zeros = torch.zeros(1, 1, 4, dtype=torch.float64)
    plain, with_zeros = layer(x, hx, resets=resets), layer(x, hx, resets=resets, reset_to=(zeros, zeros))
    assert torch.equal(plain[0], with_zeros[0])
    learned = [torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    spread = [state.detach().expand(1, 6, 4).clone().requires_grad_() for state in learned]
    found = [gradients([layer(x, hx, resets=resets, reset_to=tuple(anew))[0]], anew) for anew in (learned, spread)]
    assert_close(found[0], [gradient.sum(1, keepdim=True) for gradient in found[1]], 1e-12)


def test_an_own_cell_begins_anew_as_a_call_without_hx_begins():
    class ByDefault(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.first = nn.GRUCell(3, 4), nn.Parameter(torch.randn(4))

        def forward(self, x, h=None):
            return self.cell(x, self.first.expand(x.size(0), 4) if h is None else h)

    class ByMethod(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.first = nn.GRUCell(3, 4), nn.Parameter(torch.randn(4))

        def forward(self, x, h):
            return self.cell(x, h)

        def get_initial_state(self, batch_size):
            return self.first.expand(batch_size, 4)

    torch.manual_seed(0)
    x, resets = torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    resets[2] = True
    for cell in (ByDefault(), ByMethod()):
        layer = sstkern.fuse(cell, strict=True)
        whole, alone = layer(x, resets=resets)[0], layer(x[2:])[0]
        torch.testing.assert_close(whole[2:], alone)
        assert torch.autograd.grad(whole.sum(), cell.first)[0].abs().sum() > 0
    given = torch.randn(2, 4)
    with pytest.raises(ValueError, match="reset_to: what ByDefault begins with is the default of its state"):
        sstkern.fuse(ByDefault())(x, given, resets=resets)


X = torch.zeros(4, 2, 3)
MARKS = torch.zeros(4, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, r"resets: expected bool, got torch.float32; resets.bool\(\)", {"resets": MARKS.float()}),
        (TypeError, "resets: expected a bool Tensor, got list", {"resets": MARKS.tolist()}),
        (ValueError, r"resets: expected shape \(4, 2\), a bool for every step of the input, got \(2, 4\)", {"resets": MARKS.t()}),
        (TypeError, "resets: expected a Tensor like the input, got a PackedSequence", {"resets": pack_padded_sequence(MARKS, [4, 4])}),
        (TypeError, "resets: expected a dense Tensor, got one of layout torch.sparse_coo", {"resets": MARKS.to_sparse()}),
        (ValueError, "resets: is on meta, where it has no values, but the input is on cpu", {"resets": MARKS.to("meta")}),
        (ValueError, "reset_to: without resets nothing begins anew", {"reset_to": torch.zeros(1, 2, 5)}),
        (
            RuntimeError,
            r"reset_to: expected h of shape \(1, 2, 5\) or \(1, 1, 5\), got \(1, 3, 5\)",
            {"resets": MARKS, "reset_to": torch.zeros(1, 3, 5)},
        ),
        (
            RuntimeError,
            "reset_to: expected h of dtype torch.float32 like the input",
            {"resets": MARKS, "reset_to": torch.zeros(1, 2, 5).double()},
        ),
        (RuntimeError, r"reset_to: expected 1 Tensor\(s\) \(h\)", {"resets": MARKS, "reset_to": "zeros"}),
    ],
)
def test_wrong_arguments(error, message, options):
    with pytest.raises(error, match=message):
        sstkern.GRU(3, 5)(X, **options)


@pytest.mark.parametrize(
    ("error", "message", "reset_to"),
    [
        (TypeError, "reset_to: expected Tensor, as the state is, got ", (torch.zeros(2, 5), torch.zeros(2, 5))),
        (
            ValueError,
            r"reset_to: expected shape \(2, 5\) or \(1, 5\) and torch.float32 as the state has, got shape \(1, 4\)",
            torch.zeros(1, 4),
        ),
        (
            ValueError,
            r"reset_to: expected shape \(2, \.\.\.\), a state for each sequence, or \(1, \.\.\.\), one for all, got \(3, 5\)",
            torch.zeros(3, 5),
        ),
    ],
)
def test_wrong_arguments_of_an_own_cell(error, message, reset_to):
    with pytest.raises(error, match=message):
        sstkern.fuse(nn.GRUCell(3, 5))(X, resets=MARKS, reset_to=reset_to)


def test_a_packed_input_has_packed_resets():
    packed = pack_padded_sequence(X, [4, 3])
    with pytest.raises(TypeError, match="resets: expected a PackedSequence like the input, got a Tensor"):
        sstkern.GRU(3, 5)(packed, resets=MARKS)
    with pytest.raises(ValueError, match="resets: expected sequences of the same lengths as the input"):
        sstkern.GRU(3, 5)(packed, resets=pack_padded_sequence(MARKS, [4, 2]))
    with pytest.raises(ValueError, match=r"resets: expected data \(N,\), a bool for every step of the input, got 2 dimensions, not 1"):
        sstkern.GRU(3, 5)(packed, resets=pack_padded_sequence(MARKS[..., None], [4, 3]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_has_nested_resets():
    nested = torch.nested.nested_tensor([torch.zeros(4, 3), torch.zeros(2, 3)], layout=torch.jagged)
    parts = [torch.zeros(4, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.bool)]
    for given, error, message in (
        (
            torch.nested.nested_tensor(parts, layout=torch.jagged),
            ValueError,
            r"a nested Tensor \(B, \*\), a bool .* got 3 dimensions, not 2",
        ),
        (torch.nested.nested_tensor([part[:, 0] for part in parts]), TypeError, "a jagged nested Tensor, got one of layout torch.strided"),
    ):
        with pytest.raises(error, match=f"resets: expected {message}"):
            sstkern.GRU(3, 5)(nested, resets=given)


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
def test_the_operator_checks_what_it_is_given():
    layer = sstkern.LSTM(3, 4)
    weights, hx = [*layer.parameters()], [torch.zeros(1, 2, 4)] * 2
    x, marks = torch.zeros(5, 2, 3), torch.zeros(2, 5, dtype=torch.bool)
    operator = torch.ops.sstkern.layer.default
    operator("lstm", x, weights, hx, marks, True, False, None)
    for lengths, states, message in (
        (marks[:, :4], hx, "resets: expected 5 time steps, as x has"),
        (torch.zeros(2, 5, dtype=torch.int64), hx, "resets: expected 5 time steps, as x has"),
        (torch.full((2, 6), 9), hx, r"lengths\[0\] is 9; allowed are 0 to 5"),
        (marks.int(), hx, "lengths: expected an int64 tensor on the CPU"),
        (marks, hx[:1], "hx: expected 2 states, or as many again, got 1"),
        (marks, hx * 2 + hx, "hx: expected 2 states, or as many again, got 6"),
        (marks, [*hx, hx[0], torch.zeros(1, 1, 4)], "c_0: expected shape"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            operator("lstm", x, weights, states, lengths, True, False, None)


@pytest.mark.skipif(interpreting(), reason="the C++ engine's")
def test_nothing_to_run():
    for steps, batch in ((0, 2), (3, 0), (0, 0)):
        for layer in (sstkern.LSTM(3, 4), sstkern.fuse(nn.GRUCell(3, 4))):
            for engine in ("cpu", "reference"):
                with sstkern.backend(engine):
                    output = layer(torch.zeros(steps, batch, 3, requires_grad=True), resets=torch.ones(steps, batch, dtype=torch.bool))[0]
                    assert output.shape == (steps, batch, 4)
                    output.sum().backward()


def test_a_change_of_the_callers_resets_is_not_seen():
    # A data loader may fill them anew before the backward.
    layer, x, resets = sstkern.GRU(3, 4), torch.randn(6, 2, 3, requires_grad=True), resets_of(6, 2)
    expected = gradients([layer(x, resets=resets)[0]], [x])
    output = layer(x, resets=resets)[0]
    resets.fill_(True)
    assert torch.equal(gradients([output], [x])[0], expected[0])


@pytest.mark.parametrize("batch", [1, 3, 5, 9])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "own", "states"])
def test_forward_and_backward_may_have_different_numbers_of_threads(kind: str, batch: int):
    """And any number gives the same bits: where pieces are is a matter of shapes alone."""
    torch.manual_seed(0)
    layer = sstkern.fuse(nn.GRUCell(5, 7)) if kind == "own" else getattr(sstkern, "LSTM" if kind == "states" else kind)(5, 7)
    layer.double()
    x, resets = torch.randn(60, batch, 5, dtype=torch.float64, requires_grad=True), torch.rand(60, batch) < 0.4

    def gradients_on(forward: int, backward: int) -> list[Tensor]:
        torch.set_num_threads(forward)
        output, *_, states = layer(x, resets=resets, return_states=True)
        total = output.square().sum() + (states[1].square().sum() if kind == "states" else 0)
        torch.set_num_threads(backward)
        return list(torch.autograd.grad(total, [x, *layer.parameters()]))

    before = torch.get_num_threads()
    try:
        expected = gradients_on(1, 1)
        for numbers in ((1, 2), (2, 1), (2, 2), (1, 4)):
            assert all(torch.equal(a, b) for a, b in zip(gradients_on(*numbers), expected, strict=True)), numbers
    finally:
        torch.set_num_threads(before)
