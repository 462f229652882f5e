"""What an attribute holds, down to the last number, to be compared with what it holds later."""

from __future__ import annotations

import math
import random
import types
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from sstkern.program.capture.reasons import Unfused

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
"""Types whose values are compared, and told by ==, but for the sign of zero."""
TENSOR = attrgetter("shape", "dtype", "device", "requires_grad")
_MOST = 1000


class Same:
    """Equal to the same object only."""

    def __init__(self, found: object) -> None:
        self.found = found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.found is other.found

    __hash__ = None  # type: ignore[assignment]


def frozen(value: Any) -> Any:
    """What is equal to another's only where a step that reads both does the same: types count, and the sign of zero.

    Raises Unfused for what may change unseen, or holds too much to be compared at every call.
    """
    return _Frozen().of(value)


class _Frozen:
    """parts: how many have been seen. around: the objects that the present one is in."""

    def __init__(self) -> None:
        self.parts = 0
        self.around: list[int] = []

    def of(self, value: Any) -> Any:
        self.parts += 1
        if self.parts > _MOST:
            raise Unfused(f"the step reads an attribute that holds more than {_MOST} things: keep apart what it needs of it")
        if isinstance(value, float):
            return type(value), math.copysign(1, value), "nan" if math.isnan(value) else value
        if isinstance(value, PLAIN):
            return type(value), value
        if isinstance(value, Tensor):
            return TENSOR(value)
        if isinstance(value, nn.Module | type | types.ModuleType) or id(value) in self.around:
            return Same(value)
        self.around.append(id(value))
        found = self._within(value)
        self.around.pop()
        return found

    def _within(self, value: Any) -> Any:
        if isinstance(value, dict):
            return type(value), [(self.of(key), self.of(part)) for key, part in value.items()]
        if isinstance(value, list | tuple):
            return type(value), self.all(value)
        if isinstance(value, set | frozenset):
            return type(value), set(value)
        return self._callable(value) if callable(value) else self._object(value)

    def all(self, parts: Iterable[Any]) -> list[Any]:
        return [self.of(part) for part in parts]

    def _callable(self, value: Callable[..., Any]) -> Any:
        """A function with what it has around it."""
        if isinstance(value, types.MethodType):
            return self.all((value.__func__, value.__self__))
        if isinstance(value, partial):
            return self.all((value.func, value.args, value.keywords))
        if isinstance(value, types.FunctionType):
            cells = (cell.cell_contents for cell in value.__closure__ or ())
            return Same(value.__code__), self.all((value.__defaults__, value.__kwdefaults__, *cells))
        return Same(value), self._attributes(value)

    def _object(self, value: Any) -> Any:
        """An object of the user's own, such as a configuration, by its attributes; else what can be a key, by its value."""
        if hasattr(value, "__next__"):
            raise Unfused(f"the step reads a {type(value).__name__}, which goes on with every step: give what it yields as an input")
        if isinstance(value, random.Random) or type(value).__module__.startswith("numpy.random"):
            raise Unfused(f"the step reads a {type(value).__name__}, which draws random numbers: give them to the layer as an input")
        attributes = self._attributes(value)
        if attributes or hasattr(value, "__dict__"):
            return Same(value), attributes
        try:
            hash(value)
        except TypeError:
            raise Unfused(
                f"the step reads a {type(value).__name__}, whose changes cannot be seen: keep a tensor or a list instead"
            ) from None
        return type(value), value

    def _attributes(self, value: Any) -> list[tuple[str, Any]]:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
        names = [*getattr(value, "__dict__", ()), *slots]
        return [(name, self.of(getattr(value, name))) for name in names]
