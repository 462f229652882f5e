"""Time and memory are linear in the number of time steps, whatever a layer is asked for: operators and allocated bytes are counted."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from layers import FUSED
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import sstkern
from sstkern import private

STEPS = (100, 200, 400)
BATCH, INPUT, HIDDEN = 3, 2, 4
MOST = 2.05
KINDS: dict[str, Callable[..., nn.Module]] = {
    "LSTM": lambda **options: sstkern.LSTM(INPUT, HIDDEN, **options),
    "projected": lambda **options: sstkern.LSTM(INPUT, HIDDEN, proj_size=2, **options),
    "GRU": lambda **options: sstkern.GRU(INPUT, HIDDEN, **options),
    "RNN": lambda **options: sstkern.RNN(INPUT, HIDDEN, **options),
}
STACK = {"num_layers": 2, "bidirectional": True}


class Counted(private.DispatchMode):
    """How many operators run, and how many bytes they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        self.operators += 1
        given = {tensor.untyped_storage()._cdata for tensor in _tensors(arguments)}
        for tensor in _tensors([result]):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self.bytes += storage.nbytes()
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def assert_linear(of_steps: Callable[[int], Any]) -> None:
    """Twice the steps, at most `MOST` times the operators and the bytes."""
    counts = []
    for steps in STEPS:
        torch.manual_seed(0)
        with Counted() as counted:
            of_steps(steps)
        counts.append((counted.operators, counted.bytes))
    found = [round(more / less, 2) for before, after in zip(counts, counts[1:]) for less, more in zip(before, after)]
    assert max(found) <= MOST, f"operators and bytes: {counts}"


Form = tuple[Any, Tensor | None]
"""A layer's input and lengths."""


def full(x: Tensor) -> Form:
    return x, None


def lengths_of(x: Tensor) -> Tensor:
    return torch.tensor([x.size(0), 0, x.size(0) // 2])


def with_lengths(x: Tensor) -> Form:
    return x, lengths_of(x)


def packed(x: Tensor) -> Form:
    return pack_padded_sequence(x, lengths_of(x).clamp(min=1), enforce_sorted=False), None


def nested(x: Tensor) -> Form:
    return torch.nested.as_nested_tensor([part[:length] for part, length in zip(x.unbind(1), lengths_of(x))], layout=torch.jagged), None


FORMS = {"full": full, "lengths": with_lengths, "packed": packed, "nested": nested}


def output_of(layer: nn.Module, form: Callable[[Tensor], Form], x: Tensor) -> Tensor:
    input, lengths = form(x)
    output = layer(input, lengths=lengths)[0]
    return output if isinstance(output, Tensor) and not output.is_nested else output.data if not isinstance(output, Tensor) else output.values()


def drawn(steps: int) -> Tensor:
    return torch.randn(steps, BATCH, INPUT, requires_grad=True)


def derivatives(layer: nn.Module, form: Callable[[Tensor], Form], steps: int, order: int) -> None:
    x = drawn(steps)
    value = output_of(layer, form, x).square().sum()
    for left in reversed(range(order)):
        found = torch.autograd.grad(value, [x, *layer.parameters()], create_graph=left > 0)
        value = sum(gradient.square().sum() for gradient in found)


def engine(name: str) -> AbstractContextManager:
    return nullcontext() if name == FUSED else sstkern.backend(name)


@pytest.mark.parametrize("order", [2])
@pytest.mark.parametrize("name", ["reference", FUSED])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_each_cell(kind, name, order):
    layer = KINDS[kind]()
    with engine(name):
        assert_linear(lambda steps: derivatives(layer, full, steps, order))


@pytest.mark.parametrize("options", [{}, STACK], ids=["one layer", "stack"])
@pytest.mark.parametrize("name", ["reference", FUSED])
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_of_each_form(form, name, options):
    layer = KINDS["GRU"](**options)
    with engine(name):
        assert_linear(lambda steps: derivatives(layer, FORMS[form], steps, 2))


@pytest.mark.parametrize("form", ["full", "lengths"])
def test_recomputed(form):
    layer = KINDS["LSTM"](recompute=True, **STACK)
    assert_linear(lambda steps: derivatives(layer, FORMS[form], steps, 2))


def pushed_forward(layer: nn.Module, form: Callable[[Tensor], Form], steps: int) -> None:
    x = drawn(steps)
    with forward_ad.dual_level():
        forward_ad.unpack_dual(output_of(layer, form, forward_ad.make_dual(x, torch.ones_like(x))))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_of_each_cell(kind):
    layer = KINDS[kind]()
    assert_linear(lambda steps: pushed_forward(layer, full, steps))


@pytest.mark.parametrize("form", ["lengths", "packed"])
def test_forward_mode_of_each_form(form):
    layer = KINDS["GRU"](bidirectional=True)
    assert_linear(lambda steps: pushed_forward(layer, FORMS[form], steps))


TRANSFORMS: dict[str, Callable] = {
    "jvp": lambda loss, x, *others: jvp(loss, (x, *others), tuple(map(torch.ones_like, (x, *others)))),
    "derivative of jvp": lambda loss, x: grad(lambda x: jvp(loss, (x,), (torch.ones_like(x),))[1])(x),
    "jvp of grad": lambda loss, x: jvp(grad(loss), (x,), (torch.ones_like(x),)),
    "grad of grad": lambda loss, x: grad(lambda x: grad(loss)(x).square().sum())(x),
    "each sample": lambda loss, x: vmap(grad(loss), 1)(x.unsqueeze(2)),
    "jvp of each sample": lambda loss, x: vmap(lambda x: jvp(loss, (x,), (torch.ones_like(x),)), 1)(x.unsqueeze(2)),
    "grad of each sample's grad": lambda loss, x: vmap(grad(lambda x: grad(loss)(x).square().sum()), 1)(x.unsqueeze(2)),
}


@pytest.mark.parametrize("name", ["reference", FUSED])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform, name):
    layer = KINDS["GRU"]()

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].square().sum()

    with engine(name):
        assert_linear(lambda steps: TRANSFORMS[transform](loss, drawn(steps).detach()))


