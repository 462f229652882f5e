"""A program over sequences, in plain PyTorch: forward, and backward by its derivative.

Every function here is made of torch's own operations and changes nothing in place, so that any of PyTorch's transforms goes through it.
T time steps, B batch, N rows: one for each valid step of each sequence, step by step, the longest sequence first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sstkern import private
from sstkern.engines.loop import MaskedStates, PackedStates, recurrence
from sstkern.lengths import batch_sizes, check_packed, check_values, packed_rows
from sstkern.program.derive import Derivative, Sum, derive
from sstkern.program.graph import Program, Value
from sstkern.program.language import OPERATIONS
from sstkern.program.partition import partition
from sstkern.program.shapes import Leaves, row_kind


class Call(NamedTuple):
    """A layer's call without its tensors.

    sizes, numbers: those that the program's text names. reverse: from the last step to the first. padded: whether inputs and outputs are
    (T, B, ...), else (N, ...). recompute: whether the backward computes all that it needs again from the states before each step.
    """

    program: Program
    sizes: tuple[int, ...]
    numbers: tuple[float, ...]
    reverse: bool
    padded: bool
    recompute: bool = False


def layer(
    call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The program's outputs, (T, B, ...) or (N, ...), zero past a sequence's length, and the states after each sequence's last step.

    inputs: (T, B, ...), or (N, ...) with falling lengths. hx: (B, ...) each. lengths: int64 (B,), or None where every sequence has T steps.
    What an input holds past a length is not read; within torch.func.vmap over the lengths it is, as zeros, and has no part in a result.
    """
    rows = _Rows(inputs, lengths, call.padded)
    return _outputs(call, rows, call.program.outputs, inputs, parameters, hx)


def _outputs(
    call: Call, rows: _Rows, wanted: Sequence[Value], inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    given = [rows.of(tensor) for tensor in inputs]
    found, last = _scan(call, call.program, wanted, given, parameters, rows.states(hx, call.reverse), rows.sizes, call.reverse)
    return [rows.restored(output) for output in found], [rows.back(state) for state in last]


def forward_and_saved(
    call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """As `layer`, and what `backward` needs besides: (N, ...) each."""
    rows = _Rows(inputs, lengths, call.padded)
    derivative = derive(call.program, leaves(call, inputs, parameters, hx), call.recompute)
    outputs = call.program.outputs
    given = [rows.of(tensor) for tensor in inputs]
    wanted = *outputs, *derivative.kept
    found, last = _scan(call, call.program, wanted, given, parameters, rows.states(hx, call.reverse), rows.sizes, call.reverse)
    results = [rows.restored(output) for output in found[: len(outputs)]]
    return results, [rows.back(state) for state in last], found[len(outputs) :]


def backward(
    call: Call,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    saved: Sequence[Tensor],
    grad_outputs: Sequence[Tensor],
    grad_hx: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of the inputs, parameters and first states that `needs` has a True for; None for the others.

    saved: from `forward_and_saved`.
    """
    rows = _Rows(inputs, lengths, call.padded)
    derivative = derive(call.program, leaves(call, inputs, parameters, hx), call.recompute)
    of_inputs, of_parameters = needs[: len(inputs)], needs[len(inputs) : len(inputs) + len(parameters)]
    sums = [part for part in derivative.sums if of_parameters[part.parameter]]
    wanted = _wanted(derivative, of_inputs, sums)
    given = [rows.of(tensor) for tensor in inputs]
    given += derivative.all_rows(len(hx), saved, given[0]) + [rows.of(gradient) for gradient in grad_outputs]
    states = rows.states(grad_hx, not call.reverse)
    outputs = [derivative.backward.outputs[place] for place in wanted]
    found, before = _scan(call, derivative.backward, outputs, given, parameters, states, rows.sizes, not call.reverse)
    at = dict(zip(wanted, found, strict=True))
    places = [place if need else None for place, need in zip(derivative.inputs, of_inputs, strict=True)]
    dinputs = [
        None if not need else torch.zeros_like(tensor) if place is None else rows.restored(at[place])
        for tensor, place, need in zip(inputs, places, of_inputs, strict=True)
    ]
    dparameters = [
        _summed(parameter, [part for part in sums if part.parameter == place], at) if need else None
        for place, (parameter, need) in enumerate(zip(parameters, of_parameters, strict=True))
    ]
    of_states = needs[len(inputs) + len(parameters) :]
    return [*dinputs, *dparameters, *(rows.back(state) if need else None for state, need in zip(before, of_states, strict=True))]


def leaves(call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]) -> Leaves:
    lead = 2 if call.padded else 1
    return Leaves(
        tuple(row_kind(tensor, lead) for tensor in inputs),
        tuple(row_kind(tensor, 1) for tensor in hx),
        tuple(row_kind(tensor, 0) for tensor in parameters),
        call.sizes,
    )


def _wanted(derivative: Derivative, of_inputs: Sequence[bool], sums: Sequence[Sum]) -> list[int]:
    """Places of the backward's outputs."""
    found = [place for place, need in zip(derivative.inputs, of_inputs, strict=True) if need and place is not None]
    found += [place for part in sums for place in part[1:] if place is not None]
    return list(dict.fromkeys(found))


def _summed(parameter: Tensor, parts: Sequence[Sum], rows: dict[int, Tensor]) -> Tensor:
    """A parameter's gradient: sums over rows, in the order of the program."""
    total: Tensor | None = None
    for part in parts:
        gradients = rows[part.gradients]
        if part.operands is None:
            found = gradients.sum_to_size(parameter.shape)
        else:
            found = gradients.flatten(0, -2).t() @ rows[part.operands].flatten(0, -2)
        total = found if total is None else total + found
    return torch.zeros_like(parameter) if total is None else total.to(parameter.dtype)


def _scan(
    call: Call,
    program: Program,
    outputs: Sequence[Value],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    states: PackedStates | MaskedStates,
    sizes: Sequence[int],
    reverse: bool,
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Rows of the outputs, (N, ...), and the last states. inputs: (N, ...). sizes: how many rows each time step has."""
    parts = partition(program, tuple(outputs))
    code = _Code(program, call.sizes, call.numbers)
    values = code.values(parameters)
    for place, tensor in enumerate(inputs):
        values[code.slot[Value("x", place)]] = tensor
    values[code.rows] = inputs[0]
    code.run(parts.before, values)
    taken, given = ([code.slot[value] for value in chosen] for chosen in (parts.to_core, parts.from_core))
    before, after = ([code.slot[value] for value in chosen] for chosen in (program.states_before, program.next_states))
    core = code.instructions(parts.core)

    def step(rows: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        now = values.copy()
        for slot, tensor in zip((*taken, *before), (*rows, *states), strict=True):
            now[slot] = tensor
        for slot, compute, arguments in core:
            now[slot] = compute(*arguments(now))
        return tuple([now[slot] for slot in given]), tuple([now[slot] for slot in after])

    split = [values[slot].split(sizes) for slot in taken]  # type: ignore[no-untyped-call]
    found = recurrence(step, [tuple(each[t] for each in split) for t in range(len(sizes))], states, reverse)
    for slot, tensor in zip(given, found, strict=True):
        values[slot] = tensor
    code.run(parts.after, values)
    return [values[code.slot[value]] for value in outputs], states.last()


Instruction = tuple[int, Callable[..., Tensor], Callable[[list], Sequence[Any]]]


class _Code:
    """A program's nodes over a list of values: inputs, states, parameters, results, and the numbers between them."""

    def __init__(self, program: Program, sizes: Sequence[int], numbers: Sequence[float]):
        self.program = program
        self.slot: dict[Value, int] = {}
        for kind, count in zip("xhpv", (*map(len, (program.inputs, program.states, program.parameters)), len(program.nodes)), strict=True):
            for place in range(count):
                self.slot[Value(kind, place)] = len(self.slot)
        self.rows = len(self.slot)
        self.constants: list[Any] = []
        self.sizes, self.numbers = sizes, numbers
