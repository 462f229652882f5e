"""Where kernels run: a GPU, Triton's interpreter, or a target that they are only compiled for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import triton

from sstkern.engines.triton.launch import Card


@dataclass(frozen=True)
class Device:
    card: Card
    target: str
    """"cuda", "hip" or "interpreter"."""
    run: Callable[..., None]
    """run(kernel, grid, arguments, options)"""
    allows_tf32: Callable[[], bool]
    """What torch's switches say of cuDNN's layers."""
    has_tf32: bool = True
    products_allow_tf32: Callable[[], bool] = lambda: torch.backends.cuda.matmul.allow_tf32
    """What they say of matrix products."""
    stack: Callable[..., int] | None = None
    """stack(kernel, grid, arguments, options): bytes of a thread that such a launch, compiled, has no registers for; None where no compiler
    says it."""

    def precision(self, dtype: torch.dtype) -> str:
        """tl.dot's `input_precision`: for float32 what torch.backends.cudnn allows its own recurrent layers, TF32 by default."""
        return self._precision(dtype, self.allows_tf32)

    def product_precision(self, dtype: torch.dtype) -> str:
        """The same for own cells: what torch.backends.cuda.matmul allows the products of the cell's own loop, float32 by default."""
        return self._precision(dtype, self.products_allow_tf32)

    def _precision(self, dtype: torch.dtype, allows_tf32: Callable[[], bool]) -> str:
        if dtype != torch.float32 or not self.has_tf32:
            return "ieee"
        if allows_tf32():
            return "tf32"
        return "tf32x3" if self.target == "cuda" else "ieee"


def of(place: torch.device) -> Device:
    """The device that kernels on tensors of `place` run on."""
    if place.type == "meta":
        return _ahead_of_time()
    return _interpreter() if place.type == "cpu" else _gpu(place)


@cache
def _gpu(place: torch.device) -> Device:
    properties = torch.cuda.get_device_properties(place)
    nvidia = torch.version.hip is None
    shared = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    # Compute capability 12, the consumer's Blackwell, has neither WGMMA nor its successor.
    wgmma = nvidia and properties.major in (9, 10, 11)
    card = Card(properties.multi_processor_count, shared, wgmma, float64_backward=float64_backward())
    has_tf32 = nvidia or properties.gcnArchName.startswith("gfx942")
    return Device(card, "cuda" if nvidia else "hip", _launch, _cudnn_allows_tf32, has_tf32, stack=_stack)


def float64_backward() -> tuple[int, ...]:
    """`Card.float64_backward` for the Triton installed."""
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return Card.float64_backward if version >= (3, 9) else ()


@cache
def _interpreter() -> Device:
    # One multiprocessor: the interpreter runs programs one after the other, and those that wait for each other would wait for ever.
    return Device(
        Card(multiprocessors=1, shared_memory=232448, wgmma=True, registers=2**20, float64_backward=(1, 3, 4)),
        "interpreter",
        _launch,
        _cudnn_allows_tf32,
        has_tf32=False,
    )


def _launch(kernel, grid: tuple[int, ...], arguments: dict, options: dict) -> None:
    kernel[grid](**arguments, **options)


def _stack(kernel, grid: tuple[int, ...], arguments: dict, options: dict) -> int:
    compiled = kernel.warmup(grid=grid, **arguments, **options)
    compiled._init_handles()  # what the driver says of a kernel that it has loaded
    return 4 * compiled.n_spills


def _cudnn_allows_tf32() -> bool:
    rnn = getattr(torch.backends.cudnn, "rnn", None)  # since torch 2.9
    return torch.backends.cudnn.allow_tf32 if rnn is None else rnn.fp32_precision == "tf32"


_target: Device | None = None


def _ahead_of_time() -> Device:
    if _target is None:
        raise RuntimeError("sstkern's Triton engine cannot run on meta tensors")
    return _target


def compile_for(target: Device | None) -> None:
    """Has kernels on meta tensors handed to target.run; None ends it."""
    global _target
    _target = target
