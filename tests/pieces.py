"""Sequences that begin anew, and their pieces alone: what a layer gives of the whole has to be what it gives of each piece.

Here states are (rows, B, width), a row for each layer and direction, and those of every step (T, rows, B, width).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sstkern

Results = tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]
"""The output, the last states and those of every step."""


@dataclass
class Case:
    """A layer. run(x, hx, **options) gives Results. reverse: of each row of the states whether it goes from the last step to the first."""

    layer: nn.Module
    widths: Sequence[int]
    reverse: Sequence[bool]
    run: Callable[..., Results]


def of_layer(layer: nn.RNNBase) -> Case:
    widths = layer.cell.state_sizes(layer.hidden_size, layer.proj_size or layer.hidden_size)

    def given(states):
        return None if states is None else states[0] if len(widths) == 1 else tuple(states)

    def run(x, hx, reset_to=None, **options):
        output, last, states = layer(x, given(hx), reset_to=given(reset_to), return_states=True, **options)
        return output, _several(last), _several(states)

    rows = layer.num_layers * (1 + layer.bidirectional)
    return Case(layer, widths, [bool(layer.bidirectional) and row % 2 == 1 for row in range(rows)], run)


def of_cell(cell: nn.Module, widths: Sequence[int], reverse: bool = False, **options) -> Case:
    """The case of an own cell whose state is a tensor, or a tuple of them, of these widths."""
    layer = sstkern.fuse(cell, reverse=reverse, **options)

    def given(states):
        if states is None:
            return None
        states = [state.squeeze(0) for state in states]
        return states[0] if len(states) == 1 else tuple(states)

    def run(x, hx, reset_to=None, **options):
        output, last, states = layer(x, given(hx), reset_to=given(reset_to), return_states=True, **options)
        return output, [state.unsqueeze(0) for state in _several(last)], [state.unsqueeze(1) for state in _several(states)]

    return Case(layer, widths, [reverse], run)


def _several(states):
    return list(states) if isinstance(states, tuple) else [states]


def random_states(case: Case, batch: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(len(case.reverse), batch, width, dtype=dtype, requires_grad=True) for width in case.widths]


def cuts(resets: Tensor, length: int) -> list[tuple[int, int]]:
    """The steps begin..end-1 of each piece of a sequence whose resets are bool (T,)."""
    begins = [0, *(t for t in range(1, length) if resets[t])]
    return list(zip(begins, [*begins[1:], length], strict=True))


def check_pieces(
    case: Case, x: Tensor, resets: Tensor, lengths: Sequence[int] | None, hx: list[Tensor], anew: list[Tensor], exact: bool, rtol: float
) -> None:
    """Compares outputs, states and all gradients of the whole with those of each piece alone.

    exact: whether all but sums over the pieces have to have the same bits.
    """
    options = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    whole = case.run(x, hx, resets=resets, reset_to=anew, **options)
    grads = _randn_like(whole)
    parameters = list(case.layer.parameters())
    inputs = [x, *hx, *anew, *parameters]
    found = torch.autograd.grad(_flat(whole), inputs, _flat(grads))
    sums = [torch.zeros_like(tensor) for tensor in inputs]
    for b, length in enumerate([len(x)] * x.size(1) if lengths is None else lengths):
        for begin, end in cuts(resets[:, b], length):
            _check_piece(case, x, (begin, end, b, length), bool(resets[0, b]), (hx, anew), whole, grads, sums, exact, rtol)
    for value, mine in zip(found[:1] if exact else (), sums, strict=False):
        assert torch.equal(value, mine)
    for value, mine in zip(found, sums, strict=True):
        torch.testing.assert_close(value, mine, rtol=rtol, atol=rtol * (1 + float(mine.abs().max())))


def _check_piece(case, x, place, at_start, given, whole, grads, sums, exact, rtol) -> None:
    """Adds the gradients of a piece alone to those that the whole has to have."""
    begin, end, b, length = place
    count, one = len(case.widths), slice(b, b + 1)
    # Of each row of the states whether the piece begins with what the sequence was given, and whether it ends the sequence.
    first = [end == length if reverse else begin == 0 and not (at_start and length) for reverse in case.reverse]
    last = [begin == 0 if reverse else end == length for reverse in case.reverse]
    rows = list(zip(range(len(first)), first, last, strict=True))
    hx = [torch.stack([given[0 if of_hx else 1][i][row, one] for row, of_hx, _ in rows]).detach().requires_grad_() for i in range(count)]
    mine = x[begin:end, one].detach().requires_grad_()
    output, hx_n, states = case.run(mine, hx)
    same = torch.equal if exact else lambda a, b: torch.testing.assert_close(a, b, rtol=rtol, atol=rtol) is None
    assert same(output, whole[0][begin:end, one])
    for i in range(count):
        assert same(states[i], whole[2][i][begin:end, :, one])
        assert all(same(hx_n[i][row], whole[1][i][row, one]) for row, _, ends in rows if ends)
    of_last = [
        torch.stack([grads[1][i][row, one] if ends else torch.zeros_like(grads[1][i][row, one]) for row, _, ends in rows])
        for i in range(count)
    ]
    of_all = grads[0][begin:end, one], of_last, [grads[2][i][begin:end, :, one] for i in range(count)]
    parameters = list(case.layer.parameters())
    found = torch.autograd.grad(_flat((output, hx_n, states)), [mine, *hx, *parameters], _flat(of_all), materialize_grads=True)
    sums[0][begin:end, one] = found[0]
    for i in range(count):
        for row, of_hx, _ in rows:
            sums[1 + i + (0 if of_hx else count)][row, one] += found[1 + i][row]
    for total, gradient in zip(sums[1 + 2 * count :], found[1 + count :], strict=True):
        total += gradient


def _flat(results) -> list[Tensor]:
    return [results[0], *results[1], *results[2]]


def _randn_like(results) -> Results:
    return torch.randn_like(results[0]), [*map(torch.randn_like, results[1])], [*map(torch.randn_like, results[2])]
