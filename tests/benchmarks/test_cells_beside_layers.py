"""Own cells beside the layers written by hand: that ratios are of the right numbers."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import cells_beside_layers
from sstkern.bench import machine


def test_a_row_has_the_nearest_layer_s_time_over_the_cell_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(machine, "product_rate", lambda dtype, threads: 50.0)
    names = ("benchmarks.published_cells:GRU", "coupled_lstm")
    cells = [part for name in names for part in ("--cell", name)]
    cells_beside_layers.main(
        [*cells, "--shape", "2,3,8", "--phase", "training", "--threads", "1", "--seconds", "0", "--output", str(tmp_path)]
    )
    gru, coupled = json.loads((tmp_path / "cells_beside_layers.json").read_text())["rows"]
    assert (gru["nearest"], coupled["nearest"]) == ("GRU", "LSTM")
    assert gru["ratio"] == pytest.approx(gru["ms"]["GRU"] / gru["ms"]["sstkern"])
    assert gru["ratio_per_flop"] == pytest.approx(gru["ratio"])  # as many operations
    assert coupled["ratio_per_flop"] == pytest.approx(0.75 * coupled["ratio"])  # three gates where an LSTM has four
    assert gru["rate_share"]["sstkern"] == pytest.approx(2 * 3 * 2 * 24 * 16 * 3 / gru["ms"]["sstkern"] / 1e6 / 50)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("GRU ")
    assert "LSTM / cell" in second
