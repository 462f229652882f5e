"""Steps as programs: what is captured computes what the cell does; what cannot be is refused, by name and line."""

from __future__ import annotations

import copy
import functools
import inspect
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torchrecurrent
from evaluation import evaluated
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from sstkern.program.capture import Captured, NoDefault, Spec, Unfused, capture
from sstkern.program.capture.trace import OPERATORS
from sstkern.structure import Structure, flatten, mapped, split_result

INPUT, HIDDEN = 3, 5


def spec(*shape: int, dtype: torch.dtype = torch.float64) -> Spec:
    return Spec(shape, dtype, torch.device("cpu"))


X, H = spec(INPUT), spec(HIDDEN)


class Cell(nn.Module):
    """A cell of one function of itself, the input and the state."""

    def __init__(self, step: Callable[..., Any]):
        super().__init__()
        self.x_h = nn.Linear(INPUT, HIDDEN, dtype=torch.float64)
        self.h_h = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
        self.alpha = 0.5
        self.register_buffer("scale", torch.rand(HIDDEN, dtype=torch.float64))
        self.vector = nn.Parameter(torch.rand(HIDDEN, dtype=torch.float64))
        type(self).step = staticmethod(step)

    def forward(self, x: Tensor, h: Any) -> Any:
        return type(self).step(self, x, h)


def cell(step: Callable[..., Any]) -> Cell:
    return type("Cell", (Cell,), {})(step)


def random_like(specs: Structure, batch: int = 4) -> Structure:
    return mapped(
        specs,
        lambda one: (
            torch.randn(batch, *one.shape, dtype=one.dtype).requires_grad_()
            if one.dtype.is_floating_point
            else torch.randint(0, 2, (batch, *one.shape)).to(one.dtype)
        ),
    )


def check(module: nn.Module, input: Structure = X, state: Structure = H, returns: str = "auto", **kwargs: Any) -> Captured:
    """The program's results and gradients are the cell's own, with other parameters than those of the capture."""
    captured = capture(module, input, state, returns, **kwargs)
    assert captured.holds()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    inputs, states = random_like(input), random_like(state)
    output, after = split_result(module(inputs, states), states, returns)
    expected = [output, *flatten(after)]
    found_output, found_after = evaluated(captured, flatten(inputs), flatten(states))
    found = [found_output, *found_after]
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
    leaves = [leaf for leaf in (*flatten(inputs), *flatten(states), *module.parameters()) if leaf.requires_grad]
    weights = [torch.randn_like(part) for part in expected]
    gradients = [gradients_of(results, weights, leaves) for results in (expected, found)]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, equal_nan=True)
    return captured


def gradients_of(results: list[Tensor], weights: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    total = sum((part * weight).sum() for part, weight in zip(results, weights, strict=True))
    return torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else (None,) * len(leaves)


def refusal(module: nn.Module, input: Structure = X, state: Structure = H) -> str:
    with pytest.raises(Unfused) as caught:
        capture(module, input, state)
    return str(caught.value)


def operations(captured: Captured) -> list[str]:
    return [node.operation for node in captured.program.nodes]


# Cells by others.

CELLS = [name for name in torchrecurrent.__all__ if name.endswith("Cell")]


@pytest.mark.parametrize("name", CELLS)
def test_cells_from_the_literature(name: str):
    module = getattr(torchrecurrent, name)(HIDDEN, HIDDEN, dtype=torch.float64)
    found = capture(module, H, None)
    check(module, H, found.state, found.returns)
    assert all(torch.equal(state, torch.zeros(2, HIDDEN, dtype=torch.float64)) for state in flatten(found.first_state(found.leaves(), 2)))


def test_there_are_41_of_them():
    assert len(CELLS) == 41


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_of_torch(kind: type[nn.RNNCellBase], bias: bool):
    module = kind(INPUT, HIDDEN, bias=bias, dtype=torch.float64)
    found = check(module, X, (H, H) if kind is nn.LSTMCell else H)
    assert found.program.text == capture(module, X, None).program.text
    assert operations(found).count("product") == 2


def test_the_program_of_an_rnn_cell():
    found = capture(nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64), X, H)
    assert found.program.text == "\n".join(
        [
            "inputs 1",
            "states 1",
            "parameters 2 1 2 1",
            "v0 = product h0 p0",
            "v1 = add v0 p1",
            "v2 = product x0 p2",
            "v3 = add v2 p3",
            "v4 = add v1 v3",
            "v5 = tanh v4",
            "outputs v5",
            "states v5",
        ]
    )


# What the language holds.


def rnn(self: Cell, x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(self.x_h(x) + self.h_h(h))


POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        *(torch.neg, torch.abs, torch.sign, torch.reciprocal, torch.exp, torch.expm1, torch.sin, torch.cos, torch.tan, torch.atan),
        *(torch.sinh, torch.cosh, torch.asinh, torch.erf, torch.sigmoid, torch.tanh, torch.relu, torch.floor, torch.ceil, torch.round),
        *(torch.trunc, torch.square, torch.selu, torch.celu),
    )
} | {
    "sqrt": lambda h: torch.sqrt(h.abs()),
    "rsqrt": lambda h: torch.rsqrt(h.abs() + 1),
    "log": lambda h: torch.log(h.abs() + 1),
    "log1p": lambda h: torch.log1p(h.abs()),
    "softplus": lambda h: F.softplus(h, beta=2, threshold=3),
    "gelu": F.gelu,
    "gelu tanh": lambda h: F.gelu(h, approximate="tanh"),
    "elu": lambda h: F.elu(h, alpha=0.7),
    "leaky_relu": lambda h: F.leaky_relu(h, 0.3),
    "silu": F.silu,
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "threshold": lambda h: F.threshold(h, 0.1, 20.0),
    "clamp": lambda h: h.clamp(-0.5, 0.3),
    "clamp_min": lambda h: h.clamp_min(0.1),
    "clamp_max": lambda h: h.clamp(max=0.1),
    "pow": lambda h: h.abs() ** 1.5 + h**2 + h**3 + 2.0**h,
    "rsub": lambda h: 1 - h,
    "rdiv": lambda h: 2 / (h.abs() + 1),
    "alpha": lambda h: torch.add(h, h * h, alpha=3).sub(h.abs(), alpha=0.5),
    "rsub alpha": lambda h: torch.rsub(h, h * h, alpha=2),
    "addcmul": lambda h: torch.addcmul(h, h, h.abs(), value=0.5),
    "addcdiv": lambda h: torch.addcdiv(h, h, h.abs() + 1, value=0.5),
    "lerp near": lambda h: torch.lerp(h, h * h, 0.3),
    "lerp far": lambda h: torch.lerp(h, h * h, 0.7),
    "lerp by rows": lambda h: torch.lerp(h, h * h, torch.sigmoid(h)),
    "where": lambda h: torch.where(h > 0, h, 0.1 * h) + torch.where(h < 0.5, 1.0, h),
    "where of numbers": lambda h: h * torch.where(h > 0, 2.0, 3.0),
    "masked_fill": lambda h: h.masked_fill(h > 0, 0.3),
    "masks": lambda h: h * ((h > 0) & ~(h > 1) | (h < -1)).double() + h * (h.bool() ^ (h > 0)),
    "isfinite": lambda h: torch.where(torch.isfinite(h) & ~torch.isinf(h) & ~torch.isnan(h), h, h * h),
    "nan_to_num": lambda h: torch.nan_to_num(h / (h - h)) + torch.nan_to_num(h, nan=1.0),
    "maximum": lambda h: torch.maximum(h, h * h) + torch.minimum(h, -h) + torch.atan2(h, h + 3),
    "maximum with a number": lambda h: torch.maximum(h, torch.tensor(0.2, dtype=h.dtype)),
    "prelu": lambda h: F.prelu(h, torch.full((1,), 0.3, dtype=h.dtype)),
    "glu": lambda h: torch.cat([F.glu(h[:, :4], -1), h[:, 2:]], 1),
    "constants": lambda h: h * torch.tensor(0.5) + torch.zeros_like(h) + torch.ones(h.size(0), HIDDEN) * torch.full_like(h, 2),
    "new": lambda h: h + h.new_zeros(h.shape) + h.new_full((h.size(0), 1), 2.0) + h.new_ones(HIDDEN) + torch.eye(HIDDEN).double()[0],
    "casts": lambda h: h + h.float().double() + h.to(torch.bfloat16).type_as(h),
    "detach": lambda h: h * h.detach() + h.data,
    "contiguous": lambda h: h.contiguous().clone() * h.to(h.device),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise(name: str):
    function = POINTWISE[name]
    check(cell(lambda self, x, h: function(self.x_h(x) + h)))


def without_gradient(self: Cell, x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(self.x_h(x))
        weight = self.vector * 2
    return gate * h + h * weight + self.vector


VIEWS: dict[str, Callable[[Cell, Tensor, Tensor], Any]] = {
    "chunk": lambda self, x, h: torch.cat([part * (at + 1) for at, part in enumerate(torch.cat([h, h], 1).chunk(2, -1))], -1)[:, 3:8],
    "uneven chunk": lambda self, x, h: torch.cat(h.chunk(3, 1)[::-1], 1),
    "split": lambda self, x, h: torch.cat(h.split([1, 4], 1)[::-1], 1) + torch.cat(h.split(2, dim=1), 1),
    "unbind": lambda self, x, h: torch.stack(h.unbind(1)[::-1], 1),
    "select": lambda self, x, h: h * h[:, 2:3] + h[:, -1].unsqueeze(1) * h[..., 0, None],
    "narrow": lambda self, x, h: torch.cat([h.narrow(1, 1, 4), h.narrow(-1, 0, 1)], -1),
    "whole slice": lambda self, x, h: h[:][:, :][:, 0:HIDDEN] * 2,
    "view": lambda self, x, h: (h.view(h.size(0), HIDDEN, 1) * x.reshape(-1, 1, INPUT)).flatten(1)[:, :HIDDEN],
    "permute": lambda self, x, h: (h.unsqueeze(2) + x.unsqueeze(1)).permute(0, 2, 1).reshape(h.size(0), -1)[:, 1:6],
    "moved": lambda self, x, h: (h.unsqueeze(2) + x.unsqueeze(1)).movedim(0, 2).transpose(0, 2).flatten(1)[:, :HIDDEN],
    "transposed": lambda self, x, h: (self.h_h.weight @ h.t() + self.vector[:, None]).t(),
    "expand": lambda self, x, h: h[:, :1].expand(-1, HIDDEN) + h.new_zeros(1).expand_as(h) + self.vector.expand(h.size(0), -1) * h,
    "repeat": lambda self, x, h: h[:, :1].repeat(1, HIDDEN) + self.vector.repeat(h.size(0), 1) + self.vector[:1].repeat(h.size(0), HIDDEN),
    "squeeze": lambda self, x, h: h.unsqueeze(0).squeeze() + h.unsqueeze(1).squeeze(1),
    "stack": lambda self, x, h: torch.stack([h, h * 2, h * 3], 1)[:, 1] + torch.stack([h, h * h], 0)[1],
    "row of numbers": lambda self, x, h: h * x[:, 0].view(-1, 1) + (h[:, 1] * x[:, 1])[:, None],
    "no_grad": without_gradient,
}


@pytest.mark.parametrize("name", VIEWS)
def test_parts_of_rows(name: str):
    check(cell(VIEWS[name]))


ALONG_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda h: h * h.sum(1, keepdim=True) + h.sum(-1)[:, None] + h.abs().view(-1, 1, HIDDEN).sum((1, 2))[:, None],
    "sum of bools": lambda h: h * (h > 0).sum(1, keepdim=True).to(h.dtype) + (h > 1).mean(1, keepdim=True, dtype=h.dtype),
    "sum of the first dimension of a row": lambda h: h + torch.stack([h, 2 * h, h * h], 1).sum(1) * torch.stack([h, h.abs()], 0).mean(0),
    "mean": lambda h: h - h.mean(1, keepdim=True) + h.mean(-1).unsqueeze(1),
    "var": lambda h: h * h.var(1, keepdim=True) + h.var(1, correction=0)[:, None] * torch.var_mean(h, 1, keepdim=True)[1],
    "std": lambda h: h / h.std(1, keepdim=True) + sum(torch.std_mean(h, 1, unbiased=False, keepdim=True)),
    "std of equal numbers": lambda h: h + h[:, :1].expand(-1, HIDDEN).std(1, keepdim=True),
    "amax": lambda h: h - h.amax(1, keepdim=True) * h.amin(-1)[:, None] + torch.aminmax(h * h, dim=1, keepdim=True).max,
    "amax of equal numbers": lambda h: h * torch.cat([h, h], 1).amax(1, keepdim=True) * torch.cat([h, h], 1).min(1).values[:, None],
    "max": lambda h: h * h.max(1, keepdim=True).values + h.min(-1)[0].unsqueeze(1) * torch.cat([h, h], 1).max(1)[0][:, None],
    "cumsum": lambda h: h * h.cumsum(1) + torch.stack([h, h * h], 1).cumsum(1)[:, 1],
    "softmax": lambda h: h.softmax(1) * h + torch.stack([h, h * h], 2).softmax(1)[:, :, 1] + F.softmin(h, 1),
    "log_softmax": lambda h: h.log_softmax(-1) * h,
    "logsumexp": lambda h: h - h.logsumexp(1, keepdim=True) + torch.logsumexp(200 * h, 1)[:, None],
    "softmax of few": lambda h: h * h.masked_fill(h > h.amin(1, keepdim=True), -torch.inf).softmax(1),
    "norm": lambda h: h / h.norm(dim=1, keepdim=True) + h.norm(1, 1)[:, None] + torch.linalg.vector_norm(h, torch.inf, 1, keepdim=True),
    "norm of nothing": lambda h: h + (0 * h).norm(dim=1, keepdim=True),
    "normalize": lambda h: F.normalize(h, dim=1) + F.normalize(h, p=1.0, dim=-1),
    "layer_norm": lambda h: F.layer_norm(h, (HIDDEN,)) + F.layer_norm(h.view(-1, 1, HIDDEN), (1, HIDDEN), eps=0.1)[:, 0],
    "layer_norm of each": lambda h: F.layer_norm(torch.stack([h, h * h], 1), (HIDDEN,), torch.full((HIDDEN,), 0.5, dtype=h.dtype)).sum(1),
    "rms_norm": lambda h: F.rms_norm(h, (HIDDEN,)) + F.rms_norm(h, (HIDDEN,), eps=0.1),
    "cosine_similarity": lambda h: (
        h * F.cosine_similarity(h, h.sin(), eps=2.0)[:, None] + nn.CosineSimilarity(-1)(h, h[:, :1]).unsqueeze(1)
    ),
    "cosine_similarity of nothing": lambda h: h + F.cosine_similarity(0 * h, h, 1).unsqueeze(1),
    "group_norm": lambda h: F.group_norm(torch.cat([h, h.sin()], 1), 2)[:, :HIDDEN] + F.group_norm(h.view(-1, HIDDEN, 1), 1)[..., 0],
}


@pytest.mark.parametrize("name", ALONG_ROWS)
def test_along_rows(name: str):
    """Some rows have numbers that are equal."""
    function = ALONG_ROWS[name]
    check(cell(lambda self, x, h: function(self.x_h(x) + h)))


def test_norms_of_modules():
    class Normed(Cell):
        def __init__(self) -> None:
            super().__init__(lambda self, x, h: self.group(torch.tanh(self.rms(self.x_h(x)) + self.norm(self.h_h(h)))))
            self.norm, self.rms, self.group = nn.LayerNorm(HIDDEN), nn.RMSNorm(HIDDEN), nn.GroupNorm(1, HIDDEN)
            self.double()

    check(Normed())


PRODUCTS: dict[str, Callable[[Cell, Tensor, Tensor], Any]] = {
    "matmul": lambda self, x, h: h @ self.h_h.weight + torch.matmul(x, self.x_h.weight.t()),
    "mm": lambda self, x, h: torch.mm(h, self.h_h.weight.transpose(0, 1)),
    "addmm": lambda self, x, h: torch.addmm(self.vector, h, self.h_h.weight, beta=2, alpha=0.5) + torch.addmm(h, x, self.x_h.weight.t()),
    "mv": lambda self, x, h: h * (h @ self.vector).unsqueeze(1) + torch.mv(h, self.vector)[:, None],
    "linear": lambda self, x, h: F.linear(h, self.h_h.weight * 2, self.vector),
    "einsum": lambda self, x, h: torch.einsum("bi,oi->bo", h, self.h_h.weight),
    "einsum in turn": lambda self, x, h: torch.einsum("oi,bi->bo", self.h_h.weight, h),
    "cat": lambda self, x, h: F.linear(torch.cat([x, h], 1), torch.cat([self.x_h.weight, self.h_h.weight], 1), self.h_h.bias),
    "antisymmetric": lambda self, x, h: h @ (self.h_h.weight - self.h_h.weight.t() - self.alpha * torch.eye(HIDDEN).double()).t(),
    "of chunks": lambda self, x, h: torch.cat([h @ part.t() for part in torch.cat([self.h_h.weight] * 2).chunk(5)], 1)[:, :HIDDEN],
    "of a buffer": lambda self, x, h: h @ torch.outer(self.scale, self.vector),
    "a matrix for each head": lambda self, x, h: torch.einsum(
        "bki,kio->bko", torch.stack([h, h * h], 1), torch.stack([self.h_h.weight, self.h_h.weight.t()])
    ).sum(1),
    "heads first": lambda self, x, h: torch.bmm(self.h_h.weight.expand(3, -1, -1), torch.stack([h.t(), h.t().abs(), -h.t()])).amax(0).t(),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str):
    assert "product" in operations(check(cell(PRODUCTS[name])))


ROWS_OF_TWO: dict[str, Callable[[Cell, Tensor, Tensor], Any]] = {
    "linear": lambda self, x, h: torch.tanh(self.h_h(h) + self.x_h(x)[:, None]),
    "linear without bias": lambda self, x, h: F.linear(h, self.h_h.weight) @ self.h_h.weight,
    "seen as more sequences": lambda self, x, h: torch.sigmoid(self.h_h(h.view(-1, HIDDEN)) * self.vector).view_as(h) + h,
    "softmax of more sequences": lambda self, x, h: (h.view(-1, HIDDEN).softmax(-1) + h.view(-1, HIDDEN).log_softmax(1)).view_as(h),
    "sums of more sequences": lambda self, x, h: (
        (v := h.view(-1, HIDDEN)) / (1 + v.abs().sum(1, keepdim=True)) * v.std(-1, keepdim=True)
    ).view_as(h),
    "a multiple of the size": lambda self, x, h: h.view(2 * h.size(0), HIDDEN).softmax(-1).view(h.size(0) * 1, 2, -1),
    "parts as more sequences": lambda self, x, h: (
        h + F.layer_norm(h[:, :, :4].reshape(-1, 2), (2,), eps=0.1).view(-1, 2, 4).sum(2, keepdim=True)
    ),
    "one number of each": lambda self, x, h: h * (h.reshape(-1, HIDDEN).amax(1) + h.reshape(-1, HIDDEN).mean(-1)).view(-1, 2, 1),
    "layer_norm of more sequences": lambda self, x, h: F.layer_norm(h.view(-1, HIDDEN), (HIDDEN,), self.vector, self.scale).view_as(h),
    "similarity of more sequences": lambda self, x, h: h * F.cosine_similarity(h.view(-1, HIDDEN), self.vector).view(-1, 2, 1),
    "cat": lambda self, x, h: F.linear(torch.cat([h, h * 2], -1), torch.cat([self.h_h.weight, self.h_h.weight], 1)),
    "cat of dimensions": lambda self, x, h: self.h_h(torch.cat([h, h[:, :1]], 1))[:, 1:],
    "mixed": lambda self, x, h: h * torch.sigmoid(h.transpose(1, 2).reshape(h.shape)),
}


@pytest.mark.parametrize("name", ROWS_OF_TWO)
def test_rows_of_two_dimensions(name: str):
    check(cell(ROWS_OF_TWO[name]), X, spec(2, HIDDEN))


def test_sequences_that_are_merged_stay_together():
    assert_refused(cell(lambda self, x, h: h.view(-1, HIDDEN)[:, :1]), "mixes sequences", state=spec(2, HIDDEN))
    assert_refused(cell(lambda self, x, h: h.view(-1, HIDDEN) + h[:, :1]), "mixes sequences", state=spec(2, HIDDEN))
    assert_refused(cell(lambda self, x, h: h.view(-1, HIDDEN).softmax(0)), "softmax mixes sequences", state=spec(2, HIDDEN))
    assert_refused(cell(lambda self, x, h: h - h.view(-1, HIDDEN).sum()), "sum mixes sequences", state=spec(2, HIDDEN))
    assert_refused(cell(lambda self, x, h: F.group_norm(h.view(-1, HIDDEN), 1)), "mixes sequences", state=spec(2, HIDDEN))
    assert "no row for each sequence" in refusal(cell(lambda self, x, h: h.view(-1, HIDDEN)), X, spec(2, HIDDEN))


def test_the_input_has_its_own_product_in_one_of_a_cat():
    found = check(cell(PRODUCTS["cat"]))
    assert [str(node) for node in found.program.nodes[:2]] == ["product x0 p0", "product h0 p1"]
    assert "cat" not in operations(found)


def test_a_weight_is_not_transposed_twice():
    found = capture(cell(lambda self, x, h: x @ self.x_h.weight.t() + h @ self.h_h.weight.t()), X, H)
    names = dict(zip(found.names(), found.parameters(found.leaves()), strict=True))
    assert list(names) == ["x_h.weight", "h_h.weight"]
    assert [parameter.is_leaf for parameter in found.parameters(found.leaves())] == [True, True]


def test_what_follows_from_parameters_is_not_in_the_program():
    found = check(cell(lambda self, x, h: h * torch.sigmoid(self.vector * self.alpha).exp()))
    assert [str(node) for node in found.program.nodes] == ["mul h0 p0"]


def test_several_results_of_parameters_are_computed_once():
    found = capture(cell(lambda self, x, h: torch.cat([a * h[:, :1] for a in self.vector.split([2, 3])], 1)), X, H)
    first, second = found.parameters(found.leaves())
    assert first.grad_fn is second.grad_fn


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_every_operator_of_torchs_cells_is_in_the_language(kind: type[nn.RNNCellBase]):
    module = kind(INPUT, HIDDEN)
    state = torch.rand(4, HIDDEN)
    given = (state, state) if kind is nn.LSTMCell else state
    graph = make_fx(lambda *inputs: torch.func.functional_call(module, inputs[0], inputs[1:]))(
        dict(module.named_parameters()), torch.rand(4, INPUT), given
    )
    names = {node.target.overloadpacket.__name__.removesuffix("_") for node in graph.graph.nodes if isinstance(node.target, OpOverload)}
    assert names & {"addmm", "tanh"} == {"addmm", "tanh"}
    assert names - set(OPERATORS) == set()


def test_it_takes_milliseconds():
    module = nn.LSTMCell(64, 128)
    specs = spec(64, dtype=torch.float32), (spec(128, dtype=torch.float32),) * 2
    times = []
    for _ in range(10):
        began = time.process_time()
        capture(module, *specs)
        times.append(time.process_time() - began)
    assert min(times) < 0.03  # measured: 0.007


# Structures.


class Pair(NamedTuple):
    h: Any
    c: Any


@pytest.mark.parametrize("state", [(H, H), [H, H], Pair(H, H), (H, (H, [H]))])
def test_structures_of_states(state: Structure):
    def step(self, x, s):
        leaves = flatten(s)
        return mapped(s, lambda leaf: torch.tanh(self.x_h(x) + leaf * leaves[-1]))

    check(cell(step), X, state, "state")


def test_output_and_state():
    found = check(cell(lambda self, x, h: (self.h_h(h), h * torch.sigmoid(self.x_h(x)))))
    assert found.program.outputs != found.program.next_states


def test_several_inputs():
    found = check(cell(lambda self, xs, h: h * xs[1].unsqueeze(-1) + self.x_h(xs[0])), (X, spec()), H)
    assert found.program.inputs == (1, 0)


def test_a_mask_and_integers_among_the_inputs():
    inputs = (X, spec(dtype=torch.bool), spec(HIDDEN, dtype=torch.int64))
    check(cell(lambda self, xs, h: torch.where(xs[1].unsqueeze(1), self.x_h(xs[0]), h) + xs[2]), inputs, H)


def test_two_states_that_the_cell_swaps():
    found = capture(cell(lambda self, x, s: (s[1] * 2 + s[0], s[0])), X, (H, H), "state")
    assert [str(node) for node in found.program.nodes] == ["mul h1 2", "add v0 h0"]
    assert list(map(str, found.program.next_states)) == ["v1", "h0"]


@pytest.mark.parametrize("widths", [(1, 1), (2, 4), (7, 7), (11, 17), (3, 6), (5, 8), (15, 9)])
def test_widths(widths: tuple[int, int]):
    module = nn.LSTMCell(*widths, dtype=torch.float64)
    check(module, spec(widths[0]), (spec(widths[1]),) * 2)


def test_a_width_that_only_an_intermediate_value_has():
    def step(self, x, h):
        wide = torch.cat([h, h, h, h, h, x, x, x, x[:, :1]], 1)  # 35 wide: of 5 and of 7
        return wide[:, 30:]

    check(cell(step))


def test_float32_and_mixed_dtypes():
    module = nn.GRUCell(INPUT, HIDDEN)
    found = capture(module, spec(INPUT, dtype=torch.float32), spec(HIDDEN, dtype=torch.float32))
    assert found.state.dtype == torch.float32
    check(cell(lambda self, x, h: h + self.x_h(x.double())), spec(INPUT, dtype=torch.float32), H)


def test_autocast_inference_mode_and_no_grad_around_a_capture_have_no_say():
    module = nn.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    expected = capture(module, X, (H, H)).program.text
    for context in (torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.no_grad()):
        with context:
            assert capture(module, X, (H, H)).program.text == expected


def test_within_transforms_and_fake_tensors():
    module = nn.LSTMCell(INPUT, HIDDEN, dtype=torch.float64)
    expected = capture(module, X, (H, H)).program.text
    found = []
    torch.func.vmap(torch.func.grad(lambda x: found.append(capture(module, X, (H, H)).program.text) or x.sum()))(torch.ones(3, 2))
    with torch._subclasses.FakeTensorMode():
        found.append(capture(module, X, (H, H)).program.text)
    assert found == [expected, expected]


# In place.


def test_intermediate_values_change_in_place():
    def step(self, x, h):
        gates = self.x_h(x) + self.h_h(h)
        first, second = gates[:, :2], gates[:, 2:]
        first.mul_(2)
        second.mul_(3).neg_().add_(x[:, :1])
        return torch.sigmoid_(torch.cat([first, second], 1))

    check(cell(step))


def test_what_was_changed_through_a_view_is_refused():
    def step(self, x, h):
        gates = self.x_h(x) + h
        gates[:, :2].sigmoid_()
        return gates * h  # here

    assert_refused(cell(step), "sigmoid_")


def test_a_view_that_was_not_touched_is_not_stale():
    def step(self, x, h):
        gates = self.x_h(x) + h
        first, second = gates[:, :2], gates[:, 2:]
        first.sigmoid_()
        return torch.cat([first, second], 1)

    check(cell(step))


def test_filling_new_tensors():
    def step(self, x, h):
        new = torch.empty_like(h)
        new.copy_(self.x_h(x))
        zeros = torch.zeros(h.size(0), HIDDEN, dtype=h.dtype)
        rest = zeros[:, 2:]
        zeros[:, :2] = h[:, :2] * 2
        ones = torch.empty(h.size(0), HIDDEN, dtype=h.dtype).fill_(1)
        return new * ones + torch.cat([zeros[:, :2], rest], 1)

    check(cell(step))


def test_in_place_keeps_the_dtype():
    def step(self, x, h):
        low = h.float()
        low += self.x_h(x)
        return low.double()

    assert "cast" in operations(check(cell(step)))


def test_relu_in_place():
    module = cell(lambda self, x, h: self.act(self.x_h(x) + h))
    module.act = nn.ReLU(inplace=True)
    check(module)


# What is refused.


def line_of(function: Callable[..., Any]) -> str:
    """The number of the line with `# here`, or of the first one."""
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next((at for at, line in enumerate(lines) if '# here' in line), 0)}"


def assert_refused(module: Cell, *words: str, input: Structure = X, state: Structure = H) -> None:
    found = refusal(module, input, state)
    for word in (*words, line_of(type(module).step)):
        assert word in found


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def in_grad_mode_off(self, x, h):
    y = h * 2
    with torch.no_grad():
        y.mul_(3)  # here
    return y


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "bool": (lambda self, x, h: h if h.sum(1)[0] > 0 else x, "mixes sequences"),
    "if": (lambda self, x, h: h if (self.vector > 0).any() else -h, "value of a tensor"),
    "item": (lambda self, x, h: h * self.vector[0].item(), "value of a tensor"),
    "float": (lambda self, x, h: h * float(self.vector[0]), "value of a tensor"),
    "tolist": (lambda self, x, h: h * self.vector.tolist()[0], "tolist"),
    "numpy": (lambda self, x, h: h * torch.from_numpy(self.vector.detach().numpy()), "NumPy"),
    "poisson": (lambda self, x, h: h + torch.poisson(h.abs()), "poisson draws random numbers"),
    "normal of a tensor": (lambda self, x, h: torch.normal(h, 1.0), "torch.normal of a tensor"),
    "a generator": (lambda self, x, h: h + torch.rand(h.shape, generator=GENERATOR), "a generator of its own"),
    "a distribution": (lambda self, x, h: torch.distributions.Normal(h, 1.0, validate_args=True).rsample(), "validate_args=False"),
    "a seed": (lambda self, x, h: (torch.manual_seed(1), h + torch.rand_like(h))[1], "the step sets PyTorch's random numbers"),
    "a seed alone": (lambda self, x, h: (torch.manual_seed(1), h)[1], "sets PyTorch's random numbers"),
    "a seed by another name": (lambda self, x, h: (MANUAL_SEED(12345), h)[1], "sets PyTorch's random numbers"),
    "a seed of its own": (lambda self, x, h: h + seeded(h), "sets PyTorch's random numbers"),
    "dropout of integers": (lambda self, x, h: h + F.dropout((h > 0).long(), 0.5), "be cast to"),
    "dropout of a weight": (lambda self, x, h: h @ F.dropout(self.h_h.weight), "not a row for each sequence"),
    "a mask for all sequences": (lambda self, x, h: h * torch.rand(HIDDEN), "not a row for each sequence"),
    "a probability for all sequences": (lambda self, x, h: h * torch.bernoulli(self.scale), "not a row for each sequence"),
    "dropout of heads": (lambda self, x, h: F.dropout(h.view(-1, HIDDEN, 1).flatten(0, 1)).view(h.shape), "not a row for each sequence"),
    "state in place": (lambda self, x, h: h.mul_(2), "its state in place, with mul_"),
    "input in place": (lambda self, x, h: h + x.relu_().sum(), "its input in place, with relu_"),
    "part of a state in place": (lambda self, x, h: h[:, 1:].add_(1), "its state in place, with add_"),
    "buffer in place": (lambda self, x, h: h * self.scale.add_(1), "self.scale in place, with add_"),
    "parameter in place": (lambda self, x, h: h * self.vector.data.mul_(2), "self.vector in place, with mul_"),
    "attribute": (lambda self, x, h: (setattr(self, "alpha", 1), h)[1], "sets self.alpha"),
    "parameter made": (lambda self, x, h: h * nn.Parameter(torch.ones(HIDDEN).double()), "requires_grad"),
    "hook": (lambda self, x, h: ((y := h * 2).register_hook(lambda g: g.clamp(-1, 1)), y)[1], "hook"),
    "requires_grad": (lambda self, x, h: h * 2 if x.requires_grad else h, "requires_grad"),
    "requires_grad_": (lambda self, x, h: (h * 2).detach().requires_grad_(), "requires_grad"),
    "grad_fn": (lambda self, x, h: h if h.grad_fn is None else -h, "grad_fn"),
    "grad": (lambda self, x, h: h if self.vector.grad is None else -h, ".grad"),
    "is_leaf": (lambda self, x, h: h if h.is_leaf else -h, "is_leaf"),
    "stride": (lambda self, x, h: h * h.stride(0), "strides"),
    "is_contiguous": (lambda self, x, h: h if h.is_contiguous() else -h, "is_contiguous"),
    "data_ptr": (lambda self, x, h: h * h.data_ptr(), "data_ptr"),
    "set data": (lambda self, x, h: (setattr(h, "data", x), h)[1], ".data"),
    "mean over the batch": (lambda self, x, h: h - h.mean(0), "mean mixes sequences"),
    "sum of all": (lambda self, x, h: h - h.sum(), "sum mixes sequences"),
    "batch norm": (lambda self, x, h: F.batch_norm(h, None, None, training=True), "batch_norm mixes sequences"),
    "select": (lambda self, x, h: h + h[0], "mixes sequences"),
    "slice": (lambda self, x, h: h + h[:1], "mixes sequences"),
    "flip": (lambda self, x, h: h.flip(0), "flip"),
    "merged": (lambda self, x, h: h.view(-1)[:HIDDEN], "mixes sequences"),
    "cat of sequences": (lambda self, x, h: torch.cat([h, h], 0)[: h.size(0)], "mixes sequences"),
    "iteration": (lambda self, x, h: torch.stack([2 * row for row in h]), "mixes sequences"),
    "products of rows": (lambda self, x, h: h @ (h.t() @ h), "matrix product of two values"),
    "batch of products": (lambda self, x, h: torch.bmm(h.unsqueeze(2), h.unsqueeze(1))[:, 0], "batch of matrix products"),
    "size as a number": (lambda self, x, h: h / x.size(0), "number of sequences"),
    "size in arithmetic": (lambda self, x, h: h * (1 / x.shape[0]), "number of sequences"),
    "a multiple as a number": (lambda self, x, h: h * (2 * x.shape[0]), "number of sequences"),
    "a size squared": (lambda self, x, h: h * (x.shape[0] * x.shape[0]), "number of sequences"),
    "a size times a fraction": (lambda self, x, h: h * (x.shape[0] * 0.5), "number of sequences"),
    "size compared": (lambda self, x, h: h if x.size(0) > 3 else -h, "number of sequences"),
    "len": (lambda self, x, h: h if len(x) > 3 else -h, "len()"),
    "size as a float": (lambda self, x, h: h * float(x.numel()), "number of sequences"),
    "size in a literal": (lambda self, x, h: h * len(range(x.size(0))), "number of sequences"),
    "softmax over the batch": (lambda self, x, h: torch.softmax(h, 0), "softmax mixes sequences"),
    "layer_norm over the batch": (lambda self, x, h: F.layer_norm(h.t(), (h.size(0),)).t(), "layer_norm mixes sequences"),
    "maximum of all": (lambda self, x, h: h / h.max(), "max mixes sequences"),
    "where a maximum is": (lambda self, x, h: h * h.max(1).indices[:, None], "outside the step"),
    "a norm of order 3": (lambda self, x, h: h / h.norm(3, dim=1, keepdim=True), "a norm of order 3"),
    "cumprod": (lambda self, x, h: h.cumprod(1), "cumprod is not in the language"),
    "maximum of bools": (lambda self, x, h: h * (h > 0).amax(1, keepdim=True), "amax of numbers that are not floating point"),
    "from outside": (lambda self, x, h: h * OUTSIDE, "outside"),
    "own gradient": (lambda self, x, h: Straight.apply(h) * 2, "Straight"),
    "own gradient of a parameter": (lambda self, x, h: Straight.apply(self.vector) * h, "Straight"),
    "behind autograd's back": (in_grad_mode_off, "autograd"),
    "through data": (lambda self, x, h: ((y := h * 2), y.data.mul_(3), y)[2], "autograd"),
    "out": (lambda self, x, h: torch.mul(h, 2, out=torch.empty_like(h)), "mul"),
    "addmm without its bias": (lambda self, x, h: torch.addmm(self.vector, h, self.h_h.weight, beta=0), "beta=0"),
    "complex": (lambda self, x, h: (h * 1j).real, "complex"),
    "an error of its own": (lambda self, x, h: h + {}["none"], "KeyError"),
    "integer division": (lambda self, x, h: h // 2, "floor_divide"),
    "memory without values": (lambda self, x, h: h + torch.empty_like(h), "nothing was written"),
    "sequences by sequences": (lambda self, x, h: h + (h[:, :1] * h[:, :1].t())[:, :1], "mixes sequences"),
}


def seeded(h: Tensor) -> Tensor:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return torch.rand_like(h)


MANUAL_SEED = torch.manual_seed
GENERATOR = torch.Generator()
OUTSIDE = torch.ones(HIDDEN, dtype=torch.float64)
WITHOUT_LINE = {"own gradient", "own gradient of a parameter", "a seed by another name", "a seed of its own"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_line(name: str):
    step, word = REFUSED[name]
    module = cell(step)
    if name in WITHOUT_LINE:
        assert word in refusal(module)
    else:
        assert_refused(module, word)


def test_a_parameter_made_of_a_state_is_refused():
    assert "parameter" in refusal(cell(lambda self, x, h: nn.Parameter(h) * 2))


@pytest.mark.parametrize("what", [torch.int64, torch.bool])
def test_states_that_are_not_floating_point(what: torch.dtype):
    assert "must be floating point" in refusal(cell(lambda self, x, h: h + 1), X, spec(HIDDEN, dtype=what))


def test_a_state_that_changes_its_form():
    assert "(B, 5) of torch.float64 is (B, 3)" in refusal(cell(lambda self, x, h: x))
    assert "torch.float32 after the step" in refusal(cell(lambda self, x, h: h.float()))


def test_results_without_a_row_for_each_sequence():
    assert "no row for each sequence" in refusal(cell(lambda self, x, h: (self.vector, h)))
    assert "no row for each sequence" in refusal(cell(lambda self, x, h: (h.t(), h)))


def test_a_row_without_elements():
    assert "rows must have elements" in refusal(cell(lambda self, x, h: h), spec(0))


def test_a_cell_that_returns_nonsense():
    with pytest.raises(TypeError, match="expected it to return"):
        capture(cell(lambda self, x, h: None), X, H)
    with pytest.raises(TypeError, match="expected it to return tensors, got int"):
        capture(cell(lambda self, x, h: (1, 2)), X, (H, H))


def hooked(kind: str) -> Cell:
    module = cell(rnn)
    getattr(module.x_h, f"register_{kind}")(lambda *_: None)
    return module


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_hooks(kind: str):
    found = refusal(hooked(kind))
    assert "Linear has hooks" in found


def test_hooks_of_all_modules():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hooks of all modules" in refusal(cell(rnn))
    finally:
        handle.remove()


def test_old_weight_norm():
    module = cell(rnn)
    nn.utils.weight_norm(module.x_h)
    assert "parametrization" in refusal(module)


def test_script_and_compiled_modules():
    assert "ScriptModule" in refusal(torch.jit.script(nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64)))
    module = nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64)
    assert "is compiled" in refusal(torch.compile(module))
    module.compile()
    assert "is compiled" in refusal(module)


def test_lazy_and_unusual_parameters():
    module = cell(rnn)
    module.x_h = nn.LazyLinear(HIDDEN)
    assert "not initialized" in refusal(module)
    module.x_h = nn.Linear(INPUT, HIDDEN, dtype=torch.complex64)
    assert "must be real" in refusal(module)


def test_a_list_that_the_step_fills():
    module = cell(lambda self, x, h: (self.seen.append(1), h)[1])
    module.seen = []
    assert "changes self.seen" in refusal(module)
    assert module.seen == []


# What a capture leaves alone.


def test_a_capture_leaves_everything_as_it_was():
    module = nn.Sequential(nn.Linear(INPUT, HIDDEN), nn.BatchNorm1d(HIDDEN))
    module.forward = lambda x, h: h
    module.notes = {"list": [1, 2], "tensor": torch.ones(2)}
    torch.manual_seed(3)
    before = (copy.deepcopy(module.state_dict()), torch.get_rng_state(), random.getstate(), repr(module.notes))
    objects = {name: (id(tensor), tensor._version) for name, tensor in module.state_dict(keep_vars=True).items()}
    capture(module, X, H)
    assert {name: (id(tensor), tensor._version) for name, tensor in module.state_dict(keep_vars=True).items()} == objects
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), module.state_dict().values(), strict=True))
    assert torch.equal(before[1], torch.get_rng_state())
    assert (before[2], before[3]) == (random.getstate(), repr(module.notes))
    assert all(parameter.grad is None for parameter in module.parameters())


def test_no_class_of_the_users_learns_of_shadows():
    made = []

    class Registered(nn.RNNCell):
        def __init_subclass__(cls) -> None:
            made.append(cls)

    capture(Registered(INPUT, HIDDEN, dtype=torch.float64), X, H)
    assert made == []


# What a cell is made of.


def test_tied_parameters():
    module = cell(lambda self, x, h: torch.tanh(self.h_h(h) + self.again(h) + self.x_h(x)))
    module.again = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
    module.again.weight = module.h_h.weight
    found = check(module)
    assert sorted(found.names()) == ["again.bias", "h_h.bias", "h_h.weight", "x_h.bias", "x_h.weight"]
    module.again.weight = nn.Parameter(module.h_h.weight.detach().clone())
    assert not found.holds()


class Closure(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
        linear = self.linear
        self.hidden = [{"inner": (nn.Linear(INPUT, HIDDEN, dtype=torch.float64),)}]
        self.ways = (self.method, lambda h: linear(h), partial(F.leaky_relu, negative_slope=0.3))
        self.constants = {"a": torch.rand(HIDDEN, dtype=torch.float64)}

    def method(self, h: Tensor) -> Tensor:
        return h * self.linear.bias

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = h + self.hidden[0]["inner"][0](x) * self.constants["a"]
        for way in self.ways:
            h = way(h)
        return h


def test_modules_and_tensors_in_containers_methods_and_closures():
    module = Closure()
    found = check(module)
    assert "constants['a']" in found.names()
    module.constants["a"] = torch.rand(HIDDEN, dtype=torch.float64)
    x, h = random_like(X), random_like(H)
    torch.testing.assert_close(evaluated(found, [x], [h])[0], module(x, h), rtol=1e-12, atol=1e-12)
    assert found.holds()


class OfClass(nn.Module):
    SCALE = torch.full((HIDDEN,), 0.7, dtype=torch.float64)
    power = 3

    @property
    def weight(self) -> Tensor:
        return self.v / self.v.norm()

    def __init__(self):
        super().__init__()
        self.v = nn.Parameter(torch.rand(HIDDEN, HIDDEN, dtype=torch.float64))
        self.several = nn.ParameterList([torch.rand(HIDDEN, dtype=torch.float64) for _ in range(2)])

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (h @ self.weight) * self.SCALE + h**self.power * self.several[0] * self.several[1]


def test_class_attributes_and_properties():
    found = check(OfClass())
    try:
        OfClass.power = 2
        assert not found.holds()
    finally:
        OfClass.power = 3
    assert found.holds()


class Drop(nn.Module):
    """A parametrization that draws random numbers."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.5)


def test_parametrizations_are_read_once_and_not_run_in_the_capture():
    module = nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64)
    parametrizations.weight_norm(module, "weight_hh")
    parametrizations.spectral_norm(module, "weight_ih")
    parametrize.register_parametrization(module, "bias_hh", Drop())
    state = copy.deepcopy(module.state_dict())
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    found = capture(module, X, H)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), module.state_dict().values(), strict=True))
    assert set(found.names()) == {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    x, h = random_like(X), random_like(H)
    with parametrize.cached():
        torch.testing.assert_close(evaluated(found, [x], [h])[0], module(x, h), rtol=1e-12, atol=1e-12)


def test_parameters_that_are_put_in_for_a_call():
    module = nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64)
    found = capture(module, X, H)
    other = {name: torch.randn_like(tensor) for name, tensor in module.named_parameters()}

    def read(*_: Any) -> list[Tensor]:
        return found.parameters(found.leaves())

    module.forward = read
    assert {id(tensor) for tensor in torch.func.functional_call(module, other, (None,))} == {id(tensor) for tensor in other.values()}


# First states.


class Learned(nn.Module):
    """A state that is learned."""

    def __init__(self, expand: bool):
        super().__init__()
        self.linear = nn.Linear(INPUT, HIDDEN, dtype=torch.float64)
        self.h0 = nn.Parameter(torch.rand(HIDDEN, dtype=torch.float64))
        self.expand = expand

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = torch.sigmoid(self.h0)
            h = h.expand(x.size(0), -1) if self.expand else h
        return torch.tanh(self.linear(x) * h + h)


@pytest.mark.parametrize("expand", [True, False])
def test_a_learned_first_state(expand: bool):
    module = Learned(expand)
    found = capture(module, X, None)
    state = found.first_state(found.leaves(), 3)
    torch.testing.assert_close(state, torch.sigmoid(module.h0).expand(3, -1))
    state.sum().backward()
    torch.testing.assert_close(module.h0.grad, 3 * torch.sigmoid(module.h0).detach() * torch.sigmoid(-module.h0).detach())
    check(module)


class Own(nn.Module):
    """A cell whose state may be left out."""

    def __init__(self, first: Callable[..., Any], step: Callable[..., Any]):
        super().__init__()
        self.first, self.step = first, step

    def forward(self, x: Tensor, s: Any = None) -> Any:
        return self.step(x, self.first(x) if s is None else s)


def test_first_states_of_every_kind():
    found = capture(Own(torch.ones_like, lambda x, h: (h + x, h * 2)), X, None)
    assert (found.returns, found.state) == ("output_and_state", X)
    assert torch.equal(found.first_state(found.leaves(), 2), torch.ones(2, INPUT, dtype=torch.float64))
    found = capture(Own(lambda x: (torch.zeros_like(x), x.new_full((x.size(0), 1), 3.0)), lambda x, s: (s[0] + x, s[1] * 2)), X, None)
    assert (found.returns, found.state) == ("state", (X, spec(1)))
    assert torch.equal(found.first_state(found.leaves(), 2)[1], torch.full((2, 1), 3.0, dtype=torch.float64))


def test_a_given_state_is_no_first_state():
    found = capture(nn.RNNCell(INPUT, HIDDEN, dtype=torch.float64), X, H)
    with pytest.raises(AssertionError):
        found.first_state(found.leaves(), 2)


def test_a_state_that_cannot_be_left_out():
    with pytest.raises(NoDefault, match="cannot be called without"):
        capture(cell(rnn), X, None)
    with pytest.raises(NoDefault, match="TypeError"):
        capture(Own(lambda x: None, lambda x, h: h + x), X, None)


@pytest.mark.parametrize(
    "module",
    [
        Own(lambda x: x * 2, lambda x, h: h + x),
        Own(lambda x: 0, lambda x, h: h + x if isinstance(h, Tensor) else x),
    ],
    ids=["of the input", "another step"],
)
def test_first_states_that_cannot_be_told(module: nn.Module):
    with pytest.raises(Unfused, match="first state"):
        capture(module, X, None)


def test_a_result_that_may_be_both():
    def step(x, s):
        h = s[0] if isinstance(s, tuple) else s
        return h + x, h + x

    module = Own(lambda x: torch.zeros_like(x), step)
    with pytest.raises(ValueError, match="returns"):
        capture(module, X, None)
    assert capture(module, X, None, "output_and_state").state == X


class Cached(nn.Module):
    """A cell that keeps what it has computed from its parameters."""

    def __init__(self):
        super().__init__()
        self.vector = nn.Parameter(torch.rand(HIDDEN, dtype=torch.float64))

    @functools.cached_property
    def gate(self) -> Tensor:
        return torch.sigmoid(self.vector)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h * self.gate


def test_a_step_that_keeps_what_it_computes():
    assert "changes self.gate" in refusal(Cached())


def test_a_list_of_the_class_that_the_step_fills():
    module = cell(lambda self, x, h: (self.seen.append(1), h)[1])
    type(module).seen = []
    assert "changes self.seen" in refusal(module)
    assert type(module).seen == []


def test_functions_that_cannot_be_seen_through():
    module = cell(lambda self, x, h: self.scripted(h))
    module.scripted = torch.jit.script(torch_tanh)
    assert "ScriptFunction" in refusal(module)


def torch_tanh(h: Tensor) -> Tensor:
    return torch.tanh(h)


def test_a_cell_may_ask_for_its_class():
    module = OfItsClass()
    check(module)
    assert capture(module, X, H).program.text == capture(module, X, H).program.text


class OfItsClass(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h * 2 if self.__class__ is OfItsClass and isinstance(self, OfItsClass) else -h


def test_memory_that_is_looked_at_otherwise():
    assert "as_strided" in refusal(cell(lambda self, x, h: h * self.vector.as_strided((1,), (1,), 2)))
    assert "unsqueeze_" in refusal(cell(lambda self, x, h: (h * 2).unsqueeze_(1)[:, 0]))
    assert "another dtype" in refusal(cell(lambda self, x, h: (h * 2).view(torch.int64).double()))
