"""Sequences of different lengths: a padded Tensor with lengths, a PackedSequence or a jagged nested Tensor, one form inside."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from sstkern import private

Lengths = Tensor | Sequence[int]


class Padded(NamedTuple):
    """A batch as the operators take it, and the way back to what the caller gave."""

    x: Tensor
    """(T, B, I)"""
    lengths: Tensor | None
    """int64 (B,), on the CPU or where x is"""
    batched: bool
    restore: Callable[[Tensor], Tensor | PackedSequence]
    """Gives an output (T, B, features) the form of the input."""


def to_padded(input: Tensor | PackedSequence, lengths: Lengths | None, batch_first: bool) -> Padded:
    """Takes (T, I), (T, B, I), with batch_first (B, T, I), a PackedSequence, or a jagged nested Tensor (B, *, I), whatever batch_first.

    Raises TypeError or ValueError for anything else.
    """
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths: a PackedSequence has its own lengths; give one or the other")
        return _from_packed(input)
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor or a PackedSequence, got {type(input).__name__}")
    if input.is_nested:
        if lengths is not None:
            raise ValueError("lengths: a nested input has its own lengths; give one or the other")
        return _from_nested(input)
    if input.dim() == 2:
        if lengths is not None:
            raise ValueError("lengths: an unbatched input (2-D) is one whole sequence; cut it instead of giving lengths")
        return Padded(input.unsqueeze(1), None, False, lambda output: output.squeeze(1))
    if input.dim() != 3:
        raise ValueError(f"input: expected 2-D (unbatched) or 3-D (batched), got {input.dim()}-D")
    x = input.transpose(0, 1) if batch_first else input
    checked = None if lengths is None else _check(lengths, x)
    return Padded(x, checked, True, lambda output: output.transpose(0, 1) if batch_first else output)


def check_values(lengths: Tensor, steps: int) -> None:
    """Raises ValueError, in a compiled graph RuntimeError, unless every length is from 0 to `steps`; on the meta device none is known."""
    if torch.compiler.is_dynamo_compiling():
        return check_later(lengths, steps)
    lengths = private.without_transforms(lengths)  # within vmap: those of all samples
    if lengths.is_meta:
        return
    if private.is_fake(lengths):
        return check_later(lengths, steps)
    for b, length in enumerate(lengths.flatten().tolist()):
        if not 0 <= length <= steps:
            raise ValueError(f"lengths[{b}] is {length}; allowed are 0 to {steps}, the number of time steps")


def check_later(lengths: Tensor, steps: int) -> None:
    """The same without a look at the values: in a compiled graph, or on a GPU when it comes to it. RuntimeError there."""
    private.assert_later(((lengths >= 0) & (lengths <= steps)).all(), f"sstkern: lengths have to be from 0 to {steps}")


def _check(lengths: Lengths, x: Tensor) -> Tensor:
    tensor = lengths if isinstance(lengths, Tensor) else _to_tensor(lengths)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {tensor.dtype}")
    if tensor.dim() != 1 or tensor.size(0) != x.size(1):
        raise ValueError(f"lengths: expected one for each of {x.size(1)} sequences, got shape {tuple(tensor.shape)}")
    return tensor.to(x.device if tensor.device == x.device else "cpu", torch.int64)


def _to_tensor(lengths: Sequence[int]) -> Tensor:
    try:
        tensor = torch.tensor(lengths, device="cpu")  # whatever the default device
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"lengths: expected integers, got {lengths!r}") from None
    return tensor.long() if tensor.numel() == 0 else tensor  # torch.tensor([]) is float32


def _from_packed(packed: PackedSequence) -> Padded:
    x, lengths = pad_packed_sequence(packed)

    def restore(output: Tensor) -> PackedSequence:
        order = packed.sorted_indices
        by_length, sorted_lengths = (output, lengths) if order is None else (output[:, order], lengths.sort(descending=True).values)
        data = pack_padded_sequence(by_length, sorted_lengths).data
        return PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices)

    return Padded(x, lengths, True, restore)


def _from_nested(input: Any) -> Padded:  # a Tensor, whose annotations know nothing of nested ones
    if input.layout != torch.jagged:
        raise ValueError(f"input: expected a nested tensor of the layout torch.jagged, got {input.layout}")
    if input.dim() != 3 or private.ragged_dimension(input) != 1 or input.lengths() is not None:
        raise ValueError("input: expected a nested tensor (B, *, I) without gaps between its sequences; contiguous() closes them")
    values, offsets = input.values(), input.offsets()
    lengths = offsets.diff().long()
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    step = torch.arange(len(values), device=values.device) - offsets[sequence]
    steps = int(lengths.max()) if len(lengths) else 0
    x = values.new_zeros(steps, len(lengths), values.size(1)).index_put((step, sequence), values)
    return Padded(x, lengths, True, lambda output: torch.nested.nested_tensor_from_jagged(output[step, sequence], offsets))
