"""The launches of a cell's kernels for a GPU that need not be there, from its class alone: for `sstkern aot-report`."""

from __future__ import annotations

import importlib
import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from sstkern.engines import backend
from sstkern.fuse import Fused, fuse
from sstkern.lengths import with_beginnings
from sstkern.program import engine, layer
from sstkern.program.capture import Captured
from sstkern.program.graph import Program
from sstkern.program.run import Call
from sstkern.program.shapes import Kind


def cells(name: str) -> list[str]:
    """The classes that a name stands for, each as "module:Class": itself, or with a module's name all of its classes that `fuse` can take,
    made as Class(input_size, hidden_size).

    Raises ValueError where there is no such module or class, and, for one class, where it is no cell or runs as no program.
    """
    module, _, wanted = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"cell: '{name}': {error}") from error
    if wanted:
        if not hasattr(found, wanted):
            raise ValueError(f"cell: there is no '{wanted}' in {module}")
        try:
            captured(name, 16, torch.float32)
        except Exception as error:
            raise ValueError(f"cell: '{name}' as {wanted}(16, 16): {error}") from error
        return [name]
    names = sorted(getattr(found, "__all__", vars(found)))
    classes = [one for one in names if one.endswith("Cell") and _is_cell(getattr(found, one))]
    runs = [f"{module}:{one}" for one in classes if _runs(f"{module}:{one}")]
    if not runs:
        raise ValueError(f"cell: {module} has no cells")
    return runs


def _is_cell(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, nn.Module) and not inspect.isabstract(found)


def _runs(name: str) -> bool:
    try:
        captured(name, 16, torch.float32)
    except Exception:  # stepped in Python, or not made and called so: a base class, a cell around another, one with a second input
        return False
    return True


@lru_cache(maxsize=64)
def captured(name: str, size: int, dtype: torch.dtype) -> Captured:
    """A cell of `size` inputs and hidden units."""
    module, _, wanted = name.partition(":")
    found = fuse(getattr(importlib.import_module(module), wanted)(size, size).to(dtype), strict=True)
    with torch.no_grad(), backend("reference"):
        found(torch.zeros(1, 1, size, dtype=dtype))
    assert isinstance(found, Fused)
    last = found._direction.programs.last
    assert last is not None
    return last


def run(name: str, size: int, dtype: torch.dtype, batch: int, backward: bool, resets: bool = False) -> None:
    """A time step, forward or backward, of tensors that have no memory, on the Triton engine. resets: whether sequences may begin anew
    with it."""
    found = captured(name, size, dtype)
    program: Program = found.program
    kinds = layer.kinds(found)
    call = Call(program, found.sizes, tuple(found.numbers()), False, True)
    of_program = engine.Layer("triton", call, kinds)

    def empty(kind: Kind, *lead: int) -> Tensor:
        return torch.empty((*lead, *kind.shape), dtype=kind.dtype, device="meta")

    inputs = [empty(kind, 1, batch) for kind in kinds.inputs]
    parameters = [empty(kind) for kind in kinds.parameters]
    hx, lengths = [empty(kind, batch) for kind in kinds.states], torch.ones(batch, dtype=torch.int64)
    anew = hx if resets else []
    if resets:
        lengths = with_beginnings(lengths, torch.ones(1, batch, dtype=torch.bool))
    if not backward:
        of_program.forward(call, inputs, parameters, [*hx, *anew], lengths, batch)
        return
    kept = engine.run.kept_kinds(call, kinds)
    outputs = [empty(kind, 1, batch) for kind in engine.result_kinds(program, kinds)]
    needs = [tensor.is_floating_point() for tensor in (*inputs, *parameters, *hx, *anew)]
    of_program.backward(call, inputs, parameters, [*hx, *anew], lengths, [empty(kind, batch) for kind in kept], outputs, hx, needs)
