"""Cases and problems of somebody's own cells, "module:Class", and of the library's, by their names."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

import torch
from torch import Tensor, nn

from sstkern import first_states
from sstkern.bench.cases import PHASES, Case, Shape
from sstkern.bench.loops import Loop, unrolled
from sstkern.bench.peers import SEED, Prepared, Problem, of_module
from sstkern.named import own_cell
from sstkern.program import work
from sstkern.program.layer import Programs, kinds

SHAPES: tuple[Shape, ...] = ((1, 100, 128), (32, 50, 128), (32, 50, 256), (128, 20, 128))


@dataclass(frozen=True)
class OwnCase(Case):
    """A cell of input_size and hidden_size, on one batch of full lengths in float32."""

    input_size: int | None = None
    """None for `size`, the hidden_size."""

    def __post_init__(self) -> None:
        self._check_sizes()

    @property
    def width(self) -> int:
        return self.size if self.input_size is None else self.input_size

    def as_row(self) -> dict[str, str | int]:
        return {**super().as_row(), "input_size": self.width}

    def make(self) -> nn.Module:
        """The cell, always with the same numbers, in the phase's mode. Raises ValueError for a name that leads to none."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return own_cell(self.cell, self.width, self.size).train(self.training)

    @cached_property
    def flops(self) -> int | None:  # type: ignore[override]
        """Operations of the matrix products of the cell's program; None where it has no program, which is told where it is run."""
        try:
            cell, rows = self.make(), torch.zeros(1, self.width)
            captured = Programs().of_call(cell, rows, first_states.first_state(cell, None, 1, rows), 1, "auto")
        except Exception:
            return None
        return self.tokens * work.flops_of_products(captured.program, kinds(captured)) * (3 if self.training else 1)


@dataclass(frozen=True)
class OwnProblem(Problem):
    """The loss is the sum of all outputs."""

    case: OwnCase

    @classmethod
    def of(cls, case: OwnCase, threads: int) -> "OwnProblem":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            x = torch.randn(case.steps, case.batch, case.width)
        return cls(case, threads, x, None, torch.ones(()), case.make().state_dict())

    def loop(self) -> Loop:
        """The loop of a new cell."""
        cell = self.case.make()
        cell.load_state_dict(self.state)
        return Loop(cell, self.x)

    def eager(self) -> Prepared:
        """The loop as it stands."""
        loop = self.loop()
        return self.prepared(loop.cell, lambda x: unrolled(loop.cell, loop.read, x, loop.first()))

    def prepared(self, cell: nn.Module, call: Callable[[Tensor], Tensor], called: nn.Module | None = None) -> Prepared:
        """A way to make the outputs of x by a cell, or by `called`, which has its parameters.

        A cell that draws random numbers is checked in evaluation mode: no two ways draw the same.
        """
        made = of_module(self, cell, call)
        if self.draws:
            made.checked_in = partial(evaluating, called or cell)
        return made

    @cached_property
    def draws(self) -> bool:
        """Whether a step draws random numbers."""
        with torch.random.fork_rng(devices=[]):
            loop, before = self.loop(), torch.get_rng_state()
            unrolled(loop.cell, loop.read, self.x[:1], loop.first())
            return not torch.equal(before, torch.get_rng_state())

    def expected(self) -> list[Tensor]:
        """What the loop computes."""
        return self.eager().results()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode within the block."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def grid(
    cells: Collection[str], shapes: Collection[Shape] = SHAPES, phases: Collection[str] = PHASES, input_size: int | None = None
) -> list[OwnCase]:
    """Every combination."""
    found = product(phases, cells, shapes)
    return [OwnCase(cell, *shape, training=phase == "training", input_size=input_size) for phase, cell, shape in found]
