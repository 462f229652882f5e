"""A program over sequences, in plain PyTorch: forward, and backward by its derivative.

Every function here is made of torch's own operations and changes nothing in place, so that any of PyTorch's transforms goes through it.
T time steps, B batch, N rows: one for each valid step of each sequence, step by step, the longest sequence first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, reduce
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sstkern.engines.loop import States, recurrence
from sstkern.engines.rows import Rows
from sstkern.engines.tangents import with_tangents
from sstkern.program.derive import Derivative, Sum, derive
from sstkern.program.graph import Argument, Attribute, Program, Value
from sstkern.program.language import OPERATIONS, resolved
from sstkern.program.partition import partition
from sstkern.program.shapes import Kind, Leaves, result_kinds, row_kind


class Call(NamedTuple):
    """A layer's call without its tensors.

    sizes, numbers: those that the program's text names. reverse: from the last step to the first. padded: whether inputs and outputs are
    (T, B, ...), else (N, ...). recompute: whether the backward computes all that it needs again from the states before each step.
    narrow: what the program was before `widened`.
    """

    program: Program
    sizes: tuple[int, ...]
    numbers: tuple[float, ...]
    reverse: bool
    padded: bool
    recompute: bool = False
    narrow: Program | None = None


def layer(
    call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The program's outputs, (T, B, ...) or (N, ...), zero past a sequence's length, and the states after each sequence's last step.

    inputs: (T, B, ...), or (N, ...) with falling lengths. hx: (B, ...) each. lengths: int64 (B,), or None where every sequence has T steps;
    where they say that sequences begin anew, as `sstkern.lengths` has it, what they begin with follows in hx, or is zeros.
    What an input holds past a length is not read; within torch.func.vmap over the lengths it is, as zeros, and has no part in a result.
    """
    outputs, last, _ = _forward(call, inputs, parameters, hx, lengths, kept=False)
    return outputs, last


def forward_and_saved(
    call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """As `layer`, and what `backward` needs besides: rows (N, ...) each."""
    return _forward(call, inputs, parameters, hx, lengths, kept=True)


def _forward(
    call: Call,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    kept: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    inputs, parameters, hx = with_tangents(inputs, parameters, hx)
    narrow = leaves(call, inputs, parameters, hx)
    call, kinds = widened(call, narrow)
    rows, outputs, count = Rows(inputs, lengths, call.padded), call.program.outputs, len(call.program.states)
    given, first = [rows.of(wide(tensor, call)) for tensor in inputs], [wide(state, call) for state in hx]
    states = rows.states(first[:count], call.reverse, first[count:])
    values = *outputs, *(derive(call.program, kinds, call.recompute).kept if kept else ())
    weights = [wide(parameter, call) for parameter in parameters]
    found, last = _scan(call, call.program, values, given, weights, states, call.reverse)
    results = zip(found, result_kinds(call.narrow or call.program, narrow), strict=False)
    finals = zip(last, hx, strict=False)
    return (
        [rows.restored(output.to(kind.dtype)) for output, kind in results],
        [rows.back(state).to(before.dtype) for state, before in finals],
        found[len(outputs) :],
    )


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

    saved: from `forward_and_saved`. No sequence begins anew: of such the gradients come from `layer`, differentiated.
    """
    rows = Rows(inputs, lengths, call.padded)
    call, kinds = widened(call, leaves(call, inputs, parameters, hx))
    derivative = derive(call.program, kinds, call.recompute)
    of_inputs, of_parameters = needs[: len(inputs)], needs[len(inputs) : len(inputs) + len(parameters)]
    sums = [part for part in derivative.sums if of_parameters[part.parameter]]
    wanted = _wanted(derivative, of_inputs, sums)
    given = derivative.inputs_of_backward(
        [rows.of(wide(tensor, call)) for tensor in inputs],
        len(hx),
        saved,
        [rows.of(wide(gradient, call)) for gradient in grad_outputs],
    )
    outputs = [derivative.backward.outputs[place] for place in wanted]
    states = rows.states([wide(gradient, call) for gradient in grad_hx], not call.reverse)
    weights = [wide(parameter, call) for parameter in parameters]
    found, before = _scan(call, derivative.backward, outputs, given, weights, states, not call.reverse)
    at = dict(zip(wanted, found, strict=True))
    dinputs = [
        (torch.zeros_like(tensor) if place is None else rows.restored(at[place]).to(tensor.dtype)) if need else None
        for tensor, place, need in zip(inputs, derivative.inputs, of_inputs, strict=True)
    ]
    dparameters = [
        summed(parameter, [_sum_over_rows(part, at) for part in sums if part.parameter == place]) if need else None
        for place, (parameter, need) in enumerate(zip(parameters, of_parameters, strict=True))
    ]
    of_states = needs[len(inputs) + len(parameters) :]
    dhx = [rows.back(state).to(given.dtype) if need else None for state, given, need in zip(before, hx, of_states, strict=True)]
    return [*dinputs, *dparameters, *dhx]


def reached(call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]) -> list[bool]:
    """Which of the tensors any gradient gets to. One that is read behind a detach() only has none, which is not one of zeros."""
    derivative = derive(call.program, leaves(call, inputs, parameters, hx), call.recompute)
    return reached_by(derivative, len(parameters), len(hx))


def reached_by(derivative: Derivative, parameters: int, states: int) -> list[bool]:
    """`reached`, by inputs, so many parameters and so many states."""
    of_parameters = {part.parameter for part in derivative.sums}
    return [*(place is not None for place in derivative.inputs), *(place in of_parameters for place in range(parameters)), *[True] * states]


def leaves(call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]) -> Leaves:
    lead = 2 if call.padded else 1
    return Leaves(
        tuple(row_kind(tensor, lead) for tensor in inputs),
        tuple(row_kind(tensor, 1) for tensor in hx[: len(call.program.states)]),
        tuple(row_kind(tensor, 0) for tensor in parameters),
        call.sizes,
    )


@lru_cache(maxsize=256)
def widened(call: Call, kinds: Leaves) -> tuple[Call, Leaves]:
    """A call whose tensors are all of one 16-bit dtype, or of that and float32, in float32: what it computes and saves, its states and sums
    within the call."""
    dtypes = {kind.dtype for part in kinds[:3] for kind in part if kind.dtype.is_floating_point}
    if len(dtypes & _NARROW) != 1 or not dtypes <= {*_NARROW, torch.float32}:
        return call, kinds
    (narrow,) = dtypes & _NARROW

    def wide(part: tuple[Kind, ...]) -> tuple[Kind, ...]:
        return tuple(kind._replace(dtype=torch.float32 if kind.dtype == narrow else kind.dtype) for kind in part)

    inputs, states, parameters = map(wide, kinds[:3])
    program = call.program.cast(narrow, torch.float32)
    return call._replace(program=program, narrow=call.program), Leaves(inputs, states, parameters, kinds.sizes)


_NARROW = {torch.bfloat16, torch.float16}


def wide(tensor: Tensor, call: Call) -> Tensor:
    """The tensor in the dtype that `widened` has."""
    return tensor.float() if call.narrow is not None and tensor.dtype in _NARROW else tensor


def kept_kinds(call: Call, kinds: Leaves) -> tuple[Kind, ...]:
    """The kinds of what `forward_and_saved` saves."""
    call, kinds = widened(call, kinds)
    return result_kinds(replace(call.program, outputs=derive(call.program, kinds, call.recompute).kept), kinds)


def _wanted(derivative: Derivative, of_inputs: Sequence[bool], sums: Sequence[Sum]) -> list[int]:
    """Places of the backward's outputs."""
    found = [place for place, need in zip(derivative.inputs, of_inputs, strict=True) if need and place is not None]
    found += [place for part in sums for place in part[1:] if place is not None]
    return list(dict.fromkeys(found))


def summed(parameter: Tensor, parts: Sequence[Tensor], groups: int | None = None) -> Tensor:
    """A parameter's gradient of its parts, in the order of the program. groups: how many gradients each part has, (groups, ...)."""
    lead = () if groups is None else (groups,)
    shape = *lead, *parameter.shape
    if not parts:
        return parameter.new_zeros(shape)
    if len(parts) == 1 and parts[0].shape == shape and parts[0].dtype == parameter.dtype:
        return parts[0]
    ones = ((1,) * (part.dim() - len(shape)) for part in parts)
    sums = [part.sum_to_size(*lead, *more, *parameter.shape).reshape(shape) for part, more in zip(parts, ones, strict=True)]
    return reduce(torch.add, sums).to(parameter.dtype)


def _sum_over_rows(part: Sum, rows: dict[int, Tensor]) -> Tensor:
    gradients = rows[part.gradients]
    if part.operands is None:
        return gradients.sum(0)
    return _product_over_rows(gradients.flatten(0, -2), rows[part.operands].flatten(0, -2))


def _product_over_rows(gradients: Tensor, operands: Tensor) -> Tensor:
    """A weight's gradient, in blocks of sqrt(N) rows: in float32 the error of a product in one is twice that of a loop that adds up a
    product of each step at 100 rows and 1.5 times it at 1,600; in blocks 1.0 times, for a sixth of the product's time."""
    block = max(16, math.isqrt(gradients.size(0)))
    parts = [a.t() @ b for a, b in zip(gradients.split(block), operands.split(block), strict=True)]
    return reduce(torch.add, parts)


def _scan(
    call: Call,
    program: Program,
    outputs: Sequence[Value],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    states: States,
    reverse: bool,
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Rows of the outputs and the last states. inputs: rows (N, ...)."""
    parts, code = partition(program, tuple(outputs)), _Code(call, program, parameters)
    before, core, after = (code.instructions(places) for places in (parts.before, parts.core, parts.after))
    taken = [code.slot[value] for value in parts.to_core] or [code.rows]  # without any, a step would not be seen
    given = [code.slot[value] for value in parts.from_core]
    old = [code.slot[Value("h", place)] for place in range(len(program.states))]
    new = [code.slot[value] for value in program.next_states]
    values = code.values(inputs)
    _run(before, values)

    def step(given_rows: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        now = values.copy()
        for slot, tensor in zip((*taken, *old), (*given_rows, *states), strict=True):
            now[slot] = tensor
        now[code.rows] = states[0]
        _run(core, now)
        return tuple([now[slot] for slot in given]), tuple([now[slot] for slot in new])

    found = recurrence(step, tuple([values[slot] for slot in taken]), states, reverse)
    for slot, tensor in zip(given, found, strict=True):
        values[slot] = tensor
    _run(after, values)
    return [values[code.slot[value]] for value in outputs], states.last()


Instruction = tuple[int, Callable[..., Tensor], Callable[[list], Sequence[Any]]]
"""Where the result goes, what computes it, and what picks the arguments."""


class _Code:
    """A program's nodes as instructions over one list: inputs, states, parameters and results, then rows of any kind and what is no
    tensor."""

    def __init__(self, call: Call, program: Program, parameters: Sequence[Tensor]):
        counts = len(program.inputs), len(program.states), len(program.parameters), len(program.nodes)
        values = [Value(kind, place) for kind, count in zip("xhpv", counts, strict=True) for place in range(count)]
        self.slot = {value: place for place, value in enumerate(values)}
        self.rows = len(values)
        self.program, self.call, self.parameters = program, call, parameters
        self.others: list[Any] = []

    def instructions(self, places: Sequence[int]) -> list[Instruction]:
        """The nodes at these places, a product with the parameter that is added to it in one, as torch.nn has it: one rounding less."""
        joined = {place: found for place in places if (found := self._biased(place)) is not None}
        left = {product for product, _ in joined.values()}
        return [
            self._linear(place, *joined[place]) if place in joined else self._instruction(place) for place in places if place not in left
        ]

    def _biased(self, place: int) -> tuple[int, Value] | None:
        """The product and the vector that a node adds, if nothing else needs the product."""
        node = self.program.nodes[place]
        if node.operation != "add" or len(node.values()) < 2:
            return None
        for product, bias in (node.values(), node.values()[::-1]):
            if bias.kind == "p" and product.kind == "v" and self._takes_bias(product, self.parameters[bias.place]):
                return product.place, bias
        return None

    def _takes_bias(self, value: Value, bias: Tensor) -> bool:
        node = self.program.nodes[value.place]
        if node.operation != "product" or not self._used_once(value):
            return False
        weight = self.parameters[node.values()[1].place]
        return bias.dtype == weight.dtype and bias.shape == weight.shape[:1]

    def _used_once(self, value: Value) -> bool:
        program = self.program
        return sum(value in node.values() for node in program.nodes) == 1 and value not in (*program.outputs, *program.next_states)

    def _linear(self, place: int, product: int, bias: Value) -> Instruction:
        slots = [self.slot[value] for value in (*self.program.nodes[product].values(), bias)]
        return self.slot[Value("v", place)], F.linear, _picked(slots)

    def _instruction(self, place: int) -> Instruction:
        node = self.program.nodes[place]
        operation = OPERATIONS[node.operation]
        slots = [self.rows] if operation.makes_rows else []
        slots += [self._slot_of(part) for part in (*node.arguments, *node.attributes)]
        return self.slot[Value("v", place)], operation.compute, _picked(slots)

    def _slot_of(self, part: Argument | Attribute) -> int:
        if isinstance(part, Value):
            return self.slot[part]
        self.others.append(resolved(part, self.call.sizes, self.call.numbers))
        return self.rows + len(self.others)

    def values(self, inputs: Sequence[Tensor]) -> list[Any]:
        """The list. Instructions are made before it: they bring what is no tensor."""
        found: list[Any] = [None] * (self.rows + 1)
        for kind, tensors in (("x", inputs), ("p", self.parameters)):
            for place, tensor in enumerate(tensors):
                found[self.slot[Value(kind, place)]] = tensor
        found[self.rows] = inputs[0]
        return [*found, *self.others]


def _picked(slots: Sequence[int]) -> Callable[[list], Sequence[Any]]:
    if len(slots) > 1:
        return itemgetter(*slots)
    return lambda values: [values[slot] for slot in slots]


def _run(instructions: Sequence[Instruction], values: list[Any]) -> None:
    for slot, compute, arguments in instructions:
        values[slot] = compute(*arguments(values))
