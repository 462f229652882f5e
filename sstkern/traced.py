"""torch.func's transforms within torch.compile. Imported while that traces: `allow_in_graph` imports the compiler, 1.6 seconds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sstkern import transforms
from sstkern.cells import CELLS, Cell


def layer(
    cell: Cell,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    every: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """As `transforms.layer`."""
    return _in_graph(cell.name, x, list(weights), list(hx), lengths, has_bias, bidirectional, every)


@torch.compiler.allow_in_graph  # what torch.compile traces is then what `transforms` does, the operators
def _in_graph(
    cell: str,
    x: Tensor,
    weights: list[Tensor],
    hx: list[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
    every: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    return transforms.layer(CELLS[cell], x, weights, hx, lengths, has_bias, bidirectional, every)
