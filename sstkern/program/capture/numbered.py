"""A step whose changing numbers are arguments of its program, if that is the same step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from sstkern.program.capture.numbers import Numbers, Place, large, small
from sstkern.program.capture.reasons import Unfused
from sstkern.program.capture.recording import Recorded
from sstkern.program.capture.runs import Spec, attempted, difference
from sstkern.program.capture.shadow import Shadow


def with_numbers(
    cell: nn.Module, places: Iterable[Place], plain: list[Recorded], specs: Iterable[Spec], run: Callable[[Shadow, int], list[Recorded]]
) -> tuple[list[Recorded], Numbers] | None:
    """`plain`, what was recorded as it is, with the numbers of these attributes as arguments; None where that is not the same.

    run: records a shadow's step with a number of sequences. It is done with small and with large values in place of the numbers: what
    depends on them unseen differs.
    """
    found = [_recorded(cell, Numbers(places, values), list(specs), run) for values in (small(), large())]
    if None in found:
        return None
    (first, numbers), (second, others) = (one for one in found if one is not None)
    alike = _alike([step.settled() for step in first], plain) and _alike(first, second)
    same_numbers = [step.numbers for step in first] == [step.numbers for step in second] and numbers.conditions == others.conditions
    return (first, numbers) if alike and same_numbers else None


def _recorded(
    cell: nn.Module, numbers: Numbers, specs: list[Spec], run: Callable[[Shadow, int], list[Recorded]]
) -> tuple[list[Recorded], Numbers] | None:
    try:
        shadow = Shadow(cell, numbers=numbers)
        return attempted(shadow, specs, lambda batch, _: run(shadow, batch)), numbers
    except (Unfused, TypeError):
        return None


def _alike(first: list[Recorded], second: list[Recorded]) -> bool:
    return all(difference(a, b) is None for a, b in zip(first, second, strict=True))
