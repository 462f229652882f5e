"""Recurrent layers on top of each other."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from sstkern.forked import one_thread
from sstkern.lengths import Lengths, Resets


def stack(layers: Sequence[nn.Module], dropout: float = 0.0) -> Stack:
    """Layers of which each is given the output of the one before it.

    layers: what `fuse` makes, sstkern's and torch.nn's layers, and any module called as they are, layer(input, hx) -> (output, hx_n); all
    of them batch_first, or none. Their parameters are under "0.", "1." and so on. dropout: the probability with which a number of an
    output between two layers is set to zero, in training.

    Raises TypeError or ValueError for wrong arguments.
    """
    if not isinstance(layers, list | tuple | nn.ModuleList) or not all(isinstance(layer, nn.Module) for layer in layers):
        raise TypeError(f"layers: expected a list of modules, got {layers!r}")
    if not layers:
        raise ValueError("layers: expected at least one, got none")
    from sstkern.cells.library.base import LibraryCell  # here: the library is imported when it is asked for

    for place, layer in enumerate(layers):
        if isinstance(layer, nn.RNNCellBase | LibraryCell):
            raise TypeError(f"layers[{place}]: {type(layer).__name__} is a cell, which does one time step; give sstkern.fuse(cell)")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise TypeError(f"dropout: expected a number, got {dropout!r}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout}")
    if len({bool(getattr(layer, "batch_first", False)) for layer in layers}) > 1:
        raise ValueError("layers: expected batch_first of all of them or of none")
    return Stack(layers, dropout)


class Stack(nn.Module):
    """What `stack` makes."""

    def __init__(self, layers: Sequence[nn.Module], dropout: float):
        super().__init__()
        self.dropout = float(dropout)
        self.batch_first = bool(getattr(layers[0], "batch_first", False))
        for place, layer in enumerate(layers):
            self.add_module(str(place), layer)

    @one_thread
    def forward(
        self,
        input: Any,
        hx: Sequence[Any] | None = None,
        *,
        lengths: Lengths | None = None,
        return_states: bool = False,
        resets: Resets | None = None,
        reset_to: Sequence[Any] | None = None,
    ) -> tuple[Any, ...]:
        """The last layer's output and a list of each layer's hx_n, with return_states besides a list of each layer's states.

        input, lengths, resets and the output: as the layers take and give them. hx, reset_to: a list of each layer's, of which any may be
        None.

        Raises TypeError where a layer takes no lengths, resets or return_states, and these are given, and ValueError for another number of
        hx or reset_to than of layers.
        """
        layers = list(self.children())
        options = {"lengths": lengths, "return_states": return_states or None, "resets": resets}
        given = {name: value for name, value in options.items() if value is not None}
        found = []
        for place, (layer, state, anew) in enumerate(
            zip(layers, _of_each(hx, "hx", len(layers)), _of_each(reset_to, "reset_to", len(layers)), strict=True)
        ):
            mine = given if anew is None else {**given, "reset_to": anew}
            _check_takes(layer, place, mine)
            output, *rest = layer(input, state, **mine)
            input = _dropped(output, self.dropout) if self.training and self.dropout and place + 1 < len(layers) else output
            found.append(rest)
        return output, *map(list, zip(*found, strict=True))

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}" if self.dropout else ""


def _of_each(states: Sequence[Any] | None, name: str, layers: int) -> Sequence[Any]:
    if states is None:
        return [None] * layers
    if not isinstance(states, list | tuple):
        raise TypeError(f"{name}: expected a list of each layer's, got {type(states).__name__}")
    if len(states) != layers:
        raise ValueError(f"{name}: expected one of each of {layers} layers, got {len(states)}")
    return states


def _check_takes(layer: nn.Module, place: int, given: dict[str, Any]) -> None:
    if not given:
        return
    parameters = inspect.signature(layer.forward).parameters.values()
    names = {parameter.name for parameter in parameters}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    for name in given:
        if name not in names:
            raise TypeError(f"{name}: layer {place}, a {type(layer).__name__}, takes none")


def _dropped(output: Any, probability: float) -> Any:
    if isinstance(output, PackedSequence):
        return PackedSequence(dropout(output.data, probability), *output[1:])
    return dropout(output, probability)
