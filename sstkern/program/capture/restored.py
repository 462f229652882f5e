"""A trial run leaves what it reaches of the user's, beside modules and tensors, as it was: objects, and Python's random numbers."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from sstkern.program.capture.reasons import Unfused


@contextmanager
def restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The attributes of objects that the modules hold, such as a configuration, and what is in their lists and dicts, are put back."""
    found: dict[int, Callable[[], None]] = {}
    for module in modules:
        for value in vars(module).values():
            _keep(value, found)
    try:
        yield
    finally:
        for put_back in found.values():
            put_back()


def _keep(value: Any, found: dict[int, Callable[[], None]]) -> None:
    if id(value) in found or isinstance(value, nn.Module | Tensor | float | type | ModuleType):
        return
    if isinstance(value, tuple):
        parts: Iterable[Any] = value
    elif isinstance(value, list | deque):
        parts, found[id(value)] = list(value), _putting_back(value.clear, value.extend, list(value))
    elif isinstance(value, dict) or hasattr(value, "__dict__"):
        attributes = value if isinstance(value, dict) else vars(value)
        parts = list(attributes.values())
        if hasattr(attributes, "clear"):
            found[id(value)] = _putting_back(attributes.clear, attributes.update, dict(attributes))
    else:
        return
    for part in parts:
        _keep(part, found)


def _putting_back(clear: Callable[[], None], fill: Callable[[Any], None], content: Any) -> Callable[[], None]:
    def put_back() -> None:
        clear()
        fill(content)

    return put_back


@contextmanager
def no_random_numbers() -> Iterator[None]:
    """Raises Unfused where Python's or NumPy's random numbers are drawn within; they are drawn again later."""
    numpy = sys.modules.get("numpy.random")  # not imported for this
    before, of_numpy = random.getstate(), None if numpy is None else numpy.get_state()
    yield
    drawn = random.getstate() != before
    random.setstate(before)
    if numpy is not None:
        drawn = drawn or _comparable(numpy.get_state()) != _comparable(of_numpy)
        numpy.set_state(of_numpy)
    if drawn:
        raise Unfused("the step draws random numbers, with random or numpy.random: give them to the layer as an input")


def _comparable(state: Any) -> tuple:
    """NumPy's state, whose numbers are an array."""
    return tuple(part.tobytes() if hasattr(part, "tobytes") else part for part in state)
