"""A call of a program, forward and backward, by the engine that its tensors are for; and which that is.

What no engine can compile, or not here, runs in plain PyTorch (`run`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sstkern import engines, private
from sstkern.program import on_cpu, run
from sstkern.program.compiler import CannotCompile
from sstkern.program.derive import Derivative, Sum, derive
from sstkern.program.graph import Program
from sstkern.program.lower import Wanted
from sstkern.program.prepared import Prepared
from sstkern.program.run import Call
from sstkern.program.shapes import Kind, Leaves, result_kinds
from sstkern.program.windows import NotLowered


def _or_reason(make: Callable[..., Prepared]) -> Callable[..., Prepared]:
    """Remembers too why there is none: to compile what cannot be takes as long each time."""

    @lru_cache(maxsize=256)
    def found(*arguments: Any) -> Prepared | Exception:
        try:
            return make(*arguments)
        except (NotLowered, CannotCompile) as error:
            return error.with_traceback(None)

    def compiled(*arguments: Any) -> Prepared:
        result = found(*arguments)
        if isinstance(result, Exception):
            raise result
        return result

    return compiled


def _prepared_by(engine: str) -> type[Prepared]:
    if engine == "cpu":
        return on_cpu.Compiled
    from sstkern.program import on_gpu  # triton is imported only where it is used

    return on_gpu.Compiled


class Layer:
    """A program for tensors of some kinds: forward and backward, compiled at their first calls, which raise NotLowered or CannotCompile."""

    def __init__(self, engine: str, call: Call, kinds: Leaves):
        self.prepared = _prepared_by(engine)
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

    def _of(self, kept: bool | None, of_inputs: tuple[bool, ...] = (), of_parameters: tuple[bool, ...] = ()) -> Prepared:
        return self._backward(of_inputs, of_parameters) if kept is None else self._forward(kept)

    def _forward(self, kept: bool) -> Prepared:
        """kept: whether what the backward needs is given too, after the outputs."""
        program = self.program
        outputs = *program.outputs, *(self.derivative.kept if kept else ())
        saved = set(range(len(program.outputs), len(outputs)))
        return self.prepared(program, self.kinds, outputs, (), (set(), saved), self.narrow_dtype())

    def _backward(self, of_inputs: tuple[bool, ...], of_parameters: tuple[bool, ...]) -> Prepared:
        derivative, backward = self.derivative, self.derivative.backward
        places = [place for place, need in zip(derivative.inputs, of_inputs, strict=True) if need and place is not None]
        sums = tuple(wanted_sum(derivative, part) for part in derivative.sums if of_parameters[part.parameter])
        count = len(self.program.inputs)
        rows_only = set(range(count, len(backward.inputs) - len(self.program.outputs)))
        kinds = leaves_of_backward(self.program, self.kinds, derivative)
        return self.prepared(
            backward, kinds, tuple(backward.outputs[place] for place in places), sums, (rows_only, set()), self.narrow_dtype()
        )

    def narrow_dtype(self) -> torch.dtype | None:
        """The 16-bit one of the tensors that are given."""
        if self.narrow is None:
            return None
        return next(kind.dtype for part in self.narrow[:3] for kind in part if kind.dtype in (torch.bfloat16, torch.float16))

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
def _layer(engine: str, program: Program, sizes: tuple[int, ...], recompute: bool, kinds: tuple) -> Layer:
    signature = iter(kinds)
    inputs, states, parameters = (
        tuple(Kind(tuple(shape), dtype) for shape, dtype in (next(signature) for _ in part))
        for part in (program.inputs, program.states, program.parameters)
    )
    return Layer(engine, Call(program, sizes, (), False, True, recompute), Leaves(inputs, states, parameters, sizes))


def layer_of(engine: str, call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]) -> Layer:
    """The layer of a call with tensors like these."""
    lead = 2 if call.padded else 1
    kinds = [(tensor.shape[lead:], tensor.dtype) for tensor in inputs]
    kinds += [(tensor.shape[1:], tensor.dtype) for tensor in hx[: len(call.program.states)]]
    kinds += [(tensor.shape, tensor.dtype) for tensor in parameters]
    return _layer(engine, call.program, call.sizes, call.recompute, tuple(kinds))


def problem(engine: str, program: Program, kinds: Leaves) -> str | None:
    """Why an engine that can run here does not run a program, or None."""
    try:
        Layer(engine, Call(program, kinds.sizes, (), False, True), kinds).check()
    except (NotLowered, CannotCompile) as error:
        return str(error)
    return None


_IS_CPU, _IS_CUDA = attrgetter("is_cpu"), attrgetter("is_cuda")


def wanted(tensors: Sequence[Tensor]) -> str | None:
    """The engine that runs a call with these tensors, if it can compile it: "cpu" or "triton"; None where that is plain PyTorch.

    Raises BackendError where another one is forced than that of their device.
    """
    forced = engines.forced()
    if forced == "reference":
        return None
    name: str | None = None
    if all(map(_IS_CPU, tensors)):
        name = "triton" if engines.interpreting() else "cpu"
    elif all(map(_IS_CUDA, tensors)):
        name = "triton"
    if forced is not None and forced != name:
        raise engines.BackendError(f"backend: '{forced}' was asked for, but the tensors are on {tensors[0].device}")
    problem = engines.extension_problem() if name == "cpu" else engines.triton_problem()
    return name if problem is None else None


def runs(call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor]) -> bool:
    """Whether an engine runs it, and it is compiled: asked before a call, of tensors within transforms too."""
    name = wanted([*inputs, *parameters, *hx])
    if name is None:
        return False
    try:
        with private.without_transforms_active():
            layer_of(name, call, inputs, parameters, hx).compile()
    except (NotLowered, CannotCompile) as error:
        unable(error, call)
        return False
    return True


def unable(error: Exception, call: Call) -> None:
    """Says once why a call runs in plain PyTorch; raises BackendError where an engine was asked for."""
    forced = engines.forced()
    if forced in ("cpu", "triton"):
        cell = call.program.cell
        raise engines.BackendError(f"backend: '{forced}' was asked for, but {cell} would run in plain PyTorch: {error}") from error
    _warn_once(call.program.cell, str(error))


@cache
def _warn_once(cell: str, reason: str) -> None:
    remedy = "sstkern.backend('reference') chooses that without a warning"
    warnings.warn(f"sstkern runs {cell} in plain PyTorch, which is slow: {reason}; {remedy}", UserWarning, stacklevel=2)


def forget() -> None:
    """Forgets what was compiled, what could not be and what was warned of, as a new process has."""
    on_cpu.forget()
    for cached in (_layer, _warn_once):
        cached.cache_clear()
