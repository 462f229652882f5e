"""The weights of one recurrent layer, from the flat list torch.nn keeps them in."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sstkern.cells import Cell


class Weights(NamedTuple):
    """One direction; G gates, I input_size, H hidden_size, P proj_size (H without a projection)."""

    weight_ih: Tensor
    """(G * H, I)"""
    weight_hh: Tensor
    """(G * H, P)"""
    bias_ih: Tensor | None
    """(G * H,)"""
    bias_hh: Tensor | None
    """(G * H,)"""
    weight_hr: Tensor | None
    """(P, H)"""
    parameters: tuple[Tensor, ...]
    """The cell's own."""

    @property
    def output_size(self) -> int:
        return self.weight_hh.size(1)


def by_direction(cell: Cell, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool) -> list[Weights]:
    """Splits [weight_ih, weight_hh, bias_ih?, bias_hh?, weight_hr?, *cell parameters] x directions; ValueError for another number."""
    count = check_number(cell, weights, has_bias, bidirectional)
    plain = _plain(cell, has_bias)
    return [_one_direction(weights[d : d + count], has_bias, count > plain) for d in range(0, len(weights), count)]


def check_number(cell: Cell, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool) -> int:
    """How many weights a direction has; ValueError unless a layer of this cell has as many."""
    directions = 2 if bidirectional else 1
    count, rest = divmod(len(weights), directions)
    plain = _plain(cell, has_bias)
    if rest or count not in (plain, plain + cell.projects):
        raise ValueError(
            f"weights: a {cell.name} layer with bias={has_bias} has {plain} tensors for each direction"
            f"{' (one more with a projection)' if cell.projects else ''}, got {len(weights)} for {directions} direction(s)"
        )
    return count


def _plain(cell: Cell, has_bias: bool) -> int:
    return 2 + 2 * has_bias + len(cell.parameters)


def _one_direction(weights: Sequence[Tensor], has_bias: bool, projected: bool) -> Weights:
    weight_ih, weight_hh, *rest = weights
    bias_ih, bias_hh = (rest.pop(0), rest.pop(0)) if has_bias else (None, None)
    weight_hr = rest.pop(0) if projected else None
    return Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, tuple(rest))
