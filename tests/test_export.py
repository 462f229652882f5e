"""torch.export: a program of the operators, at any number of time steps and sequences. docs/pytorch.md packages one with AOTInductor."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import sstkern

LAYERS = {
    "LSTM": lambda: sstkern.LSTM(4, 6, 2, bidirectional=True, proj_size=3),
    "GRU": lambda: sstkern.GRU(4, 6),
    "RNN": lambda: sstkern.RNN(4, 6, bias=False),
}


def exported(layer: torch.nn.Module, strict: bool = False) -> torch.export.ExportedProgram:
    steps, batch = Dim("T", min=1, max=1000), Dim("B", min=1, max=1000)
    arguments = torch.randn(5, 3, 4), None, torch.tensor([5, 0, 2])
    return torch.export.export(layer, arguments, dynamic_shapes=({0: steps, 1: batch}, None, {0: batch}), strict=strict)


def inputs() -> tuple[Tensor, None, Tensor]:
    return torch.randn(9, 2, 4), None, torch.tensor([9, 1])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_program_at_other_sizes_and_from_disk_is_the_layer(name, strict, tmp_path: Path):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    program = exported(layer, strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum("sstkern.layer" in target for target in targets) == layer.num_layers
    torch.export.save(program, tmp_path / "layer.pt2")
    x = inputs()
    expected = layer(*x)
    for found in (program, program.run_decompositions(), torch.export.load(tmp_path / "layer.pt2")):
        torch.testing.assert_close(found.module()(*x), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"lengths\[1\] is 10; allowed are 0 to 9"):
        program.module()(x[0], None, torch.tensor([9, 10]))


def test_a_cell_is_exported():
    cell, batch = sstkern.LSTMCell(4, 6), Dim("B", min=1, max=1000)
    program = torch.export.export(cell, (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 4)
    torch.testing.assert_close(program.module()(x), cell(x), rtol=0, atol=0)
