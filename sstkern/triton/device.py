"""Where kernels run: a GPU, Triton's interpreter, or a target that they are only compiled for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from sstkern.triton.launch import Card


@dataclass(frozen=True)
class Device:
    card: Card
    nvidia: bool
    run: Callable[..., None]
    """run(kernel, grid, arguments, options)"""
    allows_tf32: Callable[[], bool]

    def precision(self, dtype: torch.dtype) -> str:
        """tl.dot's `input_precision`: for float32 what torch.backends.cudnn allows its own recurrent layers, TF32 by default."""
        if dtype != torch.float32:
            return "ieee"
        if self.allows_tf32():
            return "tf32"
        return "tf32x3" if self.nvidia else "ieee"


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
    card = Card(properties.multi_processor_count, shared, wgmma=nvidia and properties.major >= 9)
    return Device(card, nvidia, _launch, _cudnn_allows_tf32)


@cache
def _interpreter() -> Device:
    return Device(Card(multiprocessors=132, shared_memory=232448, wgmma=True, registers=2**20), False, _launch, _cudnn_allows_tf32)


def _launch(kernel, grid: tuple[int, ...], arguments: dict, options: dict) -> None:
    kernel[grid](**arguments, **options)


def _cudnn_allows_tf32() -> bool:
    rnn = getattr(torch.backends.cudnn, "rnn", None)  # since torch 2.9
    if rnn is not None and rnn.fp32_precision != "none":
        return rnn.fp32_precision == "tf32"
    return torch.backends.cudnn.allow_tf32


_target: Device | None = None


def _ahead_of_time() -> Device:
    if _target is None:
        raise RuntimeError("sstkern's Triton engine cannot run on meta tensors")
    return _target


def compile_for(target: Device | None) -> None:
    """Has kernels on meta tensors handed to target.run; None ends it."""
    global _target
    _target = target
