"""Programs on the CPU engine: their loops compiled, and a call of one, forward and backward.

A program is compiled for the dtypes and the structure of its rows; sizes and numbers are arguments. What cannot be compiled, or not here,
runs in plain PyTorch (`run`).
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sstkern import engines
from sstkern.program import cache as libraries
from sstkern.program import run
from sstkern.program.compiler import CannotCompile
from sstkern.program.cpp import Code, Touched, code
from sstkern.program.derive import Derivative, derive
from sstkern.program.graph import Program
from sstkern.program.language import OPERATIONS, resolved
from sstkern.program.lower import Loop, Lowered, Memory, Move, Plain, Product, Wanted, lowered
from sstkern.program.run import Call
from sstkern.program.shapes import Kind, Leaves, result_kinds
from sstkern.program.values import Number, Value
from sstkern.program.windows import NotLowered

_KINDS = {letter: place for place, letter in enumerate("xhnorl")}
"""As csrc/program.h numbers kinds of slots."""


class Compiled:
    """A program that the C++ engine runs. rows_only: which inputs and outputs are (N, ...) where the call is padded."""

    def __init__(
        self, program: Program, leaves: Leaves, outputs: tuple[Value, ...], sums: tuple[Wanted, ...], rows_only: tuple[set[int], set[int]]
    ):
        found = lowered(program, leaves, outputs, sums)
        written = code(found)
        self.program, self.leaves = program, leaves
        self.weights, self.vectors, self.fixed = found.weights, written.vectors, found.fixed
        self.numbers = 1 + max((part.place for node in program.nodes for part in _parts(node) if isinstance(part, Number)), default=-1)
        self.shapes = [found.values.kinds[value].shape for value in outputs]
        self.state_shapes = [kind.shape for kind in leaves.states]
        self.sum_shapes = [_sum_shape(found, part) for part in sums]
        described = _description(found, written, len(outputs), self.numbers, rows_only)
        self.handle = torch.ops.sstkern.make_program(_library(written.text), described)
        weakref.finalize(self, torch.ops.sstkern.forget_program, self.handle)

    def __call__(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        states: Sequence[Tensor],
        lengths: Tensor | None,
        call: Call,
        reverse: bool,
        saved_rows: int | None = None,
        backward: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The outputs, the states after the last step, and the sums."""
        known = self._known(parameters, call)
        outputs, last, sums = torch.ops.sstkern.run_program(
            self.handle,
            [_flat(tensor, len(kind.shape)) for tensor, kind in zip(inputs, self.leaves.inputs, strict=True)],
            [known[value] for value in self.weights],
            [_spread(torch.as_tensor(known[value]), shape) for value, shape in self.vectors],
            [_flat(state, len(kind.shape)) for state, kind in zip(states, self.leaves.states, strict=True)],
            lengths,
            call.numbers[: self.numbers],
            reverse,
            call.padded,
            saved_rows,
            backward,
        )
        outputs = [_shaped(tensor, shape) for tensor, shape in zip(outputs, self.shapes, strict=True)]
        last = [_shaped(tensor, shape) for tensor, shape in zip(last, self.state_shapes, strict=True)]
        return outputs, last, [tensor.reshape(shape) for tensor, shape in zip(sums, self.sum_shapes, strict=True)]

    def _known(self, parameters: Sequence[Tensor], call: Call) -> dict[Value, Tensor]:
        """Parameters, and what follows from them only."""
        known = {Value("p", place): tensor for place, tensor in enumerate(parameters)}
        for place in self.fixed:
            node = self.program.nodes[place]
            given = [known[part] if isinstance(part, Value) else resolved(part, call.sizes, call.numbers) for part in _parts(node)]
            known[Value("v", place)] = OPERATIONS[node.operation].compute(*given)
        return known


def _sum_shape(found: Lowered, part: Wanted) -> tuple[int, ...]:
    left = found.values.kinds[part.left].shape
    return left if part.right is None else (left[-1], found.values.kinds[part.right].shape[-1])


def _parts(node):
    return (*node.arguments, *node.attributes)


def _flat(tensor: Tensor, dimensions: int) -> Tensor:
    """Rows of any shape as rows of numbers."""
    if dimensions == 1:
        return tensor
    return tensor.unsqueeze(-1) if dimensions == 0 else tensor.flatten(-dimensions)


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor if len(shape) == 1 else tensor.reshape(*tensor.shape[:-1], *shape)


def _spread(vector: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    return vector.reshape(1) if shape is None else vector.expand(shape).reshape(-1)


@lru_cache(maxsize=256)
def _library(text: str) -> int:
    level = torch.ops.sstkern.cpu_capability().removesuffix("_bf16")  # whose products alone are of bfloat16
    path = libraries.library(f'#include "levels/{level}.h"\n{text}#include "levels/end.h"\n', level)
    return torch.ops.sstkern.load_program_library(str(path))


def _description(found: Lowered, written: Code, outputs: int, numbers: int, rows_only: tuple[set[int], set[int]]) -> list[int]:
    """As csrc/program.cpp reads it."""
    program = found.values.program
    only = {"x": rows_only[0], "o": rows_only[1]}
    numbers_of = [len(program.inputs), len(program.states), outputs, len(found.weights), len(written.vectors), numbers, len(found.slots)]
    for slot in found.slots:
        place = slot.place if slot.kind in "xhno" else 0
        numbers_of += [_KINDS[slot.kind], place, slot.width, slot.boolean, slot.kind in only and place in only[slot.kind]]
    numbers_of += [len(written.starts), *written.starts]
    function = 0
    for stages in found.phases:
        attached = list(dict.fromkeys(part.value for stage in stages for loop in stage.loops for part in loop.attached))
        numbers_of += [len(attached), len(stages)]
        for stage in stages:
            numbers_of += [len(stage.plain), *chain.from_iterable(map(_of_plain, stage.plain))]
            numbers_of += [len(stage.moves), *chain.from_iterable(map(_of_move, stage.moves)), len(stage.loops)]
            for loop in stage.loops:
                numbers_of += [*_of_loop(loop, function, attached), *_of_touched(written.touched[function])]
                function += 1
    numbers_of.append(len(found.sums))
    for part in found.sums:
        numbers_of += [part.left, part.left_width, part.rows, *part.right, part.right_width]
    return list(map(int, numbers_of))


def _of_memory(memory: Memory) -> list[int]:
    return [memory.slot, memory.start]


def _of_product(product: Product) -> list[int]:
    return [*_of_memory(product.operand), product.rows, product.depth, product.columns, product.weight, product.transposed]


def _of_plain(plain: Plain) -> list[int]:
    return [*_of_product(plain.product), *_of_memory(plain.target)]


def _of_move(move: Move) -> list[int]:
    sources = chain.from_iterable([*_of_memory(memory), width] for memory, width in move.sources)
    places = chain.from_iterable([len(of), *of] for of in move.places)
    return [len(move.sources), *sources, *_of_memory(move.target), len(move.places), *places]


def _of_loop(loop: Loop, function: int, attached: Sequence[Value]) -> list[int]:
    parts = chain.from_iterable(
        [*_of_product(part.product), part.gates, part.ahead, attached.index(part.value)] for part in loop.attached
    )
    return [function, loop.width, len(loop.attached), *parts]


_FORGETS: list[Callable[[], None]] = [_library.cache_clear]


def forget() -> None:
    """Forgets what was compiled, what could not be, and what was warned of: as in a new process."""
    for clear in _FORGETS:
        clear()


def _of_touched(touched: Touched) -> list[int]:
    return [len(touched.rows), *chain.from_iterable(touched.rows), len(touched.vectors), *chain.from_iterable(touched.vectors)]


def _or_reason(make: Callable[..., Compiled]) -> Callable[..., Compiled]:
    """Remembers too why there is none: to compile what cannot be takes as long each time."""

    @lru_cache(maxsize=256)
    def found(*arguments: Any) -> Compiled | Exception:
        try:
            return make(*arguments)
        except (NotLowered, CannotCompile) as error:
            return error.with_traceback(None)

    def compiled(*arguments: Any) -> Compiled:
        result = found(*arguments)
        if isinstance(result, Exception):
            raise result
        return result

    _FORGETS.append(found.cache_clear)
    return compiled


@_or_reason
def _forward(program: Program, leaves: Leaves, recompute: bool, kept: bool) -> Compiled:
    """kept: whether what the backward needs is given too, after the outputs."""
    saved = derive(program, leaves, recompute).kept if kept else ()
    outputs = *program.outputs, *saved
    only = set(range(len(program.outputs), len(outputs)))
    return Compiled(program, leaves, outputs, (), (set(), only))


@_or_reason
def _backward(
    program: Program, leaves: Leaves, recompute: bool, of_inputs: tuple[bool, ...], of_parameters: tuple[bool, ...]
) -> Compiled:
    derivative = derive(program, leaves, recompute)
    backward = derivative.backward
    places = [place for place, need in zip(derivative.inputs, of_inputs, strict=True) if need and place is not None]
    sums = tuple(
        Wanted(part.parameter, backward.outputs[part.gradients], None if part.operands is None else backward.outputs[part.operands])
        for part in derivative.sums
        if of_parameters[part.parameter]
    )
    count = len(program.inputs)
    rows_only = set(range(count, len(backward.inputs) - len(program.outputs)))
    kinds = leaves_of_backward(program, leaves, derivative)
    return Compiled(backward, kinds, tuple(backward.outputs[place] for place in places), sums, (rows_only, set()))


def leaves_of_backward(program: Program, leaves: Leaves, derivative: Derivative) -> Leaves:
    results = [value for value in derivative.kept if value.kind == "v"]
    kinds = result_kinds(_with_outputs(program, (*results, *program.outputs)), leaves)
    return Leaves((*leaves.inputs, *leaves.states, *kinds), leaves.states, leaves.parameters, leaves.sizes)


@lru_cache(maxsize=256)
def _with_outputs(program: Program, outputs: tuple[Value, ...]) -> Program:
    return Program(program.inputs, program.states, program.parameters, program.nodes, outputs, program.next_states)


def forward(
    call: Call,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    saved_rows: int | None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """As `run.forward_and_saved`, with saved_rows rows of what is saved; nothing is with None. Raises NotLowered or CannotCompile."""
    narrow = run.leaves(call, inputs, parameters, hx)
    call, kinds = run.widened(call, narrow)
    found = _forward(call.program, kinds, call.recompute, saved_rows is not None)
    wide = [[run.wide(tensor, call) for tensor in part] for part in (inputs, parameters, hx)]
    outputs, last, _ = found(*wide, lengths, call, call.reverse, saved_rows)
    count = len(call.program.outputs)
    if call.narrow is None:
        return outputs[:count], last, outputs[count:]
    results = zip(outputs, result_kinds(call.narrow, narrow), strict=False)
    return (
        [output.to(kind.dtype) for output, kind in results],
        [state.to(before.dtype) for state, before in zip(last, hx, strict=True)],
        outputs[count:],
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
    """As `run.backward`. Raises NotLowered or CannotCompile."""
    call, kinds = run.widened(call, run.leaves(call, inputs, parameters, hx))
    of_inputs, of_parameters = tuple(needs[: len(inputs)]), tuple(needs[len(inputs) : len(inputs) + len(parameters)])
    found = _backward(call.program, kinds, call.recompute, of_inputs, of_parameters)
    derivative = derive(call.program, kinds, call.recompute)
    wide = [run.wide(tensor, call) for tensor in inputs]
    gradients = [run.wide(gradient, call) for gradient in grad_outputs]
    given = derivative.inputs_of_backward(wide, len(hx), saved, gradients)
    weights, states = [run.wide(parameter, call) for parameter in parameters], [run.wide(gradient, call) for gradient in grad_hx]
    outputs, before, sums = found(given, weights, states, lengths, call, not call.reverse, backward=True)
    of_input = iter(outputs)
    dinputs = [
        (torch.zeros_like(tensor) if place is None else next(of_input).to(tensor.dtype)) if need else None
        for tensor, place, need in zip(inputs, derivative.inputs, of_inputs, strict=True)
    ]
    parts: dict[int, list[Tensor]] = {}
    wanted = [part for part in derivative.sums if of_parameters[part.parameter]]
    for part, gradient in zip(wanted, sums, strict=True):
        parts.setdefault(part.parameter, []).append(gradient)
    dparameters = [
        run.summed(parameter, parts.get(place, ())) if need else None
        for place, (parameter, need) in enumerate(zip(parameters, of_parameters, strict=True))
    ]
    of_states = needs[len(inputs) + len(parameters) :]
    dhx = [state.to(tensor.dtype) if need else None for state, tensor, need in zip(before, hx, of_states, strict=True)]
    return [*dinputs, *dparameters, *dhx]


def wanted(tensors: Sequence[Tensor]) -> bool:
    """Whether a call with these tensors is the CPU engine's, if it can be compiled."""
    if engines.forced() == "reference" or not all(tensor.is_cpu for tensor in tensors):
        return False
    return engines.extension_problem() is None


def unable(error: Exception) -> None:
    """Says once why a call runs in plain PyTorch; raises BackendError where the CPU engine was asked for."""
    if engines.forced() == "cpu":
        raise engines.BackendError(f"backend: 'cpu' was asked for, but {error}") from error
    _warn_once(str(error))


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"sstkern runs own cells in plain PyTorch, which is slow: {reason}", UserWarning, stacklevel=2)


_FORGETS.append(_warn_once.cache_clear)
