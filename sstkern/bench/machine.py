"""The machine that measures, and what it can do at best."""

import os
import platform
import shlex
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch

from sstkern.bench import timing
from sstkern.doctor import installed_version
from sstkern.engines import extension_problem

_LEAST = 4096
"""Bytes that cpu_bandwidth can measure."""
_LARGE = 1024
"""Rows and columns of each matrix of a large product: more than the caches hold."""
_RATE_SECONDS = 0.5


def environment() -> dict:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "capability": _measured("cpu_capability"),
        "peak_gflops": peak(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: installed_version(name) for name in ("sstkern", "onnxruntime", "openvino")},
        "extension": extension_problem() or "built",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def peak() -> float | None:
    """GFLOP/s of multiply-adds in registers, of all threads, measured now; None without the extension that measures it."""
    return _measured("cpu_peak")


@cache
def bandwidth(size: int, threads: int) -> float | None:
    """GB/s at which `threads`, the number in use, read `size` bytes again and again.

    None without the extension that measures it, or for too few bytes.
    """
    return _measured("cpu_bandwidth", size) if size >= _LEAST else None


@cache
def product_rate(dtype: torch.dtype, threads: int) -> float:
    """GFLOP/s of one large torch.mm, which is what a machine's best library reaches. threads: the number in use."""
    with torch.random.fork_rng(devices=[]):
        a, b = torch.randn(2, _LARGE, _LARGE).to(dtype)
    result = torch.empty_like(a)
    return 2 * _LARGE**3 / min(timing.block(lambda: torch.mm(a, b, out=result), _RATE_SECONDS)) / 1e9


def _measured(operator: str, *arguments):
    function: Callable | None = getattr(torch.ops.sstkern, operator, None)
    if function is None or extension_problem() is not None:
        return None
    try:
        return function(*arguments)
    except NotImplementedError:  # an older extension has none
        return None


def _cpu_model(file: Path = Path("/proc/cpuinfo")) -> str:
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
