"""Sequences that begin anew, by the interpreted kernels: each piece is a sequence of its own, in every schedule."""

import pytest
import torch
from interpreter import patch_language_once
from layers import assert_close, flat, gradients, pair
from pieces import Case, check_pieces, of_cell, of_layer, random_states
from torch import Tensor, nn

import sstkern
from sstkern import autograd, operators
from sstkern.cells import CELLS, library
from sstkern.engines import reference, triton_runs
from sstkern.engines.triton import launch, rows
from sstkern.lengths import ALL_ROWS, with_beginnings

patch_language_once()
STEPS, BATCH = 6, 3
LENGTHS = [6, 0, 4]
LAYERS = [("resident", kind) for kind in ("lstm", "gru", "rnn_tanh")] + [("grid", "gru"), ("streamed", "lstm"), ("stepwise", "lstm")]
OWN = {
    "lstm": (lambda: nn.LSTMCell(3, 5), (5, 5)),
    "layer_norm_gru": (lambda: library.LayerNormGRUCell(3, 4), (4,)),
    "cho_gru": (lambda: library.ChoGRUCell(3, 4), (4,)),
}


def resets_of(batch: int = BATCH, steps: int = STEPS) -> Tensor:
    torch.manual_seed(1)
    resets = torch.rand(steps, batch) < 0.4
    resets[0, 0], resets[0, 1], resets[0, 2:] = True, True, False
    resets[-2, 2] = True  # behind that sequence's end, where it has a length
    return resets


def checked(case: Case, lengths: list[int] | None, schedule: str, batch: int = BATCH) -> None:
    torch.manual_seed(0)
    before = triton_runs()
    x = torch.randn(STEPS, batch, 3, dtype=torch.float64, requires_grad=True)
    hx, anew = (random_states(case, batch, torch.float64) for _ in range(2))
    with sstkern.backend("triton", schedule):
        check_pieces(case, x, resets_of(batch), lengths, hx, anew, False, 1e-12)
    after = triton_runs()
    assert {name for name in launch.SCHEDULES if after.get(name, 0) > before.get(name, 0)} == {schedule}


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(("schedule", "kind"), LAYERS)
def test_each_piece_of_a_layer(schedule: str, kind: str, lengths: list[int] | None):
    checked(of_layer(pair(kind, 3, 5, bidirectional=True)[0]), lengths, schedule)


@pytest.mark.parametrize(
    ("name", "schedule", "reverse", "lengths"),
    [
        ("lstm", "resident", False, None),
        ("lstm", "resident", True, LENGTHS),
        ("lstm", "stepwise", True, None),
        ("lstm", "stepwise", False, LENGTHS),
        ("cho_gru", "resident", False, LENGTHS),
        ("cho_gru", "stepwise", True, None),
        ("layer_norm_gru", "resident", True, LENGTHS),
    ],
)
def test_each_piece_of_an_own_cell(name: str, schedule: str, reverse: bool, lengths: list[int] | None):
    make, widths = OWN[name]
    torch.manual_seed(0)
    checked(of_cell(make().double(), widths, reverse, strict=True), lengths, schedule)


def test_more_rows_than_a_tile():
    """The second tile ends at another step."""
    lengths = [6] * 17 + [3, 0]
    checked(of_layer(pair("gru", 3, 4)[0]), lengths, "resident", 19)
    checked(of_cell(nn.GRUCell(3, 4, dtype=torch.float64), (4,)), lengths, "resident", 19)


def by(engine: str, layer: nn.Module, x: Tensor, **options) -> list[Tensor]:
    """Results and gradients of x, parameters and what sequences begin anew with."""
    x = x.detach().clone().requires_grad_()
    with sstkern.backend(engine):
        output, hx_n, states = layer(x, return_states=True, **options)
        results = [output, *flat(hx_n), *flat(states)]
        return [*results, *gradients(results, [x, *layer.parameters(), *flat(options.get("reset_to", ()))])]


def layers(dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    torch.manual_seed(0)
    return [sstkern.LSTM(3, 4, 2, bidirectional=True, dtype=dtype), sstkern.fuse(nn.LSTMCell(3, 4, dtype=dtype), strict=True)]


def test_zeros_by_default_and_one_state_for_all_sequences():
    x, resets = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), resets_of()
    for layer, shape in zip(layers(), ((4, 1, 4), (1, 4)), strict=True):
        assert_close(by("triton", layer, x, resets=resets), by("reference", layer, x, resets=resets), 1e-12)
        learned = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
        found = by("triton", layer, x, resets=resets, reset_to=learned, lengths=LENGTHS)
        assert_close(found, by("reference", layer, x, resets=resets, reset_to=learned, lengths=LENGTHS), 1e-12)
        assert all(gradient.abs().sum() > 0 for gradient in found[-2:])


@pytest.mark.parametrize("schedule", launch.SCHEDULES)
def test_what_is_not_a_number_stays_in_its_piece(schedule: str):
    clean = torch.randn(STEPS, BATCH, 3, dtype=torch.float64)
    dirty, resets = clean.clone(), torch.zeros(STEPS, BATCH, dtype=torch.bool)
    resets[2], resets[4] = True, True
    dirty[2, 0], dirty[3, 1], dirty[2, 2, 1] = torch.nan, torch.inf, -torch.inf
    others = [0, 1, 4, 5]
    for layer in layers():
        results = []
        for x in (clean, dirty):
            x.requires_grad_()
            with sstkern.backend("triton", schedule):
                output = layer(x, resets=resets)[0]
                results.append((output, *gradients([output], [x])))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a[others], b[others])
        assert results[1][0][2].isnan().any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
@pytest.mark.parametrize("schedule", ["resident", "stepwise"])
def test_lower_precision(dtype: torch.dtype, tolerance: float, schedule: str):
    x, resets = torch.randn(STEPS, BATCH, 3).to(dtype), resets_of()
    for narrow, wide in zip(layers(dtype), layers(), strict=True):
        wide.load_state_dict({name: value.double() for name, value in narrow.state_dict().items()})
        given = x.clone().requires_grad_()
        exact = by("reference", wide, x.double(), resets=resets)
        with sstkern.backend("triton", schedule):
            output, hx_n, states = narrow(given, resets=resets, return_states=True)
            results = [output, *flat(hx_n), *flat(states)]
            found = [*results, *gradients(results, [given, *narrow.parameters()])]
        for mine, value in zip(found, exact, strict=True):
            assert mine.dtype == dtype
            assert (mine.double() - value).abs().max() <= tolerance * max(1, value.abs().max().item())


def test_the_same_bits_twice():
    x, resets = torch.randn(STEPS, BATCH, 3), resets_of()
    for layer, shape in zip(layers(torch.float32), ((4, 1, 4), (1, 4)), strict=True):
        learned = tuple(torch.randn(shape, requires_grad=True) for _ in range(2))
        runs = [by("triton", layer, x, resets=resets, reset_to=learned) for _ in range(2)]
        assert all(map(torch.equal, *runs))


def test_lengths_that_stay_on_the_gpu(monkeypatch: pytest.MonkeyPatch):
    x, resets = torch.randn(STEPS, BATCH, 3, dtype=torch.float64), resets_of()
    learned = [tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)) for shape in ((4, 1, 4), (1, 4))]
    given = [(layer, {"resets": resets, "reset_to": anew, "lengths": LENGTHS}) for layer, anew in zip(layers(), learned, strict=True)]
    expected = [by("reference", layer, x, **options) for layer, options in given]
    monkeypatch.setattr(rows, "of_lengths", lambda lengths, steps, device: rows.of_device_lengths(lengths, steps))
    for module in (autograd, operators):
        monkeypatch.setattr(module, "saved_rows", lambda packed, lengths: ALL_ROWS)
    for (layer, options), wanted in zip(given, expected, strict=True):
        assert_close(by("triton", layer, x, **options), wanted, 1e-12)


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0)])
def test_nothing_to_run(steps: int, batch: int):
    x, resets = torch.zeros(steps, batch, 3, dtype=torch.float64), torch.ones(steps, batch, dtype=torch.bool)
    for layer, shape in zip(layers(), ((4, batch, 4), (batch, 4)), strict=True):
        anew = tuple(torch.ones(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
        found = by("triton", layer, x, resets=resets, reset_to=anew)
        assert found[0].shape[:2] == (steps, batch)
        assert all((gradient == 0).all() for gradient in found[-2:])


def test_all_sequences_empty():
    x, resets = torch.zeros(STEPS, 2, 3, dtype=torch.float64), torch.ones(STEPS, 2, dtype=torch.bool)
    for layer in layers():
        found = by("triton", layer, x, resets=resets, lengths=[0, 0])
        assert_close(found, by("reference", layer, x, resets=resets, lengths=[0, 0]), 0)


def test_the_operator_checks_what_it_is_given():
    layer, x, marks = sstkern.LSTM(3, 4), torch.zeros(5, 2, 3), torch.zeros(2, 5, dtype=torch.bool)
    weights, hx = list(layer.parameters()), [torch.zeros(1, 2, 4)] * 2
    operator = torch.ops.sstkern.layer.default
    for lengths, states, message in (
        (marks[:, :4], hx, "resets: expected 5 time steps, as x has, got 4"),
        (torch.zeros(2, 5, dtype=torch.int64), hx, "resets: expected 5 time steps, as x has, got 4"),
        (torch.full((2, 6), 9), hx, r"lengths\[0\] is 9; allowed are 0 to 5"),
        (marks, hx[:1], "expected 2 states in hx, or as many again, got 1"),
        (None, hx * 2, "expected 2 states in hx, got 4"),
        (marks, [*hx, hx[0], torch.zeros(1, 1, 4)], "expected c_0 of shape"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            operator("lstm", x, weights, states, lengths, True, False, None)


def test_packed_rows_of_the_operator():
    layer, lengths = sstkern.GRU(3, 4, bidirectional=True, dtype=torch.float64), torch.tensor([4, 3, 1])
    x, resets = torch.randn(8, 3, dtype=torch.float64, requires_grad=True), resets_of(steps=4)
    weights, hx = list(layer.parameters()), [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    arguments = x, weights, hx, with_beginnings(lengths, resets), True, True
    results = autograd.layer("gru", *arguments)
    expected = reference.layer(CELLS["gru"], *arguments)
    found = [[output, *hx_n, *gradients([output, *hx_n], [x, *weights, *hx])] for output, hx_n in (results, expected)]
    assert_close(*found, 1e-12)
