"""The gradient of every sample, under pytest-benchmark: vmap of grad, on our engines, beside a backward for each sample."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import sstkern

CASES = [(kind, *sizes) for kind in ("LSTM", "GRU") for sizes in [(32, 50, 64), (64, 50, 128), (16, 30, 256)]]


def loss(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0].square().sum()


def by_vmap(layer: nn.Module, x: Tensor) -> list[Tensor]:
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def of_weights(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x[:, None],))[0].square().sum()

    return list(vmap(grad(of_weights), in_dims=(None, 1))(weights, x).values())


def by_reference(layer: nn.Module, x: Tensor) -> list[Tensor]:
    with sstkern.backend("reference"):
        return by_vmap(layer, x)


def one_by_one(layer: nn.Module, x: Tensor) -> list[Tensor]:
    each = [torch.autograd.grad(loss(layer, x[:, i : i + 1]), list(layer.parameters())) for i in range(x.size(1))]
    return [torch.stack(gradients) for gradients in zip(*each, strict=True)]


def by_torch(layer: nn.Module, x: Tensor) -> list[Tensor]:
    return one_by_one(sstkern.convert(layer, to="torch"), x)


@pytest.mark.benchmark(min_rounds=5, max_time=0.5)
@pytest.mark.parametrize("way", [by_vmap, by_reference, one_by_one, by_torch])
@pytest.mark.parametrize(("kind", "batch", "steps", "size"), CASES)
def test_gradients_of_each_sample(benchmark, kind, batch, steps, size, way):
    benchmark.group = f"{kind}, {batch} samples of {steps} steps, {size} units"
    torch.manual_seed(0)
    layer, x = getattr(sstkern, kind)(size, size), torch.randn(steps, batch, size)
    expected = by_reference(layer, x)
    found = benchmark(way, layer, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())
