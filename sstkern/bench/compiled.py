"""What compiles for a long time, in a process of its own, that can be ended: torch.compile of torch.nn's layers, which unrolls every time
step, and what is made of somebody's own cell."""

import logging
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
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
    return Child(partial(_compiled, problem.case, problem.threads), problem, limit)


class Child(Prepared):
    """An engine in another process, which is told when to run it. make: makes it there."""

    def __init__(self, make: Callable[[], Prepared], problem: Problem, limit: float):
        super().__init__(run=lambda: None, training=problem.case.training)
        self._pipe, pipe = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        arguments = pipe, make, problem.threads, self._folder.name
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._compiling = True
        self._process.start()
        pipe.close()
        try:
            results, notes = self._answer(limit, f"compiling took more than {limit:g} s")
        except BaseException:
            self.close()
            raise
        self._results = [torch.from_numpy(result) for result in results]
        self.notes.update(notes)

    def results(self) -> list[Tensor]:
        return self._results

    def block(self, seconds: float) -> list[float]:
        self._pipe.send(seconds)
        return self._answer(None, "")

    def close(self) -> None:
        self._pipe.close()  # which ends it, unless it still compiles
        self._process.join(0 if self._compiling else _WAIT)
        if self._process.is_alive():
            self._end(signal.SIGTERM)
            self._process.join(_WAIT)
        if self._process.is_alive():
            self._end(signal.SIGKILL)
            self._process.join(_WAIT)
        self._folder.cleanup()

    def _end(self, how: signal.Signals) -> None:
        """The process and the C++ compilers that it waits for, which would take time from what is measured next."""
        with suppress(ProcessLookupError):  # it may not lead a group of processes yet
            os.killpg(self._process.pid, how)
        os.kill(self._process.pid, how)

    def _answer(self, limit: float | None, late: str) -> Any:
        if not self._pipe.poll(limit):
            raise Unavailable(late)
        self._compiling = False
        try:
            kind, answer = self._pipe.recv()
        except EOFError:
            raise Unavailable("the process that compiles ended early") from None
        if kind == "failed":
            raise Unavailable(f"failed: {answer}")
        return answer


def serve(pipe: Connection, make: Callable[[], Prepared], threads: int, folder: str) -> None:
    """What the other process does: compile, send results, then a block's times for every number of seconds it receives.

    folder: for what is compiled; a new one, for how long compiling takes is a figure.
    """
    stand_alone(folder)
    torch.set_num_threads(threads)
    try:
        start = time.perf_counter()
        prepared = make()
        results = prepared.results()
        notes = {"compile_seconds": time.perf_counter() - start, **prepared.notes}
        pipe.send(("ready", ([tensor.float().numpy() for tensor in results], notes)))
        while True:
            pipe.send(("times", prepared.block(pipe.recv())))
    except (EOFError, BrokenPipeError):  # nobody wants more
        return
    except Exception as error:
        pipe.send(("failed", in_one_line(error)))


def stand_alone(folder: str) -> None:
    """Makes this process the first of a group: one call ends it with all that it started, and Ctrl-C is for the process that started it.

    Settles the compiler, and silences it, which would write into a table.
    """
    os.setpgid(0, 0)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.allow_rnn = True
    torch._inductor.config.compile_threads = 1  # a daemonic process may have no pool of its own


def _compiled(case: Case, threads: int) -> Prepared:
    return torch_padded(Problem.of(case, threads), wrap=torch.compile)
