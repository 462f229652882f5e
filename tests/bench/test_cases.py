"""The cases' sizes, counted by hand."""

import pytest
import torch

from sstkern.bench import cases
from sstkern.bench.cases import Case


def test_the_grid_is_every_combination_once():
    grid = cases.grid()
    assert len(set(grid)) == len(grid) == 3 * 11 * 2 * 2 * 2
    assert cases.grid(["GRU"], [(1, 2, 3)], ["training"], ["sst2"], ["bfloat16"]) == [Case("GRU", 1, 2, 3, True, "sst2", "bfloat16")]


@pytest.mark.parametrize(("cell", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_flops_and_bytes_of_full_sequences(cell: str, gates: int):
    case = Case(cell, batch=3, steps=5, size=8)
    assert case.tokens == 15
    assert case.flops == 15 * gates * 2 * (8 + 8) * 8
    assert Case(cell, 3, 5, 8, training=True).flops == 3 * case.flops
    assert case.weight_bytes == 4 * gates * (8 + 8) * 8
    assert case.recurrent_bytes == case.weight_bytes / 2
    assert case.streamed_bytes == 4 * gates * 8 * 8 * (1 + 5)
    assert Case(cell, 3, 5, 8, training=True).streamed_bytes == 2 * case.streamed_bytes
    assert Case(cell, 3, 5, 8, dtype="bfloat16").weight_bytes == case.weight_bytes / 2


def test_only_valid_tokens_count():
    case = Case("LSTM", batch=32, steps=20, size=8, lengths="sst2")
    assert case.tokens == sum(case.valid) < 32 * 20
    assert case.flops * 32 * 20 == Case("LSTM", 32, 20, 8).flops * case.tokens


@pytest.mark.parametrize(
    ("shape", "lengths", "valid"),
    [((3, 9, 8), "rest_1", [9, 1, 1]), ((2, 50, 8), "rest_20", [50, 20]), ((2, 7, 8), "rest_20", [7, 7]), ((1, 9, 8), "rest_1", [9])],
)
def test_a_skewed_batch_is_packed_and_has_one_long_sequence(shape: cases.Shape, lengths: str, valid: list[int]):
    case = Case("LSTM", *shape, lengths=lengths)
    assert (case.valid, case.tokens, case.packed) == (valid, sum(valid), True)
    assert not Case("LSTM", *shape, lengths="sst2").packed


def test_what_a_case_says_of_itself():
    assert str(Case("GRU", 1, 2, 3, True, "sst2", "bfloat16")) == "GRU B1 T2 H3 training sst2 bfloat16"
    assert Case("GRU", 1, 2, 3, dtype="bfloat16").torch_dtype == torch.bfloat16
    assert Case("GRU", 1, 2, 3).valid is None
    row = {"cell": "GRU", "batch": 4, "steps": 5, "size": 3, "phase": "training", "lengths": "rest_1", "dtype": "float32", "tokens": 8}
    assert Case("GRU", 4, 5, 3, True, "rest_1").as_row() == row


def test_sst2_lengths_fill_the_batch_and_are_always_the_same():
    lengths = cases.sst2_lengths(128, 20)
    assert lengths == cases.sst2_lengths(128, 20)
    assert (len(lengths), max(lengths)) == (128, 20)
    assert min(lengths) >= 1
    assert cases.sst2_lengths(1, 50) == [50]
    assert cases.sst2_lengths(6, 1) == [1] * 6


def test_sst2_lengths_have_the_distribution_of_the_sentences():
    assert sum(cases.SST2_HISTOGRAM) == 67349
    mean = sum(words * count for words, count in enumerate(cases.SST2_HISTOGRAM, start=1)) / 67349
    assert mean == pytest.approx(9.41, abs=0.01)
    many = cases.sst2_lengths(20000, 52)  # so many that the longest sentence is among them, and nothing is stretched
    assert sum(many) / len(many) == pytest.approx(mean, rel=0.02)
    assert sum(length == 2 for length in many) / len(many) == pytest.approx(7241 / 67349, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "lstm"}, "cell: expected one of LSTM, GRU, RNN, got 'lstm'"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"lengths": "random"}, "lengths: expected one of full, sst2, rest_1, rest_20, got 'random'"),
        ({"dtype": "float64"}, "dtype: expected one of float32, bfloat16, float16, got 'float64'"),
    ],
)
def test_an_impossible_case_names_what_is_wrong(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Case(**{"cell": "LSTM", "batch": 1, "steps": 1, "size": 1} | change)


def test_shapes_are_read():
    assert cases.parse_shape("32, 20,128") == (32, 20, 128)
    for text in ("32,20", "32,20,0", "a,b,c", "1,2,3,4", "1,-2,3"):
        with pytest.raises(ValueError, match=f"expected three positive integers B,T,H, as in 32,20,128, got '{text}'"):
            cases.parse_shape(text)
