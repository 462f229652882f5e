"""What the GPU kernels should take on an H200, from the bytes they move, the operations they do, and what a step waits for.

python benchmarks/gpu_model.py [--cell lstm] [--dtype bfloat16] [--schedule NAME] [--steps 512]

Every figure is computed, none is measured here. Tiles come from the launch table, traffic from what
sstkern/engines/triton/recurrence.py exchanges.

A layer is products outside the time loop (the input projection; in the backward the gradients of x and of the weights) and T steps, each
of which starts when the one before has ended:

    step = max(memory, launch, wait + exchange + weights + product + cell)

memory    reads and writes of the step's rows (gates_x, saved, output, their gradients) in HBM; prefetched, so beside everything else
wait      the grid barrier, where programs exchange, and the latency of the step's own dependent instructions
exchange  h (forward) or the parts of dh (backward) through the L2 cache; through HBM where they do not fit into it
weights   streamed, stepwise: weight_hh from the L2 cache, or HBM
product   the tensor cores, or the shared memory that feeds them, whichever is slower
cell      the step's or the derivative's instructions
launch    stepwise: the host's time for a product and a kernel, where it is longer than the GPU's

B batch, T time steps, H hidden_size = input_size, one direction.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout need not be installed

import torch

from sstkern.cells import CELLS
from sstkern.engines.triton import launch
from sstkern.engines.triton.cells import kernels
from sstkern.engines.triton.launch import Card, Launch
from sstkern.engines.triton.layer import part_dtype

CARD = Card(multiprocessors=132, shared_memory=232448, wgmma=True)

# Measured on an H200.
MEMORY = 4.3e12  # bytes/s, a copy, read and written
TENSOR_16 = 790e12  # FLOP/s, an 8192-cube bfloat16 product of random numbers

# Assumed.
CLOCK = 1.755e9  # Hz, under load; such a card goes up to 1.98e9
L2 = 5.5e12  # bytes/s, of all multiprocessors together
L2_SIZE = 50e6  # bytes
L2_TO_PROGRAM = 64 * CLOCK  # bytes/s into one multiprocessor
SHARED = 128 * CLOCK  # bytes/s of one multiprocessor
ISSUE = 4 * 32 * CLOCK  # lanes/s of one multiprocessor: four schedulers, a warp's instruction a clock each
BARRIER = 1.5e-6  # s: four trips to the L2 cache, one after the other: the stores' fence, the count, the poll that sees it, the first load
LATENCY = 0.5e-6  # s: a step's chain of dependent instructions, from operand to published h
KERNEL = 2.0e-6  # s from the start of a kernel to the start of one that waits for it
HOST_STEP = 25e-6  # s: Python issues a product and a Triton kernel

TENSOR = {"bfloat16": TENSOR_16, "float16": TENSOR_16, "tf32": TENSOR_16 / 2, "float32": TENSOR_16 / 6, "float64": 60e12}
"""FLOP/s of tl.dot: TF32 at half the 16-bit rate, float32 as three TF32 products."""
OUTSIDE = TENSOR | {"tf32": 60e12, "float32": 60e12}
"""FLOP/s of the products outside the loop, which follow torch.backends.cuda.matmul: by default IEEE float32, without tensor cores."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32, "float64": torch.float64}


INSTRUCTIONS = {
    "lstm": {"forward": 170, "backward": 290},
    "gru": {"forward": 110, "backward": 200},
    "rnn_tanh": {"forward": 50, "backward": 45},
}
"""Instructions that a lane issues for one hidden unit of one row, in the time loop of the resident kernels as compiled for sm_90 by Triton
3.9."""

# Words in the sentences of SST-2's validation set: the shortest, the deciles, the longest.
_SST2_WORDS = (2, 9, 11, 14, 16, 19, 21, 24, 27, 32, 47)


def sst2_lengths(batch: int, steps: int) -> list[int]:
    """`batch` lengths from 1 to `steps`, ascending, spread like the sentences of SST-2; the longest has all `steps`."""
    lengths = []
    for b in range(batch):
        place = 10 * (b + 1) / batch
        i = min(int(place), 9)
        words = _SST2_WORDS[i] + (place - i) * (_SST2_WORDS[i + 1] - _SST2_WORDS[i])
        lengths.append(max(1, round(words / _SST2_WORDS[-1] * steps)))
    return lengths


@dataclass(frozen=True)
class Layer:
    cell: str
    dtype: str
    batch: int
    steps: int
    hidden_size: int
    lengths: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Valid time steps of all sequences."""
        return self.batch * self.steps if self.lengths is None else sum(self.lengths)

    @property
    def gates(self) -> int:
        return len(CELLS[self.cell].gates)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def weight_bytes(self) -> int:
        return self.gates * self.hidden_size**2 * self.itemsize

    def launch(self, direction: str, schedule: str | None = None) -> Launch:
        precision = {"tf32": "tf32", "float32": "tf32x3"}.get(self.dtype, "ieee")
        layer = launch.Layer(DTYPES[self.dtype], precision, self.gates, self.batch, self.hidden_size)
        return launch.choose(CARD, layer, direction == "backward", schedule)


@dataclass(frozen=True)
class Prediction:
    schedule: str
    seconds: float
    step: dict[str, float]
    """Seconds of each term of a full step."""
    binds: str


def predict(layer: Layer, direction: str, schedule: str | None = None) -> Prediction:
    """direction: "forward" (which saves for the backward) or "backward"."""
    plan = layer.launch(direction, schedule)
    terms = _stepwise(layer, direction) if plan.schedule == "stepwise" else _persistent(layer, plan, direction)
    outside = _outside(layer, direction, OUTSIDE[layer.dtype])
    loop = _step_seconds(terms) * _step_count(layer, plan)
    return Prediction(plan.schedule, loop + outside, terms, "outside" if outside > loop else _binding(terms))


def _step_seconds(terms: dict[str, float]) -> float:
    return max(terms["memory"], terms["launch"], sum(_in_turn(terms).values()))


def _in_turn(terms: dict[str, float]) -> dict[str, float]:
    return {name: seconds for name, seconds in terms.items() if name not in ("memory", "launch")}


def _binding(terms: dict[str, float]) -> str:
    """The largest term of what a step waits for."""
    beside = max("memory", "launch", key=terms.get)
    in_turn = _in_turn(terms)
    return beside if terms[beside] > sum(in_turn.values()) else max(in_turn, key=in_turn.get)


def _step_count(layer: Layer, plan: Launch) -> int:
    """Steps that follow one another: those of the longest sequence of each round of tasks, longest first."""
    if plan.schedule == "stepwise" or layer.lengths is None:
        rounds = 1 if plan.schedule == "stepwise" else -(-layer.batch // (plan.block_b * _tasks_at_once(layer, plan)))
        return rounds * layer.steps
    return sum(sorted(layer.lengths, reverse=True)[:: plan.block_b * _tasks_at_once(layer, plan)])


def _tasks_at_once(layer: Layer, plan: Launch) -> int:
    """Tiles of rows that the card has room for, a program on each multiprocessor, or all there are."""
    return min(-(-layer.batch // plan.block_b), max(1, CARD.multiprocessors // plan.programs(layer.hidden_size)))


@dataclass(frozen=True)
class Exchange:
    """What the programs of a launch hand each other in one step; bytes."""

    program: float
    """Loads and stores of one program."""
    launch: float
    """Loads and stores of all programs that run at once."""
    memory: float
    """Size of the exchanged tensor: two steps of it."""


def exchange(layer: Layer, plan: Launch, direction: str) -> Exchange:
    """Forward: every program stores h of its units and loads all of h. Backward: it stores a part of dh of all units, and loads every
    program's part of its own units.
    """
    if not plan.exchanges:
        return Exchange(0, 0, 0)
    programs, width, R = plan.programs(layer.hidden_size), plan.block_k * plan.chunks, plan.block_b
    tasks, size = _tasks_at_once(layer, plan), part_dtype(DTYPES[layer.dtype]).itemsize
    if direction == "forward":
        program = (plan.block_h + width) * R * layer.itemsize
        return Exchange(program, tasks * programs * program, 2 * tasks * R * width * layer.itemsize)
    program = (width + programs * plan.block_h) * R * size
    return Exchange(program, tasks * programs * program, 2 * tasks * programs * width * R * size)


def _persistent(layer: Layer, plan: Launch, direction: str) -> dict[str, float]:
    """resident, grid, streamed: a step of all tasks that run at once. A program's product is (M, K) weights by (K, R) rows of the batch."""
    R, size = plan.block_b, layer.itemsize
    programs, tasks = plan.programs(layer.hidden_size), _tasks_at_once(layer, plan)
    gate_rows, width = launch.power_of_two(layer.gates) * plan.block_h, plan.block_k * plan.chunks
    M, K = (gate_rows, width) if direction == "forward" else (width, gate_rows)
    # The weights once; the other operand in, and out again for each of a tensor core instruction's 64 rows.
    shared = (M * K + K * R * (1 + max(1, M // 64))) * size
    streamed = layer.weight_bytes if plan.schedule == "streamed" else 0
    handed = exchange(layer, plan, direction)
    return {
        "memory": min(layer.batch, tasks * R) * _row_bytes(layer, direction) / MEMORY,
        "launch": 0.0,
        "wait": LATENCY + (BARRIER if handed.launch else 0.0),
        "exchange": max(handed.program / L2_TO_PROGRAM, handed.launch / _cached(handed.memory)),
        "weights": max(streamed / programs / L2_TO_PROGRAM, tasks * streamed / _cached(layer.weight_bytes)),
        "product": max(2 * M * K * R / (TENSOR[layer.dtype] / CARD.multiprocessors), shared / SHARED),
        "cell": plan.block_h * R * INSTRUCTIONS[layer.cell][direction] / ISSUE,
    }


def _stepwise(layer: Layer, direction: str) -> dict[str, float]:
    """A product of PyTorch's and a kernel, both of all rows."""
    B, H, real = layer.batch, layer.hidden_size, max(4, layer.itemsize)
    between = B * H * (layer.gates * real if direction == "forward" else real + layer.gates * layer.itemsize)
    states = 2 * len(CELLS[layer.cell].states) * B * H * real
    return {
        "memory": B * _row_bytes(layer, direction) / MEMORY,
        "launch": HOST_STEP,
        "wait": 2 * KERNEL,
        "exchange": (2 * between + states) / _cached(between + states),
        "weights": layer.weight_bytes / _cached(layer.weight_bytes),
        "product": 2 * B * layer.gates * H * H / OUTSIDE[layer.dtype],
        "cell": B * H * INSTRUCTIONS[layer.cell][direction] / (ISSUE * CARD.multiprocessors),
    }


def _row_bytes(layer: Layer, direction: str) -> int:
    """What one row of one step reads and writes in HBM, all units."""
    cell, per_unit = kernels(layer.cell), layer.hidden_size * layer.itemsize
    if direction == "forward":
        return (layer.gates + 1 + cell.saves) * per_unit  # gates_x; output, saved
    gradients = layer.gates * (2 - cell.same_gate_gradients)
    before = len(CELLS[layer.cell].states)
    return (cell.saves + before + 1 + gradients) * per_unit  # saved, the states before, grad_output; dgates


def _cached(footprint: float) -> float:
    return L2 if footprint <= L2_SIZE else MEMORY


def _outside(layer: Layer, direction: str, rate: float) -> float:
    """The matrix products outside the loop: arithmetic or memory, each the slower of the two."""
    N, H, gates, size = layer.rows, layer.hidden_size, layer.gates * layer.hidden_size, layer.itemsize
    product = max(2 * N * H * gates / rate, (N * (H + gates) + gates * H) * size / MEMORY)
    return product if direction == "forward" else 3 * product


def cudnn_algorithm(layer: Layer, direction: str) -> str:
    """What PyTorch asks cuDNN for (aten/src/ATen/native/cudnn/RNN.cpp); a packed batch of different lengths always gets "standard"."""
    small = {"rnn_tanh": {"forward": 384, "backward": 256}}.get(layer.cell, {"forward": 192, "backward": 128})[direction]
    if layer.lengths is not None or layer.dtype == "float64":
        return "standard"
    if layer.hidden_size <= small:
        return "persistent, small"
    takes_batch = layer.batch % 8 == 0 and layer.batch <= 128 and (layer.cell == "lstm" or layer.batch < 96 or layer.hidden_size < 896)
    if layer.dtype == "float16" and layer.cell != "gru" and layer.hidden_size <= 1024 and layer.hidden_size % 128 == 0 and takes_batch:
        return "persistent"
    return "standard"


def predict_cudnn(layer: Layer, direction: str) -> float | None:
    """Seconds, by a simple model that is kind to cuDNN, of its "standard" algorithm; None for the others, of whose inside nothing is known.

    A step is two kernels that wait for each other: a product of its rows at the full rate of the card, weights from the L2 cache, and the
    cell, which costs its memory traffic only. What packing and padding take is left out.
    """
    if cudnn_algorithm(layer, direction) != "standard":
        return None
    rate, gates = TENSOR[layer.dtype], layer.gates * layer.hidden_size
    step = 2 * KERNEL + layer.weight_bytes / _cached(layer.weight_bytes)
    row = max(2 * gates * layer.hidden_size / rate, _row_bytes(layer, direction) / MEMORY)
    return layer.steps * step + layer.rows * row + _outside(layer, direction, rate)


_DIRECTIONS = {"forward": ("forward",), "forward_backward": ("forward", "backward")}


def predicted_ms(phase: str, layer: Layer, schedule: str | None = None) -> float:
    """phase: "forward" or "forward_backward"."""
    return 1e3 * sum(predict(layer, direction, schedule).seconds for direction in _DIRECTIONS[phase])


def predicted_ratio(phase: str, layer: Layer, schedule: str | None = None) -> float | None:
    """cuDNN's time over ours."""
    cudnn = [predict_cudnn(layer, direction) for direction in _DIRECTIONS[phase]]
    return None if None in cudnn else 1e3 * sum(cudnn) / predicted_ms(phase, layer, schedule)


def table(cell: str, dtype: str, steps: int, schedule: str | None = None) -> str:
    """One line for each batch and hidden size."""
    lines = [
        f"PREDICTED, H200: {cell}, {dtype}, T = {steps}; forward as in training; ratios: cuDNN's time over ours, forward and with backward",
        f"{'':22}{'forward':^30} {'backward':^30} {'padded':^13} {'lengths':^13}",
        f"{'B':>4} {'H':>6}  {'schedule':9}" + 2 * f"{'ms':>9}{'us/step':>9} {'binds':9}   " + "ratios        ratios",
    ]
    for batch in (1, 16, 64, 256):
        for hidden_size in (64, 128, 256, 512, 1024, 2048):
            layer = Layer(cell, dtype, batch, steps, hidden_size)
            try:
                predictions = [predict(layer, direction, schedule) for direction in ("forward", "backward")]
            except ValueError as error:
                lines.append(f"{batch:4} {hidden_size:6}  {error}")
                continue
            times = [f"{p.seconds * 1e3:9.3f}{_step_seconds(p.step) * 1e6:9.2f} {p.binds:9}" for p in predictions]
            varied = replace(layer, lengths=tuple(sst2_lengths(batch, steps)))
            ratios = [predicted_ratio(phase, shape, schedule) for shape in (layer, varied) for phase in _DIRECTIONS]
            shown = "".join("      -" if ratio is None else f"{ratio:7.2f}" for ratio in ratios)
            lines.append(f"{batch:4} {hidden_size:6}  {predictions[0].schedule:9}{times[0]}   {times[1]}{shown}")
    return "\n".join(lines)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=INSTRUCTIONS, default="lstm")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="tf32 is float32 by default, float32 without TF32")
    parser.add_argument("--steps", type=_positive, default=512, help="time steps, at least 1 (default: 512)")
    parser.add_argument("--schedule", choices=launch.SCHEDULES, help="instead of the launch table's choice")
    options = parser.parse_args(arguments)
    print(table(options.cell, options.dtype, options.steps, options.schedule))


if __name__ == "__main__":
    main()
