"""The programs of a launch in processes of their own, over shared memory: Triton's interpreter alone runs them one after the other.

The interpreter's atomics are the processor's, on the memory that the processes share, so that a barrier's release and acquire work. What it
cannot show: a read that an L1 cache answers with old data, and orders of memory that a GPU allows and this processor does not.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from interpreter import patch_language_once
from torch import Tensor, multiprocessing
from triton.runtime.interpreter import TensorHandle, interpreter_builder

from sstkern.engines.triton import barrier, device, recurrence

EXCHANGED = {"forward": "exchange", "backward": "parts"}
"""The argument of each kernel by which its programs exchange."""
GRACE = 10.0
"""Seconds beyond a launch's time limit, for all that is not waiting."""


class Fault(NamedTuple):
    """What is wrong with a kernel."""

    waits: bool = True
    count: int = 0
    """Added to the count that a program waits for."""
    arrives_early: bool = False
    """Arrives before it stores."""
    one_buffer: bool = False
    """Exchanges in one buffer, not in two by turns."""
    raises: bool = False
    """The slow program raises instead of waiting."""


class Disturbance(NamedTuple):
    """What a launch's programs do besides their kernel."""

    slow: int = 0
    """The program that is late."""
    lag: float = 0.0
    """Seconds that it stops after every arrival."""
    forward: Fault = Fault()
    backward: Fault = Fault()
    time_limit: float = 60.0
    """Seconds until a launch's programs stop waiting for each other."""


class Function(NamedTuple):
    """Stands for a Triton function, which cannot be sent."""

    module: str
    name: str

    def find(self):
        return getattr(import_module(self.module), self.name)


class Launch(NamedTuple):
    kernel: Function
    arguments: dict
    programs: int
    disturbance: Disturbance
    failed: Tensor
    """uint8 (1,): not 0 once a program has raised, so that no other waits for it."""


class Processes:
    """`count` processes with Triton's interpreter, until the end of a `with` block."""

    def __init__(self, count: int):
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self.connections = [ours for ours, _ in pipes]
        self.disturbance = Disturbance()
        self.grids: list[int] = []
        """Every launch's number of programs."""
        ends = [theirs for _, theirs in pipes]
        self.first = context.Process(target=_fork, args=(ends,), daemon=True)
        with mock.patch.dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1"):
            self.first.start()
        for end in ends:
            end.close()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_) -> None:
        for connection in self.connections:
            connection.close()
        self.first.join(GRACE)

    def device(self, multiprocessors: int) -> device.Device:
        """A card that runs `multiprocessors` programs at once."""
        other = device.of(torch.device("cpu"))
        card = replace(other.card, multiprocessors=multiprocessors)
        return replace(other, card=card, run=self.run, allows_tf32=lambda: False)

    def run(self, kernel, grid: tuple[int, ...], arguments: dict, _: dict) -> None:
        """`Device.run`. Raises RuntimeError with the traceback of every program that failed."""
        sendable = {name: _sendable(argument) for name, argument in arguments.items()}
        failed = torch.zeros(1, dtype=torch.uint8).share_memory_()
        launch = Launch(_sendable(kernel), sendable, grid[0], self.disturbance, failed)
        self.grids.append(launch.programs)
        running = self.connections[: launch.programs]
        for connection in running:
            connection.send(launch)
        deadline = time.monotonic() + launch.disturbance.time_limit + 2 * GRACE
        replies = [_reply(connection, deadline) for connection in running]
        failures = [f"{launch.kernel.name}, program {program}: {reply}" for program, reply in enumerate(replies) if reply]
        if failures:
            raise RuntimeError("\n".join(failures))


def _sendable(argument):
    if isinstance(argument, Tensor):
        return argument.share_memory_()
    return Function(argument.fn.__module__, argument.fn.__name__) if hasattr(argument, "fn") else argument


def _reply(connection: Connection, deadline: float) -> str:
    """Empty from a program that ended well, else what went wrong."""
    if not connection.poll(max(0.0, deadline - time.monotonic())):
        return "no answer"
    try:
        return connection.recv()
    except EOFError:
        return "its process has ended"


def _fork(connections: list[Connection]) -> None:
    """Makes the processes out of one, which has imported torch for all of them."""
    for program, connection in enumerate(connections):
        if os.fork() == 0:
            for other in connections:
                if other is not connection:
                    other.close()  # or the end of a process would not end its connection
            try:
                _serve(program, connection)
            finally:
                os._exit(0)
    for connection in connections:
        connection.close()
    for _ in connections:
        os.wait()


def _serve(program: int, connection: Connection) -> None:
    """Runs `program` of every launch until the other end is closed."""
    patch_language_once()
    with suppress(EOFError):
        while True:
            launch = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, launch.disturbance.time_limit + GRACE)  # ends a process that hangs
            reply = _reply_to(program, launch)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(reply)


def _reply_to(program: int, launch: Launch) -> str:
    try:
        Program(program, launch).run()
    except Exception:
        launch.failed.fill_(1)
        return traceback.format_exc()
    return ""


class Program:
    """One of a launch's programs, with its lag and its faults."""

    def __init__(self, index: int, launch: Launch):
        disturbance, exchanged = launch.disturbance, launch.arguments[EXCHANGED[launch.kernel.name]]
        self.index, self.launch = index, launch
        self.fault: Fault = getattr(disturbance, launch.kernel.name)
        self.lag = disturbance.lag if index == disturbance.slow else 0.0
        self.deadline = time.monotonic() + disturbance.time_limit
        self.first, self.bytes = exchanged.data_ptr(), exchanged.numel() * exchanged.element_size()
        self.late_stores: list[Callable[[], None]] = []

    def run(self) -> None:
        arguments = {
            name: argument.find() if isinstance(argument, Function) else argument for name, argument in self.launch.arguments.items()
        }
        replacements = [
            (interpreter_builder, "set_grid_dim", self.set_grid_dim),
            (interpreter_builder, "set_grid_idx", self.set_grid_idx),
            (interpreter_builder, "create_masked_load", self.load),
            (interpreter_builder, "create_masked_store", self.store),
            (barrier, "_read", self.read),
            (recurrence, "wait", self.wait),
            (recurrence, "arrive", self.arrive),
        ]
        with ExitStack() as stack:
            for owner, name, method in replacements:
                stack.enter_context(mock.patch.object(owner, name, partial(method, getattr(owner, name))))
            self.launch.kernel.find()[(1,)](**arguments)

    # The methods below take first what they stand for.

    def set_grid_dim(self, set_grid_dim: Callable, *_) -> None:
        set_grid_dim(self.launch.programs, 1, 1)

    def set_grid_idx(self, set_grid_idx: Callable, *_) -> None:
        set_grid_idx(self.index, 0, 0)

    def load(self, load: Callable, at: TensorHandle, *more) -> TensorHandle:
        return load(self.folded(at), *more)

    def store(self, store: Callable, at: TensorHandle, *more) -> None:
        later = partial(store, self.folded(at), *more)
        if self.fault.arrives_early and self.exchanged(at).any():
            self.late_stores.append(later)
        else:
            later()

    def read(self, read: Callable, counter, target):
        """Leaves the processor to the others, and gives up."""
        if self.launch.failed.item():
            raise RuntimeError("another program has failed")
        if time.monotonic() > self.deadline:
            raise TimeoutError(f"still waiting after {self.launch.disturbance.time_limit} s")
        time.sleep(1e-3)
        return read(counter, target)

    def wait(self, wait: Callable, counter, count, target) -> None:
        if self.fault.raises and self.index == self.launch.disturbance.slow:
            raise ArithmeticError("planted")
        if self.fault.waits:
            wait(counter, count + self.fault.count, target)

    def arrive(self, arrive: Callable, counter, target) -> None:
        arrive(counter, target)
        time.sleep(self.lag)
        while self.late_stores:
            self.late_stores.pop(0)()

    def exchanged(self, at: TensorHandle) -> np.ndarray:
        """Which addresses are the exchange's; those before it wrap around."""
        return at.data - self.first < self.bytes

    def folded(self, at: TensorHandle) -> TensorHandle:
        """With one buffer, addresses in the second are the first's."""
        if not self.fault.one_buffer:
            return at
        once = self.first + (at.data - self.first) % (self.bytes // 2)
        return TensorHandle(np.where(self.exchanged(at), once, at.data), at.dtype)
