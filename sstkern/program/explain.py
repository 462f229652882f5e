"""A program in words: what is computed before, in and after the loop over time steps, and what is saved for the backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sstkern.program.derive import derive
from sstkern.program.graph import Program
from sstkern.program.partition import partition, stages
from sstkern.program.shapes import Kind, Leaves
from sstkern.program.values import Node, Value

_SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "product": "@", "transposed_product": "@"}


def explained(program: Program, leaves: Leaves, names: Mapping[Value, str], engine: str, source: bool = False) -> str:
    """names: the user's, of parameters, inputs and states. engine: what runs it. source: with the texts of the program and its
    derivative."""
    parts = partition(program, program.outputs)
    lines = [f"on {engine}", "inputs"]
    for letter, title, kinds in (("x", None, leaves.inputs), ("h", "states", leaves.states), ("p", "parameters", leaves.parameters)):
        lines += [title] if title else []
        lines += [f"    {names.get(Value(letter, place), f'{letter}{place}')} {_kind(kind)}" for place, kind in enumerate(kinds)]
    lines += _section("before the loop, for all time steps at once", program, parts.before, names)
    lines += _core(program, parts.core, names)
    lines += _section("after the loop, for all time steps at once", program, parts.after, names)
    after = zip(program.next_states, range(len(program.states)), strict=True)
    lines += [f"output {_name(program.outputs[0], names)}"]
    lines += [f"new {_name(Value('h', place), names)} {_name(value, names)}" for value, place in after]
    kept = derive(program, leaves).kept
    lines += [f"saved for the backward, of each time step: {', '.join(_name(value, names) for value in kept) or 'nothing'}"]
    if source:
        lines += ["", "program", program.text, "", "derivative", derive(program, leaves).backward.text]
    return "\n".join(lines)


def _kind(kind: Kind) -> str:
    return f"{tuple(kind.shape)} {str(kind.dtype).removeprefix('torch.')}"


def _core(program: Program, core: Sequence[int], names: Mapping[Value, str]) -> list[str]:
    of_stage = stages(program, core)
    count = 1 + max(of_stage.values(), default=0)
    lines = [f"in the loop, {count} stage{'s' if count > 1 else ''}"] if core else []
    last = -1
    for place in core:
        if (stage := of_stage.get(place, last)) > last:
            lines.append(f"    stage {stage}")
            last = stage
        lines.append(f"        {_line(place, program, names)}")
    return lines


def _section(title: str, program: Program, places: Sequence[int], names: Mapping[Value, str]) -> list[str]:
    return [title, *(f"    {_line(place, program, names)}" for place in places)] if places else []


def _line(place: int, program: Program, names: Mapping[Value, str]) -> str:
    return f"v{place} = {_formula(program.nodes[place], names)}"


def _formula(node: Node, names: Mapping[Value, str]) -> str:
    arguments = [_name(part, names) if isinstance(part, Value) else str(part) for part in node.arguments]
    if node.operation == "product":
        arguments[1] += ".T"
    if node.operation in _SYMBOLS:
        return f" {_SYMBOLS[node.operation]} ".join(arguments)
    return f"{node.operation}({', '.join([*arguments, *map(str, node.attributes)])})"


def _name(value: Value, names: Mapping[Value, str]) -> str:
    return names.get(value, str(value))
