"""Rows of other shapes than the result's written out as expansions, so that everything else of a compiled program goes number by number."""

from __future__ import annotations

import math

from sstkern.program.graph import Program
from sstkern.program.shapes import Leaves
from sstkern.program.values import Node, Value
from sstkern.program.windows import Values


def spread(program: Program, leaves: Leaves) -> tuple[Program, dict[Value, Value]]:
    """The program, and what its values are called there. One number that all units take needs no expansion."""
    values = Values(program, leaves)
    new: dict[Value, Value] = {}
    nodes: list[Node] = []

    def added(node: Node) -> Value:
        nodes.append(node)
        return Value("v", len(nodes) - 1)

    for place, node in enumerate(program.nodes):
        value = Value("v", place)
        shape, pointwise = values.kinds[value].shape, values.is_pointwise(value)

        def expanded(part: Value, shape: tuple[int, ...] = shape, pointwise: bool = pointwise) -> Value:
            found, own = new.get(part, part), values.kinds[part].shape
            same = math.prod(own) in (1, math.prod(shape))
            return found if not pointwise or same or part not in values.rows else added(Node("expand", (found,), shape))

        arguments = tuple(expanded(part) if isinstance(part, Value) else part for part in node.arguments)
        new[value] = added(Node(node.operation, arguments, node.attributes))
    if len(nodes) == len(program.nodes):
        return program, {}
    outputs, after = (tuple(new.get(value, value) for value in wanted) for wanted in (program.outputs, program.next_states))
    return Program(program.inputs, program.states, program.parameters, tuple(nodes), outputs, after), new
