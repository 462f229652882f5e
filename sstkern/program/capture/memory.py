"""What each piece of memory holds while a step runs on example tensors.

A tensor is told by where it lies, not by the Python object: a view of a view, `x.data` and what autograd has copied without its data are
the same values. In place a step may change what it has computed; what else lies there is stale from then on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sstkern.program.values import Value

Region = tuple[int, torch.Size, tuple[int, ...], torch.dtype]


@dataclass
class Held:
    """value: what a region holds. tensor: one there, so that its memory is not used again. shape: the tensor's, or that which has its
    sequences and what is merged with them apart. stale: why the value is not known.
    """

    value: Value | None
    tensor: Tensor
    shape: tuple[int, ...]
    stale: str = ""


def region(tensor: Tensor) -> Region:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Memory:
    def __init__(self) -> None:
        self._held: dict[Region, Held] = {}
        self._by_storage: defaultdict[int, list[Region]] = defaultdict(list)
        self._examples: dict[int, str] = {}

    def protect(self, tensor: Tensor, name: str) -> None:
        """An example, which a step may not change."""
        self._examples[storage(tensor)] = name

    def protected(self, tensor: Tensor) -> str:
        """The name of the example that lies there, or nothing."""
        return self._examples.get(storage(tensor), "")

    def find(self, tensor: Tensor) -> Held | None:
        return self._held.get(region(tensor))

    def bind(self, tensor: Tensor, value: Value | None, shape: Sequence[int] | None = None, stale: str = "") -> None:
        """The tensor's memory holds the value."""
        place = region(tensor)
        if place not in self._held:
            self._by_storage[storage(tensor)].append(place)
        self._held[place] = Held(value, tensor, tuple(tensor.shape if shape is None else shape), stale)

    def write(self, tensor: Tensor, value: Value, shape: Sequence[int], reason: str) -> None:
        """The tensor's memory holds the value from now on; other regions that share an element with it are stale, for the reason."""
        written = _elements(tensor)
        for place in self._by_storage[storage(tensor)]:
            held = self._held[place]
            if place != region(tensor) and (written & _elements(held.tensor)).any():
                held.value, held.stale = None, reason
        self.bind(tensor, value, shape)


def _elements(tensor: Tensor) -> Tensor:
    """The elements of its storage that a tensor has, counted in elements of its own size."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    mask = torch.zeros(count, dtype=torch.bool)
    torch.as_strided(mask, tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return mask
