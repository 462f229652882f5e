"""Casts under autocast, as torch's own operators make them: a weight is cast once for as long as an autocast region lasts.

torch keeps the casts of its own operators, and has no public way to it. But a gradient's graph leads to what it keeps: of a probe, a leaf
like a weight, the node of the cast. It lives as long as torch keeps the cast, until the region ends, and so does the dictionary that every
node has (`Node.metadata`). Our casts are in that one.
"""

import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sstkern import private

Kept: TypeAlias = dict[int, tuple[Any, Tensor]]
"""By the number of a tensor, a weak reference to it and its cast."""


def autocast(tensors: Sequence[Tensor]) -> list[Tensor]:
    """float32, bfloat16 and float16 in the dtype that autocast asks for; float64 and integers stay, as in torch's own operators."""
    # A graph keeps the dtype that it was traced with, and of a compiled one's casts the compiler makes one.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or private.traced_by_mode()
    keeps = not traced and torch.is_autocast_cache_enabled()
    kept: Kept | None = None
    found = []
    for tensor in tensors:
        dtype = _wanted(tensor)
        if tensor.dtype == dtype:
            found.append(tensor)
        elif keeps and tensor.requires_grad and tensor.is_leaf and tensor.dtype == torch.float32 and not private.is_view(tensor):
            if kept is None:
                kept = _kept(tensor.device, dtype)
            found.append(_kept_cast(tensor, dtype, kept))
        else:
            found.append(tensor.to(dtype))
    return found


def _wanted(tensor: Tensor) -> torch.dtype:
    if tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor.dtype
    return torch.get_autocast_dtype("cpu" if tensor.is_cpu else tensor.device.type)  # to ask for device.type takes 4 microseconds


def _kept_cast(tensor: Tensor, dtype: torch.dtype, kept: Kept) -> Tensor:
    known = kept.get(id(tensor))
    if known is not None and known[0]() is tensor and known[1].dtype == dtype:
        return known[1]
    with torch.inference_mode(False), torch.enable_grad():  # another call in the region may want gradients
        cast = tensor.to(dtype)
    # What a transform has wrapped is of no use after it.
    if private.is_wrapped(tensor) or not private.is_wrapped(cast):
        kept[id(tensor)] = weakref.ref(tensor), cast
    return cast


def _kept(device: torch.device, dtype: torch.dtype) -> Kept:
    """The casts of this autocast region, by the tensors' numbers."""
    # Four casts that are kept take 5 microseconds, with the guards of the other case 23.
    if torch.is_grad_enabled() and private.ordinary():
        return _of_probe(device, dtype)
    with private.made_ordinary():
        return _of_probe(device, dtype)


def _of_probe(device: torch.device, dtype: torch.dtype) -> Kept:
    rows, probe = _probe(device, dtype)
    product: Any = torch.mm(rows, probe).grad_fn
    return product.next_functions[1][0].metadata


@cache
def _probe(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of each dtype one: torch may have a cast from a region around this one, with another dtype."""
    return torch.zeros(0, 1, dtype=dtype, device=device), torch.zeros(1, 1, device=device, requires_grad=True)
