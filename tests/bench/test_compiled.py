"""torch.compile's process: it answers, it is ended when it is late, and what fails in it is told."""

import multiprocessing
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from sstkern.bench import compiled, peers
from sstkern.bench.cases import Case
from sstkern.bench.peers import Problem, Unavailable

CASE = Case("RNN", batch=1, steps=2, size=4)


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "stand_alone", lambda folder: None)  # this process is not alone
    return multiprocessing.Pipe()


def test_the_process_sends_results_and_then_times(pipes):
    problem = Problem.of(CASE, 1)
    here, there = pipes
    server = threading.Thread(target=compiled.serve, args=(there, partial(peers.torch_padded, problem), 1, "folder"))
    server.start()
    kind, (results, notes) = here.recv()
    assert (kind, list(notes), notes["compile_seconds"] > 0) == ("ready", ["compile_seconds"], True)
    assert peers.difference(problem, [torch.from_numpy(result) for result in results], problem.expected()) < 1e-5
    here.send(0.001)
    kind, times = here.recv()
    assert (kind, min(times) > 0) == ("times", True)
    here.close()
    server.join(10)
    assert not server.is_alive()


def test_what_fails_in_the_process_is_told(pipes):
    def fail():
        raise RuntimeError("no compiler\nand a long story")

    compiled.serve(pipes[1], fail, 1, "folder")
    assert pipes[0].recv() == ("failed", "RuntimeError: no compiler")


def test_a_process_that_is_late_is_ended():
    with peers.ready(Problem.of(CASE, 1), [compiled.engine(limit=0.01)]) as (prepared, _, left_out):
        assert prepared == {}
        assert left_out == {"torch_compile": "compiling took more than 0.01 s"}
    assert not multiprocessing.active_children()


def waits_for_another(file: Path) -> None:
    """What a process does whose C++ compiler does not end: tells the compiler's id, and waits."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    file.write_text(str(other.pid))
    other.wait()


def runs(pid: int) -> bool:
    """A process that nobody has asked for its exit status is dead, and still there."""
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_process_is_ended_with_what_it_waits_for(tmp_path: Path):
    file = tmp_path / "pid"

    class Late(compiled.Child):
        def _answer(self, limit: float | None, late: str) -> None:
            while not (file.exists() and file.read_text()):
                time.sleep(0.01)
            assert runs(int(file.read_text()))
            raise Unavailable(late)

    with pytest.raises(Unavailable, match="compiling took more than 7 s"):
        Late(partial(waits_for_another, file), Problem.of(CASE, 1), limit=7)
    assert not multiprocessing.active_children()
    end = time.monotonic() + 10
    while runs(int(file.read_text())):
        assert time.monotonic() < end
        time.sleep(0.01)


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
