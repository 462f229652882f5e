"""What a cell tells the rest of the library about itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from torch import Tensor
from torch.nn import init

States = tuple[Tensor, ...]
Parameters = tuple[Tensor, ...]
Shape = tuple[str, ...]
"""Sizes by name: I input_size, H hidden_size, P the width of h (proj_size, or H without a projection), G*H a row of each gate."""
SIZES = ("I", "H", "P", "G*H")


def uniform(parameter: Tensor, hidden_size: int) -> None:
    """torch.nn's initialisation: from -1/sqrt(H) to 1/sqrt(H)."""
    bound = 1 / math.sqrt(hidden_size) if hidden_size > 0 else 0
    init.uniform_(parameter, -bound, bound)


@dataclass(frozen=True)
class Weight:
    """What a direction of a layer has of one weight or bias, before there is a tensor."""

    name: str
    shape: Shape
    initialise: Callable[[Tensor, int], None] = uniform
    """Fills the parameter, its first argument, in place; the second one is hidden_size."""


@dataclass(frozen=True)
class Stage:
    """One matrix product of a step."""

    weight: str
    of: str
    """What the weight multiplies: "h", of the step before, or "new h", which the step itself has computed."""
    shape: Shape
    optional: bool = False


RECURRENT = Stage("weight_hh", "h", ("G*H", "P"))
PROJECTION = Stage("weight_hr", "new h", ("P", "H"), optional=True)


@dataclass(frozen=True)
class Cell:
    """A recurrent cell; B batch, G the number of gates, and the sizes of `Shape`.

    step(gates_x, gates_h, states, parameters) -> states does one time step. gates_x and gates_h are (B, G * H): the input's and the
    state's part of the gates before their activation, biases included, kept apart because some cells (GRU) do not simply add them.
    states[0] is h (B, P), which the recurrent product multiplies and the layer outputs; the others are (B, H). parameters are the cell's
    own. With a projection the step returns h (B, H), which the projection then makes (B, P).

    Raises ValueError for states whose first is not h, names that stand twice or are every layer's, no gates, shapes in unknown sizes, and
    other stages than RECURRENT and PROJECTION.
    """

    name: str
    gates: tuple[str, ...]
    """Names of the gates, each H wide, in the order their rows have in weight_ih and weight_hh."""
    states: tuple[str, ...]
    """Names of the states, h first."""
    step: Callable[[Tensor, Tensor, States, Parameters], States]
    parameters: tuple[Weight, ...] = ()
    """The cell's own (peepholes, normalisation gains), which follow the weights that every cell has."""
    stages: tuple[Stage, ...] = (RECURRENT,)
    """The matrix products of a step, in order; the step is between the recurrent one and the others."""
    same_gate_gradients: bool = True
    """Whether the step reads only the sum of gates_x and gates_h, so that both have the same gradient."""
    triton: str | None = None
    """The module whose `KERNELS` has the GPU engine's kernels of the cell. Those of the C++ engine register themselves."""
    torch_mode: str | None = None
    """The `mode` of the torch.nn layer that computes the same: "LSTM", "GRU", "RNN_TANH", "RNN_RELU"."""
    _weights: dict[tuple[bool, bool], tuple[Weight, ...]] = field(init=False, repr=False, compare=False)
    """What `weights` returns, made once: every call of a layer asks."""

    def __post_init__(self) -> None:
        if self.stages not in ((RECURRENT,), (RECURRENT, PROJECTION)):
            raise ValueError(f"stages: expected RECURRENT, and perhaps PROJECTION after it, got {self.stages}")
        for what, names in (("gates", self.gates), ("states", self.states), ("parameters", self._names())):
            if not isinstance(names, tuple) or not names or len(set(names)) < len(names):
                raise ValueError(f"{what}: expected a tuple of names that differ, at least one, got {names!r}")
        if self.states[0] != "h":
            raise ValueError(f"states: expected h first, got {self.states}")
        unknown = {size for weight in self._all(True, True) for size in weight.shape} - set(SIZES)
        if unknown:
            raise ValueError(f"shape: expected sizes of {', '.join(SIZES)}, got {', '.join(sorted(unknown))}")
        made = {(bias, projected): self._all(bias, projected) for bias in (False, True) for projected in {False, self.projects}}
        object.__setattr__(self, "_weights", made)

    def __fx_create_arg__(self, tracer: object) -> NoReturn:
        """torch.fx.symbolic_trace asks for a cell's form in its graph: there is none."""
        raise NotImplementedError(
            "torch.fx.symbolic_trace: it cannot trace into sstkern's layers and cells; give it a torch.fx.Tracer whose is_leaf_module is "
            "true of them"
        )

    def _names(self) -> tuple[str, ...]:
        """The names of the cell's own parameters and of those that every layer has."""
        return ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", *(parameter.name for parameter in self.parameters))

    @property
    def projects(self) -> bool:
        """Whether a projection (weight_hr) of the step's h may follow the step."""
        return any(stage.optional for stage in self.stages)

    @property
    def torch_class(self) -> str:
        """Name of the class of layers, torch.nn's and, the same, sstkern's; that of the one-step cells has "Cell" after it. "" for none."""
        return (self.torch_mode or "").partition("_")[0]

    @property
    def torch_options(self) -> dict[str, str]:
        """What that class's constructor is given beside the arguments that all have."""
        nonlinearity = (self.torch_mode or "").partition("_")[2].lower()
        return {"nonlinearity": nonlinearity} if nonlinearity else {}

    def weights(self, bias: bool, projected: bool) -> tuple[Weight, ...]:
        """The weights of one direction, in the operators' order: weight_ih, weight_hh, bias_ih?, bias_hh?, weight_hr?, the cell's own.

        Raises KeyError for a projection that the cell does not have.
        """
        return self._weights[bias, projected]

    def shapes(
        self, bias: bool, projected: bool, *, input_size: int, hidden_size: int, output_size: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of `weights` by name, in numbers. output_size: the width of h where it is projected."""
        width = hidden_size if output_size is None else output_size
        sizes = dict(zip(SIZES, (input_size, hidden_size, width, len(self.gates) * hidden_size), strict=True))
        return {weight.name: tuple(sizes[size] for size in weight.shape) for weight in self.weights(bias, projected)}

    def state_sizes(self, hidden_size: int, output_size: int) -> list[int]:
        """Widths of the states: h has the output's."""
        return [output_size, *[hidden_size] * (len(self.states) - 1)]

    def _all(self, bias: bool, projected: bool) -> tuple[Weight, ...]:
        recurrent, *others = (Weight(stage.weight, stage.shape) for stage in self.stages if projected or not stage.optional)
        biases = [Weight(name, ("G*H",)) for name in ("bias_ih", "bias_hh") if bias]
        return Weight("weight_ih", ("G*H", "I")), recurrent, *biases, *others, *self.parameters
