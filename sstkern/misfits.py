"""Why a cell's step failed: which of its arguments does not fit it, in the layer's words."""

from __future__ import annotations

import dis
import traceback

from torch import Tensor, nn

from sstkern.first_states import own_method
from sstkern.program.capture.reasons import place_of, users
from sstkern.structure import Structure, described, flatten, mapped, names, same

_OF_VALUES = (RuntimeError, ValueError, IndexError)
_OF_TYPES = (TypeError, AttributeError)
_RAISE = dis.opmap["RAISE_VARARGS"]


class StepFailed(Exception):
    """The cell raised what an argument that does not fit it may be the cause of, which is this error's cause too.

    input, state: what one step was given; state is None where it was left out.
    """

    def __init__(self, input: Structure, state: Structure | None):
        super().__init__(input, state)
        self.input, self.state = input, state


def may_be(error: Exception) -> bool:
    """Whether arguments may be the cause: of PyTorch's and Python's own errors, not of those that a cell raises itself."""
    if _raised_by_user(error):
        return False
    if isinstance(error, AttributeError):
        return isinstance(error.obj, Tensor | tuple | list)  # that of a state of another structure
    return type(error) in (*_OF_VALUES, TypeError)


def _raised_by_user(error: Exception) -> bool:
    """Whether a `raise`, or an `assert`, of the user's code made the error: that has words of its own."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and users(last.tb_frame) and last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE


def of_step(cell: nn.Module, failed: StepFailed, told: bool) -> TypeError | ValueError:
    """The error of the layer. told: whether the caller gave the state."""
    error = failed.__cause__
    found = of_arguments(cell, failed.input, failed.state if told else None)
    if found is not None:
        return type(found)(f"{found} ({_raised(cell, error)})")
    state = "" if failed.state is None else f" and {'hx' if told else 'the state'} {_shapes(failed.state)}"
    advice = "" if told else " (no hx was given; see initial_state)"
    kind = TypeError if isinstance(error, _OF_TYPES) else ValueError
    return kind(f"{'input, hx' if told else 'input'}: {_raised(cell, error)}, given input {_shapes(failed.input)}{state}{advice}")


def of_arguments(cell: nn.Module, input: Structure, state: Structure | None) -> TypeError | ValueError | None:
    """The error for tensors (B, ...) of a failed step that contradict what the cell says of itself. state: the caller's, if any."""
    if reason := _dtype_or_device(cell, input, state):
        return ValueError(reason)
    size = getattr(cell, "input_size", None)
    rows = isinstance(input, Tensor) and input.is_floating_point() and input.dim() > 1  # not tokens, of which input_size may be the number
    if rows and type(size) is int and input.size(-1) != size:
        return ValueError(f"input: expected {size} features (input_size), got {input.size(-1)}")
    return None if state is None else of_state(cell, state)


def of_state(cell: nn.Module, state: Structure) -> TypeError | ValueError | None:
    """As `of_arguments`, for the caller's state (B, ...) alone."""
    like = flatten(state)[0]
    batch = like.size(0)
    expected, source = None, "get_initial_state"
    if (method := own_method(cell)) is not None:
        try:
            expected = method(batch, like)
        except Exception:  # the step's own error says more
            return None
    elif isinstance(state, Tensor) and state.dim() == 2 and type(size := getattr(cell, "hidden_size", None)) is int:
        expected, source = like.new_empty(batch, size), "hidden_size"
    if expected is None:
        return None
    if not same(expected, state):
        return TypeError(f"hx: expected {described(expected)} ({source}), got {described(state)}")
    for name, leaf, wanted in zip(names(state, "hx"), flatten(state), flatten(expected), strict=True):
        if leaf.shape != wanted.shape:
            return ValueError(f"{name}: expected shape {_shape(wanted)} ({source}), got {_shape(leaf)}")
    return None


def _raised(cell: nn.Module, error: BaseException | None) -> str:
    said = next(iter(str(error).splitlines()), "")
    places = [place_of(frame) for frame, _ in traceback.walk_tb(None if error is None else error.__traceback__)]
    line = next((f" ({line})" for line in reversed(places) if line), "")
    return f"{type(cell).__name__}'s step raised {type(error).__name__}: {said}{line}"


def _shapes(structure: Structure) -> str:
    return str(mapped(structure, _Shape)) if isinstance(structure, tuple | list) else _shape(structure)


class _Shape:
    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    def __repr__(self) -> str:
        return _shape(self._tensor)


def _shape(tensor: Tensor) -> str:
    return f"(B, {', '.join(map(str, tensor.shape[1:]))})" if tensor.dim() > 1 else "(B,)"


def _dtype_or_device(cell: nn.Module, input: Structure, state: Structure | None) -> str | None:
    """What dtype or device differs from the parameters', which may be why the cell failed."""
    parameters = [parameter for parameter in cell.parameters() if parameter.is_floating_point()]
    dtypes, devices = {parameter.dtype for parameter in parameters}, {parameter.device for parameter in parameters}
    given = [("input", input)] if state is None else [("input", input), ("hx", state)]
    named = [pair for name, part in given for pair in zip(names(part, name), flatten(part), strict=True)]
    for name, tensor in named:
        if parameters and tensor.device not in devices:
            return f"{name}: is on {tensor.device}, but the cell's parameters are on {parameters[0].device}"
        if parameters and tensor.is_floating_point() and tensor.dtype not in dtypes:
            return f"{name}: expected dtype {parameters[0].dtype} like the cell's parameters, got {tensor.dtype}"
    return None
