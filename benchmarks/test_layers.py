"""Our layers beside torch.nn's: time of one call, and tokens (valid time steps of all sequences) per second."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sstkern

CELLS = ["LSTM", "GRU", "RNN"]


class Shape(NamedTuple):
    batch: int
    steps: int
    size: int  # input_size and hidden_size

    def __str__(self) -> str:
        return f"B{self.batch}-T{self.steps}-H{self.size}"


SHAPES = [Shape(1, 50, 128), Shape(32, 20, 128), Shape(128, 20, 128), Shape(64, 200, 64)]


def fused(cell: str, size: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    layer = getattr(sstkern, cell)(size, size)
    return lambda x, lengths: layer(x, lengths=lengths)[0]


def torch_padded(cell: str, size: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What costs torch.nn least to write: every sequence as long as the longest."""
    layer = getattr(torch.nn, cell)(size, size)
    return lambda x, lengths: layer(x)[0]


def torch_packed(cell: str, size: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What gives torch.nn's layer the right answer for sequences of different lengths."""
    layer = getattr(torch.nn, cell)(size, size)

    def call(x: Tensor, lengths: Tensor | None) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], total_length=x.size(0))[0]

    return call


def random_lengths(shape: Shape) -> Tensor:
    lengths = torch.randint(1, shape.steps + 1, (shape.batch,), generator=torch.Generator().manual_seed(0))
    lengths[0] = shape.steps
    return lengths


def measure(benchmark, layer: Callable, cell: str, shape: Shape, training: bool, lengths: Tensor | None) -> None:
    phase, valid = "forward + backward" if training else "inference", "full" if lengths is None else "random"
    benchmark.group = f"{cell} {shape} {phase}, {valid} lengths"
    benchmark.extra_info["engine"] = layer.__name__
    call, x = layer(cell, shape.size), torch.randn(shape.steps, shape.batch, shape.size, requires_grad=training)
    gradient = torch.ones_like(x)

    def run() -> None:
        output = call(x, lengths)
        if training:
            output.backward(gradient)

    with torch.set_grad_enabled(training):
        run()  # once unmeasured: memory and threads are there
        benchmark(run)
    tokens = shape.batch * shape.steps if lengths is None else int(lengths.sum())
    benchmark.extra_info["tokens/s"] = round(tokens / benchmark.stats["median"])


@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
class TestLayers:
    @pytest.mark.parametrize("layer", [fused, torch_padded])
    def test_full_lengths(self, benchmark, layer: Callable, cell: str, shape: Shape, training: bool):
        measure(benchmark, layer, cell, shape, training, None)

    @pytest.mark.parametrize("layer", [fused, torch_padded, torch_packed])
    def test_random_lengths(self, benchmark, layer: Callable, cell: str, shape: Shape, training: bool):
        measure(benchmark, layer, cell, shape, training, random_lengths(shape))
