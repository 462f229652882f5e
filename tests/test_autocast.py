"""Autocast casts a weight once in a region, and a graph keeps one copy, as with torch's own operators."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_cells import MGU, Stepped
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import sstkern
from sstkern.autocast import autocast
from sstkern.structure import flatten

B, I, H, STEPS = 2, 3, 4, 5  # noqa: E741


class Casts(TorchDispatchMode):
    """Counts casts of tensors that have the shape of a parameter and float32."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.shapes, self.count = {parameter.shape for parameter in layer.parameters()}, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        if function is torch.ops.aten._to_copy.default and isinstance(arguments[0], Tensor):
            self.count += arguments[0].dtype == torch.float32 and arguments[0].shape in self.shapes
        return function(*arguments, **(options or {}))


CELLS = {kind.__name__: lambda kind=kind: kind(I, H) for kind in (sstkern.LSTMCell, sstkern.GRUCell, sstkern.RNNCell)}
LAYERS = {
    "LSTM": lambda: sstkern.LSTM(I, H, num_layers=2, bidirectional=True),
    "GRU, recompute": lambda: sstkern.GRU(I, H, recompute=True),
    "own": lambda: sstkern.fuse(MGU(I, H)),
    "own, recompute": lambda: sstkern.fuse(MGU(I, H), MGU(I, H), recompute=True),
}
STEPPED = {"own, stepped": lambda: sstkern.fuse(Stepped(I, H), initial_state=H)}
made = pytest.mark.parametrize("make", [*CELLS.values(), *LAYERS.values(), *STEPPED.values()], ids=[*CELLS, *LAYERS, *STEPPED])


def loop(layer: Callable, steps: Tensor) -> Any:
    """The last states after a call for every step."""
    states = None
    for x in steps:
        found = layer(x, states) if states is not None else layer(x)
        states = found if x.dim() == 2 else found[1]
    return states


def drawn(layer: nn.Module) -> Tensor:
    is_cell = isinstance(layer, sstkern.LSTMCell | sstkern.GRUCell | sstkern.RNNCell)
    return torch.randn(STEPS, B, I) if is_cell else torch.randn(STEPS, 1, B, I)


def summed(states: Any) -> Tensor:
    return sum(state.float().sum() for state in flatten(states))


@made
@pytest.mark.filterwarnings("ignore:sstkern steps")
@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
def test_a_weight_is_cast_once_in_a_region_unless_there_is_no_cache(make: Callable[[], nn.Module], enabled: bool, cached: bool):
    layer = make()
    steps, weights = drawn(layer), len(list(layer.parameters()))
    loop(layer, steps)  # an own cell is captured
    for _ in range(2):
        with torch.set_grad_enabled(enabled), torch.autocast("cpu", torch.bfloat16, cache_enabled=cached), Casts(layer) as casts:
            loop(layer, steps)
        assert casts.count == (weights if cached else STEPS * weights)


@pytest.mark.parametrize("kind", [sstkern.LSTM, sstkern.GRU])
def test_zeros_as_first_states_are_not_cast(kind: type[nn.Module]):
    layer, x = kind(I, H), torch.randn(STEPS, B, I)
    with torch.autocast("cpu", torch.bfloat16), Casts(layer) as casts:
        casts.shapes |= {x.shape, (1, B, H)}
        layer(x)
    assert casts.count == len(list(layer.parameters())) + 1


def test_a_weight_that_wants_no_gradient_is_not_kept():
    layer = sstkern.GRUCell(I, H).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), Casts(layer) as casts:
        loop(layer, drawn(layer))
    assert casts.count == STEPS * 4


@pytest.mark.parametrize("make", [*CELLS.values(), *LAYERS.values()], ids=[*CELLS, *LAYERS])  # torch's own layers in a stepped cell fail
def test_a_region_of_another_dtype_has_casts_of_its_own(make: Callable[[], nn.Module]):
    layer = make()
    steps = drawn(layer)
    with torch.autocast("cpu", torch.bfloat16):
        loop(layer, steps)
        with torch.autocast("cpu", torch.float16):
            assert {state.dtype for state in flatten(loop(layer, steps))} == {torch.float16}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_keeps_the_dtype_that_it_was_made_with():
    layer, x = sstkern.GRU(I, H), torch.randn(STEPS, B, I)
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        traced = torch.jit.trace(layer, (x,), check_trace=False)  # which traces it again, outside the region
    assert traced(x)[0].dtype == torch.float16


@made
@pytest.mark.filterwarnings("ignore:sstkern steps")
def test_gradients_are_those_without_the_cache(make: Callable[[], nn.Module]):
    layer = make()
    steps, found = drawn(layer), []
    for cached in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            with torch.no_grad():  # whose casts the graph below is not made of
                loop(layer, steps)
            states = loop(layer, steps)
        summed(states).backward()
        found.append([parameter.grad for parameter in layer.parameters()])
    for kept, anew in zip(*found, strict=True):
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept, anew, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_within_transforms(make: Callable[[], nn.Module]):
    layer = make()
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    samples = torch.randn(3, STEPS, 1, 1, I)

    def loss(parameters: dict[str, Tensor], steps: Tensor) -> Tensor:
        return summed(loop(lambda *given: functional_call(layer, parameters, given), steps))

    loss(parameters, samples[0])
    calls = (
        lambda: grad(loss)(parameters, samples[0]),
        lambda: vmap(grad(loss), (None, 0))(parameters, samples),
        lambda: vmap(lambda steps: summed(loop(layer, steps)))(samples),
    )
    for call in calls:
        with torch.autocast("cpu", torch.bfloat16), Casts(layer) as casts:
            call()
        assert casts.count == len(parameters)


@pytest.mark.parametrize("make", [CELLS["LSTMCell"], LAYERS["LSTM"], LAYERS["own"]], ids=["LSTMCell", "LSTM", "own"])
def test_a_compiled_graph_keeps_no_more_than_an_eager_one(make: Callable[[], nn.Module]):
    layer = make()
    steps = drawn(layer)

    def kept(call: Callable) -> int:
        """Bytes that the graph saves."""
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            states = call(layer, steps)
        assert summed(states).requires_grad
        return sum(storages.values())

    compiled = torch.compile(loop, backend="aot_eager")
    kept(compiled)
    assert kept(compiled) <= kept(loop)


def test_casts_last_as_long_as_the_region():
    weight = torch.randn(I, H, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        (cast,) = autocast([weight])
        assert autocast([weight])[0] is cast
        kept = weakref.ref(cast)
        del cast
        assert kept() is not None
    assert kept() is None
    with torch.autocast("cpu", torch.bfloat16):
        weight.data.zero_()
        assert not autocast([weight])[0].any()


@made
@pytest.mark.filterwarnings("ignore:sstkern steps")
def test_casts_made_under_inference_mode_serve_training(make: Callable[[], nn.Module]):
    layer = make()
    steps = drawn(layer)
    loop(layer, steps)
    with torch.autocast("cpu", torch.bfloat16), Casts(layer) as casts:
        with torch.inference_mode():
            loop(layer, steps)
        states = loop(layer, steps)
    assert casts.count == len(list(layer.parameters()))
    summed(states).backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_transform_leaves_no_casts_of_its_own(make: Callable[[], nn.Module]):
    layer = make()
    x = torch.randn(STEPS, B, I)
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        grad(lambda x: summed(layer(x)[1]))(x)
        summed(layer(x)[1]).backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_fake_tensors_stay_out_of_the_cache():
    weight = torch.randn(I, H, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with FakeTensorMode(allow_non_fake_inputs=True):
            autocast([weight])
        assert torch.equal(autocast([weight])[0], weight.bfloat16())
