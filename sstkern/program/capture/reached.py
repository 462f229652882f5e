"""Whether autograd sends gradients where the program will: through the same tensors, and by derivatives that are PyTorch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from sstkern.program.capture.reasons import Unfused
from sstkern.program.capture.trace import Trace
from sstkern.program.values import Value


def check_gradients(trace: Trace, results: Sequence[Tensor], values: Sequence[Value]) -> None:
    """Raises Unfused where the gradients of a step's results are not those that follow from its values."""
    leaves, functions = _reached(results)
    for function in functions:
        if isinstance(function, BackwardCFunction):
            name = type(function).__name__.removesuffix("Backward")
            raise Unfused(f"{name} is a torch.autograd.Function, whose derivative is its own: calculate with PyTorch's operators")
    if {id(leaf) for leaf in leaves} != {id(trace.examples[value]) for value in trace.sources(values)}:
        raise Unfused(
            "the step makes a parameter, or changes what wants a gradient: parameters must be the cell's, and be there before the step"
        )


def _reached(results: Sequence[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """The leaves that autograd reaches from the results, and the functions on the way."""
    found: dict[Any, None] = {}
    leaves = [result for result in results if result.is_leaf and result.requires_grad]
    waiting = [result.grad_fn for result in results]
    while waiting:
        function = waiting.pop()
        if function is not None and function not in found:
            found[function] = None
            waiting += [following for following, _ in function.next_functions]
            if hasattr(function, "variable"):
                leaves.append(function.variable)
    return leaves, list(found)
