"""What the cells of the library have in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import init

from sstkern.cells.cell import uniform


class LibraryCell(nn.Module):
    """One time step: `forward(input, state)` of (B, input_size) and the states before it gives the states after it, (B, hidden_size) each.

    A state is a Tensor, or of several states a tuple of Tensors; the first one is the output. Step it by hand from `get_initial_state`,
    or run it over sequences with `sstkern.fuse(cell)`. `reset_parameters` draws the parameters anew.

    Raises TypeError for a size that is no int, ValueError for one below 1.
    """

    STATES: ClassVar[tuple[str, ...]] = ("h",)
    """Names of the states, the output first."""
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    """Names of the constructor's other arguments, which the cell has as attributes."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_size(name, size)
        self.input_size, self.hidden_size = input_size, hidden_size

    def reset_parameters(self) -> None:
        """torch.nn's: all from -1/sqrt(H) to 1/sqrt(H)."""
        for parameter in self.parameters():
            uniform(parameter, self.hidden_size)

    def get_initial_state(
        self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Zeros for `batch_size` sequences, by default in the parameters' dtype and on their device."""
        like = next(self.parameters())
        states = tuple(like.new_zeros(batch_size, self.hidden_size, dtype=dtype, device=device) for _ in self.STATES)
        return states if len(states) > 1 else states[0]

    def extra_repr(self) -> str:
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *(f"{name}={getattr(self, name)}" for name in self.OPTIONS)])


def orthogonal(weight: Tensor, hidden_size: int) -> None:
    """Fills each gate's rows of a recurrent matrix (G*H, H) with an orthogonal matrix."""
    for gate in weight.split(hidden_size):
        init.orthogonal_(gate)


def zeros(*tensors: Tensor) -> None:
    for tensor in tensors:
        init.zeros_(tensor)


def check_size(name: str, value: int) -> int:
    """The value. Raises TypeError where it is no int, ValueError below 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value


def check_pair(input: object, second: str) -> None:
    """Raises TypeError where an input is no pair of Tensors, x and what `second` says."""
    if not isinstance(input, tuple | list) or len(input) != 2:
        found = f"{len(input)} of them" if isinstance(input, tuple | list) else type(input).__name__
        raise TypeError(f"input: expected a pair of Tensors (x, {second}), got {found}")


def check_probability(name: str, value: float) -> float:
    """The value. Raises TypeError where it is no number, ValueError where it is no probability."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a probability from 0 to 1, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, got {value}")
    return value
