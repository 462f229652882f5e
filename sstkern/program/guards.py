"""What a program rests on beside tensors' values: read once at capture, compared at every call in microseconds."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from sstkern import private
from sstkern.program.numbers import Numbers, Place
from sstkern.program.reasons import Unfused
from sstkern.program.shadow import FRAMEWORK, Source, Watch

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_MODULE = ("__class__", "training", private.COMPILED, *private.HOOKS)
_TENSOR = attrgetter("shape", "dtype", "device", "requires_grad")
_DEPTH = 4
_Read = Callable[[Any], Any]


class Same:
    """Equal to the same object only."""

    def __init__(self, found: object) -> None:
        self.found = found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.found is other.found

    __hash__ = None  # type: ignore[assignment]


def frozen(value: Any, depth: int = _DEPTH) -> Any:
    """What is equal to another's only where a step that reads both does the same: types count, and the sign of zero."""
    if isinstance(value, float):
        return type(value), math.copysign(1, value), "nan" if math.isnan(value) else value
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        return _TENSOR(value)
    if isinstance(value, nn.Module) or depth == 0:
        return Same(value)
    if isinstance(value, dict):
        return type(value), [(frozen(key, depth - 1), frozen(part, depth - 1)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [frozen(part, depth - 1) for part in value]
    if isinstance(value, set | frozenset):
        return type(value), set(value)
    return _frozen_callable(value, depth - 1) if callable(value) else _frozen_object(value, depth - 1)


def _frozen_callable(value: Any, depth: int) -> Any:
    if isinstance(value, types.MethodType):
        return Same(value.__func__), frozen(value.__self__, depth)
    if isinstance(value, partial):
        return frozen(value.func, depth), frozen(value.args, depth), frozen(value.keywords, depth)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return Same(value.__code__), frozen(value.__defaults__, depth), frozen(value.__kwdefaults__, depth), frozen(cells, depth)
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return Same(value)
    return Same(value), frozen(vars(value), depth)


def _frozen_object(value: Any, depth: int) -> Any:
    """An object of the user's own, such as a configuration, by its attributes; else what can be a key, by its value."""
    if isinstance(value, types.ModuleType):
        return Same(value)
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
    if slots or hasattr(value, "__dict__"):
        attributes = {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots}}
        return Same(value), frozen(attributes, depth)
    try:
        hash(value)
    except TypeError:
        raise Unfused(f"the step reads a {type(value).__name__}, whose changes cannot be seen: keep a tensor or a list instead") from None
    return type(value), value


class Guard:
    """Of what the watched modules' step has read, and of what every step rests on."""

    def __init__(self, watches: Sequence[Watch], ties: Sequence[tuple[Source, Source]], numbers: Numbers) -> None:
        self._numbers = numbers
        self._floats: list[tuple[nn.Module, str, float]] = []
        self._values: list[tuple[_Read, nn.Module, tuple]] = []
        self._types: list[tuple[_Read, nn.Module, tuple[type, ...]]] = []
        self._tensors: list[tuple[dict[str, Any], str, tuple]] = []
        self._none: list[tuple[dict[str, Any], str]] = []
        self._names: list[tuple[dict[str, Any], list[str]]] = []
        self._modules: list[tuple[dict[str, Any], list[Any]]] = []
        self._frozen: list[tuple[nn.Module, str, Any]] = []
        self._absent: list[tuple[nn.Module, str]] = []
        self._ties = list(ties)
        self._dtype = torch.get_default_dtype()
        for watch in watches:
            self._add(watch)

    def _add(self, watch: Watch) -> None:
        module = watch.module
        own = {name: value for name in sorted(watch.read) if (value := _data(module, name)) is not _NO_DATA}
        numbered = [name for name in own if (module, name) in self._numbers.places]
        quick = [name for name, value in own.items() if isinstance(value, _PLAIN) and not _delicate(value) and name not in numbered]
        self._floats += [(module, name, value) for name, value in own.items() if type(value) is float]
        get = attrgetter(*_MODULE, *quick)
        none: list[dict] = [{} for _ in private.HOOKS]
        self._values.append((get, module, (type(module), module.training, None, *none, *(own[name] for name in quick))))
        if typed := [*quick, *numbered]:
            self._types.append((attrgetter(*typed, "__class__"), module, (*(type(own[name]) for name in typed), type)))
        self._frozen += [(module, name, frozen(own[name])) for name in own if name not in typed]
        self._absent += [(module, name) for name in sorted(watch.absent)]
        for part in private.PARTS:
            held = vars(module)[part]
            self._names.append((held, list(held)))
        self._modules.append((vars(module)[part], list(vars(module)[part].values())))
        for part in private.PARTS[:2]:
            held = vars(module)[part]
            self._tensors += [(held, name, _TENSOR(tensor)) for name, tensor in held.items() if tensor is not None]
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
            if _TENSOR(held[name]) != expected:
                return False
        return self._less_often()

    def _less_often(self) -> bool:
        return (
            all(all(map(is_, held.values(), expected)) for held, expected in self._modules)
            and all(held[name] is None for held, name in self._none)
            and all(frozen(getattr(module, name)) == expected for module, name, expected in self._frozen)
            and not any(name in vars(module) or hasattr(type(module), name) for module, name in self._absent)
            and all(first.read() is second.read() for first, second in self._ties)
            and all(formula.value() == answer for formula, answer in self._numbers.conditions.items())
        )


_NO_DATA = object()


def _data(module: nn.Module, name: str) -> Any:
    """An attribute's value, or `_NO_DATA` for what is computed (properties, methods) or held by the module's own dicts."""
    if name in FRAMEWORK:
        return _NO_DATA
    if name in vars(module):
        return vars(module)[name]
    found = inspect.getattr_static(type(module), name, _NO_DATA)
    return _NO_DATA if hasattr(type(found), "__get__") else found


def _delicate(value: Any) -> bool:
    """Whether == does not tell two such values apart."""
    return isinstance(value, float) and (value == 0 or math.isnan(value))
