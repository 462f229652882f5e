"""An LSTM with resets beside other libraries' ways of doing it."""

import json
import sys

import pytest
import torch

from sstkern.bench import resets


def test_the_first_shape_is_that_of_torchrls_benchmark():
    cases = resets.cases(phases=["training"])
    assert cases[0] == resets.Case((128, 128, 256), "training")
    assert len(cases) == 4
    _, x, marks = resets.problem((128, 128, 256))
    assert x.shape == (128, 128, 256)
    assert 0.025 < marks.float().mean() < 0.035


@pytest.mark.parametrize("training", [False, True])
def test_all_ways_compute_the_same(training):
    layer, x, marks = resets.problem((5, 40, 8))
    assert marks.any()
    found, left_out = resets.ways(layer, marks)
    assert {*found, *left_out} == {*resets.WAYS}
    whole = resets.results(*found.pop(resets.WITHOUT), x, training)
    expected = resets.results(*found.pop(resets.OURS), x, training)
    assert not torch.allclose(whole[0], expected[0])
    for way in found.values():
        torch.testing.assert_close(resets.results(*way, x, training), expected, rtol=1e-4, atol=1e-5)
    assert len(expected) == (6 if training else 1)


def test_a_run_writes_what_could_run(tmp_path, monkeypatch):
    for name in ("sb3_contrib", "sb3_contrib.common.recurrent.policies"):  # the second where another test has imported it
        monkeypatch.setitem(sys.modules, name, None)
    found = resets.run(resets.cases([(2, 5, 4)], ["inference"]), 0.01, tmp_path, lambda case: None)
    assert json.loads((tmp_path / "resets.json").read_text()) == found
    (row,) = found["rows"]
    assert "sb3_contrib" in row["left_out"]["sb3-contrib"]
    times = {name: figures["ms"] for name, figures in row["engines"].items()}
    assert row["ratios"] == {name: ms / times["sstkern"] for name, ms in times.items() if name != "sstkern"}
    assert {"sstkern", "without resets", "CleanRL"} <= times.keys()
