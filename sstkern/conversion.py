"""Swap a model's torch.nn recurrent layers for ours."""

from typing import TypeVar

from torch import nn

from sstkern import modules

Module = TypeVar("Module", bound=nn.Module)

_OURS = {getattr(nn, name): getattr(modules, name) for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")}


def convert(model: Module) -> Module:
    """Turns every torch.nn LSTM, GRU, RNN and cell inside `model`, and `model` itself, into ours; returns `model`.

    The modules keep their identity: parameters, hooks, training mode, optimizers and every reference to them stay as they are.
    Subclasses of torch.nn's layers are somebody's own layers and are left alone.
    """
    for module in model.modules():
        if type(module) in _OURS:
            module.__class__ = _OURS[type(module)]
    return model
