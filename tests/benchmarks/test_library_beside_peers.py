"""The library's cells beside other packages' layers: that each peer does the same work, and ratios are of the right numbers."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import library_beside_peers
from sstkern.bench import machine
from sstkern.bench.own_cases import OwnCase
from sstkern.cells import LIBRARY


@pytest.mark.parametrize("name", library_beside_peers.PEERS)
def test_a_peer_is_a_layer_of_the_same_sizes(name: str):
    assert name in LIBRARY
    peer = library_beside_peers.peer_of(OwnCase(name, 2, 3, 8, training=True))
    if peer is None:
        pytest.importorskip(library_beside_peers.PEERS[name][0].replace("-", "_"))
    found = peer(torch.randn(3, 2, 8, requires_grad=True))
    output = found if isinstance(found, torch.Tensor) else found[0]
    assert output.shape == (3, 2, 8)
    library_beside_peers.training_step(peer, torch.randn(3, 2, 8))
    weights = {name for name, parameter in peer.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert weights


def test_ratios_are_over_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(machine, "product_rate", lambda dtype, threads: 50.0)
    cells = [part for name in ("mgu", "augru") for part in ("--cell", name)]
    library_beside_peers.main([*cells, "--shape", "2,3,8", "--threads", "1", "--seconds", "0", "--output", str(tmp_path)])
    mgu, augru = json.loads((tmp_path / "library_beside_peers.json").read_text())["rows"]
    assert (mgu["peer"], augru["peer"], set(augru["ratio"])) == ("torchrecurrent", None, {"loop"})
    for name, ratio in mgu["ratio"].items():
        assert ratio == pytest.approx(mgu["ms"][name] / mgu["ms"]["sstkern"])
    assert mgu["rate_share"] == pytest.approx(2 * 3 * 2 * 16 * 16 * 3 / mgu["ms"]["sstkern"] / 1e6 / 50)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("mgu ")
    assert "torchrecurrent" in first
    assert "torchrecurrent" not in second
