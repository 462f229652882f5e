"""Which engine runs a call: `cpu`, the C++ extension, or `reference`, plain PyTorch; and how to force one."""

import importlib.util
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sstkern.cells import Cell

ENGINES = ("reference", "cpu")
CPU_CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class _Forced(threading.local):
    """The engine this thread has forced, if any. Not a ContextVar: torch.compile cannot read one."""

    name: str | None = None


_forced = _Forced()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the `with` block every layer runs on the engine `name`: "cpu" or "reference".

    A layer that the engine cannot run raises RuntimeError; nothing falls back in silence. Raises ValueError for an unknown name and
    RuntimeError for an engine this installation does not have.
    """
    if name not in ENGINES:
        raise ValueError(f"backend: '{name}' is unknown; there are {', '.join(ENGINES)}")
    if name == "cpu" and (problem := extension_problem()):
        raise RuntimeError(f"backend: 'cpu' cannot run here: {problem}")
    outer, _forced.name = _forced.name, name
    try:
        yield
    finally:
        _forced.name = outer


def choose(cell: Cell, x: Tensor, others: Sequence[Tensor] = ()) -> str:
    """The engine for a layer of `cell` on `x`, with its weights and states as `others`: the forced one, or the fastest that can run it."""
    forced = _forced.name
    if forced == "reference":
        return forced
    obstacle = _cpu_obstacle(cell, x, others)
    if obstacle is None:
        return "cpu"
    if forced == "cpu":
        raise RuntimeError(f"backend: 'cpu' was asked for, but {obstacle}")
    return "reference"


def _cpu_obstacle(cell: Cell, x: Tensor, others: Sequence[Tensor]) -> str | None:
    if x.device.type != "cpu":
        return f"x is on {x.device}"
    if cell.name not in CPU_CELLS:
        return f"it has no kernel for the cell '{cell.name}'"
    if x.dtype not in CPU_DTYPES:
        return f"it has no kernel for {x.dtype}"
    if _is_transformed((x, *others)):
        return "it cannot run under torch.func's transforms or forward-mode differentiation"
    if problem := extension_problem():
        _warn_once(problem)
        return problem
    return None


def _is_transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether an operator would lose tangents, silently, or be refused."""
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


@cache
def _warn_once(problem: str) -> None:
    warnings.warn(f"sstkern runs on its slow reference engine: {problem}", UserWarning, stacklevel=2)


@torch.compiler.assume_constant_result
def extension_problem() -> str | None:
    """None where the C++ extension is loaded, or why there is none and how to get it."""
    return _load_extension()


@cache
def _load_extension() -> str | None:
    spec = importlib.util.find_spec("sstkern._cpu")
    if spec is None or spec.origin is None:
        return "its C++ extension is not built; build it with 'pip install --no-build-isolation sstkern' where torch is installed"
    built_for = _built_for()
    if built_for != torch.__version__:
        return (
            f"its C++ extension was built for torch {built_for}, and this is torch {torch.__version__}; "
            "build it again with 'pip install --no-build-isolation --force-reinstall --no-deps sstkern'"
        )
    torch.ops.load_library(spec.origin)
    return None


def _built_for() -> str:
    note = Path(__file__).parent / "_build_info.json"
    return json.loads(note.read_text())["torch"] if note.exists() else "of an unknown version"


def cpu_runs() -> dict[str, int]:
    """What the C++ engine ran in this process: calls of `forward` and `backward`, and the `threads` that shared the latest one."""
    return dict(zip(("forward", "backward", "threads"), torch.ops.sstkern.cpu_runs(), strict=True))
