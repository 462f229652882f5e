"""The layers and cells without parameters of their own.

T time steps, B batch, I input_size, H hidden_size, P proj_size (H without a projection), G the number of gates, L num_layers, D directions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import Signature, signature
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary

from sstkern import autograd, engines, operators, private, recompute, transforms
from sstkern.cells import CELLS, Cell
from sstkern.engines import reference
from sstkern.forked import one_thread
from sstkern.lengths import Batch, Lengths, Resets, alone, padding, to_batch
from sstkern.weights import check_number

Input = Tensor | PackedSequence


def lstm(
    input: Input,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    lengths: Lengths | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    recompute: bool = False,
    resets: Resets | None = None,
    reset_to: tuple[Tensor, Tensor] | None = None,
    return_states: bool = False,
) -> tuple[Input, tuple[Tensor, Tensor]]:
    """A long short-term memory, as torch.nn.LSTM computes it.

    input: (T, B, I), with batch_first (B, T, I), unbatched (T, I), or a PackedSequence. weights: for each layer and direction
    weight_ih (4H, I or DP), weight_hh (4H, P), with bias bias_ih (4H,) and bias_hh (4H,), with a projection weight_hr (P, H), in that
    order, as torch.nn.LSTM's `_flat_weights`. hx: h_0 (L * D, B, P) and c_0 (L * D, B, H); zeros by default. lengths: B integers from 0
    to T, in any order; what input holds past a length is never read. dropout: between layers, when training. recompute: keep the states of
    some time steps only for the backward, which computes the gates again (docs/memory.md).

    resets: bool (T, B), with batch_first (B, T), unbatched (T,), packed or nested where the input is: True at step t where a sequence
    begins anew with it. The forward direction's state before t is then reset_to, as hx or with a batch of 1, zeros by default; at step 0
    in place of hx. The other direction begins anew at t - 1 in the same way (docs/episodes.md).

    Returns the output (T, B, D * P) in the form of the input, zero past a length, and (h_n, c_n), the states after each sequence's last
    step, shaped like hx. With return_states a third result is the states after every step, as (h_n, c_n) with time in front, (T, L * D, B,
    P) and (T, L * D, B, H) whatever batch_first, unbatched without B, zero past a length. Raises ValueError, TypeError or RuntimeError, as
    torch.nn.LSTM does, naming the argument.

    An input or a weight with a __torch_function__ of its own is given this function, as torch.overrides says.
    """
    return layer(
        CELLS["lstm"],
        input,
        weights,
        hx,
        lengths=lengths,
        bias=bias,
        num_layers=num_layers,
        dropout=dropout,
        training=training,
        bidirectional=bidirectional,
        batch_first=batch_first,
        recompute=recompute,
        resets=resets,
        reset_to=reset_to,
        return_states=return_states,
    )


@one_thread
def layer(
    cell: Cell,
    input: Input,
    weights: Sequence[Tensor],
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    recompute: bool = False,
    resets: Resets | None = None,
    reset_to: Any = None,
    return_states: bool = False,
) -> Any:
    """A layer of any cell, on the reference engine where no other has the cell; arguments and errors as for `lstm`.

    weights: for each layer and direction those that `cell.weights` names, in its order. hx and the states that are returned: a tuple,
    or a tensor where the cell has one state; h (L * D, B, P), the others (L * D, B, H).
    """
    if has_torch_function_unary(input) or has_torch_function(weights):
        return handle_torch_function(
            layer,
            (input, *weights),
            cell,
            input,
            weights,
            hx,
            lengths=lengths,
            bias=bias,
            num_layers=num_layers,
            dropout=dropout,
            training=training,
            bidirectional=bidirectional,
            batch_first=batch_first,
            recompute=recompute,
            resets=resets,
            reset_to=reset_to,
            return_states=return_states,
        )
    given = as_states(cell, reset_to)
    if given is not None and resets is None:
        raise ValueError("reset_to: without resets nothing begins anew; give resets, or the first states as hx")
    rate = dropout if training else 0.0
    options = _Options(lengths, bias, num_layers, rate, bidirectional, batch_first, recompute, resets, given, return_states)
    output, hx_n, states = _run(cell, input, weights, as_states(cell, hx), options)
    return (output, as_hx(hx_n), as_hx(states)) if return_states else (output, as_hx(hx_n))


class OneStateLayer(Protocol):
    """How `gru`, `rnn_tanh` and `rnn_relu` are called."""

    def __call__(
        self,
        input: Input,
        weights: Sequence[Tensor],
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        bias: bool = True,
        num_layers: int = 1,
        dropout: float = 0.0,
        training: bool = False,
        bidirectional: bool = False,
        batch_first: bool = False,
        recompute: bool = False,
        resets: Resets | None = None,
        reset_to: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Input, Tensor]: ...


def _one_state(cell: Cell, described: str, gates: str) -> OneStateLayer:
    def of_cell(input: Input, weights: Sequence[Tensor], hx: Tensor | None = None, **options: Any) -> tuple[Input, Tensor]:
        return layer(cell, input, weights, hx, **options)

    of_cell.__name__ = of_cell.__qualname__ = cell.name
    of_cell.__signature__ = Signature(list(signature(layer).parameters.values())[1:])  # type: ignore[attr-defined]
    of_cell.__doc__ = (
        f"{described} Arguments as for `lstm`, with {gates}, without a projection; hx is h_0 (L * D, B, H). Returns output and h_n."
    )
    return of_cell


gru = _one_state(CELLS["gru"], "A gated recurrent unit, as torch.nn.GRU computes it.", "3H rows in the weights")
rnn_tanh = _one_state(CELLS["rnn_tanh"], "A simple recurrent network, as torch.nn.RNN computes it.", "H rows in the weights")
rnn_relu = _one_state(CELLS["rnn_relu"], "As `rnn_tanh`, with relu.", "H rows in the weights")


@one_thread
def cell_step(
    cell: str | Cell, input: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor], bias: bool = True
) -> tuple[Tensor, ...]:
    """One time step of a cell, as torch.nn's LSTMCell, GRUCell and RNNCell compute it.

    cell: "lstm", "gru", "rnn_tanh", "rnn_relu", another registered one's name, or a definition. input: (B, I) or (I,). hx: the cell's
    states, (B, H) or (H,) each; zeros by default. weights: weight_ih (G*H, I), weight_hh (G*H, H), with bias bias_ih, bias_hh (G*H,), and
    the cell's own parameters. Returns the new states, h first. Raises as torch.nn's cells do.
    """
    if has_torch_function_unary(input) or has_torch_function(weights):
        return handle_torch_function(cell_step, (input, *weights), cell, input, hx, weights, bias)
    if isinstance(cell, str):
        if cell not in CELLS:
            raise ValueError(f"cell: '{cell}' is unknown; there are {', '.join(CELLS)}")
        cell = CELLS[cell]
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
    if hx is not None and (stepped := _short_step(cell, input, hx, weights, bias)):
        return tuple(stepped)
    hidden_size = _check_step(cell, input, hx, weights)
    x = input.unsqueeze(0)
    states = None if hx is None else tuple(state.unsqueeze(0) for state in hx)
    new_states: Sequence[Tensor]
    if input.dim() == 1:
        new_states = cell_step(cell, x, states, weights, bias)
    else:
        run = _run if hidden_size else _run_without_units
        _, new_states, _ = run(cell, x, weights, states, _Options(bias=bias))
    if torch.compiler.is_compiling():
        return tuple(state.squeeze(0) for state in new_states)
    return tuple(state.squeeze_(0) for state in new_states)  # eager PyTorch cannot detach a view in place


def _short_step(cell: Cell, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], bias: bool) -> Sequence[Tensor] | None:
    """An eager step of a batch on a fused engine, without what only layers need, in half the time. None where that does not fit."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or private.transforms_active():
        return None
    if input.dim() != 2 or isinstance(hx, Tensor):
        return None
    try:
        if engines.choose(cell, input, (*weights, *hx)) == "reference" or weights[1].size(1) == 0:
            return None
        if private.autocast_anywhere() and operators.autocasting(input):
            x, *tensors = operators.autocast([input, *weights, *hx])
            with private.without_autocast():
                return autograd.step(cell.name, x, tensors[: len(weights)], tensors[len(weights) :], bias)
        return autograd.step(cell.name, input, weights, hx, bias)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        # The operator has checked all that it was given. The long way's checks say the same in the caller's words.
        _check_step(cell, input, hx, weights)
        _prepared(cell, input.unsqueeze(0), weights, [state.unsqueeze(0) for state in hx], _Options(bias=bias))
        raise


def _check_step(cell: Cell, input: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor]) -> int:
    """Returns hidden_size."""
    if input.dim() not in (1, 2):
        raise ValueError(f"input: expected 1-D (unbatched) or 2-D (batched), got {input.dim()}-D")
    try:
        hidden_size = weights[1].size(1)
    except AttributeError:
        _check_types(cell, weights)
        raise
    if hx is not None:
        _check_cell_states(cell, input, hx, hidden_size)
    return hidden_size


def _run_without_units(*arguments: Any) -> tuple[Input, list[Tensor], list[Tensor]]:
    """torch.nn's cells may have none, which no kernel is made for."""
    with engines.backend("reference"):
        return _run(*arguments)


def as_states(cell: Cell, hx: Any) -> Sequence[Tensor] | None:
    """A call's hx as a sequence of states: a cell with one state is given no tuple."""
    return (hx,) if hx is not None and len(cell.states) == 1 else hx


def as_hx(states: Sequence[Tensor]) -> Any:
    """The states as a call gives them back: one alone, several as a tuple."""
    return tuple(states) if len(states) > 1 else states[0]


def _check_cell_states(cell: Cell, input: Tensor, hx: Sequence[Tensor], hidden_size: int) -> None:
    """In a cell's own shapes, which have one dimension less than a layer's."""
    _check_number_of_states(cell, hx)
    shape = (*input.shape[:-1], hidden_size)
    for name, state in zip(cell.states, hx, strict=True):
        if state.dim() not in (1, 2):
            raise ValueError(f"hx: expected {name} to be 1-D (unbatched) or 2-D (batched), got {state.dim()}-D")
        if tuple(state.shape) != shape:
            raise RuntimeError(f"hx: expected {name} of shape {shape}, got {tuple(state.shape)}")


class _Options:
    """What the caller asked of all layers together."""

    def __init__(
        self,
        lengths=None,
        bias=True,
        num_layers=1,
        dropout=0.0,
        bidirectional=False,
        batch_first=False,
        recompute=False,
        resets=None,
        reset_to=None,
        every=False,
    ):
        self.lengths, self.bias, self.num_layers = lengths, bias, num_layers
        self.dropout, self.bidirectional, self.batch_first = dropout, bidirectional, batch_first
        self.recompute, self.resets, self.reset_to, self.every = recompute, resets, reset_to, every

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


def _prepared(
    cell: Cell, input: Input, weights: Sequence[Tensor], hx: Sequence[Tensor] | None, options: _Options
) -> tuple[Batch, list[list[Tensor]], list[Tensor]]:
    """The batch, each layer's weights and the states of all, checked."""
    batch = to_batch(input, options.lengths, options.batch_first, resets=options.resets)
    if batch.packed and (private.transforms_active() or _to_onnx(batch.x)):
        batch = batch.padded()
    if options.num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {options.num_layers}")
    count, rest = divmod(len(weights), options.num_layers)
    if rest or not weights:
        raise ValueError(f"weights: {len(weights)} tensors do not divide over num_layers={options.num_layers}")
    layers = [list(weights[i * count : (i + 1) * count]) for i in range(options.num_layers)]
    try:
        _check_input(batch.x, layers[0][0])
        _check_dtypes(weights)
    except (AttributeError, TypeError):  # to ask first takes time of every call
        _check_types(cell, weights)
        raise
    states = _states(cell, batch, layers, hx, options)
    return batch, layers, states if options.reset_to is None else [*states, *_anew(cell, batch, states, options)]


def _run(
    cell: Cell, input: Input, weights: Sequence[Tensor], hx: Sequence[Tensor] | None, options: _Options
) -> tuple[Input, list[Tensor], list[Tensor]]:
    """The output, the last states, and if `options.every` those of every step."""
    batch, layers, states = _prepared(cell, input, weights, hx, options)
    x, finals, count = batch.x, [], len(cell.states)
    every: list[list[Tensor]] = []
    for i, layer in enumerate(layers):
        if i > 0 and options.dropout:
            x = drop(x, options.dropout)
        mine = states if len(layers) == 1 else [state[i * options.directions : (i + 1) * options.directions] for state in states]
        x, final = _layer(cell, x, layer, mine, batch.lengths, options)
        finals.append(final[:count])
        if options.every:
            every.append([_by_direction(state, batch, options) for state in (x, *final[count:])])
    hx_n = [torch.cat(state) if options.num_layers > 1 else state[0] for state in zip(*finals, strict=True)]
    if batch.inverse is not None:
        hx_n = [state.index_select(1, batch.inverse) for state in hx_n]
    if not batch.batched:
        hx_n = [state.squeeze(1) for state in hx_n]
    return batch.restore(x), hx_n, _every_state(every, batch) if options.every else []


def _every_state(of_layers: list[list[Tensor]], batch: Batch) -> list[Tensor]:
    """The states after every step of all layers, (T, layers x directions, B, width), as the caller has the batch."""
    states = [torch.cat(state, 1) if len(state) > 1 else state[0] for state in zip(*of_layers, strict=True)]
    if batch.inverse is not None:
        states = [state.index_select(2, batch.inverse) for state in states]
    return states if batch.batched else [state.squeeze(2) for state in states]


def _by_direction(state: Tensor, batch: Batch, options: _Options) -> Tensor:
    """A state after every step of a layer, (T, B, D * width) or (N, D * width), as (T, D, B, width)."""
    if batch.packed:
        assert batch.lengths is not None
        state = padding(alone(batch.lengths), state.device)[0](state)
    return state.unflatten(-1, (options.directions, -1)).transpose(1, 2)


def _layer(cell: Cell, x: Tensor, weights: list[Tensor], hx: list[Tensor], lengths: Tensor | None, options: _Options):
    """One layer, by the first of these that fits: ONNX's own operators, in an export to it; plain PyTorch, where `engines.choose` says so,
    in forward mode for one; `transforms`, within torch.func's other transforms; `recompute`; the operator. Own cells' layers choose alike,
    in `program.operator`: a program that cannot be compiled is plain PyTorch within transforms too."""
    every = options.every and len(cell.states) > 1
    if torch.compiler.is_exporting() and _to_onnx(x):
        from sstkern import onnx  # here: it imports parts of torch that only an export needs

        return onnx.layer(cell, x, weights, hx, lengths, options.bias, options.bidirectional, every)
    run: Callable[..., tuple[Tensor, list[Tensor]]] | None = None
    if engines.choose(cell, x, (*weights, *hx)) == "reference":
        run = partial(reference.layer, every=every)
    elif private.transforms_active():
        run = partial(_transformed_layer(), every=every)
    elif options.recompute and not every and _recomputes((x, *weights, *hx)):
        run = recompute.layer
    if run is None:
        return autograd.layer(cell.name, x, weights, hx, lengths, options.bias, options.bidirectional, every)
    x, *tensors = operators.savable([x, *weights, *hx])
    weights, hx = tensors[: len(weights)], tensors[len(weights) :]
    if not operators.autocasting(x):
        return run(cell, x, weights, hx, lengths, options.bias, options.bidirectional)
    # The operator does this by itself.
    x, *tensors = operators.autocast([x, *weights, *hx])
    with torch.autocast(x.device.type, enabled=False):
        return run(cell, x, tensors[: len(weights)], tensors[len(weights) :], lengths, options.bias, options.bidirectional)


def _transformed_layer():
    if not torch.compiler.is_dynamo_compiling():
        return transforms.layer
    from sstkern import traced  # here: it imports the compiler

    return traced.layer


def _to_onnx(x: Tensor) -> bool:
    """Whether torch.onnx.export traces this call, not one in another thread."""
    return torch.onnx.is_in_onnx_export() and (torch.compiler.is_dynamo_compiling() or private.is_fake(x))


def _recomputes(tensors: Sequence[Tensor]) -> bool:
    """Whether there is a backward, and it is eager's."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return torch.is_grad_enabled() and not traced and any(tensor.requires_grad for tensor in tensors)


def _check_input(x: Tensor, weight_ih: Tensor) -> None:
    if x.size(-1) != weight_ih.size(1):
        raise RuntimeError(f"input: expected {weight_ih.size(1)} features (input_size), got {x.size(-1)}")
    if x.device != weight_ih.device:
        raise RuntimeError(f"input: is on {x.device}, but the weights are on {weight_ih.device}; move one of them")
    if x.dtype != weight_ih.dtype and not operators.autocasting(x):
        raise ValueError(f"input: expected dtype {weight_ih.dtype} like the weights, got {x.dtype}")


def _check_types(cell: Cell, weights: Sequence[Tensor]) -> None:
    for place, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            names = ", ".join(weight.name for weight in cell.weights(True, False))
            raise TypeError(
                f"weights: expected Tensors ({names} in each layer and direction), got {type(weight).__name__} at place {place} of "
                f"{len(weights)}"
            ) from None


def _check_dtypes(weights: Sequence[Tensor]) -> None:
    dtype = weights[0].dtype
    for weight in weights:
        if weight.dtype is not dtype and not operators.autocasting(weight):
            place = next(i for i, other in enumerate(weights) if other.dtype is not dtype)
            raise ValueError(
                f"weights: expected all of dtype {dtype} like the first, got {weight.dtype} at place {place} of {len(weights)}"
            )


def _states(cell: Cell, batch: Batch, layers: list[list[Tensor]], hx: Sequence[Tensor] | None, options: _Options) -> list[Tensor]:
    check_number(cell, layers[0], options.bias, options.bidirectional)
    rows, x = options.num_layers * options.directions, batch.x
    gate_rows, output_size = layers[0][1].shape
    shapes = [(rows, batch.size, size) for size in cell.state_sizes(gate_rows // len(cell.gates), output_size)]
    if hx is None:
        dtype = operators.computed_dtype(x)
        return [x.new_zeros(shape, dtype=dtype) for shape in shapes]
    _check_number_of_states(cell, hx)
    for name, state, shape in zip(cell.states, hx, shapes, strict=True):
        allowed = shape if batch.batched else (shape[0], shape[2])
        if tuple(state.shape) != allowed:
            raise RuntimeError(f"hx: expected {name}_0 of shape {allowed}, got {tuple(state.shape)}")
        if state.device != x.device:
            raise RuntimeError(f"hx: {name}_0 is on {state.device}, but the input is on {x.device}; move one of them")
        if state.dtype != x.dtype and not operators.autocasting(x):
            raise RuntimeError(f"hx: expected {name}_0 of dtype {x.dtype} like the input, got {state.dtype}")
    states = [state if batch.batched else state.unsqueeze(1) for state in hx]
    return states if batch.order is None else [state.index_select(1, batch.order) for state in states]


def _anew(cell: Cell, batch: Batch, states: list[Tensor], options: _Options) -> list[Tensor]:
    """What sequences begin anew with, each in the shape of its first state."""
    given = _checked_anew(cell, states, options.reset_to, batch)
    dtype = operators.computed_dtype(batch.x)
    given = [state.to(dtype) if operators.autocasting(batch.x) else state for state in given]
    anew = [state.expand(like.shape) for state, like in zip(given, states, strict=True)]
    return anew if batch.order is None else [state.index_select(1, batch.order) for state in anew]


def _checked_anew(cell: Cell, states: list[Tensor], reset_to: Sequence[Tensor], batch: Batch) -> list[Tensor]:
    """The caller's, with a dimension for B."""
    _check_number_of_states(cell, reset_to, "reset_to")
    for name, state, like in zip(cell.states, reset_to, states, strict=True):
        rows, size, width = like.shape
        one = batch.batched and state.dim() == 3 and state.size(1) == 1  # first: in a graph a size that varies is compared with no other
        if tuple(state.shape) != ((rows, 1 if one else size, width) if batch.batched else (rows, width)):
            expected = f"{(rows, size, width)} or {(rows, 1, width)}" if batch.batched else f"{(rows, width)}"
            raise RuntimeError(f"reset_to: expected {name} of shape {expected}, got {tuple(state.shape)}")
        if state.device != batch.x.device:
            raise RuntimeError(f"reset_to: {name} is on {state.device}, but the input is on {batch.x.device}; move one of them")
        if state.dtype != batch.x.dtype and not operators.autocasting(batch.x):
            raise RuntimeError(f"reset_to: expected {name} of dtype {batch.x.dtype} like the input, got {state.dtype}")
    return [state if batch.batched else state.unsqueeze(1) for state in reset_to]


def _check_number_of_states(cell: Cell, hx: Sequence[Tensor], argument: str = "hx") -> None:
    if not isinstance(hx, tuple | list) or len(hx) != len(cell.states) or not all(isinstance(state, Tensor) for state in hx):
        raise RuntimeError(f"{argument}: expected {len(cell.states)} Tensor(s) ({', '.join(cell.states)}), got {_described(hx)}")


def _described(hx: object) -> str:
    if isinstance(hx, Tensor):
        return f"a Tensor of shape {tuple(hx.shape)}"
    return f"({', '.join(type(state).__name__ for state in hx)})" if isinstance(hx, tuple | list) else f"a {type(hx).__name__}"
