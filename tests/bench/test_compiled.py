"""torch.compile's process: it answers, it is ended when it is late, and what fails in it is told."""

import multiprocessing
import threading

import pytest
import torch

from sstkern.bench import compiled, peers
from sstkern.bench.cases import Case
from sstkern.bench.peers import Problem, Unavailable

CASE = Case("RNN", batch=1, steps=2, size=4)


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled.signal, "signal", lambda *_: None)
    return multiprocessing.Pipe()


def test_the_process_sends_results_and_then_times(pipes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "_compiled", peers.torch_padded)
    here, there = pipes
    server = threading.Thread(target=compiled.serve, args=(there, CASE, 1))
    server.start()
    kind, (seconds, results) = here.recv()
    assert (kind, seconds > 0) == ("ready", True)
    problem = Problem.of(CASE, 1)
    assert peers.difference(problem, [torch.from_numpy(result) for result in results], problem.expected()) < 1e-5
    here.send(0.001)
    kind, times = here.recv()
    assert (kind, min(times) > 0) == ("times", True)
    here.close()
    server.join(10)
    assert not server.is_alive()


def test_what_fails_in_the_process_is_told(pipes, monkeypatch: pytest.MonkeyPatch):
    def fail(problem: Problem):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(compiled, "_compiled", fail)
    compiled.serve(pipes[1], CASE, 1)
    assert pipes[0].recv() == ("failed", "RuntimeError: no compiler")


def test_a_process_that_is_late_is_ended():
    with peers.ready(Problem.of(CASE, 1), [compiled.engine(limit=0.01)]) as (prepared, _, left_out):
        assert prepared == {}
        assert left_out == {"torch_compile": "compiling took more than 0.01 s"}
    assert not multiprocessing.active_children()


def test_long_sequences_are_not_even_tried():
    with pytest.raises(Unavailable, match="unrolls the time steps, and 65 are more than 64"):
        compiled.engine().prepare(Problem.of(Case("RNN", 1, 65, 4), 1))


def test_a_compiled_layer_agrees_and_says_how_long_compiling_took():
    with peers.ready(Problem.of(CASE, 1), [compiled.engine()]) as (prepared, differences, left_out):
        assert left_out == {}
        assert differences["torch_compile"] < 1e-5
        assert prepared["torch_compile"].notes["compile_seconds"] > 0
        assert min(prepared["torch_compile"].block(0.001)) > 0
    assert not multiprocessing.active_children()
