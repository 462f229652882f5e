"""The schedules that split hidden units over programs, with programs that really run at once: one process each, see `processes`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from processes import Disturbance, Fault, Processes
from torch import Tensor

from sstkern.cells import CELLS
from sstkern.engines import reference
from sstkern.engines.triton import device, launch, layer
from sstkern.engines.triton.launch import Card, Launch, Layer, choose
from sstkern.lengths import with_beginnings
from sstkern.operators import saved_rows

T, INPUT_SIZE = 3, 3
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


class Case(NamedTuple):
    cell: str
    schedule: str
    programs: int = 2
    """How many programs share the hidden units."""
    at_once: int = 1
    """Tasks in a launch."""
    lengths: tuple[int, ...] = (2, 0, 3)
    bidirectional: bool = False
    dtype: torch.dtype = torch.float64
    resets: bool = False


# Two tiles of rows; no sequence of the second has a step.
TWO_TILES = (3, *[2] * 30, *[1] * 30, 2, 3, *[0] * 7)
CASES = {
    "lstm, grid": Case("lstm", "grid", programs=3, at_once=2, bidirectional=True),
    "lstm, grid, float32": Case("lstm", "grid", dtype=torch.float32),
    "lstm, streamed": Case("lstm", "streamed", at_once=2, bidirectional=True, lengths=TWO_TILES),
    "lstm, streamed, float32": Case("lstm", "streamed", programs=3, dtype=torch.float32),
    "gru, grid": Case("gru", "grid", lengths=(2, 3, 3, 1) * 17),
    "gru, grid, float32": Case("gru", "grid", programs=3, dtype=torch.float32),
    "gru, streamed": Case("gru", "streamed", programs=3),
    "lstm, grid, resets": Case("lstm", "grid", at_once=2, bidirectional=True, resets=True),
    "gru, streamed, resets": Case("gru", "streamed", lengths=TWO_TILES, resets=True),
    "gru, streamed, float32": Case("gru", "streamed", lengths=TWO_TILES, dtype=torch.float32),
    "rnn_tanh, grid": Case("rnn_tanh", "grid", programs=3),
    "rnn_relu, grid, float32": Case("rnn_relu", "grid", lengths=TWO_TILES, dtype=torch.float32),
    "rnn_relu, streamed": Case("rnn_relu", "streamed", bidirectional=True),
    "rnn_tanh, streamed, float32": Case("rnn_tanh", "streamed", programs=3, dtype=torch.float32),
}
FAULTS = {
    "no wait": Fault(waits=False),
    "a count too small by one program": Fault(count=-1),
    "arrives before it stores": Fault(arrives_early=True),
    "one buffer": Fault(one_buffer=True),
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes(max(case.programs * case.at_once for case in CASES.values())) as started:
        yield started


class Inputs(NamedTuple):
    x: Tensor
    weights: list[Tensor]
    hx: list[Tensor]
    lengths: Tensor
    grads: list[Tensor]
    """The gradients of the output and of the last states."""
    results: list[Tensor]
    """The output and the last states by the reference engine, float64."""
    gradients: list[Tensor]
    """The gradients of x, weights and hx."""


@cache
def inputs(case: Case, hidden_size: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).div(shape[-1] ** 0.5).to(case.dtype)

    cell, directions, lengths = CELLS[case.cell], 1 + case.bidirectional, torch.tensor(case.lengths)
    rows = len(cell.gates) * hidden_size
    weights = [random(*shape) for _ in range(directions) for shape in ((rows, INPUT_SIZE), (rows, hidden_size), (rows,), (rows,))]
    x, states = random(T, len(lengths), INPUT_SIZE), len(cell.states) * (1 + case.resets)
    hx = [random(directions, len(lengths), hidden_size) for _ in range(states)]
    if case.resets:
        lengths = with_beginnings(lengths, torch.rand(T, len(lengths), generator=generator) < 0.5)
    leaves = [tensor.double().detach().requires_grad_() for tensor in (x, *weights, *hx)]
    last = len(leaves) - len(hx)
    output, hx_n = reference.layer(cell, leaves[0], leaves[1:last], leaves[last:], lengths, True, case.bidirectional)
    results = [output, *hx_n]
    grads = [random(*result.shape) for result in results]
    gradients = torch.autograd.grad(results, leaves, [grad.double() for grad in grads])
    return Inputs(x, weights, hx, lengths, grads, [result.detach() for result in results], list(gradients))


class Concurrent:
    """A layer whose hidden units concurrent programs share."""

    def __init__(self, case: Case, processes: Processes):
        self.case, self.processes = case, processes
        self.device = processes.device(case.programs * case.at_once)
        self.inputs = inputs(case, self.hidden_size())
        x, weights, hx, lengths, *_ = self.inputs
        self.arguments = case.cell, x, weights, hx, lengths, True, case.bidirectional

    def hidden_size(self) -> int:
        """The smallest that leaves the last program 5 units, fewer than a tile."""
        case = self.case
        sizes = Layer(
            case.dtype, self.device.precision(case.dtype), len(CELLS[case.cell].gates), len(case.lengths), 5, 1 + case.bidirectional
        )
        while True:
            plans = [self.choose(self.device.card, sizes, backward) for backward in (False, True)]
            if all(plan.programs(sizes.hidden_size) == case.programs and sizes.hidden_size % plan.block_h == 5 for plan in plans):
                return sizes.hidden_size
            sizes = replace(sizes, hidden_size=sizes.hidden_size + 1)

    def choose(self, card: Card, sizes: Layer, backward: bool, _: str | None = None) -> Launch:
        """The launch table's, but for so few parts summed at once that 3 programs' take more than one round."""
        return replace(choose(card, sizes, backward, self.case.schedule), block_u=2)

    def forward(self, disturbance: Disturbance) -> tuple[list[Tensor], list[Tensor]]:
        """The results, and what is saved."""
        with self.concurrently(disturbance):
            output, hx_n, saved = layer.forward(*self.arguments, saved_rows(self.arguments[1].dim() == 2, self.arguments[4]))
        return [output, *hx_n], saved

    def backward(self, output: Tensor, saved: list[Tensor], disturbance: Disturbance) -> list[Tensor]:
        grad_output, *grad_hx = self.inputs.grads
        with self.concurrently(disturbance):
            return layer.backward(*self.arguments, output, saved, grad_output, grad_hx, [True] * len(self.inputs.gradients))

    @contextmanager
    def concurrently(self, disturbance: Disturbance) -> Iterator[None]:
        self.processes.disturbance, self.processes.grids = disturbance, []
        with mock.patch.object(device, "of", return_value=self.device), mock.patch.object(launch, "choose", self.choose):
            yield
        assert set(self.processes.grids) == {self.case.programs * self.case.at_once}


def close(results: list[Tensor], expected: list[Tensor]) -> bool:
    tolerance = TOLERANCE[results[0].dtype]
    return all(torch.allclose(a.double(), b, tolerance, tolerance) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_programs_agree_with_the_reference(processes, name):
    concurrent = Concurrent(CASES[name], processes)
    expected, tolerance = [*concurrent.inputs.results, *concurrent.inputs.gradients], TOLERANCE[concurrent.case.dtype]
    runs = []
    for slow in (0, concurrent.case.programs - 1):
        disturbance = Disturbance(slow, lag=0.02)
        results, saved = concurrent.forward(disturbance)
        runs.append([*results, *concurrent.backward(results[0], saved, disturbance)])
        torch.testing.assert_close([result.double() for result in runs[-1]], expected, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# The other program has to be a step ahead within the lag, which a busy machine may not let it be at once.
LAGS = (0.05, 0.2, 0.8)


@pytest.mark.parametrize("schedule", ["grid", "streamed"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_forward_is_seen(processes, schedule, name):
    concurrent = Concurrent(Case("rnn_tanh", schedule), processes)
    assert not all(close(concurrent.forward(Disturbance(1, lag, forward=FAULTS[name]))[0], concurrent.inputs.results) for lag in LAGS)


@pytest.mark.parametrize("schedule", ["grid", "streamed"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_backward_is_seen(processes, schedule, name):
    concurrent = Concurrent(Case("rnn_tanh", schedule), processes)
    results, saved = concurrent.forward(Disturbance())
    disturbances = [Disturbance(1, lag, backward=FAULTS[name]) for lag in LAGS]
    assert not all(close(concurrent.backward(results[0], saved, disturbance), concurrent.inputs.gradients) for disturbance in disturbances)


@pytest.mark.parametrize("schedule", ["grid", "streamed"])
def test_a_count_never_reached_ends_by_its_limit(processes, schedule):
    concurrent = Concurrent(Case("rnn_tanh", schedule), processes)
    with pytest.raises(RuntimeError, match=r"forward, program 0: (?s:.)*TimeoutError: still waiting after 1.0 s"):
        concurrent.forward(Disturbance(forward=Fault(count=1), time_limit=1.0))
    results, saved = concurrent.forward(Disturbance())
    with pytest.raises(RuntimeError, match=r"backward, program 0: (?s:.)*TimeoutError: still waiting after 1.0 s"):
        concurrent.backward(results[0], saved, Disturbance(backward=Fault(count=1), time_limit=1.0))


def test_a_program_that_fails_ends_the_others(processes):
    concurrent = Concurrent(Case("rnn_tanh", "grid"), processes)
    with pytest.raises(RuntimeError) as failure:
        concurrent.forward(Disturbance(slow=1, forward=Fault(raises=True)))
    assert "forward, program 0: " in str(failure.value)
    assert "another program has failed" in str(failure.value)
    assert "ArithmeticError: planted" in str(failure.value)
