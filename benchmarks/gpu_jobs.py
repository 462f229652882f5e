"""What the worker processes of benchmarks/gpu.py do: look at the machine, check kernels, time layers. A job and its result are dicts.

T time steps, B batch, I input_size, H hidden_size.
"""

import math
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout need not be installed

import gpu_model
import numpy
import torch
import triton
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import sstkern
from sstkern.cells import CELLS, Cell
from sstkern.engines import interpreting, triton_runs

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,  # float32 as torch.backends.cudnn allows it by default
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
BOUNDS = {"float64": 1e-12, "float32": 1e-5, "tf32": 3e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Relative errors that no sound kernel exceeds, unless cuDNN's does as well (see `_sound`)."""
RELU_BOUND = 5e-2
"""The bound of a relu's gradients where numbers are rounded: the gradient of an argument near 0 comes or goes whole."""
BLOCK_SECONDS = 0.03
PROJECTED = "_projected"
"""What the name of a cell with a projection ends in."""


def run(job: dict) -> dict:
    torch.backends.cudnn.allow_tf32 = job.get("dtype") != "float32"
    torch.manual_seed(0)
    import gpu_own_cells  # which are made of what is here
    import gpu_resets

    others = gpu_own_cells.own_check, gpu_own_cells.own_cell, gpu_resets.resets_check, gpu_resets.resets
    jobs = JOBS | {job.__name__: job for job in others}
    try:
        return jobs[job["job"]](**{name: value for name, value in job.items() if name not in ("job", "family")})
    except ValueError as error:
        if not str(error).startswith("schedule:"):
            raise
        return {"left_out": str(error)}  # the launch table refuses this layer
    finally:
        if healthy():  # or the error that made it ill would be lost
            DEVICE.free()


def healthy() -> bool:
    """Whether the device still computes: after some errors nothing in a process does."""
    try:
        return torch.ones(2, device=DEVICE.place).sum().item() == 2.0
    except (RuntimeError, AssertionError):  # the second from a torch without CUDA
        return False


class Gpu:
    place = torch.device("cuda")
    blocks, least_calls = 3, 3
    compile = staticmethod(torch.compile)

    def name(self) -> str:
        return torch.cuda.get_device_name()

    def properties(self) -> dict:
        card = torch.cuda.get_device_properties(self.place)
        return {
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "l2_mib": round(card.L2_cache_size / 2**20, 1),
        }

    def free(self) -> None:
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def times(self, call: Callable[[], object], count: int) -> tuple[list[float], float]:
        """Milliseconds of each of `count` calls, between two events, and those that the host took to issue one."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        self.synchronize()
        began = time.perf_counter()
        for start, end in events:
            start.record()
            call()
            end.record()
        issued = time.perf_counter() - began
        self.synchronize()
        return [start.elapsed_time(end) for start, end in events], issued / count * 1e3

    def captured(self, step: Callable[[], object]) -> Callable[[], object]:
        """`step` as a CUDA graph, warmed up on a side stream as PyTorch asks."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def at_once(self, calls: list[Callable[[], object]]) -> list:
        """The results of calls issued to a stream of its own each."""
        streams = [torch.cuda.Stream() for _ in calls]
        self.synchronize()
        results = []
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                results.append(call())
        self.synchronize()
        return results


class StandIn:
    """The CPU in a GPU's place: Triton's interpreter runs the kernels and a clock replaces events; nothing is captured, or runs at once."""

    place = torch.device("cpu")
    blocks, least_calls = 1, 1
    compile = staticmethod(partial(torch.compile, backend="eager"))

    def __init__(self):
        torch.set_num_threads(1)

    def name(self) -> str:
        return "CPU as a stand-in"

    def properties(self) -> dict:
        return {}

    def free(self) -> None:
        pass

    def times(self, call: Callable[[], object], count: int) -> tuple[list[float], float]:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1e3)
        return times, statistics.mean(times)

    def captured(self, step: Callable[[], object]) -> Callable[[], object]:
        return step

    def at_once(self, calls: list[Callable[[], object]]) -> list:
        return [call() for call in calls]


DEVICE = StandIn() if interpreting() else Gpu()


def environment(copy_bytes: int, matrix: int) -> dict:
    """The machine, and two ceilings measured on it: a copy of `copy_bytes`, and a bfloat16 product of (matrix, matrix) matrices."""
    ceilings = {"copy_tb_s": _copy_rate(copy_bytes), "bfloat16_tflop_s": _product_rate(matrix)}
    return {
        "device": DEVICE.name(),
        **DEVICE.properties(),
        "measured": ceilings,
        "nvidia_smi": _nvidia_smi(),  # after the ceilings: clocks under load
        "torch": torch.__version__,
        "triton": triton.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        "commit": _output_of("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "flashrnn": _flashrnn_problem() or "importable",
    }


def check(cell: str, schedule: str, dtype: str, batch: int, steps: int, sizes: list[int], odd_sizes: list[int]) -> dict:
    """Errors of a layer's results and gradients, both directions, beside cuDNN's, and whether the bits are the same twice.

    sizes: I and H without lengths; odd_sizes: with lengths, given on the CPU and on the device.
    """
    report = {}
    for name, (input_size, hidden_size) in {"padded": sizes, "lengths": odd_sizes, "lengths_on_device": odd_sizes}.items():
        lengths = None if name == "padded" else torch.randint(1, steps + 1, (batch,))
        ours, theirs, reference = _layers(cell, dtype, input_size, hidden_size)
        x = torch.randn(steps, batch, input_size, device=DEVICE.place, dtype=DTYPES[dtype])
        with sstkern.backend("reference"):
            exact = _results(reference, x.double(), lengths)
        given = lengths.to(DEVICE.place) if name == "lengths_on_device" else lengths
        if lengths is not None:
            x[torch.arange(steps)[:, None] >= lengths] = math.nan  # no kernel reads padding
        with _only(schedule):
            twice = [_results(ours, x, given) for _ in range(2)]
        errors = {"ours": _errors(twice[0], exact), "cudnn": _errors(_results(theirs, x, lengths), exact)}
        same_bits = all(torch.equal(a, b) for a, b in zip(*(results.values() for results in twice), strict=True))
        report[name] = errors | {"same_bits": same_bits, "ok": same_bits and _sound(errors, cell, dtype)}
    return report | {"ok": all(variant["ok"] for variant in report.values())}


def gradients(cell: str, schedule: str, steps: int, hidden_size: int) -> dict:
    """torch.autograd.gradcheck through the float64 kernels: x, the first states and every weight, both directions, one empty sequence."""
    layer, _, _ = _layers(cell, "float64", 3, hidden_size)
    names, weights = zip(*layer.named_parameters(), strict=True)
    states = [torch.randn(2, 3, hidden_size, dtype=torch.float64, device=DEVICE.place, requires_grad=True) for _ in _cell(layer).states]
    x = torch.randn(steps, 3, 3, dtype=torch.float64, device=DEVICE.place, requires_grad=True)

    def results(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        hx, given = others[: len(states)], dict(zip(names, others[len(states) :], strict=True))
        output, hx_n = torch.func.functional_call(layer, given, (x, _as_hx(hx)), {"lengths": [steps, 0, steps - 1]})
        return output, *_flat(hx_n)

    with _only(schedule):
        return {"ok": torch.autograd.gradcheck(results, (x, *states, *weights), fast_mode=True)}


def graph(cell: str, schedule: str, dtype: str, batch: int, steps: int, hidden_size: int) -> dict:
    """Whether replays of a captured training step leave the weights, bit for bit, where steps without a graph leave them."""
    layer, _, _ = _layers(cell, dtype, hidden_size, hidden_size)
    weights, first = list(layer.parameters()), [weight.detach().clone() for weight in layer.parameters()]
    x = torch.randn(steps, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype])
    lengths = torch.randint(0, steps + 1, (batch,)).to(DEVICE.place)

    def step() -> None:
        loss = layer(x, lengths=lengths)[0].float().square().mean()
        with torch.no_grad():
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= gradient

    def trained(step: Callable[[], object]) -> list[Tensor]:
        with torch.no_grad():
            for weight, value in zip(weights, first, strict=True):
                weight.copy_(value)
        for _ in range(2):
            step()
        return [weight.detach().clone() for weight in weights]

    with _only(schedule):
        eager, replayed = trained(step), trained(DEVICE.captured(step))
    moved = not all(torch.equal(weight, value) for weight, value in zip(eager, first, strict=True))
    return {"ok": moved and all(torch.equal(a, b) for a, b in zip(eager, replayed, strict=True))}


def streams(cell: str, schedule: str, dtype: str, batch: int, steps: int, hidden_size: int) -> dict:
    """Whether layers that run on four streams at once give the bits they give alone."""
    layers = [_layers(cell, dtype, hidden_size, hidden_size)[0] for _ in range(4)]
    x = torch.randn(steps, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype])
    calls = [lambda layer=layer: list(_results(layer, x, None).values()) for layer in layers]
    with _only(schedule):
        alone, together = [call() for call in calls], DEVICE.at_once(calls)
    return {"ok": all(torch.equal(a, b) for a, b in zip(chain(*alone), chain(*together), strict=True))}


def in_pytorch(cell: str, batch: int, steps: int, hidden_size: int) -> dict:
    """Largest errors, in float64 and both directions, of what docs/pytorch.md and docs/memory.md promise, against ordinary gradients."""
    layer, _, _ = _layers(cell, "float64", 3, hidden_size)
    names, weights = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(steps, batch, 3, dtype=torch.float64, device=DEVICE.place)
    lengths = torch.randint(0, steps + 1, (batch,))

    def loss(weights: dict[str, Tensor], x: Tensor, lengths: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,), {"lengths": lengths})[0].square().sum()

    def of_layer(layer: Callable, x: Tensor, lengths: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(layer(x, lengths=lengths)[0].square().sum(), weights))

    def error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
        return max(_relative(value, right) for value, right in zip(found, exact, strict=True))

    errors, detached = {}, {name: weight.detach() for name, weight in zip(names, weights, strict=True)}
    with sstkern.backend("triton"):
        ordinary = of_layer(layer, x, lengths)
        by_sample = torch.func.vmap(torch.func.grad(lambda w, x, n: loss(w, x[:, None], n[None])), (None, 1, 0))(detached, x, lengths)
        one_by_one = [of_layer(layer, x[:, i : i + 1], lengths[i : i + 1]) for i in range(batch)]
        errors["each sample"] = error(list(by_sample.values()), [torch.stack(gradients) for gradients in zip(*one_by_one, strict=True)])
        errors["compiled"] = error(of_layer(torch.compile(layer, fullgraph=True), x, lengths), ordinary)
        layer.recompute = True
        errors["recompute"] = error(of_layer(layer, x, lengths), ordinary)
    return {"errors": errors, "ok": all(_within(value, BOUNDS["float64"]) for value in errors.values())}


def compile_kernels(cell: str, dtype: str, batch: int, hidden_size: int) -> dict:
    """Has Triton compile, into its cache on disk, the kernels that `point` runs; the number of time steps makes no difference to them."""
    ours, _, _ = _layers(cell, dtype, hidden_size, hidden_size, bidirectional=False)
    x = torch.randn(2, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype], requires_grad=True)
    for lengths in (None, _lengths(batch, 2), _lengths(batch, 2).to(DEVICE.place)):
        for call in _phases(_Variant(lambda x, lengths=lengths: ours(x, lengths=lengths)[0], x, ours)).values():
            call()
    return {}


def point(cell: str, dtype: str, batch: int, steps: int, hidden_size: int) -> dict:
    """Milliseconds of a layer, ours and cuDNN's, padded and with lengths, forward alone and with its backward; I = H, one direction.

    "padded" and "lengths" are calls that Python issues, "padded_graph" and "lengths_graph" replays of CUDA graphs.
    """
    ours, theirs, _ = _layers(cell, dtype, hidden_size, hidden_size, bidirectional=False)
    x = torch.randn(steps, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype], requires_grad=True)
    before, report = triton_runs(), {}
    for name, lengths in {"padded": None, "lengths": _lengths(batch, steps)}.items():
        layer = gpu_model.Layer(cell, dtype, batch, steps, hidden_size, None if lengths is None else tuple(lengths.tolist()))
        variants = _variants(ours, theirs, x, lengths)
        timed = _alternately({label: _phases(variant) for label, variant in variants.items()})
        for phase, times in timed.items():
            times["ratio"] = times["cudnn"]["ms"] / times["ours"]["ms"]
            times["predicted_h200_ms"] = gpu_model.predicted_ms(phase, layer)
        report[name] = timed | {"difference": _difference(variants)}
        report[f"{name}_graph"] = _replayed(ours, variants, x, lengths)
    ran = {name: count - before.get(name, 0) for name, count in triton_runs().items()}
    if not ran.get("forward") or not ran.get("backward"):
        raise RuntimeError(f"the triton engine did not run: {ran}")
    differences = [report[name]["difference"][part] for name in ("padded", "lengths") for part in ("forward", "backward")]
    sound = all(_within(difference, 2 * BOUNDS[dtype]) for difference in differences)
    captured = all("ours" not in report[name]["failed"] for name in ("padded_graph", "lengths_graph"))
    schedules = sorted(name for name, count in ran.items() if count and name not in ("forward", "backward"))
    return report | {"schedules": schedules, "ok": sound and captured}


def flashrnn(cell: str, dtype: str, batch: int, steps: int, hidden_size: int) -> dict:
    """FlashRNN beside ours, both with their input projection; else as `point`, padded."""
    if problem := _flashrnn_problem():
        return {"left_out": problem}
    ours, _, _ = _layers(cell, dtype, hidden_size, hidden_size, bidirectional=False)
    x = torch.randn(steps, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype], requires_grad=True)
    variants = {"ours": _Variant(lambda x: ours(x)[0], x, ours), "flashrnn": _flashrnn_variant(cell, ours, x)}
    timed = _alternately({label: _phases(variant) for label, variant in variants.items()})
    for times in timed.values():
        times["ratio"] = times["flashrnn"]["ms"] / times["ours"]["ms"]
    return {"padded": timed}


JOBS = {job.__name__: job for job in (environment, check, gradients, graph, streams, in_pytorch, compile_kernels, point, flashrnn)}


@contextmanager
def _only(schedule: str):
    """Forces `schedule`, and fails if no launch of it ran."""
    before = triton_runs().get(schedule, 0)
    with sstkern.backend("triton", schedule=schedule):
        yield
    if triton_runs().get(schedule, 0) == before:
        raise RuntimeError(f"the schedule '{schedule}' did not run")


def _layers(cell: str, dtype: str, input_size: int, hidden_size: int, bidirectional: bool = True) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Ours, torch.nn's, and ours in float64, with the same weights."""
    plain = CELLS[cell.removesuffix(PROJECTED)]
    name, options = plain.torch_class, {"bidirectional": bidirectional, "device": DEVICE.place} | plain.torch_options
    if cell.endswith(PROJECTED):
        options["proj_size"] = (hidden_size + 1) // 2
    ours = getattr(sstkern, name)(input_size, hidden_size, dtype=DTYPES[dtype], **options)
    theirs = getattr(nn, name)(input_size, hidden_size, dtype=DTYPES[dtype], **options)
    exact = getattr(sstkern, name)(input_size, hidden_size, dtype=torch.float64, **options)
    for other in (theirs, exact):
        other.load_state_dict(ours.state_dict())
    return ours, theirs, exact


def _cell(layer: nn.RNNBase) -> Cell:
    return next(cell for cell in CELLS.values() if cell.torch_mode == layer.mode)


def _as_hx(states: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return states if len(states) > 1 else states[0]


def _flat(hx: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (hx,) if isinstance(hx, Tensor) else hx


def _apply(
    layer: nn.RNNBase, x: Tensor, hx: Tensor | tuple[Tensor, ...] | None, lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Ours takes lengths, torch.nn's layers a PackedSequence."""
    if lengths is None:
        output, hx_n = layer(x, hx)
    elif type(layer).__module__.startswith("sstkern"):
        output, hx_n = layer(x, hx, lengths=lengths)
    else:
        packed, hx_n = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        output = pad_packed_sequence(packed, total_length=x.size(0))[0]
    return output, _flat(hx_n)


def _results(layer: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
    """Output, last states, and the gradients of a random weighting of them: the same weighting and first states for the same sizes."""
    generator = torch.Generator().manual_seed(0)

    def random_like(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)

    rows, batch, cell = 1 + layer.bidirectional, x.size(1), _cell(layer)
    sizes = cell.state_sizes(layer.hidden_size, layer.proj_size or layer.hidden_size)
    hx = tuple(random_like((rows, batch, size)).requires_grad_() for size in sizes)
    x = x.detach().requires_grad_()
    output, hx_n = _apply(layer, x, _as_hx(hx), lengths)
    results = [output, *hx_n]
    inputs = {"x": x} | dict(zip(cell.states, hx, strict=True)) | dict(layer.named_parameters())
    grads = torch.autograd.grad(results, list(inputs.values()), [random_like(tuple(result.shape)) for result in results])
    named = dict(zip(("output", *(f"{state}_n" for state in cell.states)), results, strict=True))
    return {name: value.detach() for name, value in (named | {f"d{n}": g for n, g in zip(inputs, grads, strict=True)}).items()}


def _relative(value: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm."""
    exact = exact.double()
    difference, size = torch.linalg.vector_norm(value.double() - exact), torch.linalg.vector_norm(exact)
    return (difference / size if size else difference).item()


def _errors(results: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float | None]:
    """The largest relative error of any result, and of any gradient; None for what is not a number."""
    errors = {name: _relative(value, exact[name]) for name, value in results.items()}
    parts = {
        "forward": [e for name, e in errors.items() if name[0] != "d"],
        "backward": [e for name, e in errors.items() if name[0] == "d"],
    }
    return {part: max(values) if all(map(math.isfinite, values)) else None for part, values in parts.items()}


def _within(error: float | None, bound: float) -> bool:
    return error is not None and error <= bound


def _sound(errors: dict[str, dict[str, float | None]], cell: str, dtype: str) -> bool:
    """Whether ours are within the dtype's bound, or close to cuDNN's."""
    rounded = dtype not in ("float32", "float64")
    bounds = {"forward": BOUNDS[dtype], "backward": RELU_BOUND if rounded and cell == "rnn_relu" else BOUNDS[dtype]}
    return all(_within(ours, max(bounds[part], 1.5 * (errors["cudnn"][part] or 0.0))) for part, ours in errors["ours"].items())


def _lengths(batch: int, steps: int) -> Tensor:
    lengths = gpu_model.sst2_lengths(batch, steps)
    random.Random(0).shuffle(lengths)
    return torch.tensor(lengths)


class _Variant:
    """A layer's output from x, and what its backward gives gradients of."""

    def __init__(self, call: Callable[[Tensor], Tensor], x: Tensor, layer: nn.Module):
        self.call, self.x, self.inputs = call, x, [x, *layer.parameters()]
        with torch.no_grad():
            shape = call(x).shape
        self.gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(x.device, x.dtype)


def _variants(ours: nn.RNNBase, theirs: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> dict[str, _Variant]:
    """The calls to time. With lengths cuDNN packs and pads, as ours needs not; "cudnn_prepacked" is its layer on a PackedSequence."""
    variants = {
        name: _Variant(lambda x, layer=layer: _apply(layer, x, None, lengths)[0], x, layer)
        for name, layer in zip(("ours", "cudnn"), (ours, theirs), strict=True)
    }
    if lengths is not None:
        packed = pack_padded_sequence(x.detach(), lengths, enforce_sorted=False)
        data = packed.data.requires_grad_()
        variants["cudnn_prepacked"] = _Variant(lambda data: theirs(PackedSequence(data, *packed[1:]))[0].data, data, theirs)
    return variants


def _replayed(ours: nn.RNNBase, variants: dict[str, _Variant], x: Tensor, lengths: Tensor | None) -> dict:
    """`_alternately` of CUDA graphs, with the ratio for each phase if both were captured; "failed" has the reasons of what was not.

    A graph cannot copy lengths from the CPU: ours get them on the device, cuDNN a PackedSequence that was made before.
    """
    if lengths is not None:
        given = lengths.to(DEVICE.place)
        packed = variants["cudnn_prepacked"]
        variants = {"ours": _Variant(lambda x: ours(x, lengths=given)[0], x, ours), "cudnn": packed}
    calls, failed = {}, {}
    for label, variant in variants.items():
        try:
            calls[label] = {phase: DEVICE.captured(call) for phase, call in _phases(variant).items()}
        except RuntimeError as error:
            failed[label] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
    timed = _alternately(calls) if calls else {}
    for times in timed.values():
        if not failed:
            times["ratio"] = times["cudnn"]["ms"] / times["ours"]["ms"]
    return timed | {"failed": failed}


def _flashrnn_problem() -> str | None:
    try:
        import flashrnn  # noqa: F401
    except ImportError as error:
        return f"flashrnn cannot be imported: {error}"
    return None


def _flashrnn_variant(cell: str, layer: nn.RNNBase, x: Tensor) -> _Variant:
    """FlashRNN has no input projection and takes the batch first, gates (G, heads, H), and for its GRU a bias more."""
    from flashrnn import flashrnn as recurrence

    hidden_size = layer.hidden_size
    gates = layer.weight_hh_l0.size(0) // hidden_size
    weight_hh = layer.weight_hh_l0.detach().view(gates, 1, hidden_size, hidden_size).clone().requires_grad_()
    bias = torch.zeros(gates + (cell == "gru"), 1, hidden_size, dtype=x.dtype, device=x.device, requires_grad=True)
    function = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "elman"}[cell]

    def call(x: Tensor) -> Tensor:
        gates_x = nn.functional.linear(x, layer.weight_ih_l0).transpose(0, 1)
        gates_x = gates_x.reshape(x.size(1), x.size(0), gates, 1, hidden_size)
        return recurrence(gates_x, weight_hh, bias, function=function, backend="cuda_fused")[0][0]

    variant = _Variant(call, x, layer)
    variant.inputs = [x, layer.weight_ih_l0, weight_hh, bias]
    return variant


def _phases(variant: _Variant) -> dict[str, Callable[[], object]]:
    def forward() -> Tensor:
        with torch.no_grad():
            return variant.call(variant.x)

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(variant.call(variant.x), variant.inputs, variant.gradient)

    return {"forward": forward, "forward_backward": forward_backward}


def _alternately(calls: dict[str, dict[str, Callable[[], object]]]) -> dict[str, dict[str, dict]]:
    """For each phase and variant the median in milliseconds, that of each block, and the host's. The variants' blocks alternate."""
    report = {}
    for phase in next(iter(calls.values())):
        counts, times, issued = {}, {label: [] for label in calls}, {label: [] for label in calls}
        for label in calls:
            calls[label][phase]()  # warm-up
            once = statistics.median(DEVICE.times(calls[label][phase], DEVICE.least_calls)[0])
            counts[label] = min(100, max(DEVICE.least_calls, int(BLOCK_SECONDS * 1e3 / max(once, 1e-3))))
        for _ in range(DEVICE.blocks):
            for label in calls:
                block, host = DEVICE.times(calls[label][phase], counts[label])
                times[label].append(block)
                issued[label].append(host)
        report[phase] = {
            label: {
                "ms": statistics.median(list(chain(*times[label]))),
                "blocks_ms": [statistics.median(block) for block in times[label]],
                "host_ms": statistics.median(issued[label]),
            }
            for label in calls
        }
    return report


def _difference(variants: dict[str, _Variant]) -> dict[str, float | None]:
    """The relative difference of ours from cuDNN's: of the output, and of the worst gradient."""
    pairs = {}
    for label in ("ours", "cudnn"):
        output = variants[label].call(variants[label].x)
        pairs[label] = output.detach(), torch.autograd.grad(output, variants[label].inputs, variants[label].gradient)
    (output, grads), (their_output, their_grads) = pairs["ours"], pairs["cudnn"]
    differences = {
        "forward": [_relative(output, their_output)],
        "backward": [_relative(a, b) for a, b in zip(grads, their_grads, strict=True)],
    }
    return {part: max(values) if all(map(math.isfinite, values)) else None for part, values in differences.items()}


def _copy_rate(size: int) -> float:
    """TB/s, bytes read plus bytes written."""
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE.place).random_()
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source)) / 1e12


def _product_rate(size: int) -> float:
    """TFLOP/s"""
    a, b = (torch.randn(size, size, device=DEVICE.place).to(torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b) / 1e12


def _median_seconds(call: Callable[[], object]) -> float:
    DEVICE.times(call, 3)
    return statistics.median(DEVICE.times(call, 10)[0]) / 1e3


def _nvidia_smi() -> dict[str, str]:
    names = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu"]
    values = _output_of("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader").splitlines()
    return dict(zip(names, values[0].split(", "), strict=False)) if values else {}


def _output_of(*command: str) -> str:
    """Empty where there is no such program, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
