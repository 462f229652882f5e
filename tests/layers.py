"""What the tests of layers share: the kinds of layer, pairs of torch.nn's and ours with the same weights, and results with gradients."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sstkern
from sstkern.engines import cpu_runs, interpreting, triton_runs

FUSED = "triton" if interpreting() else "cpu"
"""The fused engine of this process: the same tests hold for the C++ engine and, under TRITON_INTERPRET=1, for the GPU engine's kernels."""
ENGINES = ("reference", FUSED)
KINDS = {
    "lstm": (sstkern.LSTM, nn.LSTM, {}),
    "lstm_projected": (sstkern.LSTM, nn.LSTM, {"proj_size": 2}),
    "gru": (sstkern.GRU, nn.GRU, {}),
    "rnn_tanh": (sstkern.RNN, nn.RNN, {}),
    "rnn_relu": (sstkern.RNN, nn.RNN, {"nonlinearity": "relu"}),
}


def fused_runs() -> dict[str, int]:
    """Calls of `forward` and `backward` that the fused engine ran."""
    return {"forward": 0, "backward": 0} | (triton_runs() if interpreting() else cpu_runs())


@contextmanager
def only(engine: str):
    """Forces `engine`, and fails if the fused engine ran where it should not have, or did not where it should."""
    before = fused_runs()["forward"]
    with sstkern.backend(engine):
        yield
    assert (fused_runs()["forward"] > before) == (engine == FUSED)


def pair(kind: str, *sizes: int, **options) -> tuple[nn.RNNBase, nn.RNNBase]:
    """Our layer and torch.nn's, float64 unless said otherwise, with the same random weights."""
    ours, theirs, more = KINDS[kind]
    options = {"dtype": torch.float64} | more | options
    layer, other = ours(*sizes, **options), theirs(*sizes, **options)
    other.load_state_dict(layer.state_dict())
    return layer, other


def states_of(layer: nn.RNNBase, batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    rows = layer.num_layers * (1 + layer.bidirectional)
    h = torch.randn(rows, batch, layer.proj_size or layer.hidden_size, dtype=dtype, requires_grad=True)
    if layer.mode != "LSTM":
        return (h,)
    return h, torch.randn(rows, batch, layer.hidden_size, dtype=dtype, requires_grad=True)


def as_hx(states: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return states if len(states) > 1 else states[0]


def flat(hx: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else list(hx)


def torch_with_lengths(layer: nn.RNNBase, x: Tensor, hx, lengths: list[int]) -> tuple[Tensor, list[Tensor]]:
    """torch.nn's layer on (T, B, I) with lengths of at least 1, padded to T."""
    packed, hx_n = layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), hx)
    return pad_packed_sequence(packed, total_length=x.size(0))[0], flat(hx_n)


def gradients(results: list[Tensor], inputs: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Of a random weighting of all results, the same for the same shapes and seed."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype) for result in results]
    return list(torch.autograd.grad(results, inputs, weights, materialize_grads=True))


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
