"""What the tests of layers share: the kinds of layer, pairs of torch.nn's and ours with the same weights, and results with gradients."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sstkern
from sstkern.build_info import build_info
from sstkern.cells import CELLS, Cell
from sstkern.engines import cpu_runs, interpreting, triton_runs

FUSED = "triton" if interpreting() else "cpu"
"""The fused engine of this process: the same tests hold for the C++ engine and, under TRITON_INTERPRET=1, for the GPU engine's kernels."""
ENGINES = ("reference", FUSED)
SHARE_UNITS = build_info().get("openmp", True)
"""Whether threads can share a layer's hidden units. Without OpenMP each takes sequences of its own."""
_TORCHS = {name: cell for name, cell in CELLS.items() if cell.torch_class}
KINDS = {
    name + suffix: (getattr(sstkern, cell.torch_class), getattr(nn, cell.torch_class), cell.torch_options | more)
    for name, cell in _TORCHS.items()
    for suffix, more in (("", {}), ("_projected", {"proj_size": 2}))
    if not more or cell.projects
}
"""Ours, torch.nn's, and what makes the kind."""
CELL_KINDS = {
    name: (getattr(sstkern, f"{cell.torch_class}Cell"), getattr(nn, f"{cell.torch_class}Cell"), cell.torch_options)
    for name, cell in _TORCHS.items()
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


def definition_of(layer: nn.RNNBase) -> Cell:
    return next(cell for cell in CELLS.values() if cell.torch_mode == layer.mode)


def states_of(layer: nn.RNNBase, batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    rows = layer.num_layers * (1 + layer.bidirectional)
    sizes = definition_of(layer).state_sizes(layer.hidden_size, layer.proj_size or layer.hidden_size)
    return tuple(torch.randn(rows, batch, size, dtype=dtype, requires_grad=True) for size in sizes)


def as_hx(states: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return states if len(states) > 1 else states[0]


def flat(hx: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [hx] if isinstance(hx, Tensor) else list(hx)


def with_lengths(layer: nn.RNNBase) -> nn.RNNBase:
    """torch.nn's layer, called as ours is, with lengths of at least 1; its parameters keep their names."""

    class Packing(type(layer)):
        def forward(self, input: Tensor, hx=None, lengths: list[int] | None = None):
            if self.batch_first:
                input = input.transpose(0, 1)
            packed, hx_n = super().forward(pack_padded_sequence(input, torch.tensor(lengths), enforce_sorted=False), hx)
            return pad_packed_sequence(packed, self.batch_first, total_length=input.size(0))[0], hx_n

    layer.__class__ = Packing
    return layer


def gradients(results: list[Tensor], inputs: list[Tensor], seed: int = 0) -> list[Tensor]:
    """Gradients of a random weighting of all results, the same for the same shapes and seed."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype) for result in results]
    return list(torch.autograd.grad(results, inputs, weights, materialize_grads=True))


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
