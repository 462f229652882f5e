"""Random calls of the C++ engine, for sanitizers to watch (tests/sanitize.py): `python tests/fuzz.py --seconds 30 --seed 1`.

Layers and own cells of widths 1 to 40, wider ones for threads that share a time step; lengths with zeros, resets, the states of every step,
all dtypes, 1 to 4 threads, and 1 to 4 callers of one layer at once. Results are near those of the reference engine in float64.
The same seed makes the same calls.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from layers import KINDS, as_hx, gradients, states_of
from plain_cells import MGU
from torch import Tensor, nn

import sstkern
from sstkern.structure import flatten

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.02}
"""The largest relative error, of a result's norm and that of as many numbers of 0.1. Gradients of relu jump where a sum is nearly 0:
0.12 in two of 5,000 calls in bfloat16, 0.06 in two of 600 in float16, which has bfloat16's tolerance there."""
FOREVER = 10**9  # microseconds
OWN = {"MGU": MGU, "LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell}


class Call(NamedTuple):
    """described: what was drawn, to be printed with a failure."""

    described: str
    layer: nn.Module
    x: Tensor
    hx: list[Tensor] | None
    lengths: list[int] | None
    resets: Tensor | None
    every: bool
    """Whether the states of every step are wanted."""
    backward: bool


def draw(rng: random.Random) -> Call:
    """A layer with an input. One of six is wide enough for threads to share its units, and one has more rows than products take at once."""
    batch, steps, shape = rng.randint(1, 9), rng.randint(1, 12), rng.random()
    input_size, hidden_size = rng.randint(1, 40), rng.randint(1, 40)
    if shape < 1 / 6:
        batch, hidden_size = rng.randint(1, 3), rng.randint(120, 200)
    elif shape < 1 / 3:
        batch, steps = rng.randint(5, 12), rng.randint(50, 70)
    dtype, backward = rng.choice([*TOLERANCES]), rng.random() < 0.7
    lengths = [rng.randint(0, steps) for _ in range(batch)] if rng.random() < 0.6 else None
    kind, every = rng.choice([*KINDS, *OWN]), rng.random() < 0.3
    torch.manual_seed(rng.randrange(2**31))
    resets = torch.rand(steps, batch) < rng.choice([0.03, 0.3, 0.9]) if rng.random() < 0.4 else None
    layer, hx = _layer(kind, rng, input_size, hidden_size, batch, dtype)
    x = torch.randn(steps, batch, input_size, dtype=dtype, requires_grad=rng.random() < 0.7)
    marks = None if resets is None else resets.nonzero().tolist()
    described = f"{layer} of {dtype}, {steps} steps, lengths {lengths}, batch {batch}, {'and its gradients' if backward else 'forward'}"
    return Call(f"{described}, resets {marks}, every {every}", layer, x, hx, lengths, resets, every, backward)


def _layer(
    kind: str, rng: random.Random, input_size: int, hidden_size: int, batch: int, dtype: torch.dtype
) -> tuple[nn.Module, list[Tensor] | None]:
    """And its first states, or None for zeros."""
    if kind in OWN:
        return sstkern.fuse(OWN[kind](input_size, hidden_size).to(dtype), reverse=rng.random() < 0.5, strict=True), None
    make, _, options = KINDS[kind]
    if "proj_size" in options:
        hidden_size += 1
        options = options | {"proj_size": rng.randint(1, hidden_size - 1)}
    layer = make(input_size, hidden_size, rng.randint(1, 2), bias=rng.random() < 0.8, bidirectional=rng.random() < 0.4, **options).to(dtype)
    return layer, states_of(layer, batch, dtype) if rng.random() < 0.5 else None


def results(call: Call) -> list[Tensor]:
    """Output, last states and gradients."""
    with torch.set_grad_enabled(call.backward):
        hx = None if call.hx is None else as_hx(call.hx)
        output, hx_n, *states = call.layer(call.x, hx, lengths=call.lengths, resets=call.resets, return_states=call.every)
        found = [output, *flatten(hx_n), *(state for all_states in states for state in flatten(all_states))]
        if not call.backward:
            return found
        inputs = [tensor for tensor in [call.x, *(call.hx or []), *call.layer.parameters()] if tensor.requires_grad]
        return [result.detach() for result in found] + gradients(found, inputs)


def check(call: Call, found: list[Tensor]) -> None:
    """Raises AssertionError where they are not near the reference engine's in float64."""
    jumps = call.x.dtype == torch.float16 and getattr(call.layer, "nonlinearity", None) == "relu"
    wide, tolerance = _in_float64(call), TOLERANCES[torch.bfloat16 if jumps else call.x.dtype]
    with sstkern.backend("reference"):
        expected = results(wide)
    for number, (ours, right) in enumerate(zip(found, expected, strict=True)):
        most = tolerance * max(right.norm().item(), 0.1 * right.numel() ** 0.5)
        error = (ours.double() - right).norm().item()
        assert error <= most, f"{call.described}: result {number} is {error} from float64's, allowed are {most}"


def _in_float64(call: Call) -> Call:
    x, *hx = (tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in (call.x, *(call.hx or [])))
    return call._replace(layer=copy.deepcopy(call.layer).double(), x=x, hx=None if call.hx is None else hx)


def play(rng: random.Random) -> int:
    """Some calls by one or more callers at once, who share a layer or have their own; returns how many."""
    callers, threads = rng.choice([1, 1, 2, 3, 4]), rng.randint(1, 4)
    drawn = [draw(rng) for _ in range(1 if rng.random() < 0.5 else callers)]
    torch.ops.sstkern.cpu_patience(0 if rng.random() < 1 / 8 else FOREVER)

    def run(caller: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        return results(drawn[caller % len(drawn)])

    with ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(run, range(callers)))
    for caller, mine in enumerate(found):
        check(drawn[caller % len(drawn)], mine)
    return callers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, end, calls = random.Random(options.seed), time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        calls += play(rng)
    print(f"{calls} random calls at level {torch.ops.sstkern.cpu_capability()}")


if __name__ == "__main__":
    main()
