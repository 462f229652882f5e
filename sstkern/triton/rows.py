"""Which rows of a padded batch are valid time steps, and in what order the kernels keep them.

The kernels sort sequences by descending length, so that those of one tile end at about the same step, and keep what belongs to a valid
step, and nothing else, one row a slot, one step after the other: PackedSequence's order.

Lengths on the CPU are checked there, and the matrix products outside the time loop then run over just those rows. Lengths on the GPU never
come to the host: their check is a device assertion, and the products run over T * B rows, the invalid ones last and zero.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sstkern.lengths import check_values


class Rows(NamedTuple):
    """Of T time steps and B sequences; `count` rows."""

    order: Tensor
    """int32 (B,): the sequence in each slot, longest first."""
    lengths: Tensor
    """int32 (B,): theirs."""
    offsets: Tensor
    """int64 (T,): the first row of each step."""
    count: int
    step: Tensor
    """int64 (count,): the step of each row."""
    sequence: Tensor
    """int64 (count,): its sequence."""
    present: Tensor | None
    """bool (count, 1): whether the row is a valid step; None where all are."""
    place: Tensor
    """int64 (T, B): the row of a valid step, any row for an invalid one."""
    valid: Tensor
    """bool (T, B)"""


def of_lengths(lengths: Tensor, steps: int, device: torch.device) -> Rows:
    """`steps` and every size at least 1. Raises ValueError for a length on the CPU outside 0 to `steps`, and asserts it on the device."""
    batch, on_device = lengths.size(0), lengths.device.type != "cpu"
    if not on_device:
        check_values(lengths, steps)
        count = int(lengths.sum())
    else:
        torch._assert_async(((lengths >= 0) & (lengths <= steps)).all(), "sstkern: lengths have to be from 0 to the number of time steps")
        lengths = lengths.clamp(0, steps)  # no kernel leaves its memory before the assertion is reported
        count = steps * batch
    descending, order = torch.sort(lengths, descending=True, stable=True)
    descending, order, lengths = (tensor.to(device, non_blocking=True) for tensor in (descending, order, lengths))
    valid = torch.arange(steps, device=device)[:, None] < lengths
    ends = valid.sum(1).cumsum(0)
    offsets = ends - valid.sum(1)
    rows = torch.arange(count, device=device)
    step = torch.searchsorted(ends, rows, right=True).clamp(max=steps - 1)
    sequence = order[(rows - offsets[step]).clamp(max=batch - 1)]
    slot = torch.argsort(order)
    present = (rows < ends[-1])[:, None] if on_device else None
    place = (offsets[:, None] + slot).clamp(max=max(count - 1, 0))
    return Rows(order.int(), descending.int(), offsets, count, step, sequence, present, place, valid)


def gather(table: Tensor, rows: Rows, index: tuple[Tensor, ...]) -> Tensor:
    """table[index] for every row, zero for those that are no valid step, whatever the table holds there."""
    gathered = table[index]
    return gathered if rows.present is None else torch.where(rows.present, gathered, 0)
