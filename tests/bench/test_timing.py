"""Blocks, rounds and what is discarded, on clocks that the tests turn."""

from collections.abc import Callable

import pytest

from sstkern.bench import timing
from sstkern.bench.timing import Timing


class Clock:
    """An engine whose calls take the given times, the last one for ever, and the clock that shows it."""

    def __init__(self, *times: float):
        self.now, self.times, self.calls = 0.0, times, 0

    def run(self) -> None:
        self.now += self.times[min(self.calls, len(self.times) - 1)]
        self.calls += 1

    def block(self, seconds: float) -> list[float]:
        return timing.block(self.run, seconds, lambda: self.now)


def test_a_block_warms_up_and_then_fills_its_time():
    assert Clock(9.0, 1.0).block(10.0) == pytest.approx([1.0] * 10)
    assert Clock(0.25, 0.5).block(1.75) == pytest.approx([0.5] * 4)


def test_a_slow_call_is_its_own_warm_up():
    clock = Clock(3.0)
    assert clock.block(2.0) == [3.0]
    assert clock.calls == 1


@pytest.mark.parametrize(
    ("first", "seconds", "rounds"),
    [
        ({"a": 1e-6, "b": 1e-6}, 1.8, 6),
        ({"a": 0.2, "b": 0.2}, 2.4, 4),
        ({"a": 5.0, "b": 7.0}, 2.4, 2),  # at least two rounds, whatever they take
    ],
)
def test_slow_engines_get_fewer_rounds(first: dict, seconds: float, rounds: int):
    assert timing.plan(first, seconds) == (rounds, pytest.approx(seconds / 18))


def engine(name: str, log: list[str], times: Callable[[int], float]) -> timing.Block:
    def block(seconds: float) -> list[float]:
        log.append(name)
        return [times(log.count(name))]

    return block


def test_engines_run_alone_and_then_in_alternating_order():
    log, slept = [], []
    blocks = {name: engine(name, log, lambda i: 1e-3) for name in "abc"}
    timings = timing.compare(blocks, 1.0, slept.append)
    assert "".join(log) == "abc" + "aaabbbccc" + "abccba" * 3
    assert slept == [timing.SETTLE] * 27  # before every block that counts
    assert timings["b"] == Timing(1e-3, 1e-3, (1e-3, 1e-3), calls=6)


def test_medians_alone_together_and_of_both_halves():
    # One call to see how slow it is, three blocks alone, then six among the others.
    times = [9, 1.0, 1.2, 1.1, 2, 3, 4, 5, 6, 7]
    timings = timing.compare({"a": _sequence(times)}, 200.0, lambda seconds: None)
    assert timings["a"] == Timing(median=4.5, alone=1.1, halves=(3, 6), calls=6)
    assert timings["a"].spread == pytest.approx(3 / 4.5)
    assert timings["a"].disturbed


def _sequence(times: list[float]) -> timing.Block:
    remaining = iter(times)
    return lambda seconds: [next(remaining)]


@pytest.mark.parametrize(("alone", "disturbed"), [(1.0, False), (1.09, False), (0.91, False), (1.11, True), (0.89, True)])
def test_a_time_alone_that_is_ten_percent_off_is_disturbed(alone: float, disturbed: bool):
    assert Timing(1.0, alone, (1.0, 1.0), 6).disturbed == disturbed
