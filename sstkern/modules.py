"""LSTM, GRU, RNN and their cells, with torch.nn's arguments, parameter names, initialisation and state_dict.

They subclass torch.nn.RNNBase and torch.nn.RNNCellBase, not torch.nn.LSTM and its like, whose subclasses torch.compile refuses.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import RNNBase
from torch.nn.modules.rnn import RNNCellBase

from sstkern import functional
from sstkern.functional import Input
from sstkern.lengths import Lengths


class _Recurrent(RNNBase):
    recompute: bool = False

    def __init__(self, mode: str, *args: Any, recompute: bool = False, **kwargs: Any):
        super().__init__(mode, *args, **kwargs)
        if type(recompute) is not bool:
            raise ValueError(f"recompute: expected True or False, got {recompute!r}")
        self.recompute = recompute

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def _options(self, lengths: Lengths | None) -> dict:
        return {
            "lengths": lengths,
            "bias": self.bias,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
            "training": self.training,
            "bidirectional": self.bidirectional,
            "batch_first": self.batch_first,
            "recompute": self.recompute,
        }

    def _weights(self) -> list[Tensor]:
        # By name, not from _flat_weights: a parametrized weight is computed anew whenever it is asked for. Plain ones from where
        # torch.nn.Module keeps them: asking the module for four takes 1.7 microseconds more.
        own: dict[str, Any] = self._parameters
        return [own[name] if name in own else getattr(self, name) for name in self._flat_weights_names]


class LSTM(_Recurrent):
    """torch.nn.LSTM, fused: the same arguments, parameters, state_dict and results.

    Args as torch.nn.LSTM's: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    proj_size=0, device=None, dtype=None.

    recompute=True: see docs/memory.md; a training step takes less memory and more time.
    """

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)

    def forward(
        self, input: Input, hx: tuple[Tensor, Tensor] | None = None, lengths: Lengths | None = None
    ) -> tuple[Input, tuple[Tensor, Tensor]]:
        """Arguments, results and errors as `sstkern.functional.lstm` describes them."""
        return functional.lstm(input, self._weights(), hx, **self._options(lengths))


class GRU(_Recurrent):
    """torch.nn.GRU, fused: the same arguments, parameters, state_dict and results.

    Args as torch.nn.GRU's: input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    device=None, dtype=None. Raises ValueError for proj_size.

    recompute=True: see docs/memory.md; a training step takes less memory and more time.
    """

    def __init__(self, *args, **kwargs):
        _refuse_projection(type(self), kwargs)
        super().__init__("GRU", *args, **kwargs)

    def forward(self, input: Input, hx: Tensor | None = None, lengths: Lengths | None = None) -> tuple[Input, Tensor]:
        """Arguments, results and errors as `sstkern.functional.gru` describes them."""
        return functional.gru(input, self._weights(), hx, **self._options(lengths))


class RNN(_Recurrent):
    """torch.nn.RNN, fused: the same arguments, parameters, state_dict and results.

    Args as torch.nn.RNN's: input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None. Raises ValueError for a nonlinearity other than "tanh" or "relu", and for proj_size.

    recompute=True: see docs/memory.md; a training step takes less memory and more time.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", *args, **kwargs):
        _refuse_projection(type(self), kwargs)
        _check_nonlinearity(nonlinearity)
        super().__init__(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity

    def forward(self, input: Input, hx: Tensor | None = None, lengths: Lengths | None = None) -> tuple[Input, Tensor]:
        """Arguments, results and errors as `sstkern.functional.rnn_tanh` describes them."""
        layer = functional.rnn_tanh if self.mode == "RNN_TANH" else functional.rnn_relu
        return layer(input, self._weights(), hx, **self._options(lengths))


class _RecurrentCell(RNNCellBase):
    _gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size, bias, num_chunks=self._gates, device=device, dtype=dtype)

    def _step(self, cell: str, input: Tensor, hx: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        biases = [self.bias_ih, self.bias_hh] if self.bias else []
        return functional.cell_step(cell, input, hx, [self.weight_ih, self.weight_hh, *biases], self.bias)


class LSTMCell(_RecurrentCell):
    """torch.nn.LSTMCell, fused. Args as its: input_size, hidden_size, bias=True, device=None, dtype=None."""

    _gates = 4

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """input (B, I) or (I,); hx and the result: h and c, (B, H) or (H,) each. Errors as `functional.cell_step`."""
        h, c = self._step("lstm", input, hx)
        return h, c


class GRUCell(_RecurrentCell):
    """torch.nn.GRUCell, fused. Args as its: input_size, hidden_size, bias=True, device=None, dtype=None."""

    _gates = 3

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input (B, I) or (I,); hx and the result: h, (B, H) or (H,). Errors as `functional.cell_step`."""
        (h,) = self._step("gru", input, None if hx is None else (hx,))
        return h


class RNNCell(_RecurrentCell):
    """torch.nn.RNNCell, fused. Args as its: input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None."""

    _gates = 1
    __constants__ = [*RNNCellBase.__constants__, "nonlinearity"]  # noqa: RUF012 -- torch's own form

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        _check_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input (B, I) or (I,); hx and the result: h, (B, H) or (H,). Errors as `functional.cell_step`."""
        (h,) = self._step(f"rnn_{self.nonlinearity}", input, None if hx is None else (hx,))
        return h


def _refuse_projection(module: type, kwargs: dict) -> None:
    if kwargs.get("proj_size", 0):
        raise ValueError(f"proj_size: only LSTM has a projection, {module.__name__} has none; got {kwargs['proj_size']}")


def _check_nonlinearity(nonlinearity: str) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
