"""Numbers of a cell that change between calls, such as an annealed factor, as arguments of its program.

The step runs on numbers that write down what is calculated with them. Each is a value that nothing else is, by which an operator's argument
is told; in the program it is `$0`, `$1` ... That is taken only if it is the plain program, number by number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from sstkern.program.capture.reasons import Unfused

Place = tuple[nn.Module, str]
"""An attribute of a module."""


@dataclass(frozen=True)
class Formula:
    """What is calculated: of attributes, numbers and formulas."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def value(self) -> Any:
        """The formula's value, from what the attributes are now."""
        return self.function(*map(value, self.arguments))

    def __repr__(self) -> str:
        """Equal for equal formulas only."""
        parts = (hex(id(part)) if isinstance(part, nn.Module) else repr(part) for part in self.arguments)
        return f"{self.function.__name__}({', '.join(parts)})"


def value(part: Any) -> Any:
    """What a formula gives now; anything else is what it is."""
    return part.value() if isinstance(part, Formula) else part


class Tracked(float):
    """A number that is a formula.

    As a float it is a value of its own, by which it is found again among an operator's arguments. Comparisons are answered with what the
    number is now, and noted. What would turn it into another number unseen is refused.
    """

    formula: Formula
    numbers: Numbers

    def __reduce__(self) -> NoReturn:
        _unseen(self)


class Numbers:
    """The tracked numbers of a run.

    places: the attributes that are tracked. values: what stands for the numbers, each once. formulas: of each of these values. conditions:
    what the step has compared, and the answers.
    """

    def __init__(self, places: Iterable[Place] = (), values: Iterable[float] = ()) -> None:
        self.places = set(places)
        self._values = iter(values)
        self._known: dict[Formula, Tracked] = {}
        self.formulas: dict[float, Formula] = {}
        self.conditions: dict[Formula, bool] = {}

    def tracked(self, formula: Formula) -> Tracked:
        if formula not in self._known:
            value = next(self._values)
            made = self._known[formula] = Tracked(value)
            made.formula, made.numbers = formula, self
            self.formulas[value] = formula
        return self._known[formula]


def small() -> Iterator[float]:
    """Values to stand for numbers: positive and small."""
    return (0.001 * (1 + at * 0.0137931) for at in range(1, 10**9))


def large() -> Iterator[float]:
    """Negative and large. What a step does by a number's value, unseen, differs from what it does with small ones."""
    return (-1000.0 * (1 + at * 0.0137931) for at in range(1, 10**9))


def _unseen(self: Tracked, *_: Any) -> NoReturn:
    raise Unfused("a number is used in a way that cannot be written down")


def _parts(*given: Any) -> tuple[Any, ...]:
    return tuple(part.formula if isinstance(part, Tracked) else part for part in given)


def _calculated(function: Callable[..., Any], turned: bool = False) -> Callable[..., Any]:
    def method(self: Tracked, *others: Any) -> Any:
        if not all(isinstance(other, int | float) for other in others):
            return NotImplemented
        return self.numbers.tracked(Formula(function, _parts(*(*others, self) if turned else (self, *others))))

    return method


def _compared(function: Callable[..., bool]) -> Callable[..., Any]:
    def method(self: Tracked, *others: Any) -> Any:
        if not all(isinstance(other, int | float) for other in others):
            return NotImplemented
        formula = Formula(function, _parts(self, *others))
        answer = formula.value()
        self.numbers.conditions[formula] = answer
        return answer

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Tracked, f"__{_name}__", _calculated(getattr(operator, _name)))
    setattr(Tracked, f"__r{_name}__", _calculated(getattr(operator, _name), turned=True))
for _name in ("neg", "pos", "abs"):
    setattr(Tracked, f"__{_name}__", _calculated(getattr(operator, _name)))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Tracked, f"__{_name}__", _compared(getattr(operator, _name)))
Tracked.__bool__ = _compared(bool)  # type: ignore[method-assign]
for _name in ("float", "int", "index", "round", "trunc", "floor", "ceil", "hash", "str", "repr", "format", "floordiv", "mod", "divmod"):
    setattr(Tracked, f"__{_name}__", _unseen)
for _name in ("is_integer", "as_integer_ratio", "hex"):
    setattr(Tracked, _name, _unseen)
