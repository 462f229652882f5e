"""What a step asks of tensors beside calculating with them: sizes, which it may see, and what it may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sstkern import functional
from sstkern.cells import CELLS, Cell
from sstkern.program.capture.reasons import refuse
from sstkern.program.capture.sizes import shape
from sstkern.weights import by_direction


def _getter(name: str) -> Callable[..., Any]:
    """What torch gives a mode as the function where a property is read."""
    return getattr(Tensor, name).__get__


def _setter(name: str) -> Callable[..., Any]:
    return getattr(Tensor, name).__set__


_VALUES = "torch.where, or a number of the cell, does without"
_LAYOUT = "how a tensor lies in memory differs between a step alone and a loop; do without, or call .contiguous()"
_NO_GRADIENTS = "a step may not depend on gradients"
_REFUSED: dict[Callable[..., Any], tuple[str, str]] = {
    Tensor.tolist: ("the step reads the value of a tensor with .tolist()", _VALUES),
    Tensor.numpy: ("the step turns a tensor into a NumPy array", "calculate with torch"),
    Tensor.__array__: ("the step turns a tensor into a NumPy array", "calculate with torch"),
    Tensor.__dlpack__: ("the step gives a tensor to another library", "calculate with torch"),
    Tensor.stride: ("the step asks for strides", _LAYOUT),
    Tensor.is_contiguous: ("the step asks is_contiguous()", _LAYOUT),
    Tensor.data_ptr: ("the step asks for data_ptr()", _LAYOUT),
    Tensor.storage_offset: ("the step asks for storage_offset()", _LAYOUT),
    Tensor.untyped_storage: ("the step asks for a tensor's storage", _LAYOUT),
    Tensor.register_hook: ("the step registers a hook on a tensor", "change gradients outside the cell"),
    Tensor.requires_grad_: ("the step changes requires_grad", "say outside the cell what wants gradients"),
    Tensor.backward: ("the step calls backward()", "differentiate outside the cell"),
    _getter("grad"): ("the step reads .grad", _NO_GRADIENTS),
    _getter("grad_fn"): ("the step reads .grad_fn", _NO_GRADIENTS),
    _getter("is_leaf"): ("the step reads .is_leaf", _NO_GRADIENTS),
    _setter("requires_grad"): ("the step changes requires_grad", "say outside the cell what wants gradients"),
    _setter("data"): ("the step sets .data", "calculate a new tensor"),
}
_SIZES = {_getter("shape"), Tensor.size, Tensor.numel}
_REQUIRES_GRAD = _getter("requires_grad")


class Calls(TorchFunctionMode):
    """Around a `Trace` with `batch` sequences."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if function in _REFUSED:
            refuse(*_REFUSED[function])
        if function is torch.lstm_cell:
            return _lstm_cell(*args, **(kwargs or {}))
        if function is torch.gru_cell:
            return _gru_cell(*args, **(kwargs or {}))
        if function is F.dropout:
            return _dropout(*args, **(kwargs or {}))
        if function is F.gumbel_softmax:
            return _gumbel_softmax(*args, **(kwargs or {}))
        if function is functional.cell_step:
            return _cell_step(*args, **(kwargs or {}))
        if function is torch.cosine_similarity:
            return _cosine_similarity(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if function in _SIZES:
            return self._sizes(result)
        if function is Tensor.__len__ and self._rows(args[0]):  # len() gives a plain int, which could be calculated with
            refuse("the step asks for len() of an input or a state", "use .size(0)")
        if function == _REQUIRES_GRAD and self._rows(args[0]):
            refuse("the step reads requires_grad of an input or a state", "a step may not depend on gradients")
        return result

    def _sizes(self, result: Any) -> Any:
        return shape(result, self.batch) if isinstance(result, tuple) else shape((result,), self.batch)[0]

    def _rows(self, tensor: Tensor) -> bool:
        return any(size and size % self.batch == 0 for size in tensor.shape)


def _lstm_cell(
    x: Tensor, states: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None
) -> tuple[Tensor, Tensor]:
    """torch.lstm_cell, which on a GPU is one kernel."""
    h, c = states
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout, which calculates with p where it cannot be seen that p changes between calls."""
    if inplace or not training or not input.is_floating_point() or not 0 < p < 1:
        return F.dropout(input, p, training, inplace)
    keep = 1 - p
    return input * (torch.empty_like(input).bernoulli_(keep) / keep)


def _gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    """F.gumbel_softmax, which with `hard` looks for the place of the largest."""
    soft = F.gumbel_softmax(logits, tau, eps=eps, dim=dim)
    if not hard:
        return soft
    largest = (soft == soft.amax(dim, keepdim=True)).to(soft.dtype)
    first = largest * (largest.cumsum(dim) <= 1)
    return first - soft.detach() + soft


def _cell_step(
    cell: str | Cell, input: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Tensor], bias: bool = True
) -> tuple[Tensor, ...]:
    """`sstkern.functional.cell_step`, which is an operator."""
    cell = CELLS[cell] if isinstance(cell, str) else cell
    (mine,) = by_direction(cell, weights, bias, False)
    states = [input.new_zeros(input.size(0), mine.weight_hh.size(1)) for _ in cell.states] if hx is None else hx
    gates = F.linear(input, mine.weight_ih, mine.bias_ih), F.linear(states[0], mine.weight_hh, mine.bias_hh)
    return tuple(cell.step(*gates, tuple(states), mine.parameters))


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """torch.cosine_similarity, which changes norms in place behind autograd's back: their gradients are those without a bound."""
    dim -= max(x1.dim(), x2.dim()) if dim >= 0 else 0
    if min(x1.dim(), x2.dim()) < -dim or x1.size(dim) != x2.size(dim):
        x1, x2 = torch.broadcast_tensors(x1, x2)
    norms = (torch.linalg.vector_norm(x, dim=dim, keepdim=True) for x in (x1, x2))
    bounded = [norm + torch.where(norm < eps, eps - norm, 0.0).detach() for norm in norms]
    return (x1 / bounded[0] * (x2 / bounded[1])).sum(dim)


def _gru_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    """torch.gru_cell, likewise."""
    r_x, z_x, n_x = F.linear(x, w_ih, b_ih).chunk(3, 1)
    r_h, z_h, n_h = F.linear(h, w_hh, b_hh).chunk(3, 1)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return (h - n) * torch.sigmoid(z_x + z_h) + n
