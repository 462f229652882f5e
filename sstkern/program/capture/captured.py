"""One step of a cell as a program.

The step runs twice on example tensors, with two numbers of sequences that no width is a multiple of. Both runs must be the same program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from sstkern.program.capture.defaults import FirstState, can_do_without, candidates, first_state
from sstkern.program.capture.draws import Draw
from sstkern.program.capture.guards import Guard
from sstkern.program.capture.numbered import with_numbers
from sstkern.program.capture.numbers import Numbers
from sstkern.program.capture.reasons import NoDefault, Unfused
from sstkern.program.capture.recording import Recorded
from sstkern.program.capture.runs import Run, Spec, attempted, same, undisturbed
from sstkern.program.capture.shadow import Shadow, Source, Watch
from sstkern.program.graph import Program
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
    guard: Guard
    _step: Recorded
    _first: FirstState | None

    def leaves(self) -> list[Tensor]:
        """The tensors of the cell, read now."""
        return [source.read() for source in self.sources]

    def parameters(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the program's parameters: leaves, and what follows from these alone, with their gradients."""
        return self._step.replay.run(leaves[: len(self._step.replay.leaves)])

    def numbers(self) -> list[float]:
        """The program's arguments `$0`, `$1` ... now."""
        return [formula.value() for formula in self._step.numbers]

    @property
    def draws(self) -> tuple[Draw, ...]:
        """What the step draws at random: the program's last inputs."""
        return self._step.draws

    def first_state(self, leaves: Sequence[Tensor], batch_size: int) -> Structure:
        """The cell's own first state, tensors (batch_size, ...). Only of what was captured without a given one."""
        assert self._first is not None
        return self._first.tensors(leaves[len(self._step.replay.leaves) :], batch_size, flatten(self.state)[0].device)

    def names(self) -> list[str]:
        """The names of the program's parameters: a tensor's own, or `p0 of weight, bias` where these give it before the loop."""
        replay, sources = self._step.replay, list(map(str, self.sources))
        return [replay.name(place, sources) for place in range(len(replay.wanted))]

    def holds(self) -> bool:
        """Whether the cell is as it was captured: whether its step is still this program."""
        return self.guard.holds()


def capture(
    cell: nn.Module, input: Structure, state: Structure | None, returns: Returns = "auto", *, previous: Captured | None = None
) -> Captured:
    """The program of one step of `cell(input, state)`.

    input: a Spec, or a tuple of Specs for a cell that takes a tuple. state: Specs in the cell's structure; None for the cell's own first
    state, found by running `cell(input)`. returns: see sstkern.structure.split_result. previous: what was captured before. Floats among the
    attributes that have changed since become arguments of the program where they can.

    Raises Unfused with the reason for a step that is no program, NoDefault without a state for a cell that needs one, TypeError for a cell
    that returns neither a state nor an output and a state, ValueError where without a state both could be meant.
    """
    with undisturbed(flatten(input)[0].device):
        shadow, own = Shadow(cell), state is None
        if state is None:
            returns, state = _own_state(cell, shadow, input, returns)

        def recorded(shadow: Shadow, batch: int) -> list[Recorded]:
            step = Run(shadow, input, state, batch).recorded(returns)
            return [step, first_state(shadow, input, state, returns, batch)] if own else [step]

        specs = flatten((input, state))
        steps = attempted(shadow, specs, lambda a, b: [*map(same, recorded(shadow, a), recorded(shadow, b))])
        numbers = Numbers()
        if previous is not None and (places := previous.guard.changing()):
            steps, numbers = with_numbers(cell, places, steps, specs, recorded) or (steps, numbers)
        guard = Guard(shadow.watches, shadow.ties, numbers)
    sources = tuple(shadow.sources[at] for step in steps for at in step.replay.leaves)
    first, program = FirstState(state, steps[1]) if own else None, replace(steps[0].program, cell=type(cell).__name__)
    return Captured(program, steps[0].sizes, input, state, returns, sources, tuple(shadow.watches), guard, steps[0], first)


def _own_state(cell: nn.Module, shadow: Shadow, input: Structure, returns: Returns) -> tuple[Returns, Structure]:
    """What the cell returns, and the Specs of its state, where the state is left out."""
    if not can_do_without(cell):
        raise NoDefault("the cell cannot be called without a state")
    found = attempted(shadow, flatten(input), lambda batch, _: candidates(shadow, input, returns, batch))
    if len(found) > 1:
        raise ValueError("returns: the cell's result may be its state, or an output and its state; say 'state' or 'output_and_state'")
    if not found:
        raise Unfused("the first state cannot be told from what the cell does without one: give hx, or initial_state")
    return found[0]
