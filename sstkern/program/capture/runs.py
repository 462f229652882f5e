"""Runs of a cell's step on example tensors, where nothing of the caller's has a say in what it computes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sstkern import private
from sstkern.program.capture.calls import Calls
from sstkern.program.capture.frozen import Same, frozen
from sstkern.program.capture.reached import check_gradients
from sstkern.program.capture.reasons import Mixed, Unfused, place_of, reason
from sstkern.program.capture.recording import Recorded
from sstkern.program.capture.restored import no_random_numbers, restored
from sstkern.program.capture.seeds import no_seeds
from sstkern.program.capture.shadow import FRAMEWORK, UNCHANGED, Shadow, class_attributes, example
from sstkern.program.capture.trace import Trace
from sstkern.program.values import Value
from sstkern.structure import Returns, Structure, flatten, mapped, split_result

_PRIMES = [size for size in range(3, 600) if all(size % part for part in range(2, int(size**0.5) + 1))]
_ATTEMPTS = 3

Result = TypeVar("Result")


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

    def __str__(self) -> str:
        return f"(B{''.join(f', {size}' for size in self.shape)}) of {self.dtype}"


class Failed(Unfused):
    """The step raised an error of its own."""


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """No trace, transform, autocast, inference mode, no_grad or hooks of saved tensors of the caller's."""
    # Where hooks cannot be set there are none.
    hooks = torch.autograd.graph.saved_tensors_hooks(_same, _same) if private.can_hook_saved_tensors() else nullcontext()
    with (
        private.untraced(),
        private.without_transforms_active(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device.type, enabled=False),
        hooks,
    ):
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Run:
    """One run of a step with `batch` sequences. trace: what it computed. result: what it returned. state: the examples that it got."""

    def __init__(self, shadow: Shadow, input: Structure, state: Structure | None, batch: int) -> None:
        self.inputs = flatten(input)
        self.trace = Trace(batch, self.inputs[0].device)
        self.trace.record.formulas = shadow.numbers.formulas
        for at, (tensor, source) in enumerate(zip(shadow.examples, shadow.sources, strict=True)):
            self.trace.leaf(tensor, at, f"self.{source}")
        self.state = None if state is None else _examples(self.trace, state, "h")
        given = _examples(self.trace, input, "x")
        self.result = _returned(shadow, self.trace, (given,) if state is None else (given, self.state))

    def split(self, returns: Returns) -> tuple[Value, list[Value]]:
        """The values of the output and of the next states. Raises TypeError for a result that is neither, see `split_result`."""
        output, after = split_result(self.result, self.state, returns)
        values = self.values([output, *flatten(after)])
        for before, tensor in zip(flatten(self.state), flatten(after), strict=True):
            was, now = Spec.of_row(before), Spec.of_row(tensor)
            if was != now:
                raise Unfused(f"a state {was} is {now} after the step: keep its shape, dtype and device")
        return values[0], values[1:]

    def values(self, results: list[Any]) -> list[Value]:
        """Of tensors (B, ...) that the step returned."""
        for result in results:
            if not isinstance(result, Tensor):
                raise TypeError(f"cell: expected it to return tensors, got {type(result).__name__}")
        found = [self.trace.result(result) for result in results]
        check_gradients(self.trace, results, found)
        return found

    def recorded(self, returns: Returns) -> Recorded:
        """The program of the step."""
        output, after = self.split(returns)
        states = [tensor.dim() - 1 for tensor in flatten(self.state)]
        return self.trace.record.program([len(spec.shape) for spec in self.inputs], states, [output], after)


def _examples(trace: Trace, structure: Structure, kind: str) -> Structure:
    """Fresh tensors (batch, *shape), each its own."""
    random = torch.Generator().manual_seed(1)
    places = iter(range(len(flatten(structure))))

    def made(spec: Spec) -> Tensor:
        if kind == "h" and not spec.dtype.is_floating_point:
            raise Unfused(f"a state {spec}: states must be floating point")
        if 0 in spec.shape:
            raise Unfused(f"{'a state' if kind == 'h' else 'an input'} {spec}: rows must have elements")
        tensor = example((trace.record.batch, *spec.shape), spec.dtype, spec.device, random)
        return trace.rows(tensor.requires_grad_(spec.dtype.is_floating_point), kind, next(places))

    return mapped(structure, made)


def _returned(shadow: Shadow, trace: Trace, given: tuple[Structure, ...]) -> Structure:
    before = _contents(shadow)
    try:
        with restored(shadow.modules()), no_random_numbers(), no_seeds(), Calls(trace.record.batch), trace:
            result = shadow.root(*given)
            after = _contents(shadow)
    except Unfused:
        raise
    except Exception as error:
        places = [place_of(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
        line = next((line for line in reversed(places) if line), "")
        said = next(iter(str(error).splitlines()), "")
        raise Failed(reason(f"the step raised {type(error).__name__}: {said}", "it must run on any values", line)) from error
    for at, name in {**before, **after}:
        if before.get((at, name)) != after.get((at, name)):
            raise Unfused(f"the step changes self.{name}: {UNCHANGED}")
    return result


def _contents(shadow: Shadow) -> dict[tuple[int, str], Any]:
    """What the cell holds, which can be changed without an attribute being set."""
    return {
        (at, name): _content(value)
        for at, module in enumerate(shadow.modules())
        for name, value in (*vars(module).items(), *class_attributes(type(module)))
        if name not in FRAMEWORK
    }


def seen(cell: nn.Module) -> Any:
    """What of a cell may let a step be captured that was refused before, to be compared: modes, attributes, modules, hooks."""

    def of(module: nn.Module) -> tuple:
        own = {name: _content(value) for name, value in vars(module).items() if name not in FRAMEWORK}
        return type(module), module.training, [bool(vars(module)[hooks]) for hooks in private.HOOKS], own

    return list(map(of, cell.modules()))


def _content(value: Any) -> Any:
    try:
        return Same(value) if isinstance(value, Tensor) else frozen(value)
    except Unfused:  # of what cannot be watched
        return Same(value)


def attempted(shadow: Shadow, specs: Iterable[Spec], run: Callable[[int, int], Result]) -> Result:
    """What `run` gives for two numbers of sequences. Where it raises Mixed, others tell whether a width was taken for their number."""
    for pair in islice(_batches(shadow, specs), _ATTEMPTS):
        try:
            return run(*pair)
        except Mixed as error:
            found = error
    raise found


def same(first: Recorded, second: Recorded) -> Recorded:
    """Either of two programs that must be the same. Raises Mixed where they are not."""
    if (line := difference(first, second)) is not None:
        what = "the step is another one with another number of sequences, or at every call"
        raise Mixed(reason(what, "a step may use x.size(0) as a size of new tensors only", line))
    return first


def _batches(shadow: Shadow, specs: Iterable[Spec]) -> Iterator[tuple[int, int]]:
    """Pairs of numbers of sequences that divide no width of the cell's tensors, nor the sum of two."""
    widths = {size for tensor in shadow.examples for size in tensor.shape} | {size for spec in specs for size in spec.shape}
    widths |= {sum(pair) for pair in combinations_with_replacement(widths, 2)}
    fit = (prime for prime in _PRIMES if not any(width and width % prime == 0 for width in widths))
    yield from zip(fit, fit, strict=False)


def difference(first: Recorded, second: Recorded) -> str | None:
    """The user's line where two runs are not the same program, None where they are."""
    alike = (first.program.text, first.sizes, first.draws) == (second.program.text, second.sizes, second.draws)
    if alike and not first.replay.differs(second.replay):
        return None
    pairs = zip(first.program.nodes, second.program.nodes, first.places, strict=False)
    return next((line for a, b, line in pairs if str(a) != str(b)), "")
