"""A captured step, calculated node by node."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sstkern.program.capture import Captured
from sstkern.program.language import OPERATIONS, resolved
from sstkern.program.values import Value


def evaluated(captured: Captured, inputs: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The output and the states after a step on (B, ...) tensors."""
    program, sizes, numbers = captured.program, captured.sizes, captured.numbers()
    known = {Value("x", place): tensor for place, tensor in enumerate(inputs)}
    known |= {Value("h", place): tensor for place, tensor in enumerate(states)}
    known |= {Value("p", place): tensor for place, tensor in enumerate(captured.parameters(captured.leaves()))}
    for place, node in enumerate(program.nodes):
        operation, words = OPERATIONS[node.operation], (*node.arguments, *node.attributes)
        parts = [known[word] if isinstance(word, Value) else resolved(word, sizes, numbers) for word in words]
        known[Value("v", place)] = operation.compute(*([inputs[0]] if operation.makes_rows else []), *parts)
    return known[program.outputs[0]], [known[value] for value in program.next_states]
