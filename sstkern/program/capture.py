"""One step of a cell as a program.

The step runs twice on example tensors, with two numbers of sequences that no width is a multiple of. Both runs must be the same program.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor, nn

from sstkern import private
from sstkern.program.calls import Calls
from sstkern.program.reached import check_gradients
from sstkern.program.graph import Program
from sstkern.program.guards import Guard, frozen
from sstkern.program.prelude import Replay
from sstkern.program.reasons import Mixed, NoDefault, Unfused, place_of, reason
from sstkern.program.recording import Recorded
from sstkern.program.shadow import FRAMEWORK, UNCHANGED, Shadow, Source, example
from sstkern.program.trace import Trace
from sstkern.structure import Returns, Structure, flatten, mapped, split_result

__all__ = ["Captured", "NoDefault", "Spec", "Unfused", "capture"]

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
_ATTEMPTS = 3


@dataclass(frozen=True)
class Spec:
    """What the rows of one step's tensor (B, *shape) have in common."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of_row(tensor: Tensor) -> Spec:
        """That of a tensor (B, ...)."""
        return Spec(tuple(tensor.shape[1:]), tensor.dtype, tensor.device)


@dataclass(frozen=True, eq=False)
class Captured:
    """A cell's step as a program.

    program: the step. sizes: its arguments `#0`, `#1` ... state: a Spec for each of its states, in the cell's structure. names: of the
    tensors of the cell that it reads.
    """

    program: Program
    sizes: tuple[int, ...]
    state: Structure
    names: tuple[str, ...]
    _sources: tuple[Source, ...]
    _replay: Replay
    _guard: Guard

    def parameters(self) -> list[Tensor]:
        """The tensors of the program's parameters: read from the cell now, and what follows from these alone, with their gradients."""
        return self._replay.run([source.read() for source in self._sources])

    def numbers(self) -> list[float]:
        """The program's arguments `$0`, `$1` ... now."""
        return []

    def holds(self) -> bool:
        """Whether the cell is as it was captured: whether its step is still this program."""
        return self._guard.holds()


def capture(cell: nn.Module, input: Structure, state: Structure, returns: Returns = "auto") -> Captured:
    """The program of one step of `cell(input, state)`.

    input: a Spec, or a tuple of Specs for a cell that takes a tuple. state: Specs in the cell's structure. returns: see
    sstkern.structure.split_result.

    Raises Unfused with the reason for a step that is no program, TypeError for a cell that returns neither a state nor an output and a state.
    """
    with _undisturbed(flatten(input)[0].device):
        shadow = Shadow(cell)
        first, second = _runs(shadow, lambda batch: _step(shadow, input, state, returns, batch))
        if difference := _difference(first, second):
            raise Unfused(difference)
        sources = tuple(shadow.sources[at] for at in first.replay.leaves())
        guard = Guard(shadow.watches, shadow.ties)
    names = tuple(map(str, sources))
    return Captured(first.program, first.sizes, state, names, sources, first.replay, guard)


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Where nothing of the caller's has a say in what a step computes: no trace, transform, autocast, inference mode or no_grad."""
    with (
        private.untraced(),
        private.without_transforms_active(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def _runs(shadow: Shadow, run: Callable[[int], Recorded]) -> tuple[Recorded, Recorded]:
    """Of the two numbers of sequences. Where sequences seem to be mixed, others tell whether a width was taken for their number."""
    pairs = _batches(shadow)
    for attempt in range(_ATTEMPTS):
        try:
            first, second = (run(batch) for batch in next(pairs))
            if attempt == _ATTEMPTS - 1 or not _difference(first, second):
                return first, second
        except Mixed:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def _batches(shadow: Shadow) -> Iterator[tuple[int, int]]:
    """Pairs of numbers of sequences that divide no width of the cell's tensors, nor the sum of two."""
    widths = {size for tensor in shadow.examples for size in tensor.shape}
    widths |= {sum(pair) for pair in combinations_with_replacement(widths, 2)}
    fit = [prime for prime in _PRIMES if not any(width and width % prime == 0 for width in widths)]
    yield from zip(fit[::2], fit[1::2], strict=False)


def _step(shadow: Shadow, input: Structure, state: Structure, returns: Returns, batch: int) -> Recorded:
    """One run with `batch` sequences, written down."""
    inputs, states = flatten(input), flatten(state)
    trace = Trace(batch, inputs[0].device)
    for at, (tensor, source) in enumerate(zip(shadow.examples, shadow.sources, strict=True)):
        trace.leaf(tensor, at, f"self.{source}")
    given = _examples(trace, input, "x"), _examples(trace, state, "h")
    result = _run(shadow, trace, batch, given)
    output, after = split_result(result, given[1], returns)
    values = [trace.result(tensor) for tensor in (output, *flatten(after))]
    for spec, tensor in zip(states, flatten(after), strict=True):
        if Spec.of_row(tensor) != spec:
            raise Unfused(f"a state (B, *{spec.shape}) of {spec.dtype} is {tuple(tensor.shape)} of {tensor.dtype} after the step: keep its form")
    check_gradients(trace, [output, *flatten(after)], values)
    return trace.record.program([len(spec.shape) for spec in inputs], [len(spec.shape) for spec in states], values[0], values[1:])


def _examples(trace: Trace, structure: Structure, kind: str) -> Structure:
    """Fresh tensors (batch, *shape), each its own."""
    random = torch.Generator().manual_seed(1)
    count = 0

    def made(spec: Spec) -> Tensor:
        nonlocal count
        if not spec.dtype.is_floating_point and kind == "h":
            raise Unfused(f"a state is of {spec.dtype}: states must be floating point")
        tensor = example((trace.record.batch, *spec.shape), spec.dtype, spec.device, random)
        trace.rows(tensor.requires_grad_(spec.dtype.is_floating_point), kind, count)
        count += 1
        return tensor

    return mapped(structure, made)


def _run(shadow: Shadow, trace: Trace, batch: int, given: Sequence[Structure]) -> Structure:
    before = _contents(shadow)
    try:
        with Calls(batch), trace:
            result = shadow.root(*given)
    except Unfused:
        raise
    except Exception as error:
        frames = [place_of(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
        line = next((line for line in reversed(frames) if line), "")
        raise Unfused(reason(f"the step raised {type(error).__name__}: {error}", "it must run on any values", line)) from error
    for name, (was, now) in {name: (before[name], value) for name, value in _contents(shadow).items()}.items():
        if was != now:
            raise Unfused(f"the step changes self.{name[1]}: {UNCHANGED}")
    return result


def _contents(shadow: Shadow) -> dict[tuple[int, str], Any]:
    """What the cell holds that could be changed without setting an attribute."""
    return {
        (at, name): frozen(value)
        for at, module in enumerate(shadow.modules())
        for name, value in vars(module).items()
        if name not in FRAMEWORK and not isinstance(value, bool | int | float | str | Tensor)
    }


def _difference(first: Recorded, second: Recorded) -> str:
    """Why two runs are not the same program, or nothing."""
    if first.program.text == second.program.text and first.sizes == second.sizes and not first.replay.differs(second.replay):
        return ""
    pairs = zip(first.program.nodes, second.program.nodes, first.places, strict=False)
    line = next((line for a, b, line in pairs if str(a) != str(b)), "")
    return reason("the step depends on the number of sequences, x.size(0)", "a step may use it as a size of new tensors only", line)
