"""Layers of own cells in PyTorch's other derivatives, compiled, exported, under autocast, copied: as a program still."""

import copy
import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from each_alone import assert_is_the_loop, loop, wanted
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from zoo import ZOO

import sstkern
from sstkern.engines import cpu_runs
from sstkern.program import engine
from sstkern.program.compiler import CannotCompile
from sstkern.structure import flatten, mapped, unflatten

LENGTHS = [3, 0, 2]
NAMES = ["MGU", "SLSTM", "GRUD", "KerasLSTM", "LMU", "LayerNormRNN"]
"""Two stages; nested states; several inputs of which one is a mask; lists and kinks; buffers; sums along a row."""
MORE = [*NAMES, "Ordered", "Heads", "AUGRU", "IndRNN", "WeightNormed", "Autonomous"]
"""Running sums; rows of two dimensions, and of none; weights that are vectors, or computed of others; an input that no step reads."""


def made(name: str, **options: Any) -> tuple[nn.Module, Any, Any]:
    """A small layer, an input and a first state."""
    torch.manual_seed(0)
    layer = sstkern.fuse(ZOO[name].cell(2, 3), strict=True, **options)
    return layer, *ZOO[name].drawn(3, 3, 2, 3)


@contextmanager
def on_the_engine(*ways: str) -> Iterator[None]:
    """Fails unless just these ways of the C++ engine, "forward" and "backward", run within."""
    before = cpu_runs()
    yield
    assert [way for way in ("forward", "backward") if cpu_runs()[way] > before[way]] == list(ways)


def of_tensors(layer: nn.Module, x: Any, hx: Any) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The layer as a function of all tensors that have gradients, parameters included, and those."""
    given = flatten((x, hx))
    names, parameters = zip(*layer.named_parameters(), strict=True)
    floats = [tensor for tensor in given if tensor.is_floating_point()]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        inputs, states = unflatten((x, hx), [next(rest) if tensor.is_floating_point() else tensor for tensor in given])
        results = functional_call(layer, dict(zip(names, rest, strict=True)), (inputs, states), {"lengths": LENGTHS})
        return tuple(flatten(results))

    return function, [tensor.detach().requires_grad_() for tensor in (*floats, *parameters)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives_are_those_of_differences(name: str, recompute: bool):
    layer, x, hx = made(name, recompute=recompute)
    function, tensors = of_tensors(layer, x, hx)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)
    assert layer.fused


@pytest.mark.parametrize("name", NAMES)
def test_functions_of_functions(name: str):
    """torch.func's transforms, against each other and against differences."""
    layer, x, hx = made(name)
    function, tensors = of_tensors(layer, x, hx)
    tensors = [tensor.detach() for tensor in tensors]

    def loss(first: Tensor) -> Tensor:
        return sum(result.square().sum() for result in function(first, *tensors[1:]))

    first, direction = tensors[0], torch.randn_like(tensors[0])
    alone = first.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(alone), alone)
    with on_the_engine("forward", "backward"):
        torch.testing.assert_close(grad(loss)(first), expected, rtol=1e-10, atol=1e-12)
    with on_the_engine("forward", "backward"):
        torch.testing.assert_close(vjp(loss, first)[1](torch.tensor(1.0, dtype=torch.float64))[0], expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        difference = (loss(first + 1e-6 * direction) - loss(first - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(jvp(loss, (first,), (direction,))[1], difference, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(jacfwd(loss)(first), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hessian(loss)(first), jacrev(jacrev(loss))(first), rtol=1e-9, atol=1e-10)


Loss = Callable[..., Tensor]


def loss_of(layer: nn.Module) -> Loss:
    """Of a layer's weights, the input (T, ...) and first state of one sequence, and its length."""

    def loss(weights: dict[str, Tensor], x: Any, hx: Any, length: Tensor) -> Tensor:
        given = mapped(x, lambda t: t.unsqueeze(1)), mapped(hx, lambda t: t.unsqueeze(0))
        output, hx_n = functional_call(layer, weights, given, {"lengths": length[None]})
        return output.square().sum() + sum(state.sin().sum() for state in flatten(hx_n))

    return loss


def loss_alone(name: str, cell: nn.Module, x: Any, hx: Any, length: int) -> Tensor:
    """The same by the loop of the cell."""
    given = mapped(x, lambda t: t.unsqueeze(1)), mapped(hx, lambda t: t.unsqueeze(0))
    output, hx_n, _ = loop(cell, *given, [length], returns=ZOO[name].returns)
    nothing = sum(0 * weight.square().sum() for weight in cell.parameters())  # without a time step there is no gradient
    return output.square().sum() + sum(state.sin().sum() for state in flatten(hx_n)) + nothing


def weights_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in layer.named_parameters()}


def at(given: Any, dim: int, place: int) -> Any:
    return mapped(given, lambda tensor: tensor.select(dim, place))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MORE)
def test_gradients_of_each_sample(name: str, recompute: bool):
    """Of weights, one backward for all samples, and their lengths in the dimension too."""
    layer, x, hx = made(name, recompute=recompute)
    weights, before = weights_of(layer), cpu_runs()
    x, hx = (mapped(given, torch.detach) for given in (x, hx))
    found = vmap(grad(loss_of(layer)), in_dims=(None, 1, 0, 0))(weights, x, hx, torch.tensor(LENGTHS))
    assert cpu_runs()["backward"] == before["backward"] + 1
    for row, length in enumerate(LENGTHS):
        alone = loss_alone(name, layer.cell, at(x, 1, row), at(hx, 0, row), length)
        expected = torch.autograd.grad(alone, list(layer.parameters()))
        torch.testing.assert_close([found[key][row] for key in weights], list(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MORE)
def test_gradients_of_samples_of_samples(name: str):
    """Two dimensions, the inner one of the inputs alone, and gradients of the inputs too."""
    layer, _, _ = made(name)
    x, _ = ZOO[name].drawn(3, 2, 2, 3)  # of each sample
    _, hx = ZOO[name].drawn(3, 3, 2, 3)
    weights, loss = weights_of(layer), loss_of(layer)
    x, hx = (mapped(given, torch.detach) for given in (x, hx))
    floats = [place for place, tensor in enumerate(flatten(x)) if tensor.is_floating_point()]

    def of_floats(weights: dict[str, Tensor], given: list[Tensor], rest: Any, hx: Any, length: Tensor) -> Tensor:
        leaves = dict(enumerate(flatten(rest))) | dict(zip(floats, given, strict=True))
        return loss(weights, unflatten(rest, list(leaves.values())), hx, length)

    given = [flatten(x)[place] for place in floats]
    inner = vmap(grad(of_floats, (0, 1)), in_dims=(None, 1, 1, None, None))
    with on_the_engine("forward", "backward"):
        of_weights, of_inputs = vmap(inner, in_dims=(None, None, None, 0, 0))(weights, given, x, hx, torch.tensor(LENGTHS))
    for i, length in enumerate(LENGTHS):
        for j in range(2):
            alone = mapped(at(x, 1, j), lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)
            varied = [*layer.parameters(), *(flatten(alone)[place] for place in floats)]
            expected = torch.autograd.grad(loss_alone(name, layer.cell, alone, at(hx, 0, i), length), varied, materialize_grads=True)
            mine = [*(of_weights[key][i, j] for key in weights), *(gradient[i, j] for gradient in of_inputs)]
            torch.testing.assert_close(mine, list(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MORE)
def test_an_ensemble(name: str):
    """Every member has parameters of its own, and gradients of them."""
    layer, x, hx = made(name)
    x, hx, loss = at(x, 1, 0), at(hx, 0, 0), loss_of(layer)
    members = [{key: weight.detach() * scale for key, weight in layer.named_parameters()} for scale in (0.5, 1.0)]
    stacked = {key: torch.stack([member[key] for member in members]) for key in members[0]}
    with on_the_engine("forward", "backward"):
        found, losses = vmap(grad_and_value(loss), in_dims=(0, None, None, None))(stacked, x, hx, torch.tensor(2))
    for place, member in enumerate(members):
        layer.load_state_dict(member, strict=False)
        alone = loss_alone(name, layer.cell, x, hx, 2)
        torch.testing.assert_close(losses[place], alone, rtol=1e-12, atol=1e-13)
        expected = torch.autograd.grad(alone, list(layer.parameters()))
        torch.testing.assert_close([found[key][place] for key in members[0]], list(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MORE)
def test_every_row_of_a_jacobian(name: str):
    layer, x, hx = made(name)
    weights, hx = weights_of(layer), mapped(hx, torch.detach)
    with on_the_engine("forward", "backward"):
        found = jacrev(lambda weights: functional_call(layer, weights, (x, hx), {"lengths": LENGTHS})[0])(weights)
    output, _, _ = loop(layer.cell, x, hx, LENGTHS, returns=ZOO[name].returns)
    for place in ((0, 0), (1, 2), (2, 0), (2, 1)):
        expected = torch.autograd.grad(output[place].sum(), list(layer.parameters()), retain_graph=True, materialize_grads=True)
        rows = [found[key][place].reshape(-1, *weight.shape).sum(0) for key, weight in weights.items()]
        torch.testing.assert_close(rows, list(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_each_sample(name: str):
    """From plain PyTorch: the first ones do not."""
    layer, x, hx = made(name)
    x, hx, weights, loss = mapped(x, torch.detach), mapped(hx, torch.detach), weights_of(layer), loss_of(layer)

    def penalty(weights: dict[str, Tensor], x: Any, hx: Any, length: Tensor) -> Tensor:
        return sum(gradient.square().sum() for gradient in grad(loss)(weights, x, hx, length).values())

    with on_the_engine("forward", "backward"):
        found = vmap(grad(penalty), in_dims=(None, 1, 0, 0))(weights, x, hx, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        alone, parameters = loss_alone(name, layer.cell, at(x, 1, row), at(hx, 0, row), length), list(layer.parameters())
        first = torch.autograd.grad(alone, parameters, create_graph=True)
        expected = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), parameters, materialize_grads=True)
        torch.testing.assert_close([found[key][row] for key in weights], list(expected), rtol=1e-9, atol=1e-11)


def test_a_backward_after_vmap():
    """Its batches of gradients too, and its derivative."""
    layer, x, hx = made("GRUD")
    floats = [tensor for tensor in flatten(x) if tensor.is_floating_point()]
    tensors = [*floats, *layer.parameters()]
    stacked = mapped(x, lambda tensor: torch.stack([tensor, tensor.flip(0)]))
    members = mapped(x, lambda tensor: torch.cat([tensor, tensor.flip(0)], 1)), mapped(hx, lambda state: torch.cat([state, state]))
    with on_the_engine("forward", "backward"):
        output = vmap(lambda x: layer(x, hx, lengths=LENGTHS)[0])(stacked)
        given = torch.randn(2, *output.shape, dtype=torch.float64)
        found = torch.autograd.grad(output, tensors, given, is_grads_batched=True, retain_graph=True)
        first = torch.autograd.grad(output.sin().sum(), tensors, create_graph=True)
    expected, _ = layer(*members, lengths=LENGTHS * 2)
    expected = expected.unflatten(1, (2, 3)).transpose(0, 1)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-13)
    for place, gradient in enumerate(given):
        alone = torch.autograd.grad(expected, tensors, gradient, retain_graph=True)
        torch.testing.assert_close([each[place] for each in found], list(alone), rtol=1e-11, atol=1e-13)
    again = torch.autograd.grad(expected.sin().sum(), tensors, create_graph=True)
    second, its = (torch.autograd.grad(sum(part.square().sum() for part in parts), tensors) for parts in (first, again))
    torch.testing.assert_close(second, its, rtol=1e-9, atol=1e-11)


def test_a_backward_within_vmap():
    """Of a forward outside."""
    layer, x, hx = made("SLSTM")
    output, _ = layer(x, hx, lengths=LENGTHS)
    tensors, given = wanted(layer, x, hx), torch.randn(4, *output.shape, dtype=torch.float64)
    options = {"retain_graph": True, "allow_unused": True}
    with on_the_engine("forward", "backward"):
        found = vmap(lambda gradient: torch.autograd.grad(output, tensors, gradient, **options))(given)
    for place, gradient in enumerate(given):
        alone = torch.autograd.grad(output, tensors, gradient, **options)
        torch.testing.assert_close([each[place] for each in found], list(alone), rtol=1e-11, atol=1e-13)


def test_both_directions():
    torch.manual_seed(0)
    cells = [ZOO["MGU"].cell(2, 3) for _ in range(2)]
    layer, x = sstkern.fuse(*cells, strict=True), torch.randn(3, 3, 2, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], x: Tensor, length: Tensor) -> Tensor:
        return functional_call(layer, weights, (x[:, None],), {"lengths": length[None]})[0].square().sum()

    with on_the_engine("forward", "backward"):
        found = vmap(grad(loss), in_dims=(None, 1, 0))(weights_of(layer), x, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        zeros = torch.zeros(1, 3, dtype=torch.float64)
        outputs = [loop(cell, x[:, row : row + 1], zeros, [length], reverse)[0] for cell, reverse in zip(cells, (False, True), strict=True)]
        alone = sum(output.square().sum() for output in outputs) + sum(0 * weight.sum() for weight in layer.parameters())
        expected = torch.autograd.grad(alone, list(layer.parameters()))
        torch.testing.assert_close([gradient[row] for gradient in found.values()], list(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batched", [False, True])
def test_packed_sequences(batched: bool):
    layer, x, _ = made("MGU")
    packed, weights = pack_sequence([x[:n, b].detach() for b, n in enumerate((3, 2, 2))]), weights_of(layer)

    def loss(weights: dict[str, Tensor], data: Tensor) -> Tensor:
        output, h = functional_call(layer, weights, (PackedSequence(data, packed.batch_sizes),))
        return output.data.square().sum() + h.sin().sum()

    def alone(data: Tensor) -> list[Tensor]:
        data = data.detach().requires_grad_()
        return list(torch.autograd.grad(loss(dict(layer.named_parameters()), data), [*layer.parameters(), data]))

    each = torch.stack([packed.data, packed.data.flip(0)])
    with on_the_engine("forward", "backward"):
        if batched:
            found, of_data = vmap(grad(loss, (0, 1)), in_dims=(None, 0))(weights, each)
        else:
            found, of_data = grad(loss, (0, 1))(weights, packed.data)
    for place, data in enumerate(each if batched else [packed.data]):
        mine = [*found.values(), of_data]
        torch.testing.assert_close([part[place] for part in mine] if batched else mine, alone(data), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_each_sample_in_less_precision(dtype: torch.dtype):
    layer, x, hx = made("Heads")
    exact = vmap(grad(loss_of(layer)), in_dims=(None, 1, 0, 0))(weights_of(layer), x, hx, torch.tensor(LENGTHS))
    layer, x, hx = layer.to(dtype), x.to(dtype), hx.to(dtype)
    with on_the_engine("forward", "backward"):
        found = vmap(grad(loss_of(layer)), in_dims=(None, 1, 0, 0))(weights_of(layer), x, hx, torch.tensor(LENGTHS))
    for key, gradient in found.items():
        assert gradient.dtype == dtype
        scale = exact[key].abs().max().item()
        torch.testing.assert_close(gradient.double(), exact[key], rtol=0, atol=scale * (1e-5 if dtype == torch.float32 else 0.05))


def test_transforms_under_autocast():
    layer, x, hx = made("MGU")
    layer, x, hx = layer.float(), x.detach().float(), hx.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        with on_the_engine("forward"):
            found = vmap(lambda x: layer(x, hx)[0])(torch.stack([x, x.flip(0)]))
        expected = torch.stack([layer(x, hx)[0], layer(x.flip(0), hx)[0]])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


REFUSALS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all": (("compile", "forward"), ()),
    "the backward": (("backward",), ("forward",)),
}
"""What cannot be compiled, and what runs on the engine still."""


@pytest.mark.filterwarnings("ignore:sstkern runs .* in plain PyTorch")
@pytest.mark.parametrize(("refused", "ran"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_compiled_runs_in_plain_pytorch(monkeypatch: pytest.MonkeyPatch, refused: tuple[str, ...], ran: tuple[str, ...]):
    def refuse(*_: Any) -> None:
        raise CannotCompile("there is no compiler")

    layer, x, hx = made("GRUD")
    x, hx = (mapped(given, torch.detach) for given in (x, hx))
    arguments = weights_of(layer), x, hx, torch.tensor(LENGTHS)
    gradients = vmap(grad(loss_of(layer)), in_dims=(None, 1, 0, 0))
    expected = gradients(*arguments)
    for name in refused:
        monkeypatch.setattr(engine.Layer, name, refuse)
    with on_the_engine(*ran):
        torch.testing.assert_close(gradients(*arguments), expected, rtol=1e-11, atol=1e-13)
    with sstkern.backend("cpu"), pytest.raises(sstkern.engines.BackendError, match="there is no compiler"):
        gradients(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_tangents(name: str):
    """Forward mode, the input and a parameter at once."""
    layer, x, hx = made(name)
    function, tensors = of_tensors(layer, x, hx)
    directions = [torch.randn_like(tensor) for tensor in tensors]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(tensor.detach(), direction) for tensor, direction in zip(tensors, directions, strict=True)]
        found = [forward_ad.unpack_dual(result).tangent for result in function(*duals)]
    with torch.no_grad():
        ahead, behind = ([tensor + step * d for tensor, d in zip(tensors, directions, strict=True)] for step in (1e-6, -1e-6))
        expected = [(a - b) / 2e-6 for a, b in zip(function(*ahead), function(*behind), strict=True)]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_gradients_is_the_gradients_one_by_one(name: str):
    layer, x, hx = made(name)
    output, _ = layer(x, hx, lengths=LENGTHS)
    tensors, given = wanted(layer, x, hx), torch.randn(4, *output.shape, dtype=torch.float64)
    options = {"retain_graph": True, "materialize_grads": True}
    with on_the_engine("forward", "backward"):
        found = torch.autograd.grad(output, tensors, given, is_grads_batched=True, **options)
    for place, gradient in enumerate(given):
        alone = torch.autograd.grad(output, tensors, gradient, **options)
        torch.testing.assert_close([each[place] for each in found], list(alone), rtol=1e-11, atol=1e-13)


# Compiled


class Graphs:
    """A backend of torch.compile that runs what it is given and counts its operations."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.sizes.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward


class Annealed(nn.Module):
    """A number that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.alpha = nn.Linear(2, 3), nn.Linear(3, 3), 0.5

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.alpha * h + (1 - self.alpha) * torch.tanh(self.x(x) + self.h(h))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_into_one_graph(name: str):
    torch._dynamo.reset()
    layer, x, hx = made(name)
    graphs = Graphs()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=False)
    tensors = wanted(layer, x, hx)

    def results(layer: nn.Module, x: Any) -> list[Tensor]:
        found = flatten(layer(x, hx, lengths=torch.tensor([2, 0, 1])))
        return [*found, *torch.autograd.grad([result.sum() for result in found], tensors, materialize_grads=True)]

    torch.testing.assert_close(results(compiled, x), results(layer, x), rtol=1e-12, atol=1e-13)
    results(compiled, mapped(x, lambda tensor: tensor[:2]))
    assert len(set(graphs.sizes)) == 1  # whatever the number of steps


@pytest.mark.parametrize("name", ["MGU", "GRUD", "Heads"])
def test_transforms_inside_a_compiled_function(name: str):
    torch._dynamo.reset()
    layer, x, hx = made(name)
    x, hx = (mapped(given, torch.detach) for given in (x, hx))
    arguments = weights_of(layer), x, hx, torch.tensor(LENGTHS)
    gradients = vmap(grad(loss_of(layer)), in_dims=(None, 1, 0, 0))
    compiled = torch.compile(gradients, backend="aot_eager", fullgraph=True)
    compiled(*arguments)
    with on_the_engine("forward", "backward"):
        found = compiled(*arguments)
    torch.testing.assert_close(found, gradients(*arguments), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dual", [False, True], ids=["jvp", "dual tensors"])
def test_forward_mode_is_refused_where_the_cpu_engine_is_asked_for(dual: bool):
    """As our own layers do."""
    layer, x, hx = made("MGU")
    x, hx = x.detach(), hx.detach()

    def tangent(of) -> Tensor:
        if not dual:
            return jvp(lambda x: of(x)[0], (x,), (x.cos(),))[1]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(of(forward_ad.make_dual(x, x.cos()))[0]).tangent

    def fused(x: Tensor) -> tuple:
        return layer(x, hx)

    for of in (fused, sstkern.GRU(x.size(2), 4, dtype=x.dtype)):
        with (
            sstkern.backend("cpu"),
            pytest.raises(RuntimeError, match=r"^backend: 'cpu' was asked for, but it has no forward mode \(torch"),
        ):
            tangent(of)
    with sstkern.backend("reference"):
        assert tangent(fused).abs().sum() > 0


def test_forward_mode_inside_a_compiled_function():
    torch._dynamo.reset()
    layer, x, hx = made("MGU")
    x, hx = x.detach(), hx.detach()

    def tangent(x: Tensor) -> Tensor:
        return jvp(lambda x: layer(x, hx)[0], (x,), (x.flip(0),))[1]

    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(x), tangent(x), rtol=1e-11, atol=1e-13)


def test_a_compiled_layer_tells_what_is_no_program():
    layer, (x, hx) = sstkern.fuse(ZOO["Sorted"].cell()), ZOO["Sorted"].drawn(4, 3)
    with pytest.warns(UserWarning, match="sort is not in the language"):
        output, _ = torch.compile(layer, backend="aot_eager")(x, hx)
    assert "sort" in layer.reason
    torch.testing.assert_close(output, layer(x, hx)[0], rtol=1e-12, atol=1e-14)
    with pytest.raises(Exception, match="sort is not in the language"):
        torch.compile(sstkern.fuse(ZOO["Sorted"].cell(), strict=True), backend="aot_eager")(x, hx)


def test_a_compiled_layer_under_autocast_is_a_program():
    layer, x = sstkern.fuse(torch.nn.GRUCell(3, 5), strict=True), torch.randn(4, 2, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for given in (x, x.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = compiled(given)[0], layer(given)[0]
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected)


class Reading(nn.Module):
    """Of a list, a dict, a function, an attribute that may not be there, and a module."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.numbers, self.known, self.way, self.act = 4, [0.5], {"a": 0.5}, torch.tanh, nn.Tanh()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.act(self.way(x + h * self.numbers[0]) * self.known["a"] * getattr(self, "late", 1.0))


READ: dict[str, Callable[[Any], Any]] = {
    "a list": lambda cell: cell.numbers.__setitem__(0, 0.25),
    "a dict": lambda cell: cell.known.__setitem__("a", 0.25),
    "a function": lambda cell: setattr(cell, "way", torch.sigmoid),
    "an attribute that was not there": lambda cell: setattr(cell, "late", 0.25),
    "a module": lambda cell: setattr(cell, "act", nn.ReLU()),
}


@pytest.mark.parametrize("change", READ)
def test_a_compiled_layer_sees_what_its_step_reads(change: str):
    torch._dynamo.reset()
    layer, x = sstkern.fuse(Reading(), strict=True), torch.randn(3, 2, 4)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    before, _ = compiled(x)
    READ[change](layer.cell)
    assert torch.equal(compiled(x)[0], layer(x)[0])
    assert not torch.equal(compiled(x)[0], before)


def test_compiled_by_inductor():
    torch._dynamo.reset()
    layer, x, hx = made("MGU")
    compiled = torch.compile(layer, fullgraph=True)
    tensors = wanted(layer, x, hx)
    for steps in (3, 2):
        found, expected = (call(x[:steps], hx) for call in (compiled, layer))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        found, expected = (torch.autograd.grad(output.square().sum(), tensors) for output, _ in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_a_compiled_layer_sees_a_number_that_changes():
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = sstkern.fuse(Annealed(), strict=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, h = torch.randn(4, 2, 2), torch.randn(2, 3)
    outputs = []
    for alpha in (0.5, 0.25, 0.75, 1.0):
        layer.cell.alpha = alpha
        outputs.append(compiled(x, h)[0])
        torch.testing.assert_close(outputs[-1], torch.stack(states_of(layer.cell, x, h)))
    assert torch.equal(outputs[-1], h.expand(4, -1, -1))


def states_of(cell: nn.Module, x: Tensor, h: Tensor) -> list[Tensor]:
    states = []
    for row in x:
        h = cell(row, h)
        states.append(h)
    return states


# Exported


class Marked(nn.Module):
    """Its source has a name that is nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        nowhere_else_gate = torch.sigmoid(self.x(x) + self.h(h))
        return nowhere_else_gate * h + (1 - nowhere_else_gate) * torch.tanh(self.x(x))


LOADING = """
import sys, torch, sstkern
given, expected = torch.load(sys.argv[2])
torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(*given), expected)
assert "test_fused_transforms" not in sys.modules and "zoo" not in sys.modules
"""


def test_an_exported_layer_runs_without_its_cells_source(tmp_path: Path):
    torch.manual_seed(0)
    layer = sstkern.fuse(Marked(), strict=True).eval()
    given = torch.randn(4, 2, 2), torch.randn(2, 3)
    with torch.no_grad():
        expected = layer(*given)
        program = torch.export.export(layer, given)
    assert len([node for node in program.graph.nodes if node.op == "call_function"]) < 12
    file, tensors = tmp_path / "layer.pt2", tmp_path / "tensors.pt"
    torch.export.save(program, file)
    torch.save((given, expected), tensors)
    with zipfile.ZipFile(file) as parts:
        contents = b"".join(map(parts.read, parts.namelist()))
    assert b"sigmoid" in contents  # the program's text is there
    assert b"nowhere_else_gate" not in contents
    subprocess.run([sys.executable, "-c", LOADING, str(file), str(tensors)], check=True, timeout=120)


def test_an_exported_layer_takes_any_number_of_steps_and_sequences():
    torch.manual_seed(0)
    layer = sstkern.fuse(Marked(), strict=True).eval()
    sizes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    program = torch.export.export(layer, (torch.randn(4, 3, 2), torch.randn(3, 3)), dynamic_shapes=(sizes, {0: sizes[1]}))
    for steps, batch in ((4, 3), (7, 2), (2, 5)):
        given = torch.randn(steps, batch, 2), torch.randn(batch, 3)
        torch.testing.assert_close(program.module()(*given), layer(*given))


# Autocast


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str):
    layer, x, hx = made(name)
    layer.float()
    x, hx = (mapped(given, lambda t: t.detach().float().requires_grad_() if t.is_floating_point() else t) for given in (x, hx))
    tensors = wanted(layer, x, hx)
    exact, exact_n = layer(x, hx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, hx_n = layer(x, hx)
    assert layer.fused
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close([output.float(), *(h.float() for h in flatten(hx_n))], [exact, *flatten(exact_n)], rtol=0.05, atol=0.05)
    found, expected = (torch.autograd.grad(result.float().sum(), tensors, materialize_grads=True) for result in (output, exact))
    assert [gradient.dtype for gradient in found] == [torch.float32] * len(tensors)
    scale = max(gradient.abs().max().item() for gradient in expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05 * scale)


# Copied, pickled, parametrized


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": lambda layer: _saved(layer),
}


def _saved(layer: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("called", [False, True], ids=["before a call", "after a call"])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_a_layer_of_its_own(name: str, way: str, called: bool):
    layer, x, hx = made(name)
    before = layer(x, hx) if called else None
    other = COPIES[way](layer)
    torch.testing.assert_close(other(x, hx), layer(x, hx), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert_is_the_loop(other, x, hx, LENGTHS, returns=ZOO[name].returns)
    assert other.fused
    assert not torch.equal(other(x, hx)[0], layer(x, hx)[0])
    if before is not None:
        torch.testing.assert_close(layer(x, hx), before, rtol=0, atol=0)


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, parametrizations.orthogonal], ids=lambda function: function.__name__)
def test_a_parametrized_weight_is_computed_once_a_call(normed: Callable):
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            Counted.calls += 1
            return weight

    layer, x, hx = made("MGU")
    normed(layer.cell.h_n, "weight")
    nn.utils.parametrize.register_parametrization(layer.cell.h_n, "weight", Counted())
    Counted.calls = 0
    layer(x, hx)
    first = Counted.calls
    layer(x, hx)
    assert Counted.calls - first == 1
    assert_is_the_loop(layer, x, hx, LENGTHS)
    assert layer.fused
