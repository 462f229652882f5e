"""The captures of a layer: kept while they hold, the latest of them."""

import torch
from torch import nn

import sstkern
from sstkern.program.layer import KEPT


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.kind, self.x = 4, 0, nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.x(x) + h * (1 + self.kind))


def captures(layer: nn.Module) -> int:
    return len(layer._direction.programs._captures)


def test_a_structure_seen_before_is_not_captured_again():
    layer = sstkern.fuse(Scaled(), strict=True)
    x = torch.randn(5, 2, 3)
    layer(x)
    first = layer._direction.programs.last
    layer(x[:2, :1])
    assert layer._direction.programs.last is first  # whatever the numbers of steps and sequences
    layer.double()(x.double())
    assert layer._direction.programs.last is not first
    layer.float()(x)
    assert layer._direction.programs.last is first
    assert captures(layer) == 2


def test_the_latest_are_kept():
    layer, x = sstkern.fuse(Scaled(), strict=True), torch.randn(5, 2, 3)
    for kind in range(KEPT + 4):
        layer.cell.kind = kind
        layer(x)
    assert captures(layer) == KEPT
    latest = layer._direction.programs.last
    layer.cell.kind = 0
    layer(x)
    assert captures(layer) == KEPT
    layer.cell.kind = KEPT + 3
    layer(x)
    assert layer._direction.programs.last is latest


def test_explanation_has_the_cells_names(capsys):
    layer = sstkern.fuse(Scaled())
    layer.explain()
    assert capsys.readouterr().out == "Scaled: has not been called yet\n"
    layer(torch.randn(5, 2, 3))
    layer.explain()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Scaled: runs as a program"
    assert "    x.weight (4, 3) float32" in lines
    before, within = (lines.index(title) for title in ("before the loop, for all time steps at once", "in the loop, 1 stage"))
    assert lines[before + 1 : within] == ["    v0 = input @ x.weight.T", "    v1 = v0 + x.bias"]
    assert lines[-1] == "saved for the backward, of each time step: v4"
    layer.explain(source=True)
    assert layer._direction.programs.last.program.text in capsys.readouterr().out
