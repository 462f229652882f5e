"""Floating-point operations, as PyTorch's counter counts them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layers import CELL_KINDS, KINDS, pair
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sstkern


def counted(layer: nn.Module, x: Tensor, **options) -> tuple[int, int]:
    """Of the forward, and of it and the backward."""
    with FlopCounterMode(display=False) as counter:
        results = layer(x, **options)
        forward = counter.get_total_flops()
        output = results[0] if isinstance(results, tuple) else results
        output.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_layer_counts_what_its_matrix_products_do(kind, bidirectional, needs_x):
    ours, theirs = pair(kind, 8, 16, 2, bidirectional=bidirectional, dtype=torch.float32)
    x = torch.randn(5, 3, 8, requires_grad=needs_x)
    found = counted(ours, x)
    with sstkern.backend("reference"):
        assert found == counted(ours, x)  # its products are PyTorch's own
    if not kind.startswith("lstm"):  # torch.nn's is one operator that the counter does not know
        assert found == counted(theirs, x)


@pytest.mark.parametrize("kind", sorted(CELL_KINDS))
def test_a_cell_counts_what_torchs_does(kind):
    ours, theirs, options = CELL_KINDS[kind]
    x = torch.randn(3, 8)
    forward, _ = counted(ours(8, 16, **options), x)
    assert forward == counted(theirs(8, 16, **options), x)[0] > 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_padding_is_not_counted(kind):
    layer, _ = pair(kind, 8, 16, bidirectional=True, dtype=torch.float32)
    alone = [counted(layer, torch.randn(steps, 1, 8)) for steps in (5, 2)]
    assert counted(layer, torch.randn(5, 3, 8), lengths=[5, 0, 2]) == tuple(map(sum, zip(*alone, strict=True)))


@pytest.mark.parametrize("imports", ["import sstkern, torch.utils.flop_counter", "import torch.utils.flop_counter, sstkern"])
def test_the_order_of_imports_does_not_matter(imports: str):
    script = f"""{imports}
import sys, torch
with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
    sstkern.GRU(8, 16)(torch.ones(5, 3, 8))
print(counter.get_total_flops(), sum("sstkern" in type(finder).__module__ for finder in sys.meta_path))
"""
    root = Path(sstkern.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.split() == [str(2 * 5 * 3 * 3 * 16 * (8 + 16)), "0"]
