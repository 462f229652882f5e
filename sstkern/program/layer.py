"""A cell as a program over sequences: its captures, kept while they hold, and a call of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sstkern import engines, private
from sstkern.operators import autocast, autocasting
from sstkern.program import engine, operator
from sstkern.program.capture import Captured, Spec, Unfused, capture
from sstkern.program.capture.runs import seen
from sstkern.program.explain import explained
from sstkern.program.run import Call
from sstkern.program.shapes import Kind, Leaves, row_kind
from sstkern.program.values import Value
from sstkern.structure import Returns, Structure, flatten, mapped, names, unflatten

KEPT = 16
"""Captures of a layer, of other structures, shapes, dtypes, modes and attributes of its cell."""


class Programs:
    """The captures of one cell."""

    def __init__(self) -> None:
        self._captures: list[tuple[Any, Captured]] = []
        self._refused: dict[Any, list[tuple[Any, type[Unfused], str]]] = {}
        self.in_graphs: list[Captured] = []
        """What graphs of torch.compile's hold."""
        self.last: Captured | None = None
        """What the last call ran."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy captures its own cell."""
        return vars(Programs())

    def of_call(self, cell: nn.Module, inputs: Structure, state: Structure | None, lead: int, returns: Returns) -> Captured:
        """`find` for tensors, whose first `lead` dimensions count rows."""
        self.last = self.find(cell, _specs(inputs, lead, cell), None if state is None else _specs(state, 1, cell), returns)
        return self.last

    def known(self, inputs: Structure, state: Structure | None, lead: int) -> Captured | None:
        """What `of_call` gives, where that was captured before and holds; None under autocast, which changes dtypes."""
        if private.autocast_anywhere():
            return None
        found = self._known((_key_of(inputs, lead), None if state is None else _key_of(state, 1)))
        if found is not None:
            self.last = found
        return found

    def find(self, cell: nn.Module, inputs: Structure, state: Structure | None, returns: Returns) -> Captured:
        """The program of a step of these Specs, captured if it is not there, or no longer holds.

        Raises Unfused, also for what was refused before, and NoDefault for a state that was not given and that the cell does not know.
        """
        key = _key(inputs), _key(state)
        if (captured := self._known(key)) is not None:
            return captured
        refused = self._refused.setdefault(key, [])
        now = seen(cell)
        before: Any = next((error for cell_then, *error in refused if cell_then == now), None)
        if before is None and len(refused) == KEPT:  # a cell that counts, say
            _, *before = refused[-1]
        if before is not None:
            kind, reason = before
            raise kind(reason)
        try:
            previous = next((captured for known, captured in self._captures if known == key), None)
            captured = capture(cell, inputs, state, returns, previous=previous)
        except Unfused as error:
            refused.append((now, type(error), str(error)))  # not the error, which holds the run's tensors
            raise
        self._captures = [(key, captured), *self._captures][:KEPT]
        return captured

    def _known(self, key: Any) -> Captured | None:
        """The capture of a key that still holds."""
        captures = self._captures  # never changed in place: another thread may go through it
        for place, (known, captured) in enumerate(captures):
            if known == key and captured.holds():
                if place:
                    self._captures = [captures[place], *captures[:place], *captures[place + 1 :]]
                return captured
        return None


def _key(specs: Structure | None) -> Any:
    """Structures that differ in the type of a sequence only are not equal."""
    if isinstance(specs, tuple | list):
        return type(specs), *map(_key, specs)
    return None if specs is None else (specs.shape, specs.dtype, specs.device)


def _key_of(tensors: Structure, lead: int) -> Any:
    """The `_key` of the tensors' Specs, where autocast casts none; to make the Specs first takes longer."""
    if isinstance(tensors, Tensor):
        return tensors.shape[lead:], tensors.dtype, tensors.device
    return type(tensors), *[_key_of(part, lead) for part in tensors]


def _specs(tensors: Structure, lead: int, cell: nn.Module) -> Structure:
    """The Specs of a step's rows of each tensor, whose first `lead` dimensions count rows."""

    def spec(tensor: Tensor) -> Spec:
        dtype = cast_dtype(cell) if is_cast(tensor) else None
        return Spec(tuple(tensor.shape[lead:]), dtype or tensor.dtype, tensor.device)

    return mapped(tensors, spec)


def is_cast(tensor: Tensor) -> bool:
    """Whether autocast changes a tensor's dtype: it then has that of the cell while the step is captured."""
    return tensor.is_floating_point() and autocasting(tensor)


def cast_dtype(cell: nn.Module) -> torch.dtype | None:
    """The dtype of the cell's first parameter."""
    return next((parameter.dtype for parameter in cell.parameters() if parameter.is_floating_point()), None)


def kinds(captured: Captured) -> Leaves:
    """The kinds of what the program takes."""
    return Leaves(
        tuple(Kind(part.shape, part.dtype) for part in (*flatten(captured.input), *captured.draws)),
        tuple(Kind(spec.shape, spec.dtype) for spec in flatten(captured.state)),
        tuple(row_kind(parameter, 0) for parameter in captured.parameters(captured.leaves())),
        captured.sizes,
    )


def explanation(captured: Captured, cell: nn.Module, source: bool) -> str:
    """The program in words, with the cell's own names."""
    drawn = [f"drawn by {draw.method.strip('_')}" for draw in captured.draws]
    of_kind = {"x": [*names(captured.input, "input"), *drawn], "h": names(captured.state, "state"), "p": captured.names()}
    known = {Value(kind, place): name for kind, found in of_kind.items() for place, name in enumerate(found)}
    return explained(captured.program, kinds(captured), known, _engine(captured), source)


def _engine(captured: Captured) -> str:
    device = flatten(captured.state)[0].device
    where = "the CPU" if device.type == "cpu" else str(device)
    if device.type not in ("cpu", "cuda"):
        return f"{where}, in plain PyTorch"
    name = "cpu" if device.type == "cpu" and not engines.interpreting() else "triton"
    problem = problem_of(name, captured)
    if problem is not None:
        return f"{where}, in plain PyTorch: {problem}"
    return f"the CPU engine, compiled for {engines.cpu.level()}" if name == "cpu" else f"the Triton engine, on {device}"


def cpu_problem(captured: Captured) -> str | None:
    """Why the CPU engine does not run a program, or None."""
    return problem_of("cpu", captured)


def problem_of(name: str, captured: Captured) -> str | None:
    """Why an engine does not run a program, or None."""
    here = engines.extension_problem() if name == "cpu" else engines.triton_problem()
    return here or engine.problem(name, captured.program, kinds(captured))


class Options(NamedTuple):
    """padded, reverse, recompute: as `run.Call` has them. every: whether all states are wanted."""

    padded: bool
    reverse: bool
    recompute: bool
    every: bool


def run(
    captured: Captured,
    leaves: Sequence[Tensor],
    inputs: Sequence[Tensor],
    hx: Sequence[Tensor] | None,
    lengths: Tensor | None,
    options: Options,
    anew: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The output, the last states and, if `options.every`, all states.

    leaves: the cell's tensors. inputs: (T, B, ...), or (N, ...). hx: (B, ...) each, or None for the cell's own first state. anew: what
    sequences begin anew with where `lengths` says that they do; None for the cell's own first state, or with an hx for zeros.
    """
    program, draws = captured.program, captured.draws
    if cast := autocasting(inputs[0]):
        before, after = flatten(captured.state)[0].dtype, torch.get_autocast_dtype(inputs[0].device.type)
        if before != torch.float64:  # the operator casts all tensors; those that the step makes in their dtype have to follow
            program, draws = program.cast(before, after), tuple(draw.cast(before, after) for draw in draws)
    if options.every:
        program = replace(program, outputs=(*program.outputs, *program.next_states))
    batch = inputs[0].size(1) if options.padded or lengths is None else lengths.size(0)
    cut = lengths is not None and lengths.dim() == 2
    own = flatten(captured.first_state(leaves, batch)) if hx is None else None
    first = [*(own or hx or ()), *((anew or own or ()) if cut else ())]
    drawn = [draw.tensor(inputs[0], inputs[0].shape[: 2 if options.padded else 1]) for draw in draws]
    call = Call(program, captured.sizes, tuple(captured.numbers()), options.reverse, options.padded, options.recompute)
    parameters = captured.parameters(leaves)
    if cast and drawn:  # which keep their dtypes
        inputs, parameters, first = map(autocast, (inputs, parameters, first))
        with torch.autocast(inputs[0].device.type, enabled=False):
            (output, *states), hx_n = operator.layer(call, [*inputs, *drawn], parameters, first, lengths)
    else:
        (output, *states), hx_n = operator.layer(call, [*inputs, *drawn], parameters, first, lengths)
    return [output, *hx_n, *states]


def results(found: Sequence[Tensor], state: Structure) -> tuple[Tensor, Structure, Structure | None]:
    """What `run` gives, in the structure of the state."""
    count = len(flatten(state))
    output, hx_n, states = found[0], found[1 : 1 + count], found[1 + count :]
    return output, unflatten(state, list(hx_n)), unflatten(state, list(states)) if states else None
