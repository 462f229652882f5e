import json
import math

import pytest
import torch

from sstkern.text import Examples, demo
from sstkern.text.study import losses


def test_cross_entropy_is_nll():
    result = losses.cross_entropy_is_nll()
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (64,), generator=generator)
    expected = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    for name in ("cross_entropy", "nll_of_log_softmax", "by_hand"):
        assert result[name] == pytest.approx(sum(expected) / 64, rel=1e-14)
    assert result["largest_difference"] < 1e-14
    assert result != losses.cross_entropy_is_nll(seed=1)


# The gap at which exp(gap) is beyond the largest number, that at which exp(-gap) is below half the smallest subnormal one.
LIMITS = {"float32": (2.0**128, 2.0**-150), "bfloat16": (2.0**128, 2.0**-134), "float16": (65520.0, 2.0**-25)}


@pytest.fixture(scope="module")
def result() -> dict:
    return losses.log_after_softmax()


def next_gap(limit: float) -> float:
    return math.ceil(2 * limit) / 2


@pytest.mark.parametrize("classes", ["2", "10"])
@pytest.mark.parametrize("name", LIMITS)
def test_where_log_of_softmax_breaks(result, name, classes):
    largest, smallest = LIMITS[name]
    broken = result["dtypes"][name][classes]["log_of_softmax"]
    assert broken["first_infinite"] == next_gap(-math.log(smallest))
    assert broken["first_bad_gradient"] == next_gap(math.log(largest))
    assert broken["bad_gradient"] == "nan"
    assert [error is None for error in broken["error"]] == [gap >= broken["first_infinite"] for gap in result["gap"]]


@pytest.mark.parametrize("name", LIMITS)
def test_log_softmax_does_not_break(result, name):
    for classes in ("2", "10"):
        sound = result["dtypes"][name][classes]["log_softmax"]
        assert [sound[key] for key in ("first_infinite", "first_inexact", "first_bad_gradient", "bad_gradient")] == [None] * 4
        assert max(sound["error"]) <= 2 * torch.finfo(losses.DTYPES[name]).eps


def test_few_bits_are_left_of_a_subnormal_probability(result):
    errors = dict(zip(result["gap"], result["dtypes"]["float32"]["2"]["log_of_softmax"]["error"], strict=True))
    # Of exp(-103), 1.3 of the smallest subnormal numbers, one is left.
    assert errors[103] == pytest.approx(149 * math.log(2) / 103 - 1, rel=1e-3)
    assert result["dtypes"]["float16"]["2"]["log_of_softmax"]["first_inexact"] == 17


def test_table(result):
    rows = {row["gap"]: row for row in result["table"]}
    assert rows[104]["float32"] == {"log_of_softmax": "-inf", "log_softmax": "-104"}
    assert rows[0]["exact"] == "-0.6931472"
    json.dumps(result, allow_nan=False)


def test_plot_log_after_softmax(tmp_path, figures, result):
    losses.plot_log_after_softmax(result, tmp_path / "log.png")
    assert [axes.get_title().partition(":")[0] for axes in figures[0].axes] == list(LIMITS)
    assert [len(axes.lines) for axes in figures[0].axes] == [2, 2, 2]


def test_labels_left_behind_are_others():
    encoded = [[2] * length for length in (3, 1, 2)]
    labels = [0, 1, 2]
    (moved,), (behind,) = (list(losses._sorted_batches(encoded, labels, moved)) for moved in (True, False))
    assert moved.lengths.tolist() == behind.lengths.tolist() == [1, 2, 3]
    assert (moved.labels.tolist(), behind.labels.tolist()) == ([1, 2, 0], [0, 1, 2])


def test_label_order_without_different_lengths():
    """Nothing is sorted then, and so nothing left behind."""
    train = Examples(["good film", "bad film", "odd film"] * 200, [1, 0, 2] * 200)
    result = losses.label_order(train, Examples(["good", "bad", "odd", "bad", "bad", "bad"], [1, 0, 2, 0, 0, 0]))
    assert result["labels_moved"] == result["labels_left_behind"]
    assert (result["labels_moved"]["accuracy"], result["labels_moved"]["labels_right"]) == (1, 1)
    assert (result["majority"], result["sentences"]) == (2 / 3, 600)


def test_label_order_is_repeatable():
    train, valid = demo(400, 100)
    assert losses.label_order(train, valid) == losses.label_order(train, valid) != losses.label_order(train, valid, seed=1)


def test_label_order_on_sst2(sst2):
    result = losses.label_order(*sst2)
    assert result["labels_moved"]["accuracy"] > 0.76
    assert abs(result["labels_left_behind"]["accuracy"] - 0.5) < 0.06
    assert result["labels_moved"]["labels_right"] == 1
    assert abs(result["labels_left_behind"]["labels_right"] - 0.51) < 0.02
