"""torch.compile of torch.nn's layers, which unrolls every time step: in a process of its own, that can be ended."""

import multiprocessing
import signal
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from sstkern.bench.cases import Case
from sstkern.bench.peers import Engine, Prepared, Problem, Unavailable, in_one_line, torch_padded

MOST_STEPS = 64
LIMIT = 120.0
"""Seconds to compile and run once."""
_WAIT = 5.0  # seconds for it to end when it is told to


def engine(limit: float = LIMIT) -> Engine:
    return Engine("torch_compile", partial(_prepare, limit=limit))


def _prepare(problem: Problem, limit: float) -> Prepared:
    if problem.case.steps > MOST_STEPS:
        raise Unavailable(f"torch.compile unrolls the time steps, and {problem.case.steps} are more than {MOST_STEPS}")
    return Child(problem, limit)


class Child(Prepared):
    """The compiled layer, run by another process, which is told when."""

    def __init__(self, problem: Problem, limit: float):
        super().__init__(run=lambda: None, training=problem.case.training)
        self._pipe, pipe = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(pipe, problem.case, problem.threads), daemon=True)
        self._compiling = True
        self._process.start()
        pipe.close()
        try:
            seconds, results = self._answer(limit, f"compiling took more than {limit:g} s")
        except BaseException:
            self.close()
            raise
        self._compiling = False
        self._results = [torch.from_numpy(result) for result in results]
        self.notes["compile_seconds"] = seconds

    def results(self) -> list[Tensor]:
        return self._results

    def block(self, seconds: float) -> list[float]:
        self._pipe.send(seconds)
        return self._answer(None, "")

    def close(self) -> None:
        self._pipe.close()  # which ends it, unless it is still compiling
        self._process.join(0 if self._compiling else _WAIT)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(_WAIT)
        if self._process.is_alive():
            self._process.kill()

    def _answer(self, limit: float | None, late: str) -> Any:
        if not self._pipe.poll(limit):
            raise Unavailable(late)
        try:
            kind, answer = self._pipe.recv()
        except EOFError:
            raise Unavailable("the process that compiles ended early") from None
        if kind == "failed":
            raise Unavailable(f"failed: {answer}")
        return answer


def serve(pipe: Connection, case: Case, threads: int) -> None:
    """What the other process does: compile, send results, then a block's times for every number of seconds it receives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(threads)
    try:
        start = time.perf_counter()
        prepared = _compiled(Problem.of(case, threads))
        results = prepared.results()
        pipe.send(("ready", (time.perf_counter() - start, [tensor.float().numpy() for tensor in results])))
        while True:
            pipe.send(("times", prepared.block(pipe.recv())))
    except (EOFError, BrokenPipeError):  # nobody wants more
        return
    except Exception as error:
        pipe.send(("failed", in_one_line(error)))


def _compiled(problem: Problem) -> Prepared:
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.allow_rnn = True
    torch._inductor.config.compile_threads = 1  # a daemonic process may have no pool of its own
    return torch_padded(problem, wrap=torch.compile)
