"""The weights of one recurrent layer, from the flat list torch.nn keeps them in."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sstkern.cells import Cell


class Weights(NamedTuple):
    """One direction; G the number of gates, I input_size, H hidden_size, P proj_size (H without a projection)."""

    weight_ih: Tensor
    """(G*H, I)"""
    weight_hh: Tensor
    """(G*H, P)"""
    bias_ih: Tensor | None
    """(G*H,)"""
    bias_hh: Tensor | None
    """(G*H,)"""
    weight_hr: Tensor | None
    """(P, H)"""
    parameters: tuple[Tensor, ...]
    """The cell's own."""

    @property
    def output_size(self) -> int:
        return self.weight_hh.size(1)


def by_direction(cell: Cell, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool) -> list[Weights]:
    """Splits what `cell.weights` says, of one direction after the other; ValueError for another number."""
    count = check_number(cell, weights, has_bias, bidirectional)
    names = _names(cell, count, has_bias)
    return [_one_direction(names, weights[d : d + count]) for d in range(0, len(weights), count)]


def projected(cell: Cell, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool) -> bool:
    """Whether a layer with these weights has a projection."""
    return check_number(cell, weights, has_bias, bidirectional) > len(cell.weights(has_bias, False))


def weight_names(cell: Cell, count: int, has_bias: bool, bidirectional: bool) -> list[str]:
    """Of `count` weights of all directions, as a layer's parameters are named, without the layer."""
    suffixes = ["", "_reverse"] if bidirectional else [""]
    return [name + suffix for suffix in suffixes for name in _names(cell, count // len(suffixes), has_bias)]


def _names(cell: Cell, count: int, has_bias: bool) -> list[str]:
    """Of the `count` weights of one direction."""
    projected = count > len(cell.weights(has_bias, False))
    return [weight.name for weight in cell.weights(has_bias, projected)]


def check_number(cell: Cell, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool) -> int:
    """How many weights a direction has; ValueError unless a layer of this cell has as many."""
    directions = 2 if bidirectional else 1
    count, rest = divmod(len(weights), directions)
    plain = len(cell.weights(has_bias, False))
    if rest or (count != plain and not (cell.projects and count == len(cell.weights(has_bias, True)))):
        raise ValueError(
            f"weights: a {cell.name} layer with bias={has_bias} has {plain} tensors for each direction"
            f"{' (one more with a projection)' if cell.projects else ''}, got {len(weights)} for {directions} direction(s)"
        )
    return count


def _one_direction(names: Sequence[str], tensors: Sequence[Tensor]) -> Weights:
    named = dict(zip(names, tensors, strict=True))
    biases, projection = (named.pop("bias_ih", None), named.pop("bias_hh", None)), named.pop("weight_hr", None)
    return Weights(named.pop("weight_ih"), named.pop("weight_hh"), *biases, projection, tuple(named.values()))
