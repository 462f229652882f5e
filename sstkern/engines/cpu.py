"""The C++ engine: loading it, or why it cannot be loaded and how to get it, and the cells that it has kernels of."""

import platform
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from sstkern import private
from sstkern.cells import Cell

LIBRARY = Path(__file__).parents[1] / "_cpu.so"
"""By its name: a folder may still have one of another Python, from before there was one for all."""
OLDEST_TORCH = (2, 11)
"""Whose stable C functions it calls, as every later torch has them."""


@cache
def load() -> str | None:
    """None once the extension has added its implementations to the operators, or why there is none."""
    if not LIBRARY.exists():
        return _not_built()
    if _release(torch.__version__) < OLDEST_TORCH:
        return f"its C++ extension needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, and this is torch {torch.__version__}"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:  # a file that is cut off, say, or is for another processor or an older C library
        return f"its C++ extension cannot be loaded: {error.__cause__ or error}; install sstkern anew"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _not_built() -> str:
    if platform.system() not in ("Linux", "Darwin"):
        return f"its C++ extension is not built on {platform.system()} yet"
    source = Path(__file__).parents[2]
    if (source / "setup.py").exists():
        return (
            f"its C++ extension is not built; build it with 'pip install --no-build-isolation --no-deps -e .' in {source}, "
            "or, if sstkern is installed, start Python elsewhere"
        )
    return (
        "its C++ extension is not built; build it with 'pip install --no-build-isolation --no-deps --force-reinstall .' in "
        "sstkern's source, where torch is installed, or install a wheel that has it"
    )


class Kernels(NamedTuple):
    """What a cell's kernels are made for."""

    gates: int
    states: int
    """How many states there are beside h."""
    parameters: int
    saves: int
    """Vectors of H that a forward step saves for the backward."""
    same_gate_gradients: bool
    projects: bool
    """Whether a projection may follow the step."""


_found: dict[str, Kernels] = {}


def kernels(name: str) -> Kernels | None:
    """The kernels of the cell `name`, for the instruction set of this process; None where the loaded extension has none."""
    if name not in _found and (numbers := _numbers(name)):
        gates, states, parameters, saves, same_gate_gradients, projects = numbers
        _found[name] = Kernels(gates, states, parameters, saves, bool(same_gate_gradients), bool(projects))
    return _found.get(name)


def _numbers(name: str) -> list[int]:
    with private.untraced():
        return torch.ops.sstkern.cpu_cell(name)


def lacks(cell: Cell) -> str | None:
    """Why the loaded extension cannot run the cell, or None."""
    found = kernels(cell.name)
    if found is None:
        return _why_none(cell.name)
    if any(parameter.shape != ("H",) for parameter in cell.parameters):
        return f"its kernels take parameters of shape (H,) only, and '{cell.name}' has others"
    if differences := _differences(cell, found):
        return f"its kernel of '{cell.name}' is another cell's: {', '.join(differences)}"
    return None


def _why_none(name: str) -> str:
    levels = torch.ops.sstkern.cpu_cell_levels(name)
    if not levels:
        return f"it has no kernel for the cell '{name}'"
    return f"its kernels for the cell '{name}' are for {', '.join(levels)}, and this process uses {level()} or less for float32"


def level() -> str:
    """The instruction set of this process for float32 and float64 tensors. bfloat16's own has nothing for them."""
    return torch.ops.sstkern.cpu_capability().removesuffix("_bf16")


def _differences(cell: Cell, kernels: Kernels) -> list[str]:
    both = {
        "gates": (len(cell.gates), kernels.gates),
        "states beside h": (len(cell.states) - 1, kernels.states),
        "parameters": (len(cell.parameters), kernels.parameters),
        "same_gate_gradients": (cell.same_gate_gradients, kernels.same_gate_gradients),
        "projects": (cell.projects, cell.projects and kernels.projects),  # a kernel that can need not
    }
    return [f"{what} {defined} in the definition, {made} in the kernel" for what, (defined, made) in both.items() if defined != made]


def load_cells(path: str | Path) -> list[str]:
    """Registers the kernels of cells that were compiled apart from the extension, and returns the cells' names.

    path: a shared library, compiled from a cell's header with those of csrc/kernels alone (CONTRIBUTING.md says how). Its code runs in
    this process: load only what you have compiled. The cells themselves are `sstkern.cells.register`'s.

    Raises ValueError where it is no such library, was compiled with headers of another version, or has a cell that is registered already
    (only a new process can have another one of that name), and RuntimeError where the extension cannot be loaded.
    """
    if problem := load():
        raise RuntimeError(f"load_cells: {problem}")
    return torch.ops.sstkern.load_cpu_cells(str(Path(path).resolve()))
