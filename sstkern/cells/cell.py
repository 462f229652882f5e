"""What a cell tells the time loop about itself."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

States = tuple[Tensor, ...]
Parameters = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell; B = batch, H = hidden_size, P = proj_size, or H without a projection.

    step(gates_x, gates_h, states, parameters) -> states does one time step. gates_x and gates_h are (B, gates * H): the input's and the
    state's part of the gates, biases included, kept apart because some cells (GRU) do not simply add them. states[0] is h (B, P), which
    the recurrent matrix multiplies and the layer outputs; the others are (B, H).
    """

    name: str
    gates: int
    """Gates, each H wide, in the order their rows have in weight_ih and weight_hh."""
    states: tuple[str, ...]
    """Names of the states, h first."""
    saves: tuple[str, ...]
    """What the fused engines keep for the backward beside the activated gates: one (B, H) each per time step."""
    step: Callable[[Tensor, Tensor, States, Parameters], States]
    parameters: tuple[str, ...] = ()
    """Names of the cell's own parameters (peepholes, normalisation gains), handed to step and reduce; they follow the weights."""
    reduce: Callable[[Tensor, Parameters], Tensor] | None = None
    """A phase across the hidden units of a row, gates_h -> gates_h, before the step: layer normalisation."""
    projects: bool = False
    """Whether a projection (weight_hr) of the step's h may follow the step."""
