"""Swap a model's torch.nn recurrent layers for ours, and back."""

import copyreg
import functools
import inspect
import types
import warnings
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils import parametrize

from sstkern import modules

Module = TypeVar("Module", bound=nn.Module)


class LSTM(modules.LSTM, nn.LSTM):  # type: ignore[misc] # torch.nn's forward is several, ours takes lengths too
    """What `convert` makes of torch.nn.LSTM: sstkern.LSTM, and an instance of torch.nn.LSTM, which models ask for."""


class GRU(modules.GRU, nn.GRU):  # type: ignore[misc]
    """What `convert` makes of torch.nn.GRU, as `LSTM`."""


class RNN(modules.RNN, nn.RNN):  # type: ignore[misc]
    """What `convert` makes of torch.nn.RNN, as `LSTM`."""


_LAYERS = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
_CELLS = {getattr(nn, name): getattr(modules, name) for name in (f"{kind.__name__}Cell" for kind in _LAYERS)}
_OURS: dict[type, type] = {**_LAYERS, **_CELLS}
_TORCHS: dict[type, type] = {ours: kind for kind, ours in _OURS.items()} | {getattr(modules, kind.__name__): kind for kind in _LAYERS}
_KINDS = {"sstkern": _OURS, "torch": _TORCHS}
_OF_SSTKERN = (modules.Recurrent, modules.RecurrentCell)


def convert(model: Module, to: Literal["sstkern", "torch"] = "sstkern") -> Module:
    """Turns every torch.nn LSTM, GRU, RNN and cell inside `model`, and `model` itself, into ours; returns `model`.

    The modules keep their identity: parameters (shared, tied or parametrized ones too), hooks, training mode, optimizers and every
    reference to them stay as they are. They are instances of torch.nn's class still.

    A subclass of torch.nn's layers stays what it is, with its own methods and attributes, and runs on our engine where it comes to
    torch.nn's forward: it has no forward of its own, or one that calls super().forward. Other subclasses are left alone, and so are
    scripted layers, which are fixed programs: a UserWarning names them and says why.

    Args:
        model: any module.
        to: "torch" turns ours into torch.nn's, and converted subclasses into what they were.

    Raises:
        TypeError: `model` is no module.
        ValueError: `to` is neither.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if to not in _KINDS:
        raise ValueError(f"to: expected one of {', '.join(_KINDS)}, got {to!r}")
    left = []
    for name, module in model.named_modules():
        try:
            _convert(module, to)
        except _Left as why:
            left.append(f"{name or 'the model itself'} ({why})")
    if left:
        warnings.warn(f"convert: left alone: {', '.join(left)}", UserWarning, stacklevel=2)
    return model


class _Left(Exception):
    """Why a layer stays as it is."""


def _convert(module: nn.Module, to: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        if module.original_name in {kind.__name__ for kind in _OURS}:
            raise _Left(f"a scripted {module.original_name}")
        return
    if not isinstance(module, nn.RNNBase | RNNCellBase) or isinstance(module, _OF_SSTKERN) == (to == "sstkern"):
        return
    kind = type(module)
    # A parametrization gives its module a class of its own, whose one base is the module's, and which has the parameters' properties.
    own = parametrize.is_parametrized(module) and vars(kind)
    new = _other(module, kind.__bases__[0] if own else kind, to)
    if new is None:
        return
    if own:
        names = {name: value for name, value in own.items() if name not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{new.__name__}", (new,), names)
    module.__class__ = new
    if to == "sstkern" and modules.METHODS & module.__dict__.keys():
        module.calls_methods = True
    if to == "torch":
        module.__dict__.pop("calls_methods", None)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # as cuDNN wants them, which ours does not mind


def _other(module: nn.Module, kind: Any, to: str) -> type | None:
    """The class that takes the place of the module's, which is `kind` but for parametrizations; None for what is no recurrent layer."""
    if issubclass(kind, _Own):
        return kind.original
    base = next((base for base in kind.__mro__ if base in _KINDS[to]), None)
    if base is None:
        return None
    described = f"{kind.__name__}, a subclass of {base.__module__.split('.')[0]}'s {base.__name__}"
    if to == "torch":
        if kind is not base:
            raise _Left(described)
        return _TORCHS[kind]
    described = base.__name__ if kind is base else described
    if "forward" in module.__dict__:
        raise _Left(f"{described}: its forward has been replaced")
    if taken := _names(kind, base) & _attributes(module, kind, base):
        raise _Left(f"{described}: sstkern needs the name {', '.join(sorted(taken))}, which it has for something else")
    if kind is base:
        return _OURS[kind]
    if not _calls_super(kind, base):
        raise _Left(f"{described}: its forward does not call super().forward")
    try:
        return _own(kind, base)
    except Exception as error:  # its metaclass or __init_subclass__, which may raise anything
        raise _Left(f"{described}: it cannot be subclassed: {error}") from error


def _names(kind: type, base: type) -> set[str]:
    """What ours have beside torch.nn's. recompute is a setting that a layer of ours keeps on its way to torch.nn and back."""
    ours = {name for ours in _OURS[base].__mro__ if issubclass(ours, _OF_SSTKERN) for name in vars(ours)}
    return ours - set(dir(base)) - ({"recompute"} if kind is base else set())


def _attributes(module: nn.Module, kind: type, base: type) -> set[str]:
    """What a module has of its own, in its class or in itself."""
    of_class = {name for own in kind.__mro__[: kind.__mro__.index(base)] for name in vars(own)}
    parts = (module.named_parameters(recurse=False), module.named_buffers(recurse=False), module.named_children())
    return of_class | module.__dict__.keys() | {name for part in parts for name, _ in part}


def _calls_super(kind: type, base: type) -> bool:
    """Whether every forward on the way from a subclass to torch.nn's class goes on to the next."""
    forwards = [vars(own)["forward"] for own in kind.__mro__[: kind.__mro__.index(base)] if "forward" in vars(own)]
    codes = [getattr(inspect.unwrap(forward), "__code__", None) for forward in forwards]
    return all(code is not None and {"super", "forward"} <= set(code.co_names) for code in codes)


class _Own:
    """The first base of the class that `convert` makes of somebody's own subclass, `original`. No name leads to that class: pickle and copy
    are told how to make it."""

    original: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        make, arguments, *state = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined] # typeshed does not know it
            make, arguments = _new, (self.original, *arguments[1:])
        elif make is type(self):  # a __reduce__ of its own
            make, arguments = _made, (self.original, *arguments)
        return make, arguments, *state


def _new(original: type, *arguments: Any) -> nn.Module:
    """An empty module of the class that is made of `original`, for pickle and copy."""
    kind = _of(original)
    return kind.__new__(kind, *arguments)


def _made(original: type, *arguments: Any) -> nn.Module:
    """A module of the class that is made of `original`, as its own __reduce__ makes one."""
    return _of(original)(*arguments)


def _of(original: type) -> Any:
    return _own(original, next(base for base in original.__mro__ if base in _OURS))


@functools.cache
def _own(original: Any, base: Any) -> Any:
    """`original` with ours between it and its base, torch.nn's class."""

    def describe(namespace: dict[str, Any]) -> None:
        namespace.update(original=original, __module__=original.__module__, __qualname__=original.__qualname__, __doc__=original.__doc__)

    return types.new_class(original.__name__, (_Own, original, _OURS[base]), exec_body=describe)
