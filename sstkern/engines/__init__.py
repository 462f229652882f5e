"""Which engine runs a call: `cpu`, the C++ extension, `triton`, GPU kernels, or `reference`, plain PyTorch; and how to force one."""

import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sstkern import private
from sstkern.cells import CELLS, Cell
from sstkern.engines import cpu

ENGINES = ("reference", "cpu", "triton")
"""The last two are fused."""
FUSED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


_NO_FORWARD_MODE = "it has no forward mode (torch.func.jvp, jacfwd, hessian, dual tensors); jacrev and vjp run on it"
_INTERPRETING = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")  # as and when triton reads it


@private.constant
def interpreting() -> bool:
    """Whether TRITON_INTERPRET=1 has Triton's interpreter run the GPU engine's kernels, very slowly, on CPU tensors."""
    return _INTERPRETING


class _Forced(threading.local):
    """The engine this thread has forced, if any. Not a ContextVar: torch.compile cannot read one."""

    name: str | None = None


_forced = _Forced()


class _Blocks:
    """The engines that any thread has forced. What torch.compile has compiled can be kept for one state of the process, not of a thread."""

    def __init__(self) -> None:
        self.latest: str | None = None
        self._names: list[str] = []
        self._lock = threading.Lock()

    def _alone(self) -> AbstractContextManager:
        return nullcontext() if torch.compiler.is_dynamo_compiling() else self._lock  # a trace knows no locks

    def enter(self, name: str) -> None:
        with self._alone():
            self._names.append(name)
            self.latest = name

    def leave(self, name: str) -> None:
        with self._alone():
            self._names.reverse()
            self._names.remove(name)
            self._names.reverse()
            self.latest = self._names[-1] if self._names else None


_blocks = _Blocks()


class BackendError(RuntimeError):
    """A forced engine cannot run here, or cannot run a layer."""


@contextmanager
def backend(name: str, schedule: str | None = None) -> Iterator[None]:
    """Within the `with` block every layer runs on the engine `name`: "cpu", "triton" or "reference".

    schedule: for "triton", how its time loop runs: "resident", "grid", "streamed" or "stepwise"; by default the launch table decides. It
    holds for all threads of the process, since autograd has its own, and for a backward that runs within the block.

    Functions that torch.compile has compiled obey as well, with a graph for each engine; among several threads' blocks, the latest one.

    A layer that the engine or the schedule cannot run raises RuntimeError or ValueError; nothing falls back in silence. Raises ValueError
    for an unknown name and RuntimeError for an engine this installation does not have.
    """
    if name not in ENGINES:
        raise ValueError(f"backend: '{name}' is unknown; there are {', '.join(ENGINES)}")
    if problem := {"cpu": extension_problem, "triton": triton_problem}.get(name, _no_problem)():
        raise BackendError(f"backend: '{name}' cannot run here: {problem}")
    outer, _forced.name = _forced.name, name
    _blocks.enter(name)
    try:
        with _schedule(name, schedule):
            yield
    finally:
        _blocks.leave(name)
        _forced.name = outer


@contextmanager
def _schedule(name: str, schedule: str | None) -> Iterator[None]:
    if schedule is not None and name != "triton":
        raise ValueError(f"schedule: only the 'triton' engine has schedules, not '{name}'; got '{schedule}'")
    if name != "triton":
        yield
        return
    from sstkern.engines.triton import launch  # triton is imported only where it is used

    if schedule is not None and schedule not in launch.SCHEDULES:
        raise ValueError(f"schedule: '{schedule}' is unknown; there are {', '.join(launch.SCHEDULES)}")
    outer = launch.force(schedule)
    try:
        yield
    finally:
        launch.force(outer)


def forced() -> str | None:
    """The engine of the `backend` block that this runs in, if any."""
    return _blocks.latest if torch.compiler.is_dynamo_compiling() else _forced.name


@contextmanager
def forcing(name: str | None) -> Iterator[None]:
    """What `forced` says within the block, in this thread: a backward's, which autograd runs in another, is that of its forward."""
    outer, _forced.name = _forced.name, name
    try:
        yield
    finally:
        _forced.name = outer


def check_program(fused: bool) -> None:
    """Raises BackendError where an engine is forced that does not run cells that are not `fused`."""
    name = forced()
    if name in ("cpu", "triton") and not fused:
        raise BackendError(f"backend: '{name}' was asked for, but this cell is stepped in Python, on 'reference'")


def check_forward_mode() -> None:
    """Raises BackendError for a program in forward mode where the engine is forced that has none."""
    if forced() in ("cpu", "triton"):
        raise BackendError(f"backend: '{forced()}' was asked for, but {_NO_FORWARD_MODE}")


def choose(cell: Cell, x: Tensor, others: Sequence[Tensor] = ()) -> str:
    """The engine for a layer of `cell` on `x`, with its weights and states as `others`: the forced one, or the fastest that can run it."""
    name = forced()
    if name == "reference":
        return name
    fused = _fused_engine(x)
    obstacle = _obstacle(cell, x, others, fused) if name in (None, fused) else f"x is on {x.device}"
    if fused is not None and obstacle is None:
        return fused
    if name is not None:
        raise BackendError(f"backend: '{name}' was asked for, but {obstacle}")
    return "reference"


def _fused_engine(x: Tensor) -> str | None:
    """The fused engine for tensors on x's device."""
    if x.is_cpu:  # to ask for device.type takes 4 microseconds
        return "triton" if _INTERPRETING else "cpu"
    return "triton" if x.is_cuda else None


def _obstacle(cell: Cell, x: Tensor, others: Sequence[Tensor], engine: str | None) -> str | None:
    if engine is None:
        return f"x is on {x.device}"
    if x.dtype not in FUSED_DTYPES:
        return f"it has no kernel for {x.dtype}"
    if _INTERPRETING and x.dtype == torch.bfloat16:
        return "Triton's interpreter gets products in bfloat16 wrong"
    if in_forward_mode((x, *others)):
        return _NO_FORWARD_MODE
    if problem := _unregistered(cell) or _incapable(engine, cell.name):
        return problem
    projects = engine == "triton" and len(others) > 1 and others[1].size(0) != len(cell.gates) * others[1].size(1)
    return lacks_projection(cell.name) if projects else None


@private.constant
def lacks_projection(cell: str) -> str | None:
    """Why the GPU engine, if it runs the registered cell of this name, has no projection of it, or None."""
    # By its name: programs are built on the engines, and this one is what an engine runs. It imports triton.
    return importlib.import_module("sstkern.program.projected").problem(CELLS[cell])


_capable: set[tuple[str, str]] = set()
"""Engines with cells that they were found to run: every call of a layer asks, and neither is ever taken away."""


@private.constant
def _incapable(engine: str, cell: str) -> str | None:
    """Why the engine cannot run here, or not the registered cell of this name; None where it can."""
    if (engine, cell) in _capable:
        return None
    if problem := extension_problem() if engine == "cpu" else triton_problem():
        _warn_once(problem)
        return problem
    if problem := lacks_cell(engine, cell):
        return problem
    _capable.add((engine, cell))
    return None


def _unregistered(cell: Cell) -> str | None:
    """Operators know a cell by its name, which another definition may have."""
    known = CELLS.get(cell.name)
    return None if known is cell or known == cell else f"the cell '{cell.name}' is not registered; sstkern.cells.register does that"


@private.constant
def lacks_cell(engine: str, cell: str) -> str | None:
    """Why an engine that can run here cannot run the registered cell of this name, or None."""
    if engine == "cpu":
        return cpu.lacks(CELLS[cell])
    from sstkern.engines.triton import cells  # triton is imported only where it is used

    return cells.lacks(CELLS[cell])


def support(cell: Cell) -> dict[str, str | None]:
    """For each engine None where it can run layers of `cell` here, or why it cannot."""
    problems = {"reference": None, "cpu": extension_problem(), "triton": triton_problem()}
    unregistered = _unregistered(cell)
    return {
        engine: problem or (None if engine == "reference" else unregistered or lacks_cell(engine, cell.name))
        for engine, problem in problems.items()
    }


def in_forward_mode(tensors: Sequence[Tensor]) -> bool:
    """Whether there may be tangents, which a fused engine would lose in silence."""
    if private.transforms_active():
        return private.forward_transform_active()
    return private.in_dual_level() and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether any of torch.func's transforms, or forward mode, sees what is computed from the tensors."""
    return private.transforms_active() or in_forward_mode(tensors)


@cache
def _warn_once(problem: str) -> None:
    warnings.warn(f"sstkern runs on its slow reference engine: {problem}", UserWarning, stacklevel=2)


def _no_problem() -> None:
    return None


@private.constant
def triton_problem() -> str | None:
    """None where the GPU engine can run, or why it cannot."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; get it with 'pip install triton'"
    if not interpreting() and not torch.cuda.is_available():
        return "torch finds no GPU"
    return None


@private.constant
def extension_problem() -> str | None:
    """None where the C++ extension is loaded, or why there is none and how to get it."""
    return "TRITON_INTERPRET has the GPU engine's kernels run on CPU tensors instead" if _INTERPRETING else cpu.load()


def cpu_runs() -> dict[str, int]:
    """What the C++ engine ran in this process.

    Keys: "forward" and "backward", its calls, one for each layer with all its directions, and "threads", how many shared the latest one of
    the calling thread.
    Raises NotImplementedError where the extension is not loaded.
    """
    return dict(zip(("forward", "backward", "threads"), torch.ops.sstkern.cpu_runs(), strict=True))


def triton_runs() -> dict[str, int]:
    """What the GPU engine ran in this process.

    Keys: "forward" and "backward", its calls, one for each layer with all its directions (of an own cell for each direction), and
    "resident", "grid", "streamed" and "stepwise", the launches of each schedule, of which "stepwise" has one for each time step. What has
    not run has no key.
    """
    from sstkern.engines.triton import layer

    return dict(layer.runs)
