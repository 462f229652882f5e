"""A program is used as long as the cell is what it was captured from, and the question takes microseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sstkern.program.capture import Spec, Unfused, capture

HIDDEN = 4
ROW = Spec((HIDDEN,), torch.float32, torch.device("cpu"))


@dataclass
class Deep:
    deeper: dict[str, float] = field(default_factory=lambda: {"gain": 1.0})


@dataclass
class Config:
    gain: float = 1.0
    more: list[list[Deep]] = field(default_factory=lambda: [[Deep()]])
    itself: list[Any] = field(default_factory=list)


class Slots:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


class Cell(nn.Module):
    slope = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.dropout = nn.Dropout(0.5).eval()
        self.act = torch.tanh
        self.alpha, self.power, self.flag, self.zero, self.nothing = 0.5, 2, True, 0.0, None
        self.sizes, self.table, self.nested = [1.0, 2.0], {"a": 1.0}, ([1.0], {"b": (2.0,)})
        self.config, self.slots = Config(), Slots()
        self.config.itself.append(self.config)
        self.function = self.closure(3.0)
        self.mask = torch.ones(HIDDEN)
        self.masks = [torch.ones(HIDDEN)]
        self.register_parameter("vector", nn.Parameter(torch.ones(HIDDEN)))
        self.register_parameter("absent", None)
        self.unread, self.unread_list = 1.0, []

    @staticmethod
    def closure(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda h: h * factor

    @property
    def both(self) -> float:
        return self.alpha + self.power

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.act(self.dropout(self.linear(x)) + h * self.both) + self.sizes[0] * self.table["a"] * self.nested[0][0]
        h = h * self.slope + self.function(h) * self.config.gain * self.slots.gain * self.mask * self.masks[0]
        h = h + self.zero if self.flag and self.nothing is None and not hasattr(self, "later") else h
        return h * self.vector


def set_attribute(name: str, value: Any) -> Callable[[Cell], None]:
    return lambda module: setattr(module, name, value)


def hook(module: Cell) -> None:
    module.linear.register_forward_hook(lambda *_: None)


CHANGES: dict[str, Callable[[Cell], Any]] = {
    "a float": set_attribute("alpha", 0.25),
    "an int": set_attribute("power", 3),
    "an int that becomes a float": set_attribute("power", 2.0),
    "a bool that becomes an int": set_attribute("flag", 1),
    "the sign of zero": set_attribute("zero", -0.0),
    "None": set_attribute("nothing", 1),
    "a function": set_attribute("act", torch.sigmoid),
    "a closure's number": set_attribute("function", Cell.closure(4.0)),
    "a list": lambda module: module.sizes.__setitem__(0, 3.0),
    "a list's type": set_attribute("sizes", (1.0, 2.0)),
    "a dict": lambda module: module.table.update(a=2.0),
    "within containers": lambda module: module.nested[0].__setitem__(0, 5.0),
    "a configuration": lambda module: setattr(module.config, "gain", 2.0),
    "deep in a configuration": lambda module: module.config.more[0][0].deeper.__setitem__("gain", 2.0),
    "an object with slots": lambda module: setattr(module.slots, "gain", 2.0),
    "a class attribute hidden by one of its own": set_attribute("slope", 0.2),
    "an attribute that was not there": set_attribute("later", 1),
    "an attribute deleted": lambda module: delattr(module, "alpha"),
    "training": lambda module: (module.train(False) and None) or module.train(),
    "training of a part": lambda module: module.dropout.train(),
    "the dtype": lambda module: module.double(),
    "a parameter that wants no gradient": lambda module: module.linear.weight.requires_grad_(False),
    "the shape of a parameter": set_attribute("vector", nn.Parameter(torch.ones(1))),
    "a parameter that is gone": set_attribute("vector", None),
    "a parameter that has come": set_attribute("absent", nn.Parameter(torch.ones(1))),
    "a new parameter": lambda module: module.register_parameter("more", nn.Parameter(torch.ones(1))),
    "a new buffer": lambda module: module.linear.register_buffer("more", torch.ones(1)),
    "another module": set_attribute("linear", nn.Linear(HIDDEN, HIDDEN)),
    "a tensor attribute's dtype": set_attribute("mask", torch.ones(HIDDEN, dtype=torch.float64)),
    "a listed tensor's shape": lambda module: module.masks.__setitem__(0, torch.ones(1)),
    "a hook": hook,
    "compilation": lambda module: module.linear.compile(),
    "another class": lambda module: setattr(module, "__class__", type("Other", (Cell,), {})),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str):
    module = Cell()
    found = capture(module, ROW, ROW)
    assert found.holds()
    CHANGES[name](module)
    assert not found.holds()


SAME: dict[str, Callable[[Cell], Any]] = {
    "values of parameters": lambda module: nn.init.normal_(module.vector),
    "other tensors in their places": lambda module: module.load_state_dict(Cell().state_dict(), assign=True),
    "a parameter put in": set_attribute("vector", nn.Parameter(torch.zeros(HIDDEN))),
    "another tensor attribute": set_attribute("mask", torch.zeros(HIDDEN)),
    "the same number anew": set_attribute("alpha", float("0.5")),
    "an equal list": set_attribute("sizes", [1.0, 2.0]),
    "what is not read": lambda module: (setattr(module, "unread", 2.0), module.unread_list.append(1), setattr(module, "more", 3)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_matter_is_not(name: str):
    module = Cell()
    found = capture(module, ROW, ROW)
    SAME[name](module)
    assert found.holds()


def test_hooks_of_all_modules_and_the_default_dtype():
    found = capture(nn.RNNCell(HIDDEN, HIDDEN), ROW, ROW)
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: None)
    try:
        assert not found.holds()
    finally:
        handle.remove()
    torch.set_default_dtype(torch.float64)
    try:
        assert not found.holds()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.holds()


def test_what_cannot_be_watched_is_refused():
    module = Cell()
    module.sizes = bytearray(b"ab")
    with pytest.raises(Unfused, match="bytearray"):
        capture(module, ROW, ROW)


def test_what_holds_too_much_is_refused():
    module = Cell()
    module.sizes = [1.0] * 2000
    with pytest.raises(Unfused, match="more than 1000"):
        capture(module, ROW, ROW)


class Eight(nn.Module):
    """A cell of eight modules."""

    def __init__(self) -> None:
        super().__init__()
        for gate in "ifgo":
            setattr(self, f"x_{gate}", nn.Linear(HIDDEN, HIDDEN))
        self.h_f, self.h_g, self.act = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()
        self.alpha, self.beta = 0.5, 0.25

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gates = torch.sigmoid(self.x_i(x) * self.x_f(x) + self.x_o(x) * self.alpha + self.h_f(h) * self.beta)
        return gates * h + (1 - gates) * self.act(self.x_g(x) + self.h_g(h))


def test_it_takes_microseconds():
    module = Eight()
    assert len(list(module.modules())) == 8
    found = capture(module, ROW, ROW)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        for _ in range(10):
            found.holds()
        times.append((time.perf_counter() - began) / 10)
    assert min(times) < 60e-6  # measured: 15
