"""A fused layer within torch.compile: one graph, in which the cell is its program's text and not traced step by step.

While it traces, torch.compile asks the functions that are marked constant; these return numbers and strings. Tensors of the cell, and what
capture saw being read of it, are read from the cell by their names, so that the graph has the tensors as inputs and is made anew when the
rest changes. Imported while that traces: `allow_in_graph` imports the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sstkern import private
from sstkern.program import layer
from sstkern.program.capture import Captured, Spec, Unfused
from sstkern.structure import Returns, Structure, flatten, mapped, unflatten

_NONE = -1
_PLAIN = (bool, int, float, str)
_known: WeakValueDictionary[int, Captured] = WeakValueDictionary()


def run(
    programs: layer.Programs,
    cell: nn.Module,
    inputs: Structure,
    hx: Structure | None,
    lengths: Tensor | None,
    returns: Returns,
    *,
    padded: bool,
    **options: bool,
) -> tuple[Tensor, Structure, Structure | None] | None:
    """As `layer.run`; None where no program holds the cell, or where a graph cannot follow what it reads."""
    tensors = flatten(inputs)
    states = None if hx is None else flatten(hx)
    lead = 2 if padded else 1
    of_inputs, of_states = _kinds(tensors, lead), None if states is None else _kinds(states, 1)
    key = _found(programs, cell, inputs if isinstance(inputs, tuple) else None, of_inputs, hx, of_states, returns)
    return None if key == _NONE else _NONE


def _kinds(tensors: Sequence[Tensor], lead: int) -> tuple:
    """Of a step's rows of each."""
    return tuple((tuple(tensor.shape[lead:]), tensor.dtype, tensor.device) for tensor in tensors)
