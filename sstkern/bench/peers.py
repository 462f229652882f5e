"""The engines, ours and the others: each makes a callable for a case, from one set of weights, or says why it cannot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import sstkern
from sstkern.bench import graph, timing
from sstkern.bench.cases import Case
from sstkern.lengths import batch_sizes, packed_rows

OURS = "sstkern"
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.02}
"""The largest difference from the reference engine, as a share of the largest number: is it the same function? Long sums in bfloat16 are
far apart, and not wrong."""
MOST_PADDED = 2**29
"""Bytes of a padded x, beyond which a skewed batch is not padded to be timed: its output and their gradients are as large."""
SEED = 0
_LONGEST = 160  # letters of an error


class Unavailable(Exception):
    """An engine cannot run a case here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """A case with its numbers, the same in every process."""

    case: Case
    threads: int
    x: Tensor
    """(T, B, size), or of a packed case (tokens, size): the valid steps alone, as a PackedSequence has them."""
    lengths: Tensor | None
    grad: Tensor
    """The gradient of the output, or one number for all of it. It is 0 past a length, so that engines that know no lengths compute the same
    gradients."""
    state: Mapping[str, Tensor]
    """A layer's parameters, by torch.nn's names."""

    @classmethod
    def of(cls, case: Case, threads: int) -> "Problem":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            state = getattr(torch.nn, case.cell)(case.size, case.size, dtype=case.torch_dtype).state_dict()
            rows = (case.tokens,) if case.packed else (case.steps, case.batch)
            x, grad = torch.randn(2, *rows, case.size, dtype=case.torch_dtype)
        lengths = None if case.valid is None else torch.tensor(case.valid)
        problem = cls(case, threads, x, lengths, grad, state)
        return cls(case, threads, x, lengths, problem.masked(grad), state)

    def masked(self, output: Tensor) -> Tensor:
        """An output with 0 past the lengths."""
        if self.lengths is None or self.case.packed:
            return output
        valid = torch.arange(self.case.steps).unsqueeze(1) < self.lengths
        return torch.where(valid.unsqueeze(2), output, 0)

    def layer(self, kind: Callable[..., torch.nn.Module], dtype: torch.dtype | None = None) -> torch.nn.Module:
        layer = kind(self.case.size, self.case.size, dtype=dtype or self.case.torch_dtype)
        layer.load_state_dict(self.state)
        return layer

    def expected(self) -> list[Tensor]:
        """The results that all engines must have: plain PyTorch in float32."""
        layer = self.layer(getattr(sstkern, self.case.cell), torch.float32)
        exact = replace(self, x=self.x.float(), grad=self.grad.float())
        return _of_engine("reference", exact, layer, _call(exact, layer)).results()


@dataclass
class Prepared:
    """An engine, ready to run one problem."""

    run: Callable[[], Any]
    training: bool
    read: Callable[[Any], list[Tensor]] = lambda results: results
    """Takes what `run` returned, and gives the output and, in training, the gradients of x and of the weights."""
    context: Callable[[], AbstractContextManager] = nullcontext
    """What `run` must be called in. Entered once for many calls, so that its own time does not count."""
    notes: dict[str, Any] = field(default_factory=dict)
    checked_in: Callable[[], AbstractContextManager] = nullcontext
    """What `results` are computed in besides, not what is timed."""

    @contextmanager
    def mode(self) -> Iterator[None]:
        with self.context(), torch.set_grad_enabled(self.training):
            yield

    def results(self) -> list[Tensor]:
        with self.checked_in(), self.mode():
            return [tensor.detach().clone() for tensor in self.read(self.run())]

    def block(self, seconds: float) -> list[float]:
        with self.mode():
            return timing.block(self.run, seconds)

    def close(self) -> None:
        """Ends what the engine may have started."""


@dataclass(frozen=True)
class Engine:
    name: str
    prepare: Callable[[Problem], Prepared]
    """Raises Unavailable."""


def sstkern_layer(problem: Problem) -> Prepared:
    layer = problem.layer(getattr(sstkern, problem.case.cell))
    return _of_engine("cpu", problem, layer, _call(problem, layer))


def sstkern_nested(problem: Problem) -> Prepared:
    """A packed case's sequences as a jagged nested tensor."""
    layer, (_, sequence) = problem.layer(getattr(sstkern, problem.case.cell)), _rows(problem)
    order = sequence.argsort(stable=True)
    back = order.argsort()
    x = torch.nested.nested_tensor_from_jagged(problem.x[order], pad(sequence.bincount().cumsum(0), (1, 0)))
    prepared = _of_engine("cpu", replace(problem, x=x, grad=problem.grad[order]), layer, lambda x: layer(x)[0].values())
    return _read_rows(prepared, lambda result: (result.values() if result.is_nested else result)[back])


def sstkern_padded(problem: Problem) -> Prepared:
    """A packed case's sequences as a padded tensor, with lengths."""
    case, layer, rows = problem.case, problem.layer(getattr(sstkern, problem.case.cell)), _rows(problem)
    size = case.batch * case.steps * case.size * case.torch_dtype.itemsize
    if size > MOST_PADDED:
        raise Unavailable(f"padded, x alone has {size / 2**20:.0f} MiB, more than {MOST_PADDED / 2**20:.0f}")
    x, grad = (tensor.new_zeros(case.steps, case.batch, case.size).index_put(rows, tensor) for tensor in (problem.x, problem.grad))
    prepared = _of_engine("cpu", replace(problem, x=x, grad=grad), layer, lambda x: layer(x, lengths=problem.lengths)[0])
    return _read_rows(prepared, lambda result: result[rows])


def _rows(problem: Problem) -> tuple[Tensor, Tensor]:
    """The step and the sequence of each row of a packed x."""
    return packed_rows(batch_sizes(problem.lengths))


def _read_rows(prepared: Prepared, rows: Callable[[Tensor], Tensor]) -> Prepared:
    """The same call, whose output and gradient of x `rows` packs."""
    prepared.read = lambda results: [*map(rows, results[:2]), *results[2:]]
    return prepared


def torch_padded(problem: Problem, wrap: Callable[[torch.nn.Module], Callable] = lambda layer: layer) -> Prepared:
    """What costs torch.nn least to write: every sequence as long as the longest. wrap: torch.compile or nothing."""
    layer = problem.layer(getattr(torch.nn, problem.case.cell))
    call = wrap(layer)
    return of_module(problem, layer, lambda x: call(x)[0])


def torch_without_onednn(problem: Problem) -> Prepared:
    prepared = torch_padded(problem)
    # Its other defaults warn that this machine's oneDNN has no GPU.
    prepared.context = lambda: torch.backends.mkldnn.flags(enabled=False, allow_tf32=None, fp32_precision=None)
    return prepared


def torch_packed(problem: Problem) -> Prepared:
    """What gives torch.nn's layer the right final states for sequences of different lengths."""
    layer, case = problem.layer(getattr(torch.nn, problem.case.cell)), problem.case
    lengths = torch.full((case.batch,), case.steps) if problem.lengths is None else problem.lengths

    def call(x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], total_length=case.steps)[0]

    return of_module(problem, layer, call)


def torch_of_packed(problem: Problem) -> Prepared:
    """torch.nn's layer on sequences that are packed already."""
    layer = problem.layer(getattr(torch.nn, problem.case.cell))
    return of_module(problem, layer, _call(problem, layer))


def _call(problem: Problem, layer: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """Makes the output of x, each in the problem's form."""
    if not problem.case.packed:
        return lambda x: layer(x, lengths=problem.lengths)[0]
    sizes = batch_sizes(problem.lengths)
    return lambda x: layer(PackedSequence(x, sizes))[0].data


def _of_engine(engine: str, problem: Problem, layer: torch.nn.Module, call: Callable[[Tensor], Tensor]) -> Prepared:
    """A call of a layer of ours. It fails where the engine cannot run, rather than timing the slow reference engine in its place."""
    prepared = of_module(problem, layer, call)
    prepared.context = lambda: sstkern.backend(engine)
    return prepared


def of_module(problem: Problem, layer: torch.nn.Module, call: Callable[[Tensor], Tensor]) -> Prepared:
    """call: the output of x, by the layer's parameters."""
    training = problem.case.training
    x = problem.x.detach().requires_grad_(training)
    inputs = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]

    def run() -> list[Tensor]:
        output = call(x)
        return (
            [output, *torch.autograd.grad(output, inputs, problem.grad.expand_as(output), materialize_grads=True)] if training else [output]
        )

    return Prepared(run, training)


def onnxruntime(problem: Problem) -> Prepared:
    model = _onnx_model(problem)
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = problem.threads, 1
    # Its threads would otherwise spin while the others are timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # Bound, inputs and output are copied neither in nor out, as session.run() does.
    binding, case = session.io_binding(), problem.case
    output = runtime.OrtValue.ortvalue_from_numpy(torch.empty(case.steps, 1, case.batch, case.size).numpy())
    inputs = {name: runtime.OrtValue.ortvalue_from_numpy(tensor.numpy()) for name, tensor in _onnx_inputs(problem).items()}
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("y", output)

    def run(_held: object = inputs) -> None:
        session.run_with_iobinding(binding)

    return Prepared(run, training=False, read=lambda _: [torch.from_numpy(output.numpy()).squeeze(1)])


def openvino(problem: Problem) -> Prepared:
    model = _onnx_model(problem)
    runtime = _package("openvino")
    # Its hint would be bfloat16 where the CPU has that. Pinned threads would stay on the cores of the others' threads. It has no setting
    # for spinning: its threads sleep between calls.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": problem.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    core = runtime.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    inputs = _onnx_inputs(problem)
    for name, tensor in inputs.items():
        request.set_tensor(name, runtime.Tensor(tensor.numpy(), shared_memory=True))

    def run(_held: object = inputs) -> None:  # the request does not keep the memory that it shares
        request.infer(share_outputs=True)

    def read(_: object) -> list[Tensor]:
        return [torch.from_numpy(request.get_output_tensor(0).data).squeeze(1)]

    return Prepared(run, training=False, read=read)


def _onnx_model(problem: Problem) -> bytes:
    case = problem.case
    if case.training:
        raise Unavailable("inference only")
    if case.dtype != "float32":
        raise Unavailable("float32 only")
    _package("onnx")
    return graph.model(case.cell, problem.state, case.batch, case.steps, problem.lengths is not None)


def _onnx_inputs(problem: Problem) -> dict[str, Tensor]:
    lengths = {} if problem.lengths is None else {"lengths": problem.lengths.int()}
    return {"x": problem.x, **lengths}


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f'{name} is not installed: pip install "sstkern[bench]"') from error


ENGINES = (
    Engine(OURS, sstkern_layer),
    Engine("torch", torch_padded),
    Engine("torch_no_onednn", torch_without_onednn),
    Engine("torch_packed", torch_packed),
    Engine("onnxruntime", onnxruntime),
    Engine("openvino", openvino),
)
PACKED_ENGINES = (
    Engine("sstkern_packed", sstkern_layer),
    Engine("sstkern_nested", sstkern_nested),
    Engine("sstkern_padded", sstkern_padded),
    Engine("torch_packed", torch_of_packed),
)
"""Engines for packed sequences: ours in every form that has lengths, and torch.nn's in the only one it has."""
TORCH = ("torch", "torch_no_onednn", "torch_packed")
"""The engines that torch.nn is, whatever is installed beside it."""


def ours_and_torch(case: Case) -> Sequence[Engine]:
    """Ours and torch.nn's, which takes lengths as a packed sequence."""
    if case.packed:
        return PACKED_ENGINES
    wanted = (OURS, "torch") if case.lengths == "full" else (OURS, "torch", "torch_packed")
    return [engine for engine in ENGINES if engine.name in wanted]


def difference(problem: Problem, results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference on valid steps, of each result as a share of the largest number it should hold, and of all the largest."""

    def one(result: Tensor, right: Tensor) -> float:
        return float((result.float() - right).abs().max() / right.abs().max().clamp_min(1e-30))

    if len(results) != len(expected):
        raise ValueError(f"{len(results)} results, expected {len(expected)}")
    output, *gradients = results
    return max(map(one, [problem.masked(output), *gradients], expected))


def in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:_LONGEST]}"


@contextmanager
def ready(problem: Problem, engines: Sequence[Engine]) -> Iterator[tuple[dict[str, Prepared], dict[str, float], dict[str, str]]]:
    """The engines that can run the problem and are right, each engine's difference from the reference, and why the others are left out."""
    expected = problem.expected()
    prepared, differences, left_out = {}, {}, {}
    with ExitStack() as stack:
        for engine in engines:
            try:
                one = engine.prepare(problem)
                stack.callback(one.close)
                differences[engine.name] = difference(problem, one.results(), expected)
            except Unavailable as reason:
                left_out[engine.name] = str(reason)
            except Exception as error:  # whatever another package raises must not end the run
                left_out[engine.name] = f"failed: {in_one_line(error)}"
            else:
                if differences[engine.name] <= TOLERANCES[problem.case.dtype]:
                    prepared[engine.name] = one
                else:  # also a NaN
                    left_out[engine.name] = f"wrong: differs from the reference by {differences[engine.name]:.1e}"
        yield prepared, differences, left_out
