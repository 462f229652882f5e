"""Second derivatives: what they are beside torch.nn's, and what a time step of one costs."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import sstkern

I, H = 3, 5  # noqa: E741
OPTIONS = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
}


def derivatives(layer: nn.Module, x: Tensor, lengths: Tensor | None, of_all: bool) -> list[Tensor]:
    """Three orders, the first with respect to the input alone or to the parameters too."""
    x = x.detach().requires_grad_()
    output: Any = layer(x if lengths is None else pack_padded_sequence(x, lengths))[0]
    value = (output.data if isinstance(output, PackedSequence) else output).square().sum()
    parameters, found = [parameter for parameter in layer.parameters() if parameter.requires_grad], []
    for order in range(3):
        wanted = [x, *parameters] if order or of_all else [x]
        # The gradient of nothing but biases of the first layer's input product may vanish.
        grads = torch.autograd.grad(value, wanted, create_graph=True, materialize_grads=True)
        value = sum(grad.square().sum() for grad in grads)
        found += grads
    return found


@pytest.mark.parametrize("of_all", [False, True], ids=["input", "all"])
@pytest.mark.parametrize("lengths", [None, [6, 6, 3, 1]], ids=["full", "packed"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "LSTM, projected"])
def test_three_orders_are_those_of_torch(kind, options, lengths, of_all):
    torch.manual_seed(0)
    name, _, projected = kind.partition(", ")
    given = {**options, "dtype": torch.float64, **({"proj_size": 2} if projected else {})}
    ours, theirs = getattr(sstkern, name)(I, H, **given), getattr(nn, name)(I, H, **given)
    theirs.load_state_dict(ours.state_dict())
    x, sizes = torch.randn(6, 4, I, dtype=torch.float64), None if lengths is None else torch.tensor(lengths)
    torch.testing.assert_close(derivatives(ours, x, sizes, of_all), derivatives(theirs, x, sizes, of_all), rtol=1e-9, atol=1e-12)


def test_frozen_matrices():
    ours, theirs = sstkern.GRU(I, H, dtype=torch.float64), nn.GRU(I, H, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        layer.weight_hh_l0.requires_grad_(False)
    x = torch.randn(4, 2, I, dtype=torch.float64)
    torch.testing.assert_close(derivatives(ours, x, None, True), derivatives(theirs, x, None, True), rtol=1e-9, atol=1e-12)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        self.calls[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))


def calls(layer: nn.Module, steps: int) -> Counter[str]:
    """Of the second derivative of a gradient penalty."""
    x = torch.randn(steps, 2, I, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    with Operators() as operators:
        torch.autograd.grad(grad.square().sum(), list(layer.parameters()))
    return operators.calls


@pytest.mark.parametrize("kind", [sstkern.RNN, sstkern.GRU, sstkern.LSTM])
def test_a_step_has_no_products_for_matrices_and_no_copies(kind):
    """It has the recurrent product, addmm, and three: of the first derivative, of that one's, and of its own."""
    layer = kind(I, H)
    more = calls(layer, 12)
    more.subtract(calls(layer, 8))
    assert more["addmm"] == 4
    assert more["mm"] == 3 * 4
    assert more["clone"] == 0
    assert more["sum"] == 0
