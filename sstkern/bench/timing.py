"""Times of several engines, such that a machine that slows down or speeds up meanwhile treats all alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Block = Callable[[float], list[float]]
"""Calls an engine for about so many seconds and returns the seconds of each call, at least one."""

SETTLE = 0.02
"""Seconds of sleep before a block: another engine's threads may still spin."""
TOLERANCE = 0.1
"""How far the solo and the interleaved timing of an engine may differ. Beyond it something disturbed them, and the case is repeated."""
_MOST_ROUNDS = 6


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    alone: float
    """The median before any other engine ran."""
    halves: tuple[float, float]
    """Medians of the first and of the second half of the rounds."""
    calls: int

    @property
    def spread(self) -> float:
        """How far the two halves are apart, as a share of the median."""
        return abs(self.halves[0] - self.halves[1]) / self.median

    @property
    def disturbed(self) -> bool:
        return abs(self.alone / self.median - 1) > TOLERANCE


def block(run: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """A `Block` of `run`. Its first call warms up; it counts only if it takes all the time, for cold caches are nothing beside that."""
    before = clock()
    run()
    now = clock()
    if now - before >= seconds:
        return [now - before]
    times: list[float] = []
    start = now
    while not times or now - start < seconds:
        before = now
        run()
        now = clock()
        times.append(now - before)
    return times


def compare(blocks: Mapping[str, Block], seconds: float, sleep: Callable[[float], None] = time.sleep) -> dict[str, Timing]:
    """Time every engine alone, then all in turn, round after round in alternating order, within about `seconds` altogether."""
    first = {name: run(0)[0] for name, run in blocks.items()}
    rounds, each = plan(first, seconds)

    def settled(name: str) -> list[float]:
        sleep(SETTLE)
        return blocks[name](each)

    alone = {name: median(_joined(settled(name) for _ in range(rounds // 2))) for name in blocks}
    taken: dict[str, list[list[float]]] = {name: [] for name in blocks}
    for i in range(rounds):
        for name in list(blocks)[:: 1 if i % 2 == 0 else -1]:
            taken[name].append(settled(name))
    return {name: _timing(alone[name], times) for name, times in taken.items()}


def plan(first: Mapping[str, float], seconds: float) -> tuple[int, float]:
    """Rounds, an even number, and seconds of a block, for engines whose calls take `first`; slow ones get fewer rounds, at least two.

    Half as many blocks again time each engine alone.
    """
    each = seconds / (len(first) * _MOST_ROUNDS * 1.5)
    pair = 3 * sum(max(each, time) for time in first.values())  # two rounds and a block alone
    return 2 * max(1, min(_MOST_ROUNDS // 2, round(seconds / pair))), each


def _timing(alone: float, rounds: list[list[float]]) -> Timing:
    half = len(rounds) // 2
    calls = _joined(rounds)
    return Timing(median(calls), alone, (median(_joined(rounds[:half])), median(_joined(rounds[half:]))), len(calls))


def _joined(blocks) -> list[float]:
    return [time for block in blocks for time in block]
