"""Own cells by their names; `test_cli.py` has what is told of names that lead to none."""

import sys

import pytest
import torch
from torch import nn

from sstkern.cells import LightGRUCell
from sstkern.named import own_cell


def test_a_cell_is_made_of_its_sizes():
    cell = own_cell("torch.nn:GRUCell", 3, 4)
    assert isinstance(cell, nn.GRUCell)
    assert cell(torch.ones(2, 3)).shape == (2, 4)


def test_a_cell_of_the_library():
    assert type(own_cell("light_gru", 3, 4)) is LightGRUCell


def test_a_cell_of_the_library_with_two_inputs_makes_the_second_of_the_first():
    cell = own_cell("augru", 3, 4)
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    assert torch.equal(cell(x, h), cell.step((x, torch.sigmoid(x[:, 0])), h))
    assert (cell.input_size, cell.hidden_size) == (3, 4)


def test_a_module_of_the_folder_one_is_in(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cell_of_this_folder.py").write_text("import torch\n\nclass Mine(torch.nn.RNNCell):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    try:
        assert type(own_cell("cell_of_this_folder:Mine", 3, 4)).__name__ == "Mine"
        own_cell("cell_of_this_folder:Mine", 3, 4)
        assert sys.path.count("") == 1
    finally:
        sys.modules.pop("cell_of_this_folder", None)


@pytest.mark.parametrize("name", ["torch.nn:LSTM", "builtins:int", "torch.nn:Bilinear"])
def test_what_is_no_cell_is_a_value_error(name: str):
    with pytest.raises(ValueError, match=f"cell: {name}\\(3, 4\\) makes no cell: "):
        own_cell(name, 3, 4)
