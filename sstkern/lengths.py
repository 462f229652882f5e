"""Sequences of different lengths: a padded Tensor with lengths, a PackedSequence or a jagged nested Tensor, as the operators take them.

What operators call lengths is int64 (B,). Where sequences begin anew at some of their steps it is (B, 1 + T): the lengths, then for every
step whether its sequence begins anew with it; or bool (B, T), which says that of whole sequences. So whatever takes lengths along takes
these too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from sstkern import private
from sstkern.structure import Structure, of_parts

Lengths = Tensor | Sequence[int]
Resets = Tensor | PackedSequence
ALL_ROWS = -1
"""Stands for a number of rows to save: as many as x has."""


class Batch(NamedTuple):
    """Sequences as the operators take them, and the way back to what the caller gave."""

    x: Tensor
    """Padded, (T, B, I), or packed, (N, I): the N valid steps alone, in the order of a PackedSequence, whose lengths fall. Rows may have
    another shape than (I,) where `to_batches` made it."""
    lengths: Tensor | None
    """An operator's, on the CPU or where a padded x is"""
    batched: bool
    restore: Callable[[Tensor], Tensor | PackedSequence]
    """Gives an output (T, B, ...), or (N, ...), the form of the input."""
    order: Tensor | None = None
    """int64 (B,): which of the caller's sequences each of x's is; None where they have one order."""
    inverse: Tensor | None = None
    """Which of x's sequences each of the caller's is."""
    packed: bool = False

    @property
    def size(self) -> int:
        """B"""
        return self.x.size(1) if self.lengths is None else self.lengths.size(0)

    def padded(self) -> "Batch":
        """The same batch with x padded, for what takes no packed one."""
        if not self.packed:
            return self
        assert self.lengths is not None
        pad, unpad = padding(alone(self.lengths), self.x.device)
        return self._replace(x=pad(self.x), restore=lambda output: self.restore(unpad(output)), packed=False)


def alone(lengths: Tensor) -> Tensor:
    """The lengths of the sequences, (B,), from an operator's `lengths`."""
    if lengths.dtype == torch.bool:
        return lengths.new_full(lengths.shape[:1], lengths.size(1), dtype=torch.int64)
    return lengths[:, 0] if lengths.dim() == 2 else lengths


def beginnings(lengths: Tensor | None) -> Tensor | None:
    """The steps at which sequences begin anew, bool (T, B), from an operator's `lengths`; None where none does."""
    if lengths is None or lengths.dim() == 1:
        return None
    return lengths.t() if lengths.dtype == torch.bool else lengths[:, 1:].t() != 0


def with_beginnings(lengths: Tensor | None, resets: Tensor) -> Tensor:
    """An operator's lengths. resets: bool (T, B), where the sequences are."""
    if lengths is None:
        return resets.t().clone(memory_format=torch.contiguous_format)  # as `_check` copies
    return torch.cat([lengths.to(resets.device)[:, None], resets.t()], 1)


def to_batch(
    input: Tensor | PackedSequence, lengths: Lengths | None, batch_first: bool, vectors: bool = True, resets: Resets | None = None
) -> Batch:
    """Takes (T, I), (T, B, I), with batch_first (B, T, I), a PackedSequence, or a jagged nested Tensor (B, *, I), whatever batch_first.

    vectors: whether a row has to be one, (I,); otherwise (T, B, ...) and the like are taken too. resets: bool, in the form of the input,
    without features. Raises TypeError or ValueError for anything else.
    """
    batch = _to_batch(input, lengths, batch_first, vectors)
    return batch if resets is None else batch._replace(lengths=_with_resets(input, resets, batch, batch_first))


def _to_batch(input: Tensor | PackedSequence, lengths: Lengths | None, batch_first: bool, vectors: bool) -> Batch:
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths: a PackedSequence has its own lengths; give one or the other")
        return _from_packed(input, vectors)
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor or a PackedSequence, got {type(input).__name__}")
    if input.is_nested:
        if lengths is not None:
            raise ValueError("lengths: a nested input has its own lengths; give one or the other")
        return _from_nested(input, vectors)
    if input.dim() == 2:
        if lengths is not None:
            raise ValueError("lengths: an unbatched input (2-D) is one whole sequence; cut it instead of giving lengths")
        return Batch(input.unsqueeze(1), None, False, lambda output: output.squeeze(1))
    if input.dim() < 2 or (vectors and input.dim() != 3):
        raise ValueError(f"input: expected 2-D (unbatched) or 3-D {'' if vectors else 'or more '}(batched), got {input.dim()}-D")
    x = input.transpose(0, 1) if batch_first else input
    checked = None if lengths is None else _check(lengths, x)
    return Batch(x, checked, True, lambda output: output.transpose(0, 1) if batch_first else output)


def to_batches(input: Any, lengths: Lengths | None, batch_first: bool, resets: Resets | None = None) -> tuple[Structure, Batch]:
    """`to_batch` for rows of any shape, and for a tuple of sequences that go together: x, or a tuple of them, and the batch of the first.

    Those of a tuple are all padded, with the same T and B, or all packed or nested, with the same lengths. Where the first is unbatched,
    so are the others. Raises TypeError or ValueError for anything else.
    """
    if not isinstance(input, tuple) or isinstance(input, PackedSequence):
        batch = to_batch(input, lengths, batch_first, vectors=False, resets=resets)
        return batch.x, batch
    if not input:
        raise ValueError("input: expected at least one Tensor in the tuple, got none")
    for place, part in enumerate(input):
        if not isinstance(part, Tensor | PackedSequence):
            raise TypeError(f"input[{place}]: expected a Tensor or a PackedSequence, got {type(part).__name__}")
        if _form(part) != _form(input[0]):
            raise TypeError(f"input[{place}]: expected a {_form(input[0])} like input[0], got a {_form(part)}")
    batch = to_batch(input[0], lengths, batch_first, vectors=False, resets=resets)
    rest = enumerate(input[1:], start=1)
    others = [_beside(batch, part, f"input[{place}]", batch_first) for place, part in rest]
    return of_parts(input, [batch.x, *others]), batch


def _with_resets(input: Tensor | PackedSequence, resets: Resets, batch: Batch, batch_first: bool) -> Tensor:
    """The operators' lengths of a batch whose sequences begin anew where resets, in the form of the input, say so."""
    given = resets.data if isinstance(resets, PackedSequence) else resets
    if not isinstance(given, Tensor):
        raise TypeError(f"resets: expected a bool {_form(input)}, got {type(given).__name__}")
    if given.dtype != torch.bool:
        raise TypeError(f"resets: expected bool, got {given.dtype}; resets.bool() is what they are as bools")
    if _form(resets) != _form(input):
        raise TypeError(f"resets: expected a {_form(input)} like the input, got a {_form(resets)}")
    if given.layout != (torch.jagged if given.is_nested else torch.strided):
        raise TypeError(f"resets: expected a {'jagged nested' if given.is_nested else 'dense'} Tensor, got one of layout {given.layout}")
    if given.is_meta and not batch.x.is_meta:
        raise ValueError(f"resets: is on meta, where it has no values, but the input is on {batch.x.device}; move it")
    if not batch.packed:
        _check_resets(given, batch, batch_first)
        given = given if not batch.batched else given.t() if batch_first else given
        return with_beginnings(batch.lengths, (given if batch.batched else given.unsqueeze(1)).to(batch.x.device))
    mine = _packed_resets(resets)
    if not _equal(mine.lengths, batch.lengths) or not _equal(mine.order, batch.order):
        raise ValueError("resets: expected sequences of the same lengths as the input, in the same order")
    assert batch.lengths is not None
    pad, _ = padding(batch.lengths, batch.lengths.device)
    return with_beginnings(batch.lengths, pad(mine.x.to(batch.lengths.device)))


def _packed_resets(resets: Resets) -> Batch:
    given = resets.data if isinstance(resets, PackedSequence) else resets
    count, shape = (2, "a nested Tensor (B, *)") if given.is_nested else (1, "data (N,)")
    if given.dim() != count:
        raise ValueError(f"resets: expected {shape}, a bool for every step of the input, got {given.dim()} dimensions, not {count}")
    return _from_packed(resets, vectors=False) if isinstance(resets, PackedSequence) else _from_nested(resets, vectors=False)


def _check_resets(resets: Tensor, batch: Batch, batch_first: bool) -> None:
    expected = tuple(batch.x.shape[:2])
    expected = expected[:1] if not batch.batched else expected[::-1] if batch_first else expected
    if tuple(resets.shape) != expected:
        raise ValueError(f"resets: expected shape {expected}, a bool for every step of the input, got {tuple(resets.shape)}")


def _form(input: Tensor | PackedSequence) -> str:
    return "PackedSequence" if isinstance(input, PackedSequence) else "nested Tensor" if input.is_nested else "Tensor"


def _beside(batch: Batch, input: Tensor | PackedSequence, name: str, batch_first: bool) -> Tensor:
    """x of a sequence that goes with those of a batch."""
    if batch.packed:
        mine = to_batch(input, None, batch_first, vectors=False)
        if not _equal(mine.lengths, None if batch.lengths is None else alone(batch.lengths)) or not _equal(mine.order, batch.order):
            raise ValueError(f"{name}: expected sequences of the same lengths as input[0], in the same order")
        return mine.x
    assert isinstance(input, Tensor)
    leading, given = (2 if batch.batched else 1), input
    if input.dim() >= leading:
        input = input.unsqueeze(1) if not batch.batched else input.transpose(0, 1) if batch_first else input
    if given.dim() < leading or input.shape[:2] != batch.x.shape[:2]:
        expected = batch.x.transpose(0, 1) if batch.batched and batch_first else batch.x
        sizes = ", ".join(map(str, [*expected.shape[:leading], "..."]))
        raise ValueError(f"{name}: expected shape ({sizes}) like input[0], got {tuple(given.shape)}")
    return input


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b.to(a.device)))


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
    """As `check_values`, without a look now: a compiled graph checks them when it runs, a GPU when it comes to it. RuntimeError there."""
    private.assert_later(((lengths >= 0) & (lengths <= steps)).all(), f"sstkern: lengths have to be from 0 to {steps}")


def check_packed(lengths: Tensor | None, rows: int) -> Tensor:
    """The lengths of the sequences, (B,); raises ValueError unless they are those of a packed x of so many rows."""
    if lengths is None:
        raise ValueError("lengths: a packed x, (N, I), needs them")
    lengths = alone(lengths)
    if longest(lengths) > rows or int(lengths.sum()) != rows or (lengths < 0).any() or (lengths.diff() > 0).any():
        raise ValueError(f"lengths: a packed x of {rows} rows needs falling ones whose sum is that, got {lengths.tolist()}")
    return lengths


def all_rows(x: Tensor) -> int:
    return x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)


def longest(lengths: Tensor) -> int:
    return int(lengths.max()) if len(lengths) else 0


def batch_sizes(lengths: Tensor) -> Tensor:
    """int64 (T,): how many sequences have each step, as a PackedSequence has it."""
    steps = longest(lengths)
    return len(lengths) - torch.bincount(lengths, minlength=steps)[:steps].cumsum(0)


def packed_rows(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The step and the sequence of each row of a packed x; int64 (N,) both."""
    step = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    first = sizes.cumsum(0) - sizes
    return step, torch.arange(len(step), device=sizes.device) - first[step]


def padding(lengths: Tensor, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Two functions: from packed (N, ...) to padded (T, B, ...), zero past a length, and back."""
    step, sequence = (rows.to(device) for rows in packed_rows(batch_sizes(lengths)))
    shape = longest(lengths), len(lengths)

    def pad(packed: Tensor) -> Tensor:
        return packed.new_zeros(*shape, *packed.shape[1:]).index_put((step, sequence), packed)

    return pad, lambda padded: padded[step, sequence]


def _check(lengths: Lengths, x: Tensor) -> Tensor:
    tensor = lengths if isinstance(lengths, Tensor) else _to_tensor(lengths)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {tensor.dtype}")
    if tensor.dim() != 1 or tensor.size(0) != x.size(1):
        raise ValueError(f"lengths: expected one for each of {x.size(1)} sequences, got shape {tuple(tensor.shape)}")
    place = x.device if tensor.device == x.device else "cpu"
    # A copy: a data loader may fill the caller's anew before backward reads it, and one that shares memory with numpy has no version.
    return tensor.to(place, torch.int64, copy=tensor is lengths and torch.is_grad_enabled())


def _to_tensor(lengths: Sequence[int]) -> Tensor:
    try:
        tensor = torch.tensor(lengths, device="cpu")  # whatever the default device
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"lengths: expected integers, got {lengths!r}") from None
    return tensor.long() if tensor.numel() == 0 else tensor  # torch.tensor([]) is float32


def _from_packed(packed: PackedSequence, vectors: bool) -> Batch:
    x, sizes = packed.data, packed.batch_sizes
    if x.dim() == 0 or (vectors and x.dim() != 2):
        raise RuntimeError(f"input: expected a PackedSequence of data (N, {'I' if vectors else '...'}), got {x.dim()}-D data")
    ended = sizes - torch.cat([sizes[1:], sizes.new_zeros(1)])  # how many sequences have each step as their last one
    steps = torch.ones_like(sizes).cumsum(0)  # not arange, of which torch.jit.trace keeps this call's number
    try:
        lengths = torch.repeat_interleave(steps, ended).flip(0)
    except RuntimeError:
        raise ValueError(f"input: the batch_sizes of a PackedSequence fall, got {sizes.tolist()}") from None

    def restore(output: Tensor) -> PackedSequence:
        return PackedSequence(output, sizes, packed.sorted_indices, packed.unsorted_indices)

    return Batch(x, lengths, True, restore, _saved(packed.sorted_indices), _saved(packed.unsorted_indices), packed=True)


def _saved(indices: Tensor | None) -> Tensor | None:
    """What autograd can save for a backward, which indices that were made under torch.inference_mode are not."""
    if indices is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return indices
    return indices.clone() if indices.is_inference() else indices


def _from_nested(input: Any, vectors: bool) -> Batch:  # a Tensor, whose annotations know nothing of nested ones
    if input.layout != torch.jagged:
        raise ValueError(f"input: expected a nested tensor of the layout torch.jagged, got {input.layout}")
    if (vectors and input.dim() != 3) or private.ragged_dimension(input) != 1:
        shape = f"(B, *, {'I' if vectors else '...'})"
        raise ValueError(f"input: expected a nested tensor {shape}, whose sequences differ in their second dimension")
    values, offsets, of_each = input.values(), input.offsets(), input.lengths()
    lengths, order = torch.sort((offsets.diff() if of_each is None else of_each).cpu().long(), descending=True, stable=True)
    step, sequence = packed_rows(batch_sizes(lengths))
    # Values may lie between the sequences and after the last one: they are not used, and 0 in the output.
    rows = offsets[order[sequence].to(offsets.device)] + step.to(offsets.device)
    order = order.to(values.device)

    def restore(output: Tensor) -> Tensor:
        result = output.new_zeros(values.size(0), *output.shape[1:]).index_copy(0, rows, output)
        return torch.nested.nested_tensor_from_jagged(result, offsets, lengths=of_each)

    return Batch(values.index_select(0, rows), lengths, True, restore, order, order.argsort(), packed=True)
