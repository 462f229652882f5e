"""The first state that a cell has of its own: what its step puts in place of a state that is left out.

The step runs without a state and with one. Where the second run's results follow from the state, those of the first follow from something
else: that is the first state. Which part of what the cell returns is its state is tried.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sstkern.program.capture.prelude import Call, Constant, Leaf, Pick, Ref
from sstkern.program.capture.reasons import NoDefault, Unfused
from sstkern.program.capture.recording import Recorded, Recording
from sstkern.program.capture.runs import Failed, Run, Spec
from sstkern.program.capture.shadow import Shadow
from sstkern.program.language import OPERATIONS, resolved
from sstkern.program.values import Value
from sstkern.structure import Returns, Structure, flatten, mapped, unflatten


@dataclass(frozen=True, eq=False)
class FirstState:
    """state: Specs in the cell's structure. recorded: a program whose outputs are the state's tensors."""

    state: Structure
    recorded: Recorded

    def tensors(self, leaves: Sequence[Tensor], batch_size: int, device: torch.device) -> Structure:
        """The state (B, ...) of that many sequences, with gradients to `leaves`, the tensors of the sources."""
        rows, program = torch.empty(batch_size, 0, device=device), self.recorded.program
        numbers = [formula.value() for formula in self.recorded.numbers]
        known = {Value("p", place): tensor for place, tensor in enumerate(self.recorded.replay.run(leaves))}
        drawn = [draw.tensor(rows, (batch_size,)) for draw in self.recorded.draws]
        known |= {Value("x", len(program.inputs) - len(drawn) + at): tensor for at, tensor in enumerate(drawn)}
        for place, node in enumerate(program.nodes):
            operation, words = OPERATIONS[node.operation], (*node.arguments, *node.attributes)
            parts = [known[word] if isinstance(word, Value) else resolved(word, self.recorded.sizes, numbers) for word in words]
            known[Value("v", place)] = operation.compute(*([rows] if operation.makes_rows else []), *parts)
        return unflatten(self.state, [known[value] for value in program.outputs])


def can_do_without(cell: nn.Module) -> bool:
    """Whether the cell can be called without a state."""
    try:
        inspect.signature(cell.forward).bind(None)
    except TypeError:
        return False
    return True


def candidates(shadow: Shadow, input: Structure, returns: Returns, batch: int) -> list[tuple[Returns, Structure]]:
    """The parts of what the cell returns that may be its state: `returns`, and Specs that the step takes as a state too."""
    alone = _alone(shadow, input, batch)
    found: list[tuple[Returns, Structure]] = []
    for kind, state in _parts(alone.result, returns):
        specs = mapped(state, Spec.of_row)
        if _first_values(alone, shadow, input, specs, kind) is not None:
            found.append((kind, specs))
    return found


def _alone(shadow: Shadow, input: Structure, batch: int) -> Run:
    try:
        return Run(shadow, input, None, batch)
    except Failed as error:
        raise NoDefault(f"without a state {error}") from error


def _parts(result: Structure, returns: Returns) -> Iterator[tuple[Returns, Structure]]:
    """What may be the state in a result."""
    if returns != "output_and_state" and _of_tensors(result):
        yield "state", result
    if returns != "state" and isinstance(result, tuple | list) and len(result) == 2 and _of_tensors(result[1]):
        yield "output_and_state", result[1]


def _of_tensors(structure: Structure) -> bool:
    leaves = flatten(structure)
    return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.dim() > 0 for leaf in leaves)


def first_state(shadow: Shadow, input: Structure, state: Structure, returns: Returns, batch: int) -> Recorded:
    """A program without states whose outputs are the first state. Raises Unfused where that cannot be told."""
    alone = _alone(shadow, input, batch)
    values = _first_values(alone, shadow, input, state, returns)
    if values is None:
        raise Unfused("the first state cannot be told from what the cell does without one: give hx, or initial_state")
    recorded = alone.trace.record.program([len(spec.shape) for spec in flatten(input)], [], values, [])
    of_input = {Value("x", place) for place in range(len(flatten(input)))}
    if any(value in of_input for node in recorded.program.nodes for value in node.values()):
        raise Unfused("the first state follows from the input: give hx, or initial_state")
    return recorded


def _first_values(alone: Run, shadow: Shadow, input: Structure, state: Structure, returns: Returns) -> list[Value] | None:
    """For each state the value that stands in its place in the run without states; None where the two runs differ in more."""
    try:
        given = Run(shadow, input, state, alone.trace.record.batch)
        output, after = given.split(returns)
        parts = alone.result if returns == "state" else alone.result[1]
        first = flatten(alone.result)[0] if returns == "state" else alone.result[0]
        found = alone.values([first, *flatten(parts)])
    except (Unfused, TypeError):
        return None
    match = _Match(given.trace.record, alone.trace.record)
    if len(found) != len(after) + 1 or not all(map(match.same, (output, *after), found)):
        return None
    drawn = set(match.draws.values())
    if len(drawn) < len(match.draws) or _follows_from(alone.trace.record, match.states.values()) & drawn:  # the step would draw another
        return None
    return [
        _as_rows(alone, match.states.get(Value("h", place)), spec, alone.trace.record.batch) for place, spec in enumerate(flatten(state))
    ]


def _follows_from(record: Recording, values: Iterable[Value]) -> set[Value]:
    """The values, and all that they are computed from."""
    found, waiting = set(), list(values)
    while waiting:
        if (value := waiting.pop()) not in found:
            found.add(value)
            waiting += record.before(value)
    return found


def _as_rows(alone: Run, value: Value | None, spec: Spec, batch: int) -> Value:
    """A parameter as rows, or zeros for a state that no result follows from."""
    record = alone.trace.record
    if value is None:
        return record.node("full", 0.0, attributes=(spec.dtype, *spec.shape))
    return record.node("expand", value, attributes=spec.shape) if value.kind == "p" else value


class _Match:
    """Whether values of two recordings are the same, up to what stands for the states of the first in the second: `states`,
    and its random numbers, `draws`."""

    def __init__(self, given: Recording, alone: Recording) -> None:
        self.given, self.alone = given, alone
        self.states: dict[Value, Value] = {}
        self.draws: dict[Value, Value] = {}
        self._known: dict[tuple[Any, Any], bool] = {}

    def same(self, a: Any, b: Any) -> bool:
        if not isinstance(a, Value) or not isinstance(b, Value):
            return type(a) is type(b) and repr(a) == repr(b)
        if a.kind == "h":
            return self.states.setdefault(a, b) == b
        if a.kind == b.kind == "r":
            return self.given.draws[a.place] == self.alone.draws[b.place] and self.draws.setdefault(a, b) == b
        if (a, b) not in self._known:
            self._known[a, b] = a.kind == b.kind and self._alike(a, b)
        return self._known[a, b]

    def _alike(self, a: Value, b: Value) -> bool:
        if a.kind == "x":
            return a == b
        if a.kind == "p":
            return self._entries(Ref(a.place), Ref(b.place))
        first, second = self.given.nodes[a.place], self.alone.nodes[b.place]
        parts = (*first.arguments, *first.attributes), (*second.arguments, *second.attributes)
        return first.operation == second.operation and len(parts[0]) == len(parts[1]) and all(map(self.same, *parts))

    def _entries(self, a: Any, b: Any) -> bool:
        """Arguments of the preludes' entries."""
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and all(map(self._entries, a, b))
        if not isinstance(a, Ref) or not isinstance(b, Ref):
            return repr(a) == repr(b)
        first, second = self.given.prelude.entries[a.place], self.alone.prelude.entries[b.place]
        if isinstance(first, Constant) and isinstance(second, Constant):
            return torch.equal(first.tensor, second.tensor)
        if isinstance(first, Pick) and isinstance(second, Pick):
            return first.index == second.index and self._entries(first.source, second.source)
        if isinstance(first, Call) and isinstance(second, Call):
            alike = first.function is second.function and first.options == second.options
            return alike and self._entries(first.arguments, second.arguments)
        return isinstance(first, Leaf) and first == second
