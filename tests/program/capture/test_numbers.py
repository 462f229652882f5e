"""Numbers that change between calls are arguments of the program, where it stays the same program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluation import evaluated
from torch import Tensor, nn

from sstkern.program.capture import Captured, Spec, capture

ROW = Spec((4,), torch.float64, torch.device("cpu"))


class Cell(nn.Module):
    def __init__(self, step: Callable[..., Tensor]):
        super().__init__()
        self.alpha, self.beta, self.count = 0.5, 0.25, 3
        self.vector = nn.Parameter(torch.rand(4, dtype=torch.float64))
        self.step = step

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = torch.full_like(x, self.alpha) if h is None else h
        return self.step(self, x, h)


def recaptured(module: nn.Module, alpha: Any = 0.375, state: Any = ROW) -> Captured:
    first = capture(module, ROW, state)
    assert first.holds()
    module.alpha = alpha
    assert not first.holds()
    return capture(module, ROW, state, previous=first)


def check(captured: Captured, module: nn.Module) -> None:
    x, h = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    torch.testing.assert_close(evaluated(captured, [x], [h])[0], module(x, h), rtol=1e-14, atol=1e-14)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "times": lambda self, x, h: self.alpha * h + x,
    "one minus": lambda self, x, h: (1 - self.alpha) * h + self.alpha * x,
    "of two": lambda self, x, h: h * (self.alpha + self.beta * 2) - x,
    "division and powers": lambda self, x, h: h / (1 + self.alpha) + x * self.alpha**2 + 2**self.alpha * h,
    "signs": lambda self, x, h: -self.alpha * h + abs(self.alpha - 1) * x,
    "of parameters": lambda self, x, h: h * torch.sigmoid(self.vector * self.alpha) + x,
    "comparison of rows": lambda self, x, h: torch.where(h > self.alpha, h, self.alpha) + x,
    "a tensor": lambda self, x, h: h * torch.tensor(self.alpha, dtype=h.dtype) + x,
    "constants": lambda self, x, h: torch.full_like(h, self.alpha) * h + x,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_number_that_has_changed_is_an_argument(name: str):
    module = Cell(FORMULAS[name])
    found = recaptured(module)
    check(found, module)
    for alpha in (0.125, 0.75, 2.0, -0.0, -1.5):
        module.alpha = alpha
        assert found.holds()
        check(found, module)


def test_the_text_has_the_argument():
    found = recaptured(Cell(FORMULAS["one minus"]))
    assert [str(node) for node in found.program.nodes] == ["mul h0 $0", "mul x0 $1", "add v0 v1"]
    assert found.numbers() == [0.625, 0.375]


def test_another_one_that_changes_later():
    module = Cell(FORMULAS["of two"])
    found = recaptured(module)
    module.beta = 0.125
    assert not found.holds()
    found = capture(module, ROW, ROW, previous=found)
    module.alpha, module.beta = 0.7, 0.8
    assert found.holds()
    check(found, module)


def test_comparisons_are_asked_again():
    module = Cell(lambda self, x, h: h * self.alpha + x if self.alpha < 1 else h - x)
    found = recaptured(module)
    module.alpha = 0.75
    assert found.holds()
    check(found, module)
    module.alpha = 1.5
    assert not found.holds()


def test_truth_is_asked_again():
    module = Cell(lambda self, x, h: h * self.alpha + x if self.alpha else h - x)
    found = recaptured(module)
    assert found.numbers() == [0.375]
    module.alpha = 0.0
    assert not found.holds()


UNSEEN: dict[str, Callable[..., Tensor]] = {
    "float": lambda self, x, h: h * float(self.alpha) + x,
    "int": lambda self, x, h: h * int(self.alpha * 10) + x,
    "math": lambda self, x, h: h * math.exp(self.alpha) + x,
    "a decision": lambda self, x, h: h + x if math.sqrt(abs(self.alpha)) > 0.5 else h - x,
    "a floor": lambda self, x, h: h + x if math.floor(self.alpha) == 0 else h - x,
    "a tensor": lambda self, x, h: h * torch.tensor([self.alpha], dtype=h.dtype) + x,
    "a slope": lambda self, x, h: nn.functional.leaky_relu(h - 0.5, self.alpha) + x,
    "a key": lambda self, x, h: h * {0.5: 1, 0.375: 2}.get(self.alpha, 3) + x,
    "text": lambda self, x, h: h * len(str(self.alpha)) + x,
}


@pytest.mark.parametrize("name", UNSEEN)
def test_a_number_that_is_used_unseen_is_a_guard(name: str):
    module = Cell(UNSEEN[name])
    found = recaptured(module)
    assert found.numbers() == []
    check(found, module)
    module.alpha = 0.75
    assert not found.holds()


def test_another_type_is_another_program():
    module = Cell(FORMULAS["times"])
    found = recaptured(module)
    module.alpha = 1
    assert not found.holds()


def test_an_int_is_never_an_argument():
    module = Cell(lambda self, x, h: h * self.count + x)
    first = capture(module, ROW, ROW)
    module.count = 4
    assert capture(module, ROW, ROW, previous=first).numbers() == []


def test_a_first_state_of_numbers():
    module = Cell(FORMULAS["times"])
    found = recaptured(module, state=None)
    module.alpha = 0.875
    assert found.holds()
    assert torch.equal(found.first_state(found.leaves(), 2), torch.full((2, 4), 0.875, dtype=torch.float64))
    check(found, module)


def test_numbers_of_modules_within_and_of_classes():
    class Inner(nn.Module):
        gain = 2.0

        def forward(self, h: Tensor) -> Tensor:
            return h * self.gain

    module = Cell(lambda self, x, h: self.inner(h) * self.alpha + x)
    module.inner = Inner()
    first = capture(module, ROW, ROW)
    Inner.gain = 3.0
    assert not first.holds()
    found = capture(module, ROW, ROW, previous=first)
    assert found.numbers() == [3.0]
    module.inner.gain = 4.0
    assert found.holds()
    check(found, module)
