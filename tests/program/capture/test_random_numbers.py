"""What a step draws at random, drawn for all time steps before the loop."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import sstkern
from sstkern.fuse import NotFused
from sstkern.program.capture import Spec, capture
from sstkern.program.capture.draws import Draw

T, B, INPUT, HIDDEN = 6, 3, 4, 5


class Cell(nn.Module):
    """tanh of a sum that is changed by a function of itself, the sum and the state."""

    def __init__(self, changed: Callable[[Any, Tensor, Tensor], Tensor], p: float = 0.3):
        super().__init__()
        self.hidden_size, self.p, self.changed = HIDDEN, p, changed
        self.x_h, self.h_h = nn.Linear(INPUT, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.double()

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.changed(self, self.x_h(x) + self.h_h(h), h))


def gumbel(self: Cell, v: Tensor, h: Tensor) -> Tensor:
    return v + F.gumbel_softmax(h, tau=0.5)


def straight_through(self: Cell, v: Tensor, h: Tensor) -> Tensor:
    p = torch.sigmoid(v)
    return p + (torch.bernoulli(p) - p).detach()


STEPS: dict[str, Callable[[Cell, Tensor, Tensor], Tensor]] = {
    "dropout": lambda self, v, h: F.dropout(v, self.p) + F.dropout(h, 0.5, self.training),
    "dropout in place": lambda self, v, h: F.dropout(v * 1, self.p, inplace=True),
    "dropout of all": lambda self, v, h: v + F.dropout(h, 1.0),
    "alpha dropout": lambda self, v, h: F.alpha_dropout(v, 0.3, True),
    "dropout of a channel": lambda self, v, h: F.dropout1d(v.unsqueeze(2).expand(-1, -1, 2), 0.4).sum(2),
    "bernoulli": lambda self, v, h: v * torch.bernoulli(torch.full_like(h, 0.4)),
    "bernoulli in place": lambda self, v, h: v * torch.empty_like(v).bernoulli_(0.4),
    "bools": lambda self, v, h: torch.where(torch.empty_like(h, dtype=torch.bool).bernoulli_(self.p), h, v),
    "one number for a sequence": lambda self, v, h: v * torch.rand(v.size(0), 1, dtype=v.dtype),
    "a probability of the state": lambda self, v, h: v * torch.bernoulli(torch.sigmoid(h)),
    "a probability of parameters": lambda self, v, h: v * torch.empty_like(v).bernoulli_(torch.sigmoid(self.h_h.bias)),
    "straight through": straight_through,
    "rand": lambda self, v, h: v + torch.rand(v.shape, dtype=v.dtype),
    "rand_like": lambda self, v, h: torch.where(torch.rand_like(h) < self.p, h, v),
    "randn": lambda self, v, h: v + self.p * torch.randn(v.size(0), HIDDEN, dtype=v.dtype),
    "randn_like": lambda self, v, h: torch.addcmul(v, torch.randn_like(h), h),
    "normal": lambda self, v, h: v + torch.normal(0.5, 2.0, v.shape, dtype=v.dtype),
    "normal_": lambda self, v, h: v + torch.empty_like(v).normal_(1.0, self.p),
    "uniform_": lambda self, v, h: v + v.new_empty(v.shape).uniform_(-0.5, self.p),
    "exponential_": lambda self, v, h: v + torch.empty_like(v).exponential_(2.0).clamp(max=3),
    "log_normal_": lambda self, v, h: v + torch.empty_like(v).log_normal_(),
    "geometric_": lambda self, v, h: v + torch.empty_like(v).geometric_(0.6),
    "cauchy_": lambda self, v, h: v + torch.empty_like(v).cauchy_().clamp(-1, 1),
    "gumbel": gumbel,
    "gumbel, the largest only": lambda self, v, h: v * F.gumbel_softmax(h, tau=0.5, hard=True),
    "a distribution": lambda self, v, h: torch.distributions.Normal(v, 0.5, validate_args=False).rsample(),
}


class Given(TorchDispatchMode):
    """Operators that draw give what is given, in that order; bernoulli of a tensor compares uniform numbers with it."""

    def __init__(self, draws: Iterator[Tensor]):
        super().__init__()
        self.draws = draws

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            drawn, of_tensor = next(self.draws), function.overloadpacket.__name__.startswith("bernoulli")
            result.copy_(drawn < args[-1] if of_tensor and drawn.dtype != torch.bool else drawn)
        return result


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the layers' calls draw."""
    found: list[Tensor] = []
    tensor = Draw.tensor
    monkeypatch.setattr(Draw, "tensor", lambda *arguments: found.append(tensor(*arguments)) or found[-1])
    return found


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = (T, B, INPUT), (B, HIDDEN)
    x, h = (torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes)
    return x, h


@pytest.mark.parametrize("name", STEPS)
def test_a_layer_is_the_cell_stepped_with_the_same_numbers(name: str, drawn: list[Tensor]):
    cell = Cell(STEPS[name])
    layer, (x, h) = sstkern.fuse(cell, strict=True), inputs()
    output, _ = layer(x, h)
    wanted = [x, h, *cell.parameters()]
    found = [output, *torch.autograd.grad(output.square().sum(), wanted)]
    rows, state = [], h
    for t, row in enumerate(x):
        with Given(part[t] for part in drawn):
            state = cell(row, state)
        rows.append(state)
    expected = torch.stack(rows)
    torch.testing.assert_close(found, [expected, *torch.autograd.grad(expected.square().sum(), wanted)], rtol=1e-11, atol=1e-11)


CELLS = {name: Cell(STEPS[name]) for name in ("dropout", "bools", "a probability of the state", "gumbel")}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_plain_pytorch_draws_the_same(name: str, reverse: bool):
    layer, (x, h) = sstkern.fuse(CELLS[name], strict=True, reverse=reverse), inputs()

    def results() -> list[Tensor]:
        torch.manual_seed(2)
        output, h_n = layer(x, h, lengths=[6, 0, 3])
        return [output, h_n, *torch.autograd.grad(output.square().sum() + h_n.sum(), [x, h, *layer.parameters()])]

    found = results()
    with sstkern.backend("reference"):
        torch.testing.assert_close(found, results(), rtol=1e-11, atol=1e-11)
    assert not found[0][3:, 2].any()


def test_a_seed_decides_from_the_first_call_on():
    """To look at the cell draws nothing."""
    layer, (x, h) = sstkern.fuse(Cell(STEPS["dropout"]), strict=True), inputs()
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((layer(x, h)[0], torch.get_rng_state()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(layer(x, h)[0], found[0][0])


def test_every_step_unit_and_sequence_has_its_own():
    layer = sstkern.fuse(Cell(lambda self, v, h: 0 * v + torch.empty_like(h).bernoulli_(0.3)), strict=True)
    with torch.no_grad():
        ones = layer(torch.zeros(50, 40, INPUT, dtype=torch.float64))[0] > 0
    assert abs(ones.double().mean() - 0.3) < 0.015  # 10,000 numbers: three deviations
    for dim in range(3):
        assert len(ones.unique(dim=dim)) > 4
        assert (ones.double().mean([other for other in range(3) if other != dim]) - 0.3).abs().max() < 0.15
    first, second = ones[:-1].double() - 0.3, ones[1:].double() - 0.3
    assert abs((first * second).mean()) < 0.01  # one step tells nothing of the next


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_probability_of_0_or_1_is_sure(p: float):
    for step in (lambda self, v, h: torch.bernoulli(torch.sigmoid(v * 0) * 2 * p), lambda self, v, h: torch.empty_like(v).bernoulli_(p)):
        layer, (x, h) = sstkern.fuse(Cell(step), strict=True), inputs()
        assert (layer(x, h)[0] == math.tanh(p)).all()


def test_what_is_no_probability_is_not_a_number():
    """PyTorch raises an error; a program cannot."""
    layer, (x, h) = sstkern.fuse(Cell(lambda self, v, h: torch.bernoulli(v)), strict=True), inputs()
    sums = layer.cell.x_h(x[0]) + layer.cell.h_h(h)
    output = layer(x[:1], h)[0][0]
    assert torch.equal(output.isnan(), (sums < 0) | (sums > 1))
    assert 0 < output.isnan().sum() < output.numel()


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_a_number_that_becomes_no_probability_is_an_error(p: float):
    layer, (x, h) = sstkern.fuse(Cell(STEPS["bools"]), strict=True), inputs()
    for known in (0.3, 0.4):
        layer.cell.p = known
        layer(x, h)
    layer.cell.p = p
    with pytest.raises(RuntimeError, match=r"bernoulli_ expects p to be in \[0, 1\], but got p="):
        layer(x, h)


def test_evaluation_draws_nothing():
    layer, (x, h) = sstkern.fuse(Cell(lambda self, v, h: F.dropout(v, 0.5, self.training)), strict=True).eval(), inputs()
    before = torch.get_rng_state()
    assert torch.equal(layer(x, h)[0], layer(x, h)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(layer.train()(x, h)[0], layer(x, h)[0])


@pytest.mark.parametrize("name", ["dropout", "bools", "rand_like", "normal_"])
def test_an_annealed_number_is_an_argument(name: str, drawn: list[Tensor]):
    layer, (x, h) = sstkern.fuse(Cell(STEPS[name]), strict=True), inputs()
    for p in (0.3, 0.4, 0.7):
        layer.cell.p = p
        layer(x, h)
    captured = layer._direction.programs.last
    del drawn[:]
    layer.cell.p = 0.9
    output, _ = layer(x, h)
    assert layer._direction.programs.last is captured
    state = h
    for t, row in enumerate(x):
        with Given(part[t] for part in drawn):
            state = layer.cell(row, state)
        torch.testing.assert_close(output[t], state, rtol=1e-11, atol=1e-11)


class Variational(nn.Module):
    """One mask for all steps of a sequence (Gal and Ghahramani 2016): a state, which the first step draws."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(INPUT, HIDDEN).double()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if state is None:
            h = x.new_zeros(x.size(0), HIDDEN)
            state = h, F.dropout(torch.ones_like(h), 0.5, self.training)
        h, mask = state
        h = self.cell(x, h * mask)
        return h, (h, mask)


@pytest.mark.parametrize("lengths", [None, [2, 6, 4]])
def test_a_mask_of_the_first_state_is_there_at_every_step(lengths: list[int] | None):
    layer, (x, _) = sstkern.fuse(Variational(), strict=True), inputs()
    output, (_, mask) = layer(x, lengths=lengths)
    assert mask.unique().tolist() == [0.0, 2.0]
    h = torch.zeros(B, HIDDEN, dtype=torch.float64)
    for t, row in enumerate(x):
        h = layer.cell(row, (h, mask))[0]
        there = torch.tensor([t < length for length in lengths or [T] * B])
        torch.testing.assert_close(output[t], h * there[:, None], rtol=1e-11, atol=1e-11)
    assert not torch.equal(layer(x, lengths=lengths)[1][1], mask)
    torch.testing.assert_close(layer.eval()(x)[1][1], torch.ones_like(mask))


def test_a_mask_that_the_first_step_uses_beside_its_state_is_no_state():
    """The step would draw another one."""

    class Twice(Variational):
        def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            given = torch.rand(x.size(0), HIDDEN, dtype=torch.float64)
            h, mask = state or (given, given)
            return (found := self.cell(x, h * mask) * given), (found, mask)

    with pytest.raises(NotFused, match="the first state"):
        sstkern.fuse(Twice(), strict=True)(inputs()[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_16_bits_are_compiled_and_keep_the_probability(dtype: torch.dtype, autocast: bool):
    cell = Cell(lambda self, v, h: 0 * v + torch.empty_like(v).bernoulli_(0.999)).to(torch.float32 if autocast else dtype)
    layer, x = sstkern.fuse(cell, strict=True), torch.zeros(50, 80, INPUT, dtype=torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype, enabled=autocast), sstkern.backend("cpu"), torch.no_grad():
        output, _ = layer(x)
    assert output.dtype == dtype
    assert abs((output > 0).double().mean() - 0.999) < 0.0007  # three deviations; a bfloat16 below 1 is below 0.998


def test_less_memory_draws_the_same():
    x, h = inputs()
    found = []
    for recompute in (False, True):
        layer = sstkern.fuse(CELLS["dropout"], strict=True, recompute=recompute)
        torch.manual_seed(4)
        output, _ = layer(x, h)
        found.append([output, *torch.autograd.grad(output.square().sum(), [x, h, *layer.parameters()])])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_keep_probabilities_of_tensors_and_never_draw_1(dtype: torch.dtype, autocast: bool):
    """A number just below 1 is 1 in 16 bits."""

    def step(self: Cell, v: Tensor, h: Tensor) -> Tensor:
        ones, uniform = torch.bernoulli(torch.full_like(v, 0.9375) + 0 * v.detach()), torch.rand_like(v)
        return torch.cat([0 * v + ones, -torch.log(1 - uniform)], 1)

    cell = Cell(step).to(torch.float32 if autocast else dtype)
    cell.forward = types.MethodType(lambda self, x, h: (self.changed(self, self.x_h(x), h), h), cell)
    layer, x = sstkern.fuse(cell, strict=True), torch.zeros(100, 200, INPUT, dtype=torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype, enabled=autocast), sstkern.backend("cpu"), torch.no_grad():
        output, _ = layer(x)
    ones, logarithms = output.split(HIDDEN, 2)
    assert output.dtype == dtype
    assert abs((ones > 0).double().mean() - 0.9375) < 0.0023  # three deviations
    assert logarithms.isfinite().all()
    assert abs(logarithms.double().mean() - 1) < 0.02


def kept(layer: nn.Module, x: Tensor, h: Tensor, output: Tensor) -> Tensor:
    """Of one step tanh(dropout(v, 0.5)): 2 where dropout kept a number."""
    return (output.atanh() / (layer.cell.x_h(x[0]) + layer.cell.h_h(h))).round()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_by_torch_a_backward_has_the_numbers_of_its_forward(backend: str):
    layer, (x, h) = sstkern.fuse(Cell(lambda self, v, h: F.dropout(v, 0.5)), strict=True), inputs()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    masks = []
    for _ in range(2):
        output = compiled(x[:1], h)[0][0]
        (gradient,) = torch.autograd.grad(output.sum(), layer.cell.x_h.bias)
        masks.append(kept(layer, x, h, output))
        torch.testing.assert_close(gradient, ((1 - output**2) * masks[-1]).sum(0))
    assert not torch.equal(*masks)


@pytest.mark.parametrize("randomness", ["different", "same"])
@pytest.mark.parametrize("batched", ["x", "h", "parameters"])
def test_for_each_sample_or_parameters_of_its_own(batched: str, randomness: str):
    layer, (x, h) = sstkern.fuse(Cell(lambda self, v, h: F.dropout(v, 0.5)), strict=True), inputs()
    given = {"x": x[:1], "h": h, "parameters": dict(layer.named_parameters())}
    dims = {name: 0 if name == batched else None for name in given}
    given[batched] = mapped_dict(given[batched], lambda tensor: torch.stack([tensor] * 4))

    def output(x: Tensor, h: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x, h))[0][0]

    found = torch.func.vmap(output, in_dims=tuple(dims.values()), randomness=randomness)(*given.values())
    masks = [kept(layer, x, h, one) for one in found]
    assert all(set(mask.unique().tolist()) == {0.0, 2.0} for mask in masks)
    assert all(torch.equal(masks[0], mask) for mask in masks[1:]) == (randomness == "same")


def mapped_dict(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return {name: change(tensor) for name, tensor in given.items()} if isinstance(given, dict) else change(given)


def test_to_look_at_a_cell_leaves_other_threads_their_random_numbers():
    """PyTorch's generator is one for all threads; another one may seed it meanwhile."""

    class Elsewhere(Cell):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(torch.manual_seed, 6).result()
                found.append(pool.submit(torch.rand, 3).result())
                output = super().forward(x, h)
                found.append(pool.submit(torch.rand, 3).result())
            return output

    found: list[Tensor] = []
    (spec, state) = (Spec((size,), torch.float64, torch.device("cpu")) for size in (INPUT, HIDDEN))
    cell = Elsewhere(STEPS["dropout"])
    torch.manual_seed(6)
    expected = [torch.rand(3), torch.rand(3)]
    capture(cell, spec, state)
    assert torch.equal(torch.stack(found[:2]), torch.stack(expected))


def test_two_numbers_of_a_state_s_first_step_are_not_one():
    class Once(Variational):
        def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            first = torch.rand(x.size(0), HIDDEN, dtype=torch.float64)
            second = first if state is None else torch.rand(x.size(0), HIDDEN, dtype=torch.float64)
            h, c = state or (x.new_zeros(x.size(0), HIDDEN), x.new_zeros(x.size(0), HIDDEN))
            found = self.cell(x, h + c) + first - second
            return found, (found, c)

    with pytest.raises(NotFused, match="the first state"):
        sstkern.fuse(Once(), strict=True)(inputs()[0])
