"""What a program rests on beside tensors' values: read once at capture, compared at every call in microseconds."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from sstkern import private
from sstkern.program.capture.frozen import PLAIN, TENSOR, frozen
from sstkern.program.capture.numbers import Numbers, Place
from sstkern.program.capture.shadow import FRAMEWORK, Source, Watch

_MODULE = ("__class__", "training", private.COMPILED, *private.HOOKS)
_Read = Callable[[Any], Any]


class Guard:
    """What the step has read of the watched modules, and what every step rests on."""

    def __init__(self, watches: Sequence[Watch], ties: Sequence[tuple[Source, Source]], numbers: Numbers) -> None:
        self._numbers = numbers
        self._floats: list[tuple[nn.Module, str, float]] = []
        self._sorts: list[tuple[nn.Module, str, tuple]] = []
        self._values: list[tuple[_Read, nn.Module, tuple]] = []
        self._types: list[tuple[_Read, nn.Module, tuple[type, ...]]] = []
        self._tensors: list[tuple[dict[str, Any], str, tuple]] = []
        self._none: list[tuple[dict[str, Any], str]] = []
        self._names: list[tuple[dict[str, Any], list[str]]] = []
        self._modules: list[tuple[dict[str, Any], list[Any]]] = []
        self._frozen: list[tuple[nn.Module, str, Any]] = []
        self._absent: list[tuple[nn.Module, str]] = []
        self._empty: list[dict[str, Any]] = []
        self._attributes: list[tuple[dict[str, Any], int, frozenset[str]]] = []
        self._methods: dict[tuple, tuple[type, _Read, Any]] = {}
        self._ties = list(ties)
        self._dtype = torch.get_default_dtype()
        for watch in watches:
            self._add(watch)

    def _add(self, watch: Watch) -> None:
        module = watch.module
        own = {name: value for name in sorted(watch.read) if (value := _data(module, name)) is not _NO_DATA}
        numbered = [name for name in own if (module, name) in self._numbers.places]
        quick = [name for name, value in own.items() if isinstance(value, PLAIN) and not _delicate(value) and name not in numbered]
        self._sorts += [(module, name, _sort(own[name])) for name in numbered]
        self._floats += [(module, name, value) for name, value in own.items() if type(value) is float]
        get = attrgetter(*_MODULE, *quick)
        none: list[dict] = [{} for _ in private.HOOKS]
        self._values.append((get, module, (type(module), module.training, None, *none, *(own[name] for name in quick))))
        if typed := [*quick, *numbered]:
            self._types.append((attrgetter(*typed, "__class__"), module, (*(type(own[name]) for name in typed), type)))
        self._frozen += [(module, name, frozen(own[name])) for name in own if name not in typed]
        self._absent += [(module, name) for name in sorted(watch.absent)]
        methods = _methods(module, watch.read)
        self._attributes.append((vars(module), len(vars(module)), methods))  # a new one may hide a method
        if names := methods | (_of_class(type(module)) if watch.read else frozenset()):
            read = attrgetter("__class__", *sorted(names))
            self._methods[type(module), names] = type(module), read, read(type(module))
        for part in private.PARTS:
            held = vars(module)[part]
            if held:
                self._names.append((held, list(held)))
            else:
                self._empty.append(held)
        if modules := vars(module)[private.PARTS[2]]:
            self._modules.append((modules, list(modules.values())))
        for part in private.PARTS[:2]:
            held = vars(module)[part]
            self._tensors += [(held, name, TENSOR(tensor)) for name, tensor in held.items() if tensor is not None]
            self._none += [(held, name) for name, tensor in held.items() if tensor is None]

    def holds(self) -> bool:
        """Whether all is as it was."""
        try:
            return self._dtype is torch.get_default_dtype() and self._as_it_was() and not private.has_global_hooks()
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError):
            return False

    def changing(self) -> set[Place]:
        """The numbers that have changed, and those that do not matter: what may be an argument of the next capture."""
        return self._numbers.places | {
            (module, name) for module, name, value in self._floats if type(now := getattr(module, name, None)) is float and now != value
        }

    def _as_it_was(self) -> bool:
        """Whether nothing has changed. Plain loops: any() and all() over generators take a third more."""
        for held in self._empty:
            if held:
                return False
        for get, module, expected in self._values:
            if get(module) != expected:
                return False
        for get, module, expected in self._types:
            if tuple(map(type, get(module))) != expected:
                return False
        for held, names in self._names:
            if list(held) != names:
                return False
        for held, name, expected in self._tensors:
            if TENSOR(held[name]) != expected:
                return False
        for held, count, methods in self._attributes:
            if len(held) != count and not methods.isdisjoint(held):
                return False
        for kind, get, expected in self._methods.values():
            if get(kind) != expected:
                return False
        return self._less_often()

    def _less_often(self) -> bool:
        for held, modules in self._modules:
            if not all(map(is_, held.values(), modules)):
                return False
        for held, name in self._none:
            if held[name] is not None:
                return False
        for module, name, expected in self._frozen:
            if frozen(getattr(module, name)) != expected:
                return False
        for module, name in self._absent:
            if name in vars(module) or hasattr(type(module), name):
                return False
        for first, second in self._ties:
            if first.read() is not second.read():
                return False
        for module, name, expected in self._sorts:
            if _sort(getattr(module, name)) != expected:
                return False
        return all(formula.value() == answer for formula, answer in self._numbers.conditions.items())


_NO_DATA = object()


def _data(module: nn.Module, name: str) -> Any:
    """An attribute's value, or `_NO_DATA` for what is computed (properties, methods) or held by the module's own dicts."""
    if name in FRAMEWORK:
        return _NO_DATA
    if name in vars(module):
        return vars(module)[name]
    found = inspect.getattr_static(type(module), name, _NO_DATA)
    return _NO_DATA if hasattr(type(found), "__get__") else found


def _methods(module: nn.Module, names: set[str]) -> frozenset[str]:
    """The names among these that are methods or properties of the module's class."""
    mine = (name for name in names - FRAMEWORK if name not in vars(module))
    return frozenset(name for name in mine if hasattr(type(inspect.getattr_static(type(module), name, None)), "__get__"))


def _of_class(kind: type) -> frozenset[str]:
    """Plain attributes of the user's classes, which a step can read without its module: type(self).scale."""
    own = (base for base in kind.__mro__ if not f"{base.__module__}.".startswith(("torch.", "builtins.")))
    return frozenset(name for base in own for name, value in vars(base).items() if isinstance(value, PLAIN) and not name.startswith("__"))


def _sort(number: float) -> tuple[bool, bool]:
    """What math can ask of a number without our seeing it: isinf, isfinite, isnan."""
    return math.isfinite(number), math.isnan(number)


def _delicate(value: Any) -> bool:
    """Whether == does not tell two such values apart."""
    return isinstance(value, float) and (value == 0 or math.isnan(value))
