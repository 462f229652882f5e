"""LSTM, GRU, RNN and their cells, with torch.nn's arguments, parameter names, initialisation and state_dict, and layers of any other cell.

The cells subclass torch.nn's. The layers subclass torch.nn.RNNBase only, since torch.compile does not trace instances of torch.nn.LSTM and
its like; `conversion` has layers that are those too.
"""

import numbers
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from operator import index
from typing import Any, NoReturn, SupportsFloat

import torch
from torch import Tensor, nn
from torch.nn import Parameter, RNNBase
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils.rnn import PackedSequence

from sstkern import functional, private
from sstkern.cells import CELLS, Cell, Weight
from sstkern.cells.cell import uniform
from sstkern.cells.rnn import RNN_RELU, RNN_TANH
from sstkern.forked import one_thread
from sstkern.functional import Input
from sstkern.lengths import Lengths, Resets

METHODS = frozenset(
    (
        "check_input",
        "check_hidden_size",
        "check_forward_args",
        "get_expected_hidden_size",
        "get_expected_cell_size",
        "permute_hidden",
        "_init_flat_weights",
        "_update_flat_weights",
        "_weights_have_changed",
    )
)
"""What torch.nn's forward calls of a layer, and a subclass may have written anew."""


class Recurrent(RNNBase):
    """A layer of the cell that a subclass names, with the arguments of torch.nn's layers.

    `class PeepholeLSTM(Recurrent): cell = PEEPHOLE` is a whole layer: it has several layers and directions, dropout, lengths, packed
    sequences, states that are given and returned. A cell without kernels runs on the reference engine.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as torch.nn.LSTM's.
        proj_size: width of h where the cell projects it; 0 for no projection.
        recompute: see docs/memory.md; a training step takes less memory and more time. Nothing on the reference engine.

    The parameters of layer l are weight_ih_l0 (G * H, I or D * P), weight_hh_l0 (G * H, P), with bias bias_ih_l0 and bias_hh_l0 (G * H,),
    with a projection weight_hr_l0 (P, H), and the cell's own, each with its layer's number, and "_reverse" for the other direction. G is
    the number of gates, H hidden_size, I input_size, P proj_size or H, D directions.

    Raises TypeError or ValueError for wrong arguments, as torch.nn's layers do, and ValueError for the proj_size of a cell that does not
    project.
    """

    cell: Cell
    recompute: bool = False
    calls_methods = False
    """Whether any of `METHODS` is somebody's own, and has to be called."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        known = RNNBase.__module__, __name__
        cls.calls_methods = any(getattr(getattr(cls, name, None), "__module__", known[0]) not in known for name in METHODS)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in METHODS:
            self.calls_methods = True
        super().__setattr__(name, value)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ):
        if proj_size != 0 and not self.cell.projects:
            projecting = ", ".join(cell.torch_class or cell.name for cell in CELLS.values() if cell.projects)
            raise ValueError(f"proj_size: only {projecting} has a projection, {type(self).__name__} has none; got {proj_size}")
        _check_options(bias, batch_first, dropout, num_layers)
        proj_size = _checked_sizes(input_size, hidden_size, num_layers, proj_size)
        if type(recompute) is not bool:
            raise ValueError(f"recompute: expected True or False, got {recompute!r}")
        super(RNNBase, self).__init__()  # RNNBase's own knows torch.nn's cells only
        self.mode = self.cell.torch_mode or self.cell.name
        self.input_size, self.hidden_size, self.proj_size = input_size, hidden_size, proj_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional, self.recompute = float(dropout), bidirectional, recompute
        self._make_parameters(device, dtype)
        self._init_flat_weights()
        self.reset_parameters()

    def _make_parameters(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        self._flat_weights_names: list[str] = []
        self._all_weights: list[list[str]] = []
        output_size = self.proj_size or self.hidden_size
        for layer, suffix in self._directions():
            size = self.input_size if layer == 0 else output_size * (1 + self.bidirectional)
            shapes = self.cell.shapes(self.bias, self.proj_size > 0, input_size=size, hidden_size=self.hidden_size, output_size=output_size)
            names = {f"{name}{suffix}": shape for name, shape in shapes.items()}
            for name, shape in names.items():
                setattr(self, name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
            self._flat_weights_names += names
            self._all_weights.append(list(names))

    def _directions(self) -> Iterator[tuple[int, str]]:
        """Each direction's layer, and what its parameters' names end in."""
        for layer in range(self.num_layers):
            for reverse in ("", "_reverse") if self.bidirectional else ("",):
                yield layer, f"_l{layer}{reverse}"

    def reset_parameters(self) -> None:
        """Initialises every parameter as the cell says, in general as torch.nn: uniform from -1/sqrt(H) to 1/sqrt(H)."""
        weights = self.cell.weights(self.bias, self.proj_size > 0)
        _initialise(self, {f"{weight.name}{suffix}": weight for _, suffix in self._directions() for weight in weights})

    def flatten_parameters(self) -> None:
        """Does nothing: cuDNN wants all weights in one piece of memory, our kernels read each weight where it is."""

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def forward(
        self,
        input: Input,
        hx: Any = None,
        lengths: Lengths | None = None,
        resets: Resets | None = None,
        reset_to: Any = None,
        return_states: bool = False,
    ) -> Any:
        """Arguments, results and errors as `sstkern.functional.layer` describes them.

        The weights are `_flat_weights`, as in torch.nn: what a subclass or a hook has put there, unless an attribute has changed since.
        Methods that torch.nn's forward calls (`check_forward_args`, `permute_hidden` and what they call) are called where a subclass has
        its own.
        """
        restored = None
        if self.calls_methods and not (isinstance(input, Tensor) and input.is_nested):
            if resets is not None or return_states:
                raise NotImplementedError(
                    f"{type(self).__name__}: with methods of torch.nn's layers written anew ({', '.join(sorted(METHODS))}) "
                    "it takes neither resets nor return_states"
                )
            restored = partial(self._restored, input)
            input, hx = self._checked(input, hx)
        results = functional.layer(
            self.cell,
            input,
            self._weights(),
            hx,
            lengths=lengths,
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            recompute=self.recompute,
            resets=resets,
            reset_to=reset_to,
            return_states=return_states,
        )
        return results if restored is None else restored(*results)

    @one_thread
    def _checked(self, given: Input, hx: Any) -> tuple[Input, Any]:
        """Calls the methods that torch.nn's forward calls before it computes; a batch, and states in the order of the packed data."""
        self._update_flat_weights()
        input: Any = given
        data, batch_sizes, order, _ = input if isinstance(input, PackedSequence) else (input, None, None, None)
        if batch_sizes is None and data.dim() == 2:
            data, hx = data.unsqueeze(0 if self.batch_first else 1), self._each(hx, lambda state: state.unsqueeze(1))
        if hx is None:
            rows, batch, width = Recurrent.get_expected_hidden_size(self, data, batch_sizes)
            hx = functional.as_hx([data.new_zeros(rows, batch, size) for size in self.cell.state_sizes(self.hidden_size, width)])
        else:
            hx = self.permute_hidden(hx, order)
        self.check_forward_args(data, hx, batch_sizes)
        return data if batch_sizes is None else PackedSequence(data, batch_sizes), hx

    @one_thread
    def _restored(self, given: Input, output: Any, hx_n: Any) -> tuple[Input, Any]:
        """What `_checked` has changed, in the form of the input that was given, and the states as the layer's own method puts them."""
        if isinstance(given, PackedSequence):
            output = PackedSequence(output.data, *given[1:])
            return output, self.permute_hidden(hx_n, given.unsorted_indices)
        if given.dim() == 2:
            output, hx_n = output.squeeze(0 if self.batch_first else 1), self._each(hx_n, lambda state: state.squeeze(1))
        return output, self.permute_hidden(hx_n, None)

    def _each(self, hx: Any, change: Callable[[Tensor], Tensor]) -> Any:
        states = functional.as_states(self.cell, hx)
        return None if states is None else functional.as_hx([change(state) for state in states])

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """The states in another order of the batch."""
        return hx if permutation is None else self._each(hx, lambda state: state.index_select(1, permutation))

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """RuntimeError or ValueError, as torch.nn's, for an input or states that do not fit."""
        self.check_input(input, batch_sizes)
        rows, batch, width = self.get_expected_hidden_size(input, batch_sizes)
        sizes = self.cell.state_sizes(self.hidden_size, width)
        for state, size in zip(functional.as_states(self.cell, hidden) or (), sizes, strict=True):
            self.check_hidden_size(state, (rows, batch, size))

    def _weights(self) -> list[Tensor]:
        """`_flat_weights`, as long as they are what the attributes are. To ask the module for four of them takes 1.7 microseconds more."""
        flat: list[Any] = self._flat_weights
        registered, others = self._parameters, self.__dict__
        try:
            for name, weight in zip(self._flat_weights_names, flat):  # noqa: B905 -- the keyword takes 0.3 microseconds
                if registered[name] is not weight or name in others:
                    return self._handed_over()
        except KeyError:
            return self._handed_over()
        return flat

    def _handed_over(self) -> list[Any]:
        """`_flat_weights`, made anew where an attribute has changed. Each is read once: a parametrized weight is computed at every look."""
        if "_flat_weights" not in self.__dict__:
            return self._flat_weights  # a subclass's property
        weights: list[Any] = [getattr(self, name, None) for name in self._flat_weights_names]
        made_of, flat = self._flat_weight_refs, self._flat_weights
        if all(ref is None or weight is None or ref() is weight for ref, weight in zip(made_of, weights, strict=True)):
            return flat
        if _can_be_kept(weights):
            self._flat_weights, self._flat_weight_refs = weights, [None if weight is None else weakref.ref(weight) for weight in weights]
        return weights

    def __prepare_scriptable__(self) -> NoReturn:
        _refuse_script(self)


class LSTM(Recurrent):
    """torch.nn.LSTM, fused: the same arguments, parameters, state_dict and results.

    Args as torch.nn.LSTM's: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    proj_size=0, device=None, dtype=None.

    recompute=True: see docs/memory.md; a training step takes less memory and more time.
    """

    cell = CELLS["lstm"]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args
    permute_hidden = nn.LSTM.permute_hidden

    def forward(
        self,
        input: Input,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Lengths | None = None,
        resets: Resets | None = None,
        reset_to: tuple[Tensor, Tensor] | None = None,
        return_states: bool = False,
    ) -> tuple[Input, tuple[Tensor, Tensor]]:
        """Arguments, results and errors as `sstkern.functional.lstm` describes them."""
        return super().forward(input, hx, lengths, resets, reset_to, return_states)


class GRU(Recurrent):
    """torch.nn.GRU, fused: the same arguments, parameters, state_dict and results.

    Args as torch.nn.GRU's: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    device=None, dtype=None. Raises ValueError for proj_size.

    recompute=True: see docs/memory.md; a training step takes less memory and more time.
    """

    cell = CELLS["gru"]

    def forward(
        self,
        input: Input,
        hx: Tensor | None = None,
        lengths: Lengths | None = None,
        resets: Resets | None = None,
        reset_to: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Input, Tensor]:
        """Arguments, results and errors as `sstkern.functional.gru` describes them."""
        return super().forward(input, hx, lengths, resets, reset_to, return_states)


class RNN(Recurrent):
    """torch.nn.RNN, fused: the same arguments, parameters, state_dict and results.

    Args as torch.nn.RNN's: input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None. Raises ValueError for a nonlinearity other than "tanh" or "relu", and for proj_size.

    recompute=True: see docs/memory.md; a training step takes less memory and more time.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", *args, **kwargs):
        _check_nonlinearity(nonlinearity)
        self.nonlinearity, self.mode = nonlinearity, f"RNN_{nonlinearity.upper()}"  # before the rest: they decide the cell
        super().__init__(input_size, hidden_size, num_layers, *args, **kwargs)

    @property
    def cell(self) -> Cell:  # type: ignore[override] # two cells share this class, as in torch.nn
        return RNN_RELU if self.mode == "RNN_RELU" else RNN_TANH

    def forward(
        self,
        input: Input,
        hx: Tensor | None = None,
        lengths: Lengths | None = None,
        resets: Resets | None = None,
        reset_to: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Input, Tensor]:
        """Arguments, results and errors as `sstkern.functional.rnn_tanh` describes them."""
        return super().forward(input, hx, lengths, resets, reset_to, return_states)


class RecurrentCell(RNNCellBase):
    """One time step of the cell that a subclass names, with the arguments of torch.nn's cells.

    Args:
        input_size, hidden_size, bias, device, dtype: as torch.nn.LSTMCell's.

    The parameters are weight_ih (G * H, I), weight_hh (G * H, H), with bias bias_ih and bias_hh (G * H,), else None, and the cell's own.
    """

    cell: Cell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super(RNNCellBase, self).__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bool(bias)
        present = self.cell.weights(self.bias, False)
        shapes = self.cell.shapes(True, False, input_size=input_size, hidden_size=hidden_size)
        for weight in self.cell.weights(True, False):
            parameter = Parameter(torch.empty(shapes[weight.name], device=device, dtype=dtype)) if weight in present else None
            self.register_parameter(weight.name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises every parameter as the cell says, in general as torch.nn: uniform from -1/sqrt(H) to 1/sqrt(H)."""
        _initialise(self, {weight.name: weight for weight in self.cell.weights(self.bias, False)})

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """input (B, I) or (I,); hx and the result: the states, (B, H) or (H,) each, one alone or several in a tuple.

        Errors as `functional.cell_step`.
        """
        states = functional.as_states(self.cell, hx)
        return functional.as_hx(functional.cell_step(self.cell, input, states, self._weights(), self.bias))

    def _weights(self) -> list[Tensor]:
        """The weights from where torch.nn.Module keeps them: to ask it for four takes 1.7 microseconds more."""
        names = [weight.name for weight in self.cell.weights(self.bias, False)]
        own: dict[str, Any] = self._parameters
        others = self.__dict__
        return [own[name] if name in own and name not in others else getattr(self, name) for name in names]

    def __prepare_scriptable__(self) -> NoReturn:
        _refuse_script(self)


class LSTMCell(RecurrentCell, nn.LSTMCell):
    """torch.nn.LSTMCell, fused. Args as its: input_size, hidden_size, bias=True, device=None, dtype=None."""

    cell = CELLS["lstm"]

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """input (B, I) or (I,); hx and the result: h and c, (B, H) or (H,) each. Errors as `functional.cell_step`."""
        return super().forward(input, hx)


class GRUCell(RecurrentCell, nn.GRUCell):
    """torch.nn.GRUCell, fused. Args as its: input_size, hidden_size, bias=True, device=None, dtype=None."""

    cell = CELLS["gru"]

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input (B, I) or (I,); hx and the result: h, (B, H) or (H,). Errors as `functional.cell_step`."""
        return super().forward(input, hx)


class RNNCell(RecurrentCell, nn.RNNCell):
    """torch.nn.RNNCell, fused. Args as its: input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None."""

    __constants__ = [*RNNCellBase.__constants__, "nonlinearity"]  # noqa: RUF012 -- torch's own form

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        _check_nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity  # before the rest: it decides the cell
        super().__init__(input_size, hidden_size, bias, device, dtype)

    @property
    def cell(self) -> Cell:  # type: ignore[override] # two cells share this class, as in torch.nn
        return RNN_RELU if self.nonlinearity == "relu" else RNN_TANH

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input (B, I) or (I,); hx and the result: h, (B, H) or (H,). Errors as `functional.cell_step`."""
        return super().forward(input, hx)


def _can_be_kept(weights: list[Tensor]) -> bool:
    """Whether the module may keep these weights. What an operation has made it may not: the module could not be copied, and the graph would
    stay as long as it does."""
    if torch.compiler.is_compiling() or private.transforms_active():
        return False
    return all(weight is None or weight.is_leaf for weight in weights)


def _refuse_script(module: Recurrent | RecurrentCell) -> NoReturn:
    """Raises for torch.jit.script, which calls this before it compiles."""
    raise NotImplementedError(
        f"torch.jit.script: it cannot compile sstkern's {type(module).__name__}; call sstkern.convert(model, to='torch') first, which "
        "keeps the parameters, or use torch.jit.trace, torch.export or torch.compile"
    )


def _initialise(module: Recurrent | RecurrentCell, weights: dict[str, Weight]) -> None:
    """Initialises the parameters in their order, so that a seed gives torch.nn's numbers. A parametrized one becomes uniform too."""
    for name, parameter in module.named_parameters():
        initialise = weights[name].initialise if name in weights else uniform
        initialise(parameter, module.hidden_size)


def _check_options(bias: object, batch_first: object, dropout: float, num_layers: int) -> None:
    """torch.nn's checks, in its words."""
    if not isinstance(dropout, str | numbers.Number | SupportsFloat):
        raise TypeError(f"dropout should be of type float, got: {type(dropout).__name__}")
    if not isinstance(dropout, numbers.Number) or not 0 <= dropout <= 1 or isinstance(dropout, bool):
        raise ValueError("dropout should be a number in range [0, 1] representing the probability of an element being zeroed")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers greater than 1, "
            f"but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=3,
        )
    for name, value in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def _checked_sizes(input_size: int, hidden_size: int, num_layers: int, proj_size: int) -> int:
    """torch.nn's checks, in its words. Returns proj_size as an int, which a tensor of one integer may be too."""
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
        if not isinstance(size, int):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    try:
        proj_size = index(proj_size)
    except TypeError:
        raise TypeError(f"proj_size should be of type int, got: {type(proj_size).__name__}") from None
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")
    return proj_size


def _check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
