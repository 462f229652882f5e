"""Which rows of a padded batch are valid time steps, and in what order the kernels keep them.

The kernels sort sequences by descending length, so that those of one tile end at about the same step, and keep what belongs to a valid
step, and nothing else, one row a slot, one step after the other: PackedSequence's order.

Lengths on the CPU are checked there, and the matrix products outside the time loop then run over just those rows. Lengths on the GPU never
come to the host: their check is a device assertion, and the products run over T * B rows, the invalid ones last and zero.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from sstkern.lengths import alone, beginnings, check_later, check_values


@dataclass(frozen=True)
class Rows:
    """Of T time steps and B sequences; `count` rows."""

    order: Tensor
    """int32 (B,): the sequence in each slot, longest first."""
    lengths: Tensor
    """int32 (B,): theirs."""
    of_sequence: Tensor
    """int64 (B,): the lengths in the order of the batch."""
    slot: Tensor
    """int64 (B,): where each sequence is."""
    offsets: Tensor
    """int64 (T,): the first row of each step."""
    count: int
    step: Tensor
    """int64 (count,): the step of each row."""
    sequence: Tensor
    """int64 (count,): its sequence."""
    present: Tensor | None
    """bool (count, 1): whether the row is a valid step; None where all are."""

    @cached_property
    def place(self) -> Tensor:
        """int64 (T, B): the row of a valid step, any row for an invalid one."""
        return self._within(self.offsets[:, None] + self.slot)

    @cached_property
    def valid(self) -> Tensor:
        """bool (T, B)"""
        return torch.arange(len(self.offsets), device=self.offsets.device)[:, None] < self.of_sequence

    def at(self, step: Tensor) -> Tensor:
        """The row that each row's sequence has at `step` (count,), any row for an invalid one."""
        return self._within(self.offsets[step] + self.slot[self.sequence])

    def _within(self, rows: Tensor) -> Tensor:
        return rows.clamp(max=max(self.count - 1, 0))

    @cached_property
    def before(self) -> tuple[Tensor, Tensor]:
        """Of each row: the step before its own, int64 (count,), any step where there is none, and whether there is one, bool (count, 1)."""
        return self._beside(-1)

    @cached_property
    def after(self) -> tuple[Tensor, Tensor]:
        """The same of the step after."""
        return self._beside(1)

    def _beside(self, distance: int) -> tuple[Tensor, Tensor]:
        step = self.step + distance
        there = step.clamp(0, len(self.offsets) - 1)
        return there, ((step == there) & (there < self.of_sequence[self.sequence]))[:, None]


def of_operator(lengths: Tensor | None, steps: int, device: torch.device) -> tuple[Rows | None, Tensor | None]:
    """What an operator's lengths say: the rows, None where every sequence has all steps, and with which steps the sequence in each slot
    begins anew, uint8 (T, B), None where none does.

    Raises RuntimeError for another number of steps, and as `of_lengths`.
    """
    marks = beginnings(lengths)
    if lengths is None or marks is None:
        return (None if lengths is None else of_lengths(lengths, steps, device)), None
    if marks.size(0) != steps:
        raise RuntimeError(f"resets: expected {steps} time steps, as x has, got {marks.size(0)}")
    marks = marks.to(device, non_blocking=True)
    if lengths.dtype == torch.bool:
        return None, marks.contiguous().view(torch.uint8)
    rows = of_lengths(alone(lengths), steps, device)
    return rows, marks.index_select(1, rows.order).view(torch.uint8)


def starting(marks: Tensor, rows: Rows | None) -> Tensor:
    """Of each slot whether its sequence begins anew with its first step, bool (B,). marks: as of `of_operator`, with at least a step."""
    return marks[0] != 0 if rows is None else (marks[0] != 0) & (rows.lengths > 0)


def of_lengths(lengths: Tensor, steps: int, device: torch.device) -> Rows:
    """Raises ValueError for a length on the CPU outside 0 to `steps`, and asserts it on the GPU."""
    if lengths.device.type != "cpu":
        return of_device_lengths(lengths, steps)
    check_values(lengths, steps)
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return _rows(lengths, steps, int(lengths.sum()), device)
    return _recent(tuple(lengths.tolist()), steps, device, torch.cuda.current_stream(device))


@lru_cache(maxsize=2)
def _recent(lengths: tuple[int, ...], steps: int, device: torch.device, stream: torch.cuda.Stream) -> Rows:
    """Kept: the layers of a stack and their backwards have the same lengths, and these are 21 operations, in the order of their stream."""
    return _rows(torch.tensor(lengths, dtype=torch.int64, device="cpu"), steps, sum(lengths), device)


def of_device_lengths(lengths: Tensor, steps: int) -> Rows:
    """Without a look at the values: T * B rows, those that are no valid step last."""
    check_later(lengths, steps)
    lengths = lengths.clamp(0, steps)  # no kernel leaves its memory before the assertion is reported
    count = steps * lengths.size(0)
    found = _rows(lengths, steps, count, lengths.device)
    return replace(found, present=(torch.arange(count, device=lengths.device) < lengths.sum())[:, None])


def _rows(lengths: Tensor, steps: int, count: int, device: torch.device) -> Rows:
    batch = lengths.size(0)
    descending, order = torch.sort(lengths, descending=True, stable=True)
    descending, order = descending.to(device, non_blocking=True), order.to(device, non_blocking=True)
    slot = torch.argsort(order)
    lengths = descending[slot]  # not a copy of the caller's own, who may be filling it anew when the copy comes
    active = batch - torch.searchsorted(descending.flip(0), torch.arange(steps, device=device), right=True)
    ends = active.cumsum(0)
    offsets = ends - active
    rows = torch.arange(count, device=device)
    step = torch.searchsorted(ends, rows, right=True).clamp(max=max(steps - 1, 0))
    sequence = order[(rows - offsets[step]).clamp(max=max(batch - 1, 0))]
    return Rows(order.int(), descending.int(), lengths, slot, offsets, count, step, sequence, None)


def gather(table: Tensor, rows: Rows, index: tuple[Tensor, ...]) -> Tensor:
    """table[index] for every row, zero for those that are no valid step, whatever the table holds there."""
    gathered = table[index]
    return gathered if rows.present is None else torch.where(rows.present, gathered, 0)
