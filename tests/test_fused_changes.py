"""Never a wrong number: what changes between calls is seen, and what a program cannot hold is stepped."""

import collections
import math
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from layers import assert_close
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sstkern

pytestmark = pytest.mark.filterwarnings("ignore:sstkern steps:UserWarning")


class Base(nn.Module):
    """A plain step, whose result `shown` may change. It has one of everything that a step can read."""

    number = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.x, self.h = 4, nn.Linear(4, 4), nn.Linear(4, 4)
        self.activation, self.numbers, self.flag = torch.tanh, {"a": [0.5]}, True
        self.config, self.array, self.scale = types.SimpleNamespace(a=0.5), np.array([0.5]), torch.tensor(0.5)

    def sums(self, x: Tensor, h: Tensor) -> Tensor:
        return self.x(x) + self.h(h)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.shown(self.activation(self.sums(x, h)), h)

    def shown(self, v: Tensor, h: Tensor) -> Tensor:
        return v


class Reading(Base):
    def shown(self, v: Tensor, h: Tensor) -> Tensor:
        known = self.number * self.numbers["a"][0] * self.config.a
        return v * known * self.scale + (h * known if self.flag else h) * (0.5 if self.training else 0.25)


class ReadingArray(Base):
    def shown(self, v: Tensor, h: Tensor) -> Tensor:
        return v * float(self.array[0])


def results(run: Callable[[], list[Tensor]], wanted: list[Tensor]) -> list[Tensor]:
    found = run()
    return [*found, *torch.autograd.grad(sum(result.square().sum() for result in found), wanted, materialize_grads=True)]


def assert_is_the_loop(layer: nn.Module) -> None:
    """Whatever draws random numbers starts from the same seeds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    h = torch.randn(2, 4, dtype=torch.float64, generator=generator, requires_grad=True)

    def loop() -> list[Tensor]:
        states = [h]
        for row in x:
            states.append(layer.cell(row, states[-1]))
        return [torch.stack(states[1:]), states[-1]]

    wanted = [x, h, *layer.parameters()]
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    found, expected = (seeded(lambda run=run: results(run, wanted)) for run in (lambda: [*layer(x, h)], loop))
    assert_close(found, expected, 1e-10)


def seeded(function: Callable[[], Any]) -> Any:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(0)
    return function()


def fresh(cell_class: type[nn.Module]) -> nn.Module:
    """Of a class of its own, which a test may change."""
    torch.manual_seed(0)
    return type(cell_class.__name__, (cell_class,), {})().double()


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda cell: setattr(cell, "number", 0.25),
    "a number of the class": lambda cell: setattr(type(cell), "number", 0.25),
    "a number in a list in a dictionary": lambda cell: cell.numbers["a"].__setitem__(0, 0.25),
    "a number of an object": lambda cell: setattr(cell.config, "a", 0.25),
    "a flag": lambda cell: setattr(cell, "flag", False),
    "the mode": lambda cell: cell.eval(),
    "a tensor": lambda cell: setattr(cell, "scale", torch.tensor(0.25)),
    "a tensor in place": lambda cell: cell.scale.fill_(0.25),
    "a function": lambda cell: setattr(cell, "activation", torch.sigmoid),
    "forward": lambda cell: setattr(cell, "forward", types.MethodType(lambda cell, x, h: torch.tanh(cell.x(x)), cell)),
    "forward of the class": lambda cell: setattr(type(cell), "forward", lambda cell, x, h: torch.tanh(cell.x(x))),
    "a method": lambda cell: setattr(cell, "sums", lambda x, h: cell.x(x)),
    "a method of the class": lambda cell: setattr(type(cell), "sums", lambda cell, x, h: cell.x(x)),
    "a module": lambda cell: setattr(cell, "h", nn.Linear(4, 4, bias=False).double()),
    "a module by another kind": lambda cell: setattr(cell, "h", nn.Tanh()),
    "a parameter": lambda cell: setattr(cell.h, "weight", nn.Parameter(torch.rand(4, 4).double())),
    "a parameter's data": lambda cell: setattr(cell.h.weight, "data", torch.rand(4, 4).double()),
    "a parameter that is gone": lambda cell: setattr(cell.h, "bias", None),
    "parameters that are tied": lambda cell: setattr(cell.h, "weight", cell.x.weight),
    "what wants a gradient": lambda cell: cell.h.requires_grad_(False),
    "a parametrization": lambda cell: parametrize.register_parametrization(cell.h, "weight", Half()),
    "pruning": lambda cell: prune.ln_structured(cell.h, "weight", 0.5, 2, 0),
    "a hook": lambda cell: cell.h.register_forward_hook(lambda module, inputs, output: 2 * output),
    "a hook before": lambda cell: cell.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0], inputs[1])),
    "a backward hook": lambda cell: cell.h.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_first_call_is_seen(change: str):
    layer = sstkern.fuse(fresh(Reading))
    assert_is_the_loop(layer)
    assert layer.fused
    before = [output.detach() for output in layer(torch.ones(1, 2, 4).double(), torch.ones(2, 4).double())]
    for _ in range(2):
        seeded(lambda: CHANGES[change](layer.cell))
        assert_is_the_loop(layer)
    after = layer(torch.ones(1, 2, 4).double(), torch.ones(2, 4).double())
    assert change in ("what wants a gradient", "a backward hook") or not torch.equal(before[0], after[0])


def test_a_number_that_is_asked_by_math_is_seen():
    class Clipped(Base):
        def shown(self, v: Tensor, h: Tensor) -> Tensor:
            return v if math.isinf(self.number) else v.clamp(-self.number, self.number) * h

    layer = sstkern.fuse(fresh(Clipped))
    for number in (0.25, 0.125, 0.0625, math.inf, 0.25, math.nan):
        layer.cell.number = number
        found, _ = layer(torch.ones(1, 2, 4).double(), torch.ones(2, 4).double())
        expected = layer.cell(torch.ones(2, 4).double(), torch.ones(2, 4).double())
        torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_attributes_behind_the_modules_back():
    class Behind(Base):
        def shown(self, v: Tensor, h: Tensor) -> Tensor:
            return v * type(self).number

    layer = sstkern.fuse(fresh(Behind))
    assert_is_the_loop(layer)
    assert layer.fused
    type(layer.cell).number = 0.75
    assert_is_the_loop(layer)
    for read in (lambda self: vars(self)["config"].a, lambda self: self.__dict__["config"].a):
        layer = sstkern.fuse(fresh(type("Named", (Base,), {"shown": lambda self, v, h, read=read: v * read(self)})))
        assert_is_the_loop(layer)
        assert "self.__dict__" in layer.reason
        layer.cell.config.a = 0.75
        assert_is_the_loop(layer)


def test_what_was_refused_is_tried_again_when_the_cell_has_changed():
    class Normed(Base):
        def shown(self, v: Tensor, h: Tensor) -> Tensor:
            return torch.sort(v, 1).values if self.flag else v

    layer = sstkern.fuse(fresh(Normed))
    assert_is_the_loop(layer)
    assert "sort" in layer.reason
    layer.cell.flag = False
    assert_is_the_loop(layer)
    assert layer.fused


def test_objects_that_a_refused_step_changes_count_its_own_steps_only():
    class Counting(Base):
        def shown(self, v: Tensor, h: Tensor) -> Tensor:
            self.config.a += 1
            self.seen.append(1)
            return v

    layer = sstkern.fuse(fresh(Counting))
    layer.cell.seen = collections.deque()
    layer(torch.ones(5, 2, 4).double(), torch.ones(2, 4).double())
    assert (layer.cell.config.a, len(layer.cell.seen)) == (5.5, 5)


def test_an_array_that_changes_is_seen():
    layer = sstkern.fuse(fresh(ReadingArray))
    assert_is_the_loop(layer)
    layer.cell.array[0] = 0.25
    assert_is_the_loop(layer)


# What a program cannot hold


class Own(torch.autograd.Function):
    """The identity, or a copy, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, way: Callable[[Tensor], Tensor]) -> Tensor:
        return way(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -2 * gradient, None


def hooked(v: Tensor) -> Tensor:
    v = 1 * v
    if v.requires_grad:
        v.register_hook(lambda gradient: gradient / 2)
    return v


def derivative(h: Tensor) -> Tensor:
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        return torch.autograd.grad(h.pow(3).sum(), h)[0]


TRAPS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a derivative of its own, of a view": lambda cell, v, h: Own.apply(v, lambda v: v.view_as(v)),
    "a derivative of its own, of the same": lambda cell, v, h: Own.apply(v, lambda v: v),
    "a derivative of its own, of a copy": lambda cell, v, h: v + Own.apply(h, torch.clone),
    "a derivative of its own, of a weight": lambda cell, v, h: v + h @ Own.apply(cell.h.weight, torch.tanh),
    "a hook on a tensor": lambda cell, v, h: hooked(v),
    "a derivative within the step": lambda cell, v, h: v + 0.1 * derivative(h),
    "Python's random numbers": lambda cell, v, h: v * (2 if random.random() < 0.5 else 1),
    "NumPy's random numbers": lambda cell, v, h: v * (2 if np.random.rand() < 0.5 else 1),
    "torch's random numbers": lambda cell, v, h: v + torch.poisson(torch.ones(len(v), 4)),
    "dropout of a weight": lambda cell, v, h: v + h @ nn.functional.dropout(cell.h.weight),
    "the value of a tensor": lambda cell, v, h: v if h.sum() > 0 else -v,
    "the value of a parameter": lambda cell, v, h: v * cell.h.bias[0].item(),
    "a number from NumPy": lambda cell, v, h: v * torch.from_numpy(cell.array),
    "the number of sequences": lambda cell, v, h: v / len(h),
    "the number of sequences, counted": lambda cell, v, h: v / torch.ones_like(h).sum(0),
    "the place in the batch": lambda cell, v, h: v + torch.arange(len(h))[:, None],
    "a sum over the batch": lambda cell, v, h: v - h.mean(0),
    "another sequence": lambda cell, v, h: v + h[:1],
    "sequences in another order": lambda cell, v, h: v + h.flip(0),
    "sequences joined": lambda cell, v, h: torch.cat([v, h])[1:-1][: len(h)],
    "sequences added up": lambda cell, v, h: v + h.cumsum(0),
    "sequences as rows": lambda cell, v, h: v + h.reshape(4, -1).t() * 0 + h,
    "a product of states": lambda cell, v, h: v + (h.unsqueeze(1) @ h.unsqueeze(2)).squeeze(2),
    "inference mode": lambda cell, v, h: v + torch.inference_mode()(torch.sin)(h.detach()).clone(),
    "another generator": lambda cell, v, h: v[:, torch.randperm(4, generator=torch.Generator().manual_seed(0))],
}
"""Of what a step may do, what most easily comes out wrong: (cell, what it has calculated, state before)."""


@pytest.mark.parametrize("trap", TRAPS)
def test_what_a_program_cannot_hold_is_right_all_the_same(trap: str):
    class Trap(Base):
        def shown(self, v: Tensor, h: Tensor) -> Tensor:
            return TRAPS[trap](self, v, h)

    layer = sstkern.fuse(fresh(Trap))
    for _ in range(2):
        assert_is_the_loop(layer)


def test_to_look_whether_a_cell_can_be_a_program_changes_nothing_of_it():
    class Counting(Base):
        def shown(self, v: Tensor, h: Tensor) -> Tensor:
            self.config.a += 1
            return v / self.config.a

    layer = sstkern.fuse(fresh(Counting))
    layer(torch.ones(3, 2, 4).double(), torch.ones(2, 4).double())
    assert layer.cell.config.a == 0.5 + 3  # once a step
    assert not layer.fused
