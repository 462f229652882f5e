"""An LSTM on two threads beside other programs: its mean time, and that of one thread, with none, one and two busy processes.

    python benchmarks/busy.py

Where threads share a time step, one whose core another program has would keep the others waiting at every step. The ratio is the time on
one thread over that on two: above 1 the second thread helps, and below 1 / 1.5 it would do harm.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

import sstkern

SHAPES = ((1, 50, 128), (1, 200, 256), (1, 100, 512))
"""B sequences, T time steps, H units, as many as input features."""
SECONDS = 0.5
ROUNDS = 4


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Runs that many processes that do nothing but take time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step(shape: tuple[int, int, int], training: bool) -> Callable[[], object]:
    batch, steps, size = shape
    layer, x, grad = sstkern.LSTM(size, size), torch.randn(steps, batch, size), torch.ones(steps, batch, size)
    weights = list(layer.parameters())

    def run() -> object:
        with torch.set_grad_enabled(training):
            output, _ = layer(x)
        # Not backward(), which adds to .grad: PyTorch's own operators wait for their threads.
        return torch.autograd.grad(output, weights, grad) if training else output

    return run


def mean_ms(run: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    run()  # PyTorch imports half a second's worth with the first backward
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < SECONDS:
        run()
        count += 1
    return taken / count * 1e3


def main() -> None:
    print("busy processes, (B, T, H), phase: ms on one thread, on two, ratio")
    for busy in (0, 1, 2):
        with beside(busy):
            for shape in SHAPES:
                for training in (False, True):
                    run = step(shape, training)
                    rounds = [(mean_ms(run, 1), mean_ms(run, 2)) for _ in range(ROUNDS)]
                    one, two = (statistics.mean(times) for times in zip(*rounds, strict=True))
                    phase = "training" if training else "inference"
                    print(f"{busy}, {shape}, {phase}: {one:.2f}, {two:.2f}, {one / two:.2f}", flush=True)


if __name__ == "__main__":
    main()
