"""Layers of own cells in PyTorch's other derivatives, compiled, exported, under autocast, copied: as a program still."""

import copy
import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from each_alone import assert_is_the_loop, wanted
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils import parametrizations
from zoo import ZOO

import sstkern
from sstkern.structure import flatten, mapped, unflatten

LENGTHS = [3, 0, 2]
NAMES = ["MGU", "SLSTM", "GRUD", "KerasLSTM", "LMU"]
"""Two stages; nested states; several inputs of which one is a mask; lists and kinks; buffers."""


def made(name: str, **options: Any) -> tuple[nn.Module, Any, Any]:
    """A small layer, an input and a first state."""
    torch.manual_seed(0)
    layer = sstkern.fuse(ZOO[name].cell(2, 3), strict=True, **options)
    return layer, *ZOO[name].drawn(3, 3, 2, 3)


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
    torch.testing.assert_close(grad(loss)(first), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(vjp(loss, first)[1](torch.tensor(1.0, dtype=torch.float64))[0], expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        difference = (loss(first + 1e-6 * direction) - loss(first - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(jvp(loss, (first,), (direction,))[1], difference, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(jacfwd(loss)(first), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hessian(loss)(first), jacrev(jacrev(loss))(first), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_each_sample(name: str):
    layer, x, hx = made(name)
    weights = {key: weight.detach() for key, weight in layer.named_parameters()}
    x, hx = (mapped(given, torch.detach) for given in (x, hx))

    def loss(weights: dict[str, Tensor], x: Any, hx: Any, length: Tensor) -> Tensor:
        given = mapped(x, lambda t: t.unsqueeze(1)), mapped(hx, lambda t: t.unsqueeze(0))
        output, hx_n = functional_call(layer, weights, given, {"lengths": length[None]})
        return output.square().sum() + sum(state.sum() for state in flatten(hx_n))

    found = vmap(grad(loss), in_dims=(None, 1, 0, 0))(weights, x, hx, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        given = mapped(x, lambda t, row=row: t[:, row : row + 1]), mapped(hx, lambda t, row=row: t[row : row + 1])
        output, hx_n = layer(*given, lengths=[length])
        alone = output.square().sum() + sum(state.sum() for state in flatten(hx_n))
        expected = torch.autograd.grad(alone, list(layer.parameters()), materialize_grads=True)
        torch.testing.assert_close([found[key][row] for key in weights], list(expected), rtol=1e-10, atol=1e-12)


def test_an_ensemble():
    """Every member has parameters of its own."""
    layer, x, hx = made("MGU")
    members = [{name: weight.detach() * scale for name, weight in layer.named_parameters()} for scale in (0.5, 1.0)]
    stacked = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    found = vmap(lambda weights: functional_call(layer, weights, (x, hx))[0])(stacked)
    for output, member in zip(found, members, strict=True):
        torch.testing.assert_close(output, functional_call(layer, member, (x, hx))[0], rtol=1e-12, atol=1e-13)


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


def test_a_compiled_layer_tells_what_is_no_program():
    layer, (x, hx) = sstkern.fuse(ZOO["LayerNormRNN"].cell()), ZOO["LayerNormRNN"].drawn(4, 3)
    with pytest.warns(UserWarning, match="layer_norm is not in the language"):
        output, _ = torch.compile(layer, backend="aot_eager")(x, hx)
    assert "layer_norm" in layer.reason
    torch.testing.assert_close(output, layer(x, hx)[0], rtol=1e-12, atol=1e-14)
    with pytest.raises(Exception, match="layer_norm is not in the language"):
        torch.compile(sstkern.fuse(ZOO["LayerNormRNN"].cell(), strict=True), backend="aot_eager")(x, hx)


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
