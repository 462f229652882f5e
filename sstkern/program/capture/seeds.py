"""Whether a step seeds PyTorch's generator, which is one for all threads: the others may seed it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn

import torch

from sstkern.program.capture.reasons import refuse

_SETTERS = [
    *((module, name) for module in (torch, torch.random) for name in ("manual_seed", "seed", "set_rng_state")),
    *((torch.cuda, name) for name in ("manual_seed", "manual_seed_all", "set_rng_state")),
]
_ORIGINALS = [getattr(module, name) for module, name in _SETTERS]
_lock = threading.Lock()
_watched: list[int] = []
"""Threads in `no_seeds`."""
_by_others: list[int] = []
"""Calls of other threads meanwhile."""


@contextmanager
def no_seeds() -> Iterator[None]:
    """Raises Unfused where this thread seeds PyTorch's generator within."""
    seed, state, others = torch.initial_seed(), torch.get_rng_state(), len(_by_others)
    _change(_watched.append, _guarded)
    try:
        yield
    finally:
        _change(_watched.remove, lambda original: original)
    if torch.initial_seed() != seed and len(_by_others) == others:  # by a name of the user's own
        torch.set_rng_state(state)
        _refuse()


def _change(change: Callable[[int], None], setter: Callable[[Callable], Callable]) -> None:
    """The first of the threads puts guards in place of PyTorch's functions, the last puts these back."""
    with _lock:
        alone = not _watched
        change(threading.get_ident())
        if alone or not _watched:
            for (module, name), original in zip(_SETTERS, _ORIGINALS, strict=True):
                setattr(module, name, setter(original))


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def called(*arguments: Any, **options: Any) -> Any:
        if threading.get_ident() in _watched:
            _refuse()
        _by_others.append(threading.get_ident())
        return original(*arguments, **options)

    return called


def _refuse() -> NoReturn:
    refuse("the step sets PyTorch's random numbers, as torch.manual_seed does", "seed outside the cell, or give it the numbers as an input")
