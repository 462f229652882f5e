"""Sequences as rows: one for each valid step of each sequence, so that neither time nor memory goes to padding, and it is never read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sstkern import private
from sstkern.engines.loop import CutStates, MaskedStates, PackedStates, States
from sstkern.lengths import alone, batch_sizes, beginnings, check_packed, check_values, packed_rows, padding


class Rows:
    """From the sequences of a call to rows, and back.

    sizes: how many rows each time step has. Where a trace or a transform hides the lengths, every step has all B rows, those past a length
    as zeros, and masks keep their states.

    lengths: as operators take them.
    """

    def __init__(self, inputs: Sequence[Tensor], lengths: Tensor | None, padded: bool):
        x = inputs[0]
        self.padded, self.shape = padded, x.shape[:2]
        self.batch = x.size(1) if lengths is None else lengths.size(0)
        self.valid: Tensor | None = None
        self.places: tuple[Tensor, Tensor] | None = None
        self.order: Tensor | None = None
        self.beginnings = beginnings(lengths)
        lengths = self.lengths = None if lengths is None else alone(lengths)
        if not padded:
            self.sizes = batch_sizes(check_packed(lengths, x.size(0))).tolist()
            return
        self.sizes = [x.size(1)] * x.size(0)
        if lengths is None:
            return
        check_values(lengths, x.size(0))
        if _hidden(lengths):
            self.valid = torch.arange(x.size(0), device=x.device)[:, None] < lengths.to(x.device)
        elif x.size(0) and x.size(1):
            self._sort(lengths, x)

    def _sort(self, lengths: Tensor, x: Tensor) -> None:
        falling, order = torch.sort(lengths.cpu(), descending=True, stable=True)
        sizes = batch_sizes(falling)
        step, sequence = packed_rows(sizes)
        self.sizes = sizes.tolist()
        self.places = step.to(x.device), order[sequence].to(x.device)
        self.order, self.inverse = order.to(x.device), order.argsort().to(x.device)

    def of(self, tensor: Tensor) -> Tensor:
        """Rows (N, ...) of an input or a gradient."""
        if not self.padded:
            return tensor
        if self.places is not None:
            return tensor[self.places]
        return (tensor if self.valid is None else self._masked(tensor)).flatten(0, 1)

    def _masked(self, padded: Tensor) -> Tensor:
        """(T, B, ...), zero past the lengths."""
        assert self.valid is not None
        return padded.masked_fill(~self.valid.reshape(*self.valid.shape, *[1] * (padded.dim() - 2)), 0)

    def restored(self, rows: Tensor) -> Tensor:
        """The way back; zeros past the lengths."""
        if not self.padded:
            return rows
        if self.places is not None:
            return rows.new_zeros(*self.shape, *rows.shape[1:]).index_put(self.places, rows)
        padded = rows.unflatten(0, self.shape)
        # What is computed after the loop has not seen its masks.
        return padded if self.valid is None else self._masked(padded)

    def states(self, hx: Sequence[Tensor], reverse: bool, anew: Sequence[Tensor] = ()) -> States:
        """anew: what sequences begin anew with; zeros where nothing is given."""
        if self.beginnings is None:
            return self._whole(hx, reverse)
        anew = [state if self.order is None else state.index_select(0, self.order) for state in anew or map(torch.zeros_like, hx)]
        return CutStates(self._whole(hx, reverse), tuple(anew), self._cuts(self.beginnings, reverse))

    def _whole(self, hx: Sequence[Tensor], reverse: bool) -> MaskedStates | PackedStates:
        """Of sequences that are not cut."""
        if self.valid is not None:
            return MaskedStates(tuple(hx), self.valid)
        first = hx if self.order is None else [state.index_select(0, self.order) for state in hx]
        return PackedStates(tuple(first), self.sizes, reverse)

    def _cuts(self, beginnings: Tensor, reverse: bool) -> Sequence[Tensor]:
        """At every step, bool (rows,), whether what a direction's sequences begin anew with takes the state's place before it: in reverse
        at the step before the one that begins anew, which is another sequence's last."""
        if reverse:
            later = beginnings
            if self.lengths is not None:
                steps = torch.arange(beginnings.size(0), device=beginnings.device)
                later = beginnings & (steps[:, None] < self.lengths.to(beginnings.device))
            beginnings = torch.cat([later[1:], torch.zeros_like(later[:1])])
        if self.padded:
            return self.of(beginnings).split(self.sizes)
        assert self.lengths is not None
        return padding(self.lengths, beginnings.device)[1](beginnings).split(self.sizes)

    def back(self, state: Tensor) -> Tensor:
        """A last state in the order of the caller's sequences."""
        return state if self.order is None else state.index_select(0, self.inverse)


def _hidden(lengths: Tensor) -> bool:
    """Whether a look at the values is not to be had: in a trace, on the meta device, within vmap."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or lengths.is_meta or private.is_fake(lengths):
        return True
    return private.without_transforms(lengths) is not lengths
