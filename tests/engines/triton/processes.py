"""The programs of a launch in processes of their own, over shared memory: Triton's interpreter alone runs them one after the other.

The interpreter's atomics are the processor's, on the memory that the processes share, so that a barrier's release and acquire work. What it
cannot show: a read that an L1 cache answers with old data, and orders of memory that a GPU allows and this processor does not.
"""

import os
import re
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

from sstkern.engines.triton import barrier, device, recurrence, sources, tiles

EXCHANGED = {"forward": r"exchange", "backward": r"parts", "core": r"state\d+"}
"""The arguments of each kernel by which its programs exchange, in two buffers by turns."""
STORED = EXCHANGED | {"core": r"(state|slot)\d+"}
"""Tensors that kernels store to and others read."""
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
    core: Fault = Fault()
    """The fault of a generated kernel."""
    time_limit: float = 60.0
    """Seconds until a launch's programs stop waiting for each other."""


class Function(NamedTuple):
    """Stands for a Triton function, which cannot be sent."""

    module: str
    name: str
    text: str = ""
    """The text of a generated module."""

    def find(self):
        return getattr(sources.module(self.text) if self.text else import_module(self.module), self.name)


class Launch(NamedTuple):
    kernel: Function
    arguments: dict
    programs: int
    disturbance: Disturbance
    failed: Tensor
    """uint8 (1,): not 0 once a program has raised, so that no other waits for it."""
    waits: bool = True
    """Whether its programs wait for each other; else one process runs them all."""


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

    def run(self, kernel, grid: tuple[int, ...], arguments: dict, options: dict) -> None:
        """`Device.run`. Raises RuntimeError with the traceback of every program that failed."""
        sendable = {name: _sendable(argument) for name, argument in arguments.items()}
        failed = torch.zeros(1, dtype=torch.uint8).share_memory_()
        launch = Launch(_sendable(kernel), sendable, grid[0], self.disturbance, failed, options.get("launch_cooperative_grid", False))
        if launch.waits:
            self.grids.append(launch.programs)
        running = self.connections[: launch.programs if launch.waits else 1]
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
    if not hasattr(argument, "fn"):
        return argument
    return Function(argument.fn.__module__, argument.fn.__name__, argument.fn.__globals__.get("TEXT", ""))


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
        if launch.waits:
            Program(program, launch).run()
        else:
            launch.kernel.find()[(launch.programs,)](**launch.arguments)
    except Exception:
        launch.failed.fill_(1)
        return traceback.format_exc()
    return ""


class Program:
    """One of a launch's programs, with its lag and its faults."""

    def __init__(self, index: int, launch: Launch):
        disturbance = launch.disturbance
        self.index, self.launch = index, launch
        self.fault: Fault = getattr(disturbance, launch.kernel.name)
        self.lag = disturbance.lag if index == disturbance.slow else 0.0
        self.deadline = time.monotonic() + disturbance.time_limit
        self.turns, self.stores = self.memory(EXCHANGED), self.memory(STORED)
        self.late_stores: list[Callable[[], None]] = []

    def memory(self, names: dict[str, str]) -> list[tuple[int, int]]:
        """(first address, bytes) of those arguments."""
        expression = names[self.launch.kernel.name]
        found = [tensor for name, tensor in self.launch.arguments.items() if re.fullmatch(expression, name)]
        return [(tensor.data_ptr(), tensor.numel() * tensor.element_size()) for tensor in found]

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
            *((module, "wait", self.wait) for module in (recurrence, tiles)),
            *((module, "arrive", self.arrive) for module in (recurrence, tiles)),
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
        if self.fault.arrives_early and any(self.within(at, memory).any() for memory in self.stores):
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

    def within(self, at: TensorHandle, memory: tuple[int, int]) -> np.ndarray:
        """Which addresses are there; those before it wrap around."""
        first, size = memory
        return at.data - first < size

    def folded(self, at: TensorHandle) -> TensorHandle:
        """With one buffer, addresses in the second are the first's."""
        for first, size in self.turns if self.fault.one_buffer else ():
            once = first + (at.data - first) % (size // 2)
            at = TensorHandle(np.where(self.within(at, (first, size)), once, at.data), at.dtype)
        return at
