"""Generated kernels whose units and columns concurrent programs share: one process each, see `processes`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from processes import Disturbance, Fault, Processes
from programs import captured
from torch import Tensor

from sstkern.engines.triton import device, launch
from sstkern.lengths import with_beginnings
from sstkern.program import engine, on_gpu, run
from sstkern.program.run import Call

INPUT_SIZE, HIDDEN_SIZE, TOLERANCE = 3, 21, 1e-10
LENGTHS = {"short": (2, 0, 3), "two tiles": (3, *[2] * 15, *[1] * 14, 2, 3, *[0] * 3)}


class Case(NamedTuple):
    cell: str
    schedule: str
    programs: int = 2
    """How many programs share a tile of the batch."""
    lengths: str = "short"
    reverse: bool = False
    resets: bool = False


CASES = {
    "one stage, grid": Case("LSTMCell", "grid", programs=3),
    "one stage, streamed": Case("LSTMCell", "streamed", lengths="two tiles", reverse=True),
    "a product of a product, grid": Case("ChoGRU", "grid", lengths="two tiles"),
    "a product of a product, streamed": Case("ChoGRU", "streamed", programs=3),
    "one stage, grid, resets": Case("LSTMCell", "grid", programs=3, resets=True),
    "a product of a product, streamed, resets": Case("ChoGRU", "streamed", lengths="two tiles", reverse=True, resets=True),
    "a projection, grid": Case("ProjectedLSTM", "grid"),
    "sums along rows, grid": Case("LayerNormLSTM", "grid", programs=3),
    "heads, streamed": Case("Heads", "streamed"),
    "cumulative sums and moves, grid": Case("Ordered", "grid"),
    "a loop of what is moved, grid": Case("BlockDiagonal", "grid"),
}
FAULTS = {
    "no wait": Fault(waits=False),
    "a count too small by one program": Fault(count=-1),
    "arrives before it stores": Fault(arrives_early=True),
    "one buffer": Fault(one_buffer=True),
}
TWICE = {("ChoGRU", "one buffer"), ("LayerNormLSTM", "one buffer")}


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes(max(case.programs for case in CASES.values())) as started:
        yield started


class Concurrent:
    """A program's call, and what it should give."""

    def __init__(self, case: Case, processes: Processes):
        torch.manual_seed(0)
        self.case, self.processes = case, processes
        self.device = processes.device(case.programs)
        program, kinds = captured(case.cell, INPUT_SIZE, HIDDEN_SIZE)
        self.call = Call(program, kinds.sizes, (), case.reverse, True)
        self.layer = engine.Layer("triton", self.call, kinds)
        lengths = LENGTHS[case.lengths]
        self.lengths, batch = torch.tensor(lengths), len(lengths)
        if case.resets:
            self.lengths = with_beginnings(self.lengths, torch.rand(3, batch) < 0.5)

        def drawn(part, *lead: int) -> list[Tensor]:
            return [torch.randn(*lead, *kind.shape, dtype=kind.dtype) / 2 for kind in part]

        self.tensors = drawn(kinds.inputs, 3, batch), drawn(kinds.parameters), drawn(kinds.states * (1 + case.resets), batch)
        leaves = [tensor.requires_grad_() for part in self.tensors for tensor in part]
        outputs, hx_n = run.layer(self.call, *self.tensors, self.lengths)
        self.results = [*outputs, *hx_n]
        self.grads = [torch.randn_like(output) for output in outputs], [torch.randn_like(state) for state in hx_n]
        self.needs = [True] * len(leaves)
        self.gradients = torch.autograd.grad(self.results, leaves, [*self.grads[0], *self.grads[1]])
        for tensor in (*leaves, *self.results):
            tensor.detach_()
        self.saved = run.forward_and_saved(self.call, *self.tensors, self.lengths)[2]

    def choose(self, card: launch.Card, step: launch.Step, schedule: str | None = None) -> launch.StepLaunch:
        """With as many programs as the case says. What needs no waiting runs as it would."""
        if schedule is not None:
            return launch.choose_step(card, step, schedule)
        wide = max(part.rows for part in step.parts)
        return launch._step_launch(card, step, self.case.schedule, -(-wide // self.case.programs))

    def forward(self, disturbance: Disturbance) -> list[Tensor]:
        with self.concurrently(disturbance):
            outputs, hx_n, _ = self.layer.forward(self.call, *self.tensors, self.lengths, None)
        return [*outputs, *hx_n]

    def backward(self, disturbance: Disturbance) -> list[Tensor]:
        with self.concurrently(disturbance):
            found = self.layer.backward(self.call, *self.tensors, self.lengths, self.saved, *self.grads, self.needs)
        return [gradient for gradient in found if gradient is not None]

    @contextmanager
    def concurrently(self, disturbance: Disturbance) -> Iterator[None]:
        self.processes.disturbance, self.processes.grids = disturbance, []
        with mock.patch.object(device, "of", return_value=self.device), mock.patch.object(on_gpu, "choose_step", self.choose):
            yield
        assert set(self.processes.grids) == {self.case.programs}


def close(results: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, TOLERANCE, TOLERANCE) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_programs_agree_with_plain_pytorch(processes, name):
    concurrent = Concurrent(CASES[name], processes)
    runs = []
    for slow in (0, concurrent.case.programs - 1):
        disturbance = Disturbance(slow, lag=0.02)
        runs.append([*concurrent.forward(disturbance), *concurrent.backward(disturbance)])
        torch.testing.assert_close(runs[-1], [*concurrent.results, *concurrent.gradients], rtol=TOLERANCE, atol=TOLERANCE)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# The other program has to be ahead within the lag, which a busy machine may not let it be at once.
LAGS = (0.05, 0.2, 0.8)


# Where programs meet twice a step, one buffer of a state would do.
@pytest.mark.parametrize(
    ("cell", "name"), [(cell, name) for cell in ("LSTMCell", "ChoGRU", "LayerNormLSTM") for name in FAULTS if (cell, name) not in TWICE]
)
def test_a_fault_in_the_forward_is_seen(processes, cell, name):
    concurrent = Concurrent(Case(cell, "grid"), processes)
    assert not all(close(concurrent.forward(Disturbance(1, lag, core=FAULTS[name])), concurrent.results) for lag in LAGS)


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "one buffer"])
def test_a_fault_in_the_backward_is_seen(processes, name):
    concurrent = Concurrent(Case("ChoGRU", "grid"), processes)
    assert not all(close(concurrent.backward(Disturbance(1, lag, core=FAULTS[name])), concurrent.gradients) for lag in LAGS)


def test_a_count_never_reached_ends_by_its_limit(processes):
    concurrent = Concurrent(Case("LSTMCell", "grid"), processes)
    with pytest.raises(RuntimeError, match=r"core, program 0: (?s:.)*TimeoutError: still waiting after 1.0 s"):
        concurrent.forward(Disturbance(core=Fault(count=1), time_limit=1.0))
