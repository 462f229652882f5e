"""The derivative of a step, a program itself: from the gradients after a step to those before it, by reverse mode."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from sstkern.program.gradients import RULES, Call
from sstkern.program.graph import Argument, Attribute, Builder, Program, Value, needed, rewritten
from sstkern.program.language import OPERATIONS, STORED, read
from sstkern.program.shapes import Examples, Kind, Leaves, on_examples


class Sum(NamedTuple):
    """A parameter's gradient, or a part of it: a sum over all rows of `gradients`, or of their products with `operands`.

    Both are places among the outputs of the backward.
    """

    parameter: int
    gradients: int
    operands: int | None = None


@dataclass(frozen=True)
class Derivative:
    """kept: of the forward, what the backward needs beside inputs and parameters: states before the step first, then results.

    backward: its inputs are the forward's inputs, its states before the step, its results that are kept, and the gradients of its outputs;
    its states are the gradients of the states after the step, its next states those of the states before it. inputs: for each
    input the place of its gradient among the outputs, or None. sums: see `Sum`.
    """

    kept: tuple[Value, ...]
    backward: Program
    inputs: tuple[int | None, ...]
    sums: tuple[Sum, ...]

    def inputs_of_backward(self, inputs: list[Tensor], states: int, kept: Sequence[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Rows of all inputs of the backward. A state that is not kept is not read: an input stands in its place."""
        at = {value.place: tensor for value, tensor in zip(self.kept, kept, strict=True) if value.kind == "h"}
        before = [at.get(place, inputs[0]) for place in range(states)]
        return [*inputs, *before, *kept[len(at) :], *gradients]


@lru_cache(maxsize=256)
def derive(program: Program, leaves: Leaves, recompute: bool = False) -> Derivative:
    """The derivative for tensors of these shapes and dtypes: what was spread is summed, what was cast is cast back.

    recompute: save nothing but the states before each step.
    """
    with on_examples():
        return _Reverse(program, leaves).derivative(recompute)


class _Typed(Builder):
    """A builder that knows the shapes and dtypes of its values."""

    def __init__(self, examples: Examples):
        super().__init__()
        self.examples = examples

    def node(self, operation: str, *arguments: Argument, attributes: Sequence[Attribute] = ()) -> Value:
        value = super().node(operation, *arguments, attributes=attributes)
        self.examples.add(value, self.nodes[value.place])
        return value


class _Reverse:
    """Forward and backward in one builder, whose inputs are the forward's inputs and states, and then the gradients of the outputs."""

    def __init__(self, program: Program, leaves: Leaves):
        self.program = program
        rows = (*leaves.inputs, *leaves.states)
        forward = Examples(Leaves(rows, (), leaves.parameters, leaves.sizes))
        build = self.build = _Typed(forward)
        self.of: dict[Value, Value] = {}
        for kind, dimensions, letter in (("x", program.inputs, "x"), ("h", program.states, "x"), ("p", program.parameters, "p")):
            for place, count in enumerate(dimensions):
                self.of[Value(kind, place)] = build.input(count) if letter == "x" else build.parameter(count)
        for place, node in enumerate(program.nodes):
            arguments = [self.of[part] if isinstance(part, Value) else part for part in node.arguments]
            self.of[Value("v", place)] = build.node(node.operation, *arguments, attributes=node.attributes)
        self.forward_nodes = len(build.nodes)
        self.output_gradients = [self._given(value, build.input) for value in program.outputs]
        self.state_gradients = [self._given(value, build.state) for value in program.next_states]
        self.found: dict[Value, list[Value]] = {}
        self.chunks: dict[Value, dict[tuple, dict[int, list[Value]]]] = {}
        self.sums: list[tuple[int, Value, Value | None]] = []

    def _given(self, value: Value, leaf) -> Value:
        """A leaf for the gradient of a value of the forward."""
        kind = self.kind(self.of[value])
        gradient = leaf(len(kind.shape))
        self.build.examples.add_leaf(gradient, kind)
        return gradient

    def kind(self, value: Value) -> Kind:
        return self.build.examples.kind(value)

    def derivative(self, recompute: bool) -> Derivative:
        program = self.program
        for value, gradient in (
            *zip(program.outputs, self.output_gradients, strict=True),
            *zip(program.next_states, self.state_gradients, strict=True),
        ):
            self._add(self.of[value], gradient)
        for place in reversed(range(self.forward_nodes)):
            self._through(Value("v", place))
        rows = [self._total(self.of[Value("x", place)]) for place in range(len(program.inputs))]
        before = [self._total_or_zeros(self.of[Value("h", place)]) for place in range(len(program.states))]
        return self._divided(rows, before, recompute)

    def _through(self, value: Value) -> None:
        """Adds the gradients of a node's arguments."""
        gradient = self._total(value)
        if gradient is None:
            return
        node = self.build.nodes[value.place]
        if node.operation == "chunk":
            (argument,) = node.values()
            dim, parts, index = node.attributes
            self.chunks.setdefault(argument, {}).setdefault((dim, parts), {}).setdefault(index, []).append(gradient)  # type: ignore[arg-type]
            return
        if node.operation == "product":
            operand, parameter = node.values()
            self.sums.append((parameter.place, gradient, operand))
        found = RULES[node.operation](Call(self.build, node.arguments, node.attributes, value, gradient))
        for part, of_part in zip(node.arguments, found, strict=True):
            if isinstance(part, Value) and of_part is not None:
                self._add(part, of_part)

    def _add(self, value: Value, gradient: Value) -> None:
        kind, given = self.kind(value), self.kind(gradient)
        if not kind.dtype.is_floating_point:
            return
        if value.kind == "p":
            self.sums.append((value.place, gradient, None))
        else:
            if given.shape != kind.shape:
                gradient = self._summed(gradient, value)
            if given.dtype != kind.dtype:
                gradient = self.build.node("cast", gradient, attributes=(kind.dtype,))
            self.found.setdefault(value, []).append(gradient)

    def _summed(self, gradient: Value, like: Value) -> Value:
        """Sums a gradient over what was spread. A sum is negated rather than each of its parts."""
        node = self.build.nodes[gradient.place] if gradient.kind == "v" else None
        if node is not None and node.operation == "neg":
            return self.build.node("neg", self._summed(node.values()[0], like))
        return self.build.node("sum_to", gradient, like)

    def _total_or_zeros(self, value: Value) -> Value:
        total = self._total(value)
        return self._zeros(value) if total is None else total

    def _total(self, value: Value) -> Value | None:
        """The sum of what was found."""
        parts = [*self.found.get(value, ()), *(self._joined(*item) for item in self.chunks.get(value, {}).items())]
        return self._sum(parts) if parts else None

    def _joined(self, cut: tuple, found: dict[int, list[Value]]) -> Value:
        """The gradient of what was cut into chunks; 0 for a chunk that nothing depends on."""
        dim, parts = cut
        sums = {index: self._sum(gradients) for index, gradients in found.items()}
        some = next(iter(sums.values()))
        each = [sums[index] if index in sums else self._zeros(some) for index in range(parts)]
        return self.build.node("cat", *each, attributes=(dim,))

    def _sum(self, parts: Sequence[Value]) -> Value:
        total = parts[0]
        for part in parts[1:]:
            total = self.build.node("add", total, part)
        return total

    def _zeros(self, like: Value) -> Value:
        return self.build.node("full_like", like, attributes=(0.0,))

    def _divided(self, of_inputs: Sequence[Value | None], before: Sequence[Value], recompute: bool) -> Derivative:
        """What is saved is cut out of the forward, and what is left and needed is the backward."""
        sums = [part for _, *parts in self.sums for part in parts if part is not None]
        outputs = list(dict.fromkeys(value for value in (*of_inputs, *sums) if value is not None))
        saved = [] if recompute else self._saved(outputs, before)
        if not recompute and (shapes := self._stand_in(saved, outputs, before)):
            saved = self._saved(outputs, before, shapes)
        forward = {value: mine for mine, value in self.of.items()}
        places = {value: place for place, value in enumerate(outputs)}
        backward = self._backward(saved, outputs, before)
        inputs = len(self.program.inputs)
        read = {value.place - inputs for node in backward.nodes for value in node.values() if value.kind == "x"}
        read |= {value.place - inputs for value in (*backward.outputs, *backward.next_states) if value.kind == "x"}
        states = [Value("h", place) for place in range(len(self.program.states)) if place in read]
        return Derivative(
            (*states, *(forward[value] for value in saved)),
            backward,
            tuple(None if value is None else places[value] for value in of_inputs),
            tuple(Sum(place, places[gradient], None if operand is None else places[operand]) for place, gradient, operand in self.sums),
        )

    def _stand_in(self, saved: Sequence[Value], outputs: Sequence[Value], before: Sequence[Value]) -> set[Value]:
        """Puts others in the place of the forward's results that only give the backward a shape: what is there anyway. Returns those that
        nothing can stand in for."""
        inputs = [Value("x", place) for place in range(len(self.program.inputs))]
        leaves = [*self.state_gradients, *self.output_gradients, *inputs, *saved]
        of_kind = {self.kind(value): value for value in reversed(leaves)}
        lost: set[Value] = set()
        nodes = self.build.nodes
        for place in needed(nodes, (*outputs, *before)):
            if place < self.forward_nodes:
                continue
            node = nodes[place]
            shapes = {part for part in node.values() if part not in read(node) and part not in leaves}
            new = {part: of_kind[self.kind(part)] for part in shapes if self.kind(part) in of_kind}
            lost |= shapes - new.keys()
            arguments = tuple(new.get(part, part) if isinstance(part, Value) else part for part in node.arguments)
            nodes[place] = replace(node, arguments=arguments)
        return lost

    def _saved(self, outputs: Sequence[Value], before: Sequence[Value], more: Collection[Value] = ()) -> list[Value]:
        """The forward's results to save: those that the gradients are computed from, and that cost more to compute again than to keep."""
        nodes = self.build.nodes
        used = needed(nodes, (*outputs, *before))
        wanted = {*outputs, *before, *more, *(value for place in used if place >= self.forward_nodes for value in read(nodes[place]))}
        there: set[Value] = set()
        saved = []
        for value in sorted(wanted, key=lambda value: value.place):
            if value.kind != "v" or value.place >= self.forward_nodes:
                continue
            again = needed(nodes, [value], there)
            if sum(OPERATIONS[nodes[place].operation].cost for place in again) > STORED:
                saved.append(value)
                there.add(value)
            else:
                there |= {Value("v", place) for place in again}
        return saved

    def _backward(self, saved: Sequence[Value], outputs: Sequence[Value], before: Sequence[Value]) -> Program:
        """The program of these outputs. What is saved are inputs, after those of the forward."""
        given, build = len(self.program.inputs) + len(self.program.states), self.build
        names = {value: Value("x", given + place) for place, value in enumerate(saved)}
        names |= {Value("x", given + place): Value("x", given + len(saved) + place) for place in range(len(self.program.outputs))}
        dimensions = build.dimensions["x"]
        inputs = *dimensions[:given], *(len(self.kind(value).shape) for value in saved), *dimensions[given:]
        states, parameters = tuple(build.dimensions["h"]), tuple(build.dimensions["p"])
        return Program(inputs, states, parameters, *rewritten(build.nodes, outputs, before, names))
