"""What of a program runs before, in and after the loop over time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sstkern.program.graph import Program, Value, needed
from sstkern.program.language import OPERATIONS, PRODUCTS


@dataclass(frozen=True)
class Parts:
    """Places of nodes. before: what no state has a part in, for all rows at once. core: what else the next states depend on, step by step.
    after: what only outputs depend on, for all rows at once.

    to_core: the values that a step of the core takes, of inputs or computed before. from_core: those of the core, or states, that are
    needed for all rows, by `after` or as outputs.
    """

    before: tuple[int, ...]
    core: tuple[int, ...]
    after: tuple[int, ...]
    to_core: tuple[Value, ...]
    from_core: tuple[Value, ...]


@lru_cache(maxsize=512)
def partition(program: Program, outputs: tuple[Value, ...]) -> Parts:
    """The parts of a program, for the outputs that are wanted."""
    nodes = program.nodes
    rows: set[Value] = {Value("x", place) for place in range(len(program.inputs))}
    for place, node in enumerate(nodes):  # what follows from parameters only has no rows to cut by steps
        if OPERATIONS[node.operation].makes_rows or any(value in rows or value.kind == "h" for value in node.values()):
            rows.add(Value("v", place))
    stateful: set[Value] = {Value("h", place) for place in range(len(program.states))}
    for place, node in enumerate(nodes):
        if any(value in stateful for value in node.values()):
            stateful.add(Value("v", place))
    carried, used = needed(nodes, program.next_states), needed(nodes, (*program.next_states, *outputs))
    before = [place for place in sorted(used) if Value("v", place) not in stateful]
    core = [place for place in sorted(used) if Value("v", place) in stateful and place in carried]
    after = [place for place in sorted(used) if Value("v", place) in stateful and place not in carried]
    of_core = {Value("v", place) for place in core}
    to_core = [*(value for place in core for value in nodes[place].values()), *program.next_states]
    from_core = [*(value for place in after for value in nodes[place].values()), *outputs]
    return Parts(
        tuple(before),
        tuple(core),
        tuple(after),
        _distinct(value for value in to_core if value not in stateful and value in rows),
        _distinct(value for value in from_core if value in of_core or value.kind == "h"),
    )


def _distinct(values) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))


def stages(program: Program, core: Sequence[int]) -> dict[int, int]:
    """The stage of each product in the core: 0 where its operand is there when the step begins, else one more than that of the last product
    it depends on."""
    depth: dict[Value, int] = {}
    found = {}
    for place in core:
        node = program.nodes[place]
        depth[Value("v", place)] = max((depth.get(value, 0) for value in node.values()), default=0)
        if node.operation in PRODUCTS:
            found[place] = depth[Value("v", place)]
            depth[Value("v", place)] += 1
    return found
