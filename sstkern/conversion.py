"""Swap a model's torch.nn recurrent layers for ours, and back."""

import warnings
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils import parametrize

from sstkern import modules
from sstkern.cells import CELLS

Module = TypeVar("Module", bound=nn.Module)

_LAYERS = tuple(dict.fromkeys(cell.torch_class for cell in CELLS.values() if cell.torch_class))
_NAMES = (*_LAYERS, *(f"{name}Cell" for name in _LAYERS))
_CLASSES = {
    "sstkern": {getattr(nn, name): getattr(modules, name) for name in _NAMES},
    "torch": {getattr(modules, name): getattr(nn, name) for name in _NAMES},
}


def convert(model: Module, to: Literal["sstkern", "torch"] = "sstkern") -> Module:
    """Turns every torch.nn LSTM, GRU, RNN and cell inside `model`, and `model` itself, into ours; returns `model`.

    The modules keep their identity: parameters (shared, tied or parametrized ones too), hooks, training mode, optimizers and every
    reference to them stay as they are.

    Subclasses of torch.nn's layers are somebody's own, and scripted ones are fixed programs: they are left alone, and a UserWarning names
    them.

    Args:
        model: any module.
        to: "torch" turns ours into torch.nn's.

    Raises:
        TypeError: `model` is no module.
        ValueError: `to` is neither.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if to not in _CLASSES:
        raise ValueError(f"to: expected one of {', '.join(_CLASSES)}, got {to!r}")
    left = []
    for name, module in model.named_modules():
        kind = _converted(type(module), _CLASSES[to], parametrize.is_parametrized(module))
        if kind is not None:
            module.__class__ = kind
            if to == "torch" and isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # as cuDNN wants them, which ours does not mind
        elif why := _obstacle(module, to):
            left.append(f"{name or 'the model itself'} ({why})")
    if left:
        warnings.warn(f"convert: left alone: {', '.join(left)}", UserWarning, stacklevel=2)
    return model


def _converted(kind: type, classes: dict[type, type], parametrized: bool) -> type | None:
    """The class that takes the place of `kind`; None where it stays."""
    if kind in classes:
        return classes[kind]
    # A parametrization gives its module a class of its own, whose one base is the module's, and which has the parameters' properties.
    if parametrized and len(kind.__bases__) == 1 and kind.__bases__[0] in classes:
        base = classes[kind.__bases__[0]]
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        return type(f"Parametrized{base.__name__}", (base,), own)
    return None


def _obstacle(module: nn.Module, to: str) -> str | None:
    """Why a recurrent layer that is not converted, if it is one, is not."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"a scripted {module.original_name}" if module.original_name in _NAMES else None
    if not isinstance(module, nn.RNNBase | RNNCellBase) or _is(module, _CLASSES[to].values()):
        return None
    base = next((base for base in type(module).__mro__ if base in _CLASSES[to]), None)
    return None if base is None else f"{type(module).__name__}, a subclass of {base.__module__.split('.')[0]}'s {base.__name__}"


def _is(module: nn.Module, classes) -> bool:
    """Whether a module is of one of the classes, parametrized or not."""
    return type(module) in classes or (parametrize.is_parametrized(module) and type(module).__bases__[0] in classes)
