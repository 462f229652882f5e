"""One step of a cell as a program.

The step runs twice on example tensors, with two numbers of sequences that no width is a multiple of. Both runs must be the same program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sstkern.program.defaults import FirstState, can_do_without, candidates, first_state
from sstkern.program.graph import Program
from sstkern.program.guards import Guard
from sstkern.program.prelude import Replay
from sstkern.program.reasons import NoDefault, Unfused
from sstkern.program.recording import Recorded
from sstkern.program.runs import Run, Spec, attempted, same, undisturbed
from sstkern.program.shadow import Shadow, Source, Watch
from sstkern.structure import Returns, Structure, flatten

__all__ = ["Captured", "NoDefault", "Spec", "Unfused", "capture"]


@dataclass(frozen=True, eq=False)
class Captured:
    """A cell's step as a program.

    program: the step. sizes: its arguments `#0`, `#1` ... input, state: a Spec for each tensor, in the cell's structure. returns: how it
    reads what the cell returns. sources: the tensors of the cell that it reads. watches: what else it has read.
    """

    program: Program
    sizes: tuple[int, ...]
    input: Structure
    state: Structure
    returns: Returns
    sources: tuple[Source, ...]
    watches: tuple[Watch, ...]
    _replay: Replay
    _guard: Guard
    _first: FirstState | None

    def leaves(self) -> list[Tensor]:
        """The tensors of the cell, read now."""
        return [source.read() for source in self.sources]

    def parameters(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the program's parameters: leaves, and what follows from these alone, with their gradients."""
        return self._replay.run(leaves[: len(self._replay.leaves())])

    def numbers(self) -> list[float]:
        """The program's arguments `$0`, `$1` ... now."""
        return []

    def first_state(self, leaves: Sequence[Tensor], batch_size: int) -> Structure:
        """The cell's own first state, tensors (batch_size, ...). Only of what was captured without a given one."""
        assert self._first is not None
        return self._first.tensors(leaves[len(self._replay.leaves()) :], batch_size, flatten(self.state)[0].device)

    def names(self, cell: nn.Module) -> list[str]:
        """Of the program's parameters: a tensor's own, or `p0 of weight, bias` where it is computed from these before the loop."""
        paths = {id(module): f"{path}." if path else "" for path, module in cell.named_modules()}
        sources = [f"{paths.get(id(source.owner), '')}{source}" for source in self.sources]
        return [self._replay.name(place, sources) for place in range(len(self._replay.wanted))]

    def holds(self) -> bool:
        """Whether the cell is as it was captured: whether its step is still this program."""
        return self._guard.holds()


def capture(cell: nn.Module, input: Structure, state: Structure | None, returns: Returns = "auto") -> Captured:
    """The program of one step of `cell(input, state)`.

    input: a Spec, or a tuple of Specs for a cell that takes a tuple. state: Specs in the cell's structure; None for the cell's own first
    state, found by running `cell(input)`. returns: see sstkern.structure.split_result.

    Raises Unfused with the reason for a step that is no program, NoDefault without a state for a cell that needs one, TypeError for a cell
    that returns neither a state nor an output and a state, ValueError where without a state both could be meant.
    """
    with undisturbed(flatten(input)[0].device):
        shadow = Shadow(cell)
        first = None
        if state is None:
            returns, first = _own_state(cell, shadow, input, returns)
            state = first.state
        step = _both(shadow, (input, state), lambda batch: Run(shadow, input, state, batch).recorded(returns))
        guard = Guard(shadow.watches, shadow.ties)
    sources = (*_sources(shadow, step), *(() if first is None else first.sources))
    return Captured(step.program, step.sizes, input, state, returns, sources, tuple(shadow.watches), step.replay, guard, first)


def _both(shadow: Shadow, specs: Structure, run: Callable[[int], Recorded]) -> Recorded:
    """What runs with two numbers of sequences have in common."""
    return attempted(shadow, flatten(specs), lambda first, second: same(run(first), run(second)))


def _sources(shadow: Shadow, recorded: Recorded) -> tuple[Source, ...]:
    return tuple(shadow.sources[at] for at in recorded.replay.leaves())


def _own_state(cell: nn.Module, shadow: Shadow, input: Structure, returns: Returns) -> tuple[Returns, FirstState]:
    """What the cell puts in place of a state that is left out, and what it returns."""
    if not can_do_without(cell):
        raise NoDefault("the cell cannot be called without a state")
    found = attempted(shadow, flatten(input), lambda batch, _: candidates(shadow, input, returns, batch))
    if len(found) > 1:
        raise ValueError("returns: the cell's result may be its state or an output and its state; say returns='state' or 'output_and_state'")
    if not found:
        raise Unfused("the first state cannot be told from what the cell does without one: give hx, or initial_state")
    kind, state = found[0]
    recorded = _both(shadow, (input, state), lambda batch: first_state(shadow, input, state, kind, batch))
    return kind, FirstState(state, recorded.program, recorded.sizes, _sources(shadow, recorded), recorded.replay)
