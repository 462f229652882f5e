"""The states before the first step: the caller's, or where there are none, what the cell and its layer say of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import chain
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from sstkern.structure import Structure, described, flatten, mapped, names, same, unflatten

Initial = int | tuple | list | Callable[[int, Tensor], Structure]
"""Widths of zeros, an int or a structure of ints, or a function (batch_size, like) -> state."""
_ZEROS_BY_DEFAULT = ("torch.nn.modules.rnn", "sstkern.modules")
"""Where the cells are whose states are zeros of their hidden_size where none are given."""


def check_initial(initial: Initial | None) -> None:
    """Raises TypeError or ValueError for what is no `Initial`."""
    if initial is None or (callable(initial) and not isinstance(initial, nn.Module | type)):
        return
    widths = flatten(initial)
    if not all(type(width) is int for width in widths):
        raise TypeError(
            f"initial_state: expected an int, a structure of ints or a function (batch_size, like) -> state, got {described(initial)}"
        )
    if not widths or min(widths) < 0:
        raise ValueError(f"initial_state: expected at least one width, and none below 0, got {initial}")


def like(inputs: list[Tensor], cell: nn.Module) -> Tensor:
    """A tensor with the dtype and device of zeros: the first floating-point input, else the first such parameter."""
    if inputs[0].is_floating_point():
        return inputs[0]
    floating = (tensor for tensor in chain(inputs, cell.parameters()) if tensor.is_floating_point())
    return next(floating, inputs[0])


def first_state(cell: nn.Module, initial: Initial | None, batch_size: int, like: Tensor) -> Structure | None:
    """The state (B, ...) that sequences without hx begin with; None where only the cell knows it, by the default of its state.

    Raises ValueError, with the ways to say it, where nothing tells.
    """
    widths = known_widths(cell, initial)
    if widths is not None:
        return mapped(widths, lambda width: like.new_zeros(batch_size, width))
    if callable(initial):
        return checked(initial(batch_size, like), "initial_state", batch_size, like)
    if _has_default(cell):
        return None
    if (method := own_method(cell)) is not None:
        return checked(method(batch_size, like), "get_initial_state", batch_size, like)
    if type(size := getattr(cell, "hidden_size", None)) is int:
        return mapped((size, size) if isinstance(cell, nn.LSTMCell) else size, lambda width: like.new_zeros(batch_size, width))
    raise ValueError(
        f"hx: nothing says what {type(cell).__name__} begins with; give hx, or initial_state to fuse, or the cell a default for its state, "
        "a get_initial_state or a hidden_size"
    )


def are_zeros(cell: nn.Module, initial: Initial | None) -> bool:
    """Whether sequences without hx begin with zeros, as far as anything tells."""
    return known_widths(cell, initial) is not None or is_guess(cell, initial) or (initial is None and isinstance(cell, nn.LSTMCell))


def is_guess(cell: nn.Module, initial: Initial | None) -> bool:
    """Whether `first_state` can only go by the cell's hidden_size."""
    said = initial is not None or _has_default(cell) or callable(getattr(cell, "get_initial_state", None))
    return not said and not isinstance(cell, nn.LSTMCell) and known_widths(cell, initial) is None


def known_widths(cell: nn.Module, initial: Initial | None) -> Structure | None:
    """The widths of the cell's states, where the layer was told them, or the cell is torch.nn's or ours."""
    if initial is not None:
        return None if callable(initial) else initial
    if "forward" in vars(cell) or type(cell).forward.__module__ not in _ZEROS_BY_DEFAULT:
        return None
    return (cell.hidden_size, cell.hidden_size) if isinstance(cell, nn.LSTMCell) else cell.hidden_size


def _has_default(cell: nn.Module) -> bool:
    """Whether the state can be left out."""
    forward = cell.forward
    # torch.compile warns of what remembers, and traces once anyway.
    has_default = _second_has_default.__wrapped__ if torch.compiler.is_dynamo_compiling() else _second_has_default
    return has_default(forward.__func__, 2) if isinstance(forward, MethodType) else has_default(forward, 1)


@lru_cache(maxsize=256)
def _second_has_default(function: Callable, place: int) -> bool:
    """Remembered: to read a signature takes 30 microseconds."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    return len(parameters) > place and parameters[place].default is not inspect.Parameter.empty


def own_method(cell: nn.Module) -> Callable[[int, Tensor], Structure] | None:
    """The cell's get_initial_state, of a number of sequences and a tensor with the dtype and device."""
    method = getattr(cell, "get_initial_state", None)
    return partial(_called, method) if callable(method) else None


def _called(method: Callable[..., Structure], batch_size: int, like: Tensor) -> Structure:
    """Calls get_initial_state as Keras does, by names, and with dtype and device where it takes them."""
    function = getattr(method, "__func__", method)
    # torch.compile warns of what remembers, and traces once anyway; an object that can be called may not be hashable.
    remembers = isinstance(function, FunctionType) and not torch.compiler.is_dynamo_compiling()
    taken = _named(function) if remembers else _named.__wrapped__(function)
    options = {name: getattr(like, name) for name in ("dtype", "device") if name in taken}
    return method(batch_size=batch_size, **options)


@lru_cache(maxsize=256)
def _named(function: Callable) -> frozenset[str]:
    """The names of a function's parameters, remembered: to read a signature takes 50 microseconds."""
    return frozenset(inspect.signature(function).parameters)


def checked(state: Structure, name: str, batch_size: int, like: Tensor, batched: bool = True, shared: bool = False) -> Structure:
    """The state, (B, ...) each, with a batch of one where it has none. shared: it may be that of one sequence for all, (1, ...). Raises
    TypeError or ValueError where it cannot be a state of these sequences."""
    leaves = flatten(state)
    if not leaves:
        raise ValueError(f"{name}: expected at least one Tensor, got {described(state)}")
    for place, leaf in enumerate(leaves):
        if (found := _misfit(leaf, batch_size if batched else None, like, shared and batch_size != 1)) is not None:
            kind, why = found
            raise kind(f"{names(state, name)[place]}: {why}")
    return state if batched else unflatten(state, [leaf.unsqueeze(0) for leaf in leaves])


def check_same(state: Structure, other: Structure, name: str, batched: bool) -> None:
    """Raises TypeError or ValueError unless a state, of all sequences or of one, has the structure, shapes and dtypes of another one."""
    if not same(state, other):
        raise TypeError(f"{name}: expected {described(other)}, as the state is, got {described(state)}")
    for place, (leaf, like) in enumerate(zip(flatten(state), flatten(other), strict=True)):
        if leaf.shape[1:] != like.shape[1:] or leaf.dtype != like.dtype:
            found, expected = (tuple(tensor.shape[0 if batched else 1 :]) for tensor in (leaf, like))
            one = f" or {(1, *expected[1:])}" if batched and expected[:1] != (1,) else ""
            raise ValueError(
                f"{names(state, name)[place]}: expected shape {expected}{one} and {like.dtype} as the state has, got shape {found} and "
                f"{leaf.dtype}"
            )


def _misfit(leaf: object, batch_size: int | None, like: Tensor, shared: bool) -> tuple[type[Exception], str] | None:
    """Why it is no state of so many sequences beside `like`, and the error's type."""
    if not isinstance(leaf, Tensor):
        return TypeError, f"expected a Tensor, got {type(leaf).__name__}; a state is a Tensor, or nested tuples or lists of Tensors"
    if batch_size is not None and (leaf.dim() == 0 or (leaf.size(0) != batch_size and not (shared and leaf.size(0) == 1))):
        one = ", or (1, ...), one for all" if shared else ""
        return ValueError, f"expected shape ({batch_size}, ...), a state for each sequence{one}, got {tuple(leaf.shape)}"
    if leaf.device != like.device:
        return ValueError, f"is on {leaf.device}, but the input is on {like.device}; move one of them"
    return None


def dtypes(cell: nn.Module, inputs: list[Tensor]) -> set[torch.dtype]:
    """The floating-point ones of the inputs and of a cell's tensors; none where no parameter says what the cell computes in."""
    found = {parameter.dtype for parameter in cell.parameters() if parameter.is_floating_point()}
    others = (tensor.dtype for tensor in chain(inputs, cell.buffers()) if tensor.is_floating_point())
    return found.union(others) if found else found


def differing(state: Structure, allowed: set[torch.dtype]) -> tuple[str, torch.dtype] | None:
    """The name and dtype of the first floating-point tensor of a state that has none of these dtypes."""
    pairs = zip(names(state, "hx"), flatten(state), strict=True)
    return next(((name, leaf.dtype) for name, leaf in pairs if leaf.is_floating_point() and leaf.dtype not in allowed), None)


def check_widths(hx: Structure, widths: Structure, batch_size: int) -> None:
    """Raises TypeError or ValueError unless a state (B, ...) is of these widths."""
    if not same(hx, widths):
        raise TypeError(f"hx: expected {described(mapped(widths, lambda _: Tensor()))}, got {described(hx)}")
    for place, (leaf, width) in enumerate(zip(flatten(hx), flatten(widths), strict=True)):
        if leaf.shape != (batch_size, width):
            raise ValueError(f"{names(hx, 'hx')[place]}: expected shape {(batch_size, width)}, got {tuple(leaf.shape)}")
