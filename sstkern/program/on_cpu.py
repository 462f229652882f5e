"""Programs on the CPU engine: their loops compiled, and a call of one, forward and backward.

A program is compiled for the dtypes and the structure of its rows; sizes and numbers are arguments. What cannot be compiled, or not here,
runs in plain PyTorch (`run`).
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sstkern import engines, private
from sstkern.program import cache as libraries
from sstkern.program import run
from sstkern.program.compiler import CannotCompile
from sstkern.program.cpp import Code, Touched, code
from sstkern.program.derive import Derivative, Sum, derive
from sstkern.program.graph import Program
from sstkern.program.language import OPERATIONS, resolved
from sstkern.program.lower import Loop, Lowered, Memory, Move, Plain, Product, Reduction, Wanted, lowered
from sstkern.program.run import Call
from sstkern.program.shapes import Kind, Leaves, result_kinds
from sstkern.program.spread import spread
from sstkern.program.values import Number, Value
from sstkern.program.windows import NotLowered

_KINDS = {letter: place for place, letter in enumerate("xhnorl")}
"""As csrc/program.h numbers kinds of slots."""
_REDUCTIONS = ("sum", "amax", "max", "cumsum", "cumsum_back")
"""As csrc/kernels/kernels.h numbers them."""


class Compiled:
    """A program that the C++ engine runs. rows_only: which inputs and outputs are (N, ...) where the call is padded."""

    def __init__(
        self, program: Program, leaves: Leaves, outputs: tuple[Value, ...], sums: tuple[Wanted, ...], rows_only: tuple[set[int], set[int]]
    ):
        program, new = spread(program, leaves)
        outputs, sums = tuple(new.get(value, value) for value in outputs), tuple(part.renamed(new) for part in sums)
        found = lowered(program, leaves, outputs, sums)
        written = code(found)
        self.program, self.fixed = program, found.fixed
        places = {value: place for place, value in enumerate(self._values())}
        self.weights = [places[value] for value in found.weights]
        self.vectors = [_Vector(places[value], shape, found.values.kinds[value].shape) for value, shape in written.vectors]
        self.numbers = 1 + max((part.place for node in program.nodes for part in _parts(node) if isinstance(part, Number)), default=-1)
        self.inputs, self.states = _dimensions(leaves.inputs), _dimensions(leaves.states)
        self.shapes = [found.values.kinds[value].shape for value in outputs]
        self.state_shapes = [kind.shape for kind in leaves.states]
        self.sum_shapes = [_sum_shape(found, part) for part in sums]
        # As most are: to look at each result's shape takes 5 microseconds a call.
        of_sums = zip(self.sum_shapes, sums, strict=True)
        self.vectors_only = all(len(shape) == 1 for shape in (*self.shapes, *self.state_shapes)) and all(
            len(shape) == (1 if part.right is None else 2) for shape, part in of_sums
        )
        described = _description(found, written, len(outputs), self.numbers, rows_only)
        self.handle = torch.ops.sstkern.make_program(_library(written.text), described)
        weakref.finalize(self, _forget, self.handle)

    def __call__(
        self,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        states: Sequence[Tensor],
        lengths: Tensor | None,
        call: Call,
        reverse: bool,
        saved_rows: int | None = None,
        groups: int | None = None,
        backward: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The outputs, the states after the last step, and the sums, with groups (groups, ...): those of equal shares of the batch."""
        known = self._known(parameters, call) if self.fixed else parameters
        outputs, last, sums = _RUN(
            self.handle,
            inputs if self.inputs is None else _flat(inputs, self.inputs),
            [known[place] for place in self.weights],
            [known[vector.place] if vector.as_it_is else vector.spread(known[vector.place]) for vector in self.vectors],
            states if self.states is None else _flat(states, _for_all(self.states, states)),
            lengths,
            call.numbers[: self.numbers],
            reverse,
            call.padded,
            saved_rows,
            groups,
            backward,
        )
        if self.vectors_only:
            return outputs, last, sums
        return (
            _shaped(outputs, self.shapes),
            _shaped(last, _for_all(self.state_shapes, last)),
            _shaped(sums, self.sum_shapes, leading=0 if groups is None else 1),
        )

    def _values(self) -> list[Value]:
        """Parameters, and what follows from them only."""
        return [*(Value("p", place) for place in range(len(self.program.parameters))), *(Value("v", place) for place in self.fixed)]

    def _known(self, parameters: Sequence[Tensor], call: Call) -> list[Any]:
        """Of the values, in that order."""
        known: dict[Value, Any] = {Value("p", place): tensor for place, tensor in enumerate(parameters)}
        for place in self.fixed:
            node = self.program.nodes[place]
            given = [known[part] if isinstance(part, Value) else resolved(part, call.sizes, call.numbers) for part in _parts(node)]
            known[Value("v", place)] = OPERATIONS[node.operation].compute(*given)
        return [known[value] for value in self._values()]


_RUN = torch.ops.sstkern.run_program.default


class _Vector:
    """A value without rows that loops read, spread to a shape, or one number. own: its shape."""

    def __init__(self, place: int, shape: tuple[int, ...] | None, own: tuple[int, ...]):
        self.place, self.shape = place, shape
        self.as_it_is = len(own) == 1 and shape in (None, own)

    def spread(self, vector: Any) -> Tensor:
        """Where it is not `as_it_is`."""
        tensor = torch.as_tensor(vector)
        return tensor.reshape(1) if self.shape is None else tensor.expand(self.shape).reshape(-1)


def _sum_shape(found: Lowered, part: Wanted) -> tuple[int, ...]:
    left = found.values.kinds[part.left].shape
    return left if part.right is None else (left[-1], found.values.kinds[part.right].shape[-1])


def _parts(node):
    return (*node.arguments, *node.attributes)


def _dimensions(kinds: Sequence[Kind]) -> list[int] | None:
    """Of each one's rows; None where all are vectors, which need not be made flat."""
    found = [len(kind.shape) for kind in kinds]
    return None if all(count == 1 for count in found) else found


def _for_all(of_each: list, states: Sequence[Tensor]) -> list:
    """What holds for each of the program's states, for those too that sequences begin anew with, where they follow."""
    return of_each * (len(states) // max(1, len(of_each)))


def _flat(tensors: Sequence[Tensor], dimensions: Sequence[int]) -> list[Tensor]:
    """Rows of any shape as rows of numbers."""
    return [
        tensor if count == 1 else tensor.unsqueeze(-1) if count == 0 else tensor.flatten(-count)
        for tensor, count in zip(tensors, dimensions, strict=True)
    ]


def _shaped(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], leading: int | None = None) -> list[Tensor]:
    """The way back. leading: how many dimensions stand before the row's; all but one by default."""
    return [
        tensor if tensor.dim() == len(shape) + (tensor.dim() - 1 if leading is None else leading) else _reshaped(tensor, shape, leading)
        for tensor, shape in zip(tensors, shapes, strict=True)
    ]


def _reshaped(tensor: Tensor, shape: tuple[int, ...], leading: int | None) -> Tensor:
    return tensor.reshape(*tensor.shape[: -1 if leading is None else leading], *shape)


@lru_cache(maxsize=256)
def _library(text: str) -> int:
    level = engines.cpu.level()
    path = libraries.library(f'#include "levels/{level}.h"\n{text}#include "levels/end.h"\n', level)
    try:
        return torch.ops.sstkern.load_program_library(str(path))
    except ValueError as error:
        raise libraries.cannot_load(path, error) from error


def _forget(handle: int) -> None:
    # Python collects garbage at any time, as within a caller's FlopCounterMode or while torch.export writes operators down.
    with private.untraced():
        torch.ops.sstkern.forget_program(handle)


def _description(found: Lowered, written: Code, outputs: int, numbers: int, rows_only: tuple[set[int], set[int]]) -> list[int]:
    """As csrc/program.cpp reads it."""
    program = found.values.program
    only = {"x": rows_only[0], "o": rows_only[1]}
    numbers_of = [len(program.inputs), len(program.states), outputs, len(found.weights), len(written.vectors), numbers, len(found.slots)]
    for slot in found.slots:
        place = slot.place if slot.kind in "xhno" else 0
        numbers_of += [_KINDS[slot.kind], place, slot.width, slot.boolean, slot.kind in only and place in only[slot.kind]]
    numbers_of += [len(written.starts), *written.starts]
    touched = iter(written.touched)
    for stages in found.phases:
        attached = list(dict.fromkeys(part.value for stage in stages for loop in stage.loops for part in loop.attached))
        numbers_of += [len(attached), len(stages)]
        for stage in stages:
            numbers_of += [len(stage.plain), *chain.from_iterable(map(_of_plain, stage.plain))]
            numbers_of += [len(stage.moves), *chain.from_iterable(map(_of_move, stage.moves))]
            numbers_of += [len(stage.reductions), *chain.from_iterable(map(_of_reduction, stage.reductions)), len(stage.loops)]
            for loop in stage.loops:
                numbers_of += [*_of_loop(loop, attached, written), *_of_touched(next(touched))]
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


def _of_reduction(reduction: Reduction) -> list[int]:
    sources = chain.from_iterable(map(_of_memory, reduction.sources))
    kind = _REDUCTIONS.index(reduction.operation)
    return [kind, reduction.groups, reduction.width, reduction.divisor, len(reduction.sources), *sources, *_of_memory(reduction.target)]


def _of_loop(loop: Loop, attached: Sequence[Value], written: Code) -> list[int]:
    parts = chain.from_iterable(
        [*_of_product(part.product), part.gates, part.ahead, attached.index(part.value), written.bias(part)] for part in loop.attached
    )
    return [loop.width, len(loop.attached), *parts]


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

    return compiled


class Layer:
    """A program for tensors of some kinds: forward and backward, compiled at their first calls, which raise NotLowered or CannotCompile."""

    def __init__(self, call: Call, kinds: Leaves):
        self.narrow = kinds if run.widened(call, kinds)[0].narrow is not None else None
        wide, self.kinds = run.widened(call, kinds)
        self.program, self.recompute, self.narrow_program = wide.program, wide.recompute, wide.narrow
        self._compiled = _or_reason(self._of)

    @cached_property
    def derivative(self) -> Derivative:
        return derive(self.program, self.kinds, self.recompute)

    @cached_property
    def reached(self) -> list[bool]:
        """As `run.reached`."""
        return run.reached_by(self.derivative, len(self.kinds.parameters), len(self.kinds.states))

    def check(self) -> None:
        """Raises what a forward without gradients would."""
        self._compiled(False)

    def compiles(self) -> bool:
        """Whether the forward runs that gives what the backward needs."""
        try:
            self._compiled(True)
        except (NotLowered, CannotCompile):
            return False
        return True

    def _of(self, kept: bool | None, of_inputs: tuple[bool, ...] = (), of_parameters: tuple[bool, ...] = ()) -> Compiled:
        return self._backward(of_inputs, of_parameters) if kept is None else self._forward(kept)

    def _forward(self, kept: bool) -> Compiled:
        """kept: whether what the backward needs is given too, after the outputs."""
        program = self.program
        outputs = *program.outputs, *(self.derivative.kept if kept else ())
        return Compiled(program, self.kinds, outputs, (), (set(), set(range(len(program.outputs), len(outputs)))))

    def _backward(self, of_inputs: tuple[bool, ...], of_parameters: tuple[bool, ...]) -> Compiled:
        derivative, backward = self.derivative, self.derivative.backward
        places = [place for place, need in zip(derivative.inputs, of_inputs, strict=True) if need and place is not None]
        sums = tuple(wanted_sum(derivative, part) for part in derivative.sums if of_parameters[part.parameter])
        count = len(self.program.inputs)
        rows_only = set(range(count, len(backward.inputs) - len(self.program.outputs)))
        kinds = leaves_of_backward(self.program, self.kinds, derivative)
        return Compiled(backward, kinds, tuple(backward.outputs[place] for place in places), sums, (rows_only, set()))

    def compile(self) -> None:
        """The forward."""
        self._compiled(False)

    def _wide(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors if self.narrow is None else [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]

    def _as_given(self, gradient: Tensor, tensor: Tensor) -> Tensor:
        return gradient if self.narrow is None else gradient.to(tensor.dtype)

    def forward(
        self,
        call: Call,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        hx: Sequence[Tensor],
        lengths: Tensor | None,
        saved_rows: int | None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As `run.forward_and_saved`, with saved_rows rows of what is saved; nothing is with None."""
        found, count = self._compiled(saved_rows is not None), len(self.program.outputs)
        if self.narrow is None or self.narrow_program is None:
            outputs, last, _ = found(inputs, parameters, hx, lengths, call, call.reverse, saved_rows)
            return outputs[:count], last, outputs[count:]
        given, weights, states = (self._wide(tensors) for tensors in (inputs, parameters, hx))
        outputs, last, _ = found(given, weights, states, lengths, call, call.reverse, saved_rows)
        results = zip(outputs, result_kinds(self.narrow_program, self.narrow), strict=False)
        return (
            [output.to(kind.dtype) for output, kind in results],
            [state.to(before.dtype) for state, before in zip(last, hx, strict=False)],
            outputs[count:],
        )

    def backward(
        self,
        call: Call,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        hx: Sequence[Tensor],
        lengths: Tensor | None,
        saved: Sequence[Tensor],
        grad_outputs: Sequence[Tensor],
        grad_hx: Sequence[Tensor],
        needs: Sequence[bool],
        groups: int | None = None,
    ) -> list[Tensor | None]:
        """As `run.backward`. groups: equal shares of the batch, each with gradients of parameters of its own, (groups, ...)."""
        count, derivative = len(inputs), self.derivative
        of_inputs, of_parameters = tuple(needs[:count]), tuple(needs[count : count + len(parameters)])
        found = self._compiled(None, of_inputs, of_parameters)
        given = derivative.inputs_of_backward(list(self._wide(inputs)), len(grad_hx), saved, list(self._wide(grad_outputs)))
        weights, states = self._wide(parameters), self._wide(grad_hx)
        outputs, before, sums = found(given, weights, states, lengths, call, not call.reverse, groups=groups, backward=True)
        of_input = iter(outputs)
        dinputs = [
            (torch.zeros_like(tensor) if place is None else self._as_given(next(of_input), tensor)) if need else None
            for tensor, place, need in zip(inputs, derivative.inputs, of_inputs, strict=True)
        ]
        parts: dict[int, list[Tensor]] = {}
        wanted = (part.parameter for part in derivative.sums if of_parameters[part.parameter])
        for place, gradient in zip(wanted, sums, strict=True):
            parts.setdefault(place, []).append(gradient)
        dparameters = [
            run.summed(parameter, parts.get(place, ()), groups) if need else None
            for place, (parameter, need) in enumerate(zip(parameters, of_parameters, strict=True))
        ]
        of_states = needs[count + len(parameters) :]
        dhx = [self._as_given(state, tensor) if need else None for state, tensor, need in zip(before, hx, of_states, strict=False)]
        return [*dinputs, *dparameters, *dhx]


def wanted_sum(derivative: Derivative, part: Sum) -> Wanted:
    outputs = derivative.backward.outputs
    return Wanted(part.parameter, outputs[part.gradients], None if part.operands is None else outputs[part.operands])


def leaves_of_backward(program: Program, leaves: Leaves, derivative: Derivative) -> Leaves:
    results = [value for value in derivative.kept if value.kind == "v"]
    kinds = result_kinds(replace(program, outputs=(*results, *program.outputs)), leaves)
    return Leaves((*leaves.inputs, *leaves.states, *kinds), leaves.states, leaves.parameters, leaves.sizes)


@lru_cache(maxsize=256)
def _layer(program: Program, sizes: tuple[int, ...], recompute: bool, kinds: tuple) -> Layer:
    signature = iter(kinds)
    inputs, states, parameters = (
        tuple(Kind(tuple(shape), dtype) for shape, dtype in (next(signature) for _ in part))
        for part in (program.inputs, program.states, program.parameters)
    )
    return Layer(Call(program, sizes, (), False, True, recompute), Leaves(inputs, states, parameters, sizes))


def layer_of(call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]) -> Layer:
    """The layer of a call with tensors like these."""
    lead = 2 if call.padded else 1
    kinds = [(tensor.shape[lead:], tensor.dtype) for tensor in inputs]
    kinds += [(tensor.shape[1:], tensor.dtype) for tensor in hx[: len(call.program.states)]]
    kinds += [(tensor.shape, tensor.dtype) for tensor in parameters]
    return _layer(call.program, call.sizes, call.recompute, tuple(kinds))


def problem(program: Program, kinds: Leaves) -> str | None:
    """Why a program runs in plain PyTorch, or None."""
    try:
        Layer(Call(program, kinds.sizes, (), False, True), kinds).check()
    except (NotLowered, CannotCompile) as error:
        return str(error)
    return None


_IS_CPU = attrgetter("is_cpu")


def wanted(tensors: Sequence[Tensor]) -> bool:
    """Whether a call with these tensors is the CPU engine's, if it can be compiled."""
    if engines.forced() == "reference" or not all(map(_IS_CPU, tensors)):
        return False
    return engines.extension_problem() is None


def runs(call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]) -> bool:
    """Whether it is the CPU engine's, and is compiled: asked before a call, of tensors within transforms too."""
    if not wanted([*inputs, *parameters, *hx]):
        return False
    try:
        with private.without_transforms_active():
            layer_of(call, inputs, parameters, hx).compile()
    except (NotLowered, CannotCompile) as error:
        unable(error, call)
        return False
    return True


def unable(error: Exception, call: Call) -> None:
    """Says once why a call runs in plain PyTorch; raises BackendError where the CPU engine was asked for."""
    if engines.forced() == "cpu":
        raise engines.BackendError(f"backend: 'cpu' was asked for, but {call.program.cell} would run in plain PyTorch: {error}") from error
    _warn_once(call.program.cell, str(error))


@cache
def _warn_once(cell: str, reason: str) -> None:
    remedy = "sstkern.backend('reference') chooses that without a warning"
    warnings.warn(f"sstkern runs {cell} in plain PyTorch, which is slow: {reason}; {remedy}", UserWarning, stacklevel=2)


def forget() -> None:
    """Forgets what was compiled, what could not be and what was warned of, as a new process has."""
    for cached in (_layer, _library, _warn_once):
        cached.cache_clear()
