"""Processes that run one job at a time each. A job that raises, dies or hangs costs its own result, not the others'.

A GPU's error can leave its process unable to run anything more, and kernels that wait for each other can wait for ever; so every job runs
in a process that can be thrown away, under a time limit.
"""

import importlib
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

_context = multiprocessing.get_context("spawn")
_START_SECONDS = 120


class Workers:
    """Processes with `module` imported, whose `run(job) -> dict` does a job and whose `healthy()` says whether it can do another.

    A job is a dict. Its "family", if it has one, names what it shares with jobs that would be lost in the same way.
    """

    def __init__(self, module: str):
        self._module = module
        self._workers: list[_Worker] = []
        self._lost_families: dict[str, str] = {}

    def run(self, jobs: Sequence[dict], count: int, until: float, job_seconds: float) -> Iterator[tuple[dict, dict]]:
        """Yields each job with its result, in the order they come from `count` processes, until time.monotonic() is `until`.

        What is not done by then is not yielded. A result is what the job returned, or {"error": why} for one that raised, died or ran for
        more than `job_seconds`, or whose family had one that took its process with it. Raises RuntimeError where no process can start.
        """
        waiting = deque(jobs)
        self._resize(min(count, len(waiting)))
        while time.monotonic() < until and (waiting or any(worker.job for worker in self._workers)):
            for worker in self._workers:
                while worker.idle and waiting:
                    job = waiting.popleft()
                    if lost := self._lost_families.get(job.get("family")):
                        yield job, {"error": f"not run: {lost}"}
                    else:
                        worker.give(job, job_seconds)
            yield from self._collect(until)
        for worker in [worker for worker in self._workers if worker.job]:
            self._workers.remove(worker)
            worker.end()

    def close(self) -> None:
        self._resize(0)

    def _resize(self, count: int) -> None:
        while len(self._workers) > count:
            self._workers.pop().end()
        while len(self._workers) < count:
            self._workers.append(_Worker(self._module))

    def _collect(self, until: float) -> Iterator[tuple[dict, dict]]:
        """The results there are, after a wait for the first of them or of the time limits."""
        first = min([until, *(worker.until for worker in self._workers)])
        wait([worker.connection for worker in self._workers], timeout=max(0.0, first - time.monotonic()))
        for i, worker in enumerate(self._workers):
            reply = worker.reply()
            if reply is None:
                continue
            job, worker.job = worker.job, None
            if reply.pop("lost", False):
                worker.end()
                if not worker.started:
                    raise RuntimeError(f"no worker process can start: {reply['error']}")
                if job and "family" in job:
                    self._lost_families[job["family"]] = f"another job of {job['family']} took its process with it ({reply['error']})"
                self._workers[i] = _Worker(self._module)
            if job is not None:
                yield job, reply


class _Worker:
    """One process. Its first message says that it has started."""

    def __init__(self, module: str):
        self.connection, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(module, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a dead process is an end of file here
        self.started, self.job, self.until = False, None, time.monotonic() + _START_SECONDS

    @property
    def idle(self) -> bool:
        return self.started and self.job is None

    def give(self, job: dict, seconds: float) -> None:
        self.job, self.until = job, time.monotonic() + seconds
        with suppress(BrokenPipeError):  # `reply` will find that it is dead
            self.connection.send(job)

    def reply(self) -> dict | None:
        """What the process has to say, if anything; with "lost" where it can do no more."""
        if self.connection.poll():
            try:
                message = self.connection.recv()
            except EOFError:
                self.process.join()
                return {"error": f"the process died with exit code {self.process.exitcode}", "lost": True}
            self.started, self.until = self.started or not message.get("lost"), float("inf")
            return message
        if time.monotonic() >= self.until:
            return {"error": "the process ran past its time limit", "lost": True}
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join(timeout=10)  # a driver may take its time over a kernel that hangs
        self.connection.close()


def _serve(module: str, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its processes
    try:
        jobs = importlib.import_module(module)
    except Exception as error:
        connection.send({"error": _described(error), "lost": True})
        return
    connection.send({})
    while True:
        try:
            job = connection.recv()
        except EOFError:  # nobody wants more
            return
        try:
            reply = jobs.run(job)
        except Exception as error:
            reply = {"error": _described(error), "lost": not jobs.healthy()}
        connection.send(reply)


def _described(error: Exception) -> str:
    """The error on one line, shortened, and the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
