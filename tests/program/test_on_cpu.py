"""Programs on the C++ engine: checked descriptions and tensors, what cannot be compiled, and results whose bits rest on nothing else."""

import copy
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from each_alone import assert_is_the_loop, gradients_of, wanted
from layers import SHARE_UNITS
from linear import Counted
from programs import EXAMPLES
from torch import Tensor, nn
from zoo import ZOO

import sstkern
from sstkern import engines
from sstkern.engines import cpu_runs, interpreting
from sstkern.program import cache, engine, on_cpu, operator
from sstkern.program.run import Call
from sstkern.structure import flatten, mapped

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs instead of the C++ engine")
SPAWN = multiprocessing.get_context("spawn")
FOREVER = 10**9  # microseconds


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
    torch.ops.sstkern.cpu_patience(FOREVER)


@pytest.fixture
def anew() -> Iterator[None]:
    """Nothing is compiled, nothing was warned of, before the test and after it."""
    engine.forget()
    yield
    engine.forget()


# Descriptions and tensors


class Recorded:
    """What was described and called while a layer ran: (library, description, arguments of run_program)."""

    def __init__(self, run: Callable[[], object]) -> None:
        described: dict[int, tuple[int, list[int]]] = {}
        self.calls: list[tuple[int, list[int], tuple]] = []
        make, call = torch.ops.sstkern.make_program, on_cpu._RUN

        def recording(library: int, description: list[int]) -> int:
            handle = make(library, description)
            described[handle] = library, description
            return handle

        def calling(handle: int, *arguments: Any) -> Any:
            self.calls.append((*described[handle], arguments))
            return call(handle, *arguments)

        engine.forget()
        torch.ops.sstkern.make_program, on_cpu._RUN = recording, calling
        try:
            run()
        finally:
            torch.ops.sstkern.make_program, on_cpu._RUN = make, call


def one_step(name: str, dtype: torch.dtype = torch.float64) -> Recorded:
    """Of a cell of the zoo, forward and backward."""
    torch.manual_seed(0)
    entry = ZOO[name]
    cell, (x, hx) = entry.cell(), entry.drawn(3, 2)
    return Recorded(lambda: gradients_of(flatten(sstkern.fuse(cell, strict=True)(x, hx, lengths=[3, 1])), wanted(cell, x, hx)))


def outcome_of(library: int, description: list[int], arguments: tuple) -> str:
    try:
        program = torch.ops.sstkern.make_program(library, description)
    except ValueError:
        return "refused"
    try:
        torch.ops.sstkern.run_program(program, *arguments)
    except (RuntimeError, ValueError):
        return "tensors refused"
    finally:
        torch.ops.sstkern.forget_program(program)
    return "ran"


def outcomes_of_changed_descriptions(name: str) -> dict[str, int]:
    """Each number of a description changed, one at a time, and the program run if it is not refused."""
    found = {"refused": 0, "tensors refused": 0, "ran": 0}
    for library, description, arguments in one_step(name).calls:
        assert outcome_of(library, description, arguments) == "ran"
        for place, number in enumerate(description):
            for other in {number + 1, number - 1, -number - 1, 2 * number + 3, number + 1000, 2**40, 2**63 - 1, -(2**63)} - {number}:
                found[outcome_of(library, [*description[:place], other, *description[place + 1 :]], arguments)] += 1
        for length in range(len(description)):
            assert outcome_of(library, description[:length], arguments) == "refused"
        assert outcome_of(library, [*description, 0], arguments) == "refused"
    return found


def test_a_changed_description_is_refused_or_stays_within_its_rows():
    """In a process of its own, which a read or write elsewhere would end."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        for name in ("LSTMCell", "ProjectedLSTM", "Heads", "GRUD", "LMU", "Ordered"):
            found = pool.submit(outcomes_of_changed_descriptions, name).result()
            assert found["refused"] > 0.7 * sum(found.values()), (name, found)


WRONG: dict[str, Callable[[list], object]] = {
    "an input too many": lambda given: given[0].append(given[0][0]),
    "a weight too few": lambda given: given[1].pop(),
    "a vector too few": lambda given: given[2].pop(),
    "a state too many": lambda given: given[3].append(given[3][0]),
    "a number too many": lambda given: given[5].append(0.5),
    "a wider input": lambda given: given[0].__setitem__(0, torch.zeros(3, 2, 4, dtype=torch.float64)),
    "an input of two dimensions": lambda given: given[0].__setitem__(0, torch.zeros(6, 3, dtype=torch.float64)),
    "a float32 input": lambda given: given[0].__setitem__(0, given[0][0].float()),
    "a float32 weight": lambda given: given[1].__setitem__(0, given[1][0].float()),
    "a transposed weight": lambda given: given[1].__setitem__(0, given[1][0].t()),
    "a shorter vector": lambda given: given[2].__setitem__(0, given[2][0][:-1]),
    "a state of another batch": lambda given: given[3].__setitem__(0, torch.zeros(3, 5, dtype=torch.float64)),
    "a narrower state": lambda given: given[3].__setitem__(0, torch.zeros(2, 4, dtype=torch.float64)),
    "a state on another device": lambda given: given[3].__setitem__(0, given[3][0].to("meta")),
    "a length past the last step": lambda given: given.__setitem__(4, torch.tensor([4, 1])),
    "a negative length": lambda given: given.__setitem__(4, torch.tensor([3, -1])),
    "a length too few": lambda given: given.__setitem__(4, torch.tensor([3])),
    "too few rows to save": lambda given: given.__setitem__(8, 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_refused(name: str):
    library, description, arguments = one_step("LSTMCell").calls[0]
    given = [[*part] if isinstance(part, list | tuple) else part for part in arguments]
    program = torch.ops.sstkern.make_program(library, description)
    torch.ops.sstkern.run_program(program, *given)
    WRONG[name](given)
    with pytest.raises((RuntimeError, ValueError), match=r"expected|lengths|saved_rows"):
        torch.ops.sstkern.run_program(program, *given)
    torch.ops.sstkern.forget_program(program)
    with pytest.raises(ValueError, match=f"there is no program {program}"):
        torch.ops.sstkern.run_program(program, *arguments)


# Which calls run on it


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_the_engine_that_is_asked_for_runs(name: str, engine: str):
    torch.manual_seed(0)
    example = EXAMPLES[name]()
    tensors = example.tensors(example.inputs, 3, 2), example.tensors(example.parameters), example.tensors(example.states, 2)
    before = cpu_runs()
    with sstkern.backend(engine):
        outputs, _ = operator.layer(Call(example.program, (), (), False, True), *tensors, None)
        torch.autograd.grad(outputs[0].sum(), tensors[0], allow_unused=True)
    after = cpu_runs()
    assert [after[key] - before[key] for key in ("forward", "backward")] == [engine == "cpu"] * 2


@pytest.mark.parametrize("name", ["LSTMCell", "ChoGRU", "MultiplicativeLSTM", "Heads", "GRUD", "LMU", "KerasLSTM", "NASCell", "Competing"])
def test_plain_pytorch_is_right_too(name: str):
    torch.manual_seed(0)
    entry = ZOO[name]
    with sstkern.backend("reference"):
        assert_is_the_loop(sstkern.fuse(entry.cell(), strict=True), *entry.drawn(4, 3), [4, 0, 2], returns=entry.returns)


NO_COMPILER = {
    "none on PATH": ({"PATH": "", "CXX": ""}, "no C++ compiler"),
    "CXX=false": ({"CXX": "false"}, f"{shutil.which('false')} failed with exit code 1 and printed nothing"),
    "SSTKERN_COMPILE=maybe": ({"SSTKERN_COMPILE": "maybe"}, "SSTKERN_COMPILE: expected 0 or 1, got 'maybe'"),
    "SSTKERN_COMPILE=0": ({"SSTKERN_COMPILE": "0"}, "SSTKERN_COMPILE=0 turns compiling off"),
}


@pytest.fixture(params=NO_COMPILER)
def no_compiler(request, monkeypatch: pytest.MonkeyPatch, tmp_path, anew: None) -> str:
    """The reason that is given."""
    environment, reason = NO_COMPILER[request.param]
    for variable, value in (environment | {"SSTKERN_CACHE": str(tmp_path)}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(cache, "_known", {})
    return reason


def test_without_a_compiler_a_layer_warns_once_and_is_right(no_compiler: str):
    torch.manual_seed(0)
    entry = ZOO["ChoGRU"]
    layer, (x, hx) = sstkern.fuse(entry.cell(), strict=True), entry.drawn(4, 3)
    before = cpu_runs()
    with sstkern.backend("reference"):
        expected = layer(x, hx)
        gradients = gradients_of([*expected], wanted(layer.cell, x, hx))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            found = layer(x, hx)
            assert all(map(torch.equal, gradients_of([*found], wanted(layer.cell, x, hx)), gradients))
        assert all(map(torch.equal, found, expected))
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"sstkern runs ChoGRU in plain PyTorch, which is slow: {no_compiler}")
    assert message.endswith("; sstkern.backend('reference') chooses that without a warning")
    assert cpu_runs() == before


def test_without_a_compiler_the_engine_that_was_asked_for_is_refused(no_compiler: str):
    entry = ZOO["ChoGRU"]
    layer, (x, hx) = sstkern.fuse(entry.cell(), strict=True), entry.drawn(4, 3)
    with (
        sstkern.backend("cpu"),
        pytest.raises(
            engines.BackendError, match=f"^backend: 'cpu' was asked for, but ChoGRU would run in plain PyTorch: {re.escape(no_compiler)}"
        ),
    ):
        layer(x, hx)


class Mixed(nn.Module):
    """A state of another dtype than the input's."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x.float() + h)


def test_of_two_dtypes_plain_pytorch_is_right(anew: None):
    layer = sstkern.fuse(Mixed(), strict=True)
    x, h = torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(3, 2)
    with sstkern.backend("cpu"), pytest.raises(engines.BackendError, match="it computes in float32, float64"):
        layer(x, h)
    with pytest.warns(UserWarning, match="^sstkern runs Mixed in plain PyTorch, which is slow: it computes in float32, float64"):
        assert_close_to_loop(layer, x, h)


def assert_close_to_loop(layer: nn.Module, x: Tensor, h: Tensor) -> None:
    output, h_n = layer(x, h)
    for t in range(len(x)):
        h = layer.cell(x[t], h)
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(h_n, h)


# The same bits


SAME_BITS = [
    "LSTMCell",
    "ChoGRU",
    "MultiplicativeLSTM",
    "ProjectedLSTM",
    "SLSTM",
    "NASCell",
    "Heads",
    "GRUD",
    "RecurrentHighway",
    "KerasLSTM",
    "LayerNormLSTM",
    "Ordered",
    "Competing",
]
STEPS = 12
WIDE = 132
"""Hidden units that two threads share where there is one sequence, and no multiple of a vector."""


class Sequence:
    """A float32 layer, and one sequence with a gradient of its output, which batches are made around."""

    def __init__(self, name: str, hidden_size: int = WIDE, **options: Any) -> None:
        torch.manual_seed(0)
        self.entry, self.sizes = ZOO[name], (hidden_size, hidden_size)
        self.layer = sstkern.fuse(self.entry.cell(*self.sizes).float(), strict=True, **options)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.mul_(0.2)
        self.x, self.hx = self.entry.drawn(STEPS, 1, *self.sizes)

    def results(self, batch: int, place: int) -> tuple[list[Tensor], list[Tensor]]:
        """Of the sequence in a batch with others: outputs, states, gradients of inputs and states. And the parameters' gradients."""
        torch.manual_seed(batch)
        x, hx = self._among(self.x, batch, place, 1), self._among(self.hx, batch, place, 0)
        lengths = torch.randint(0, STEPS + 1, (batch,))
        lengths[place] = STEPS - 2
        output, hx_n = self.layer(x, hx, lengths=lengths)
        found = [output, *flatten(hx_n)]
        weight = torch.linspace(-1, 1, output[:, 0].numel()).view_as(output[:, 0])
        loss = sum((result * 0.5).square().sum() for result in flatten(hx_n)) + (output * weight[:, None]).sum()
        leaves = [tensor for tensor in (*flatten(x), *flatten(hx)) if tensor.requires_grad]
        parameters = [*self.layer.parameters()]
        gradients = torch.autograd.grad(loss, [*leaves, *parameters], materialize_grads=True)
        inputs = sum(tensor.requires_grad for tensor in flatten(x))
        of_time = [output, *gradients[:inputs]]
        of_states = [*found[1:], *gradients[inputs : len(leaves)]]
        return [tensor[:, place].detach() for tensor in of_time] + [tensor[place].detach() for tensor in of_states], [
            *gradients[len(leaves) :]
        ]

    def _among(self, given: Any, batch: int, place: int, dim: int) -> Any:
        def joined(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                others = torch.rand(*tensor.shape[:dim], batch, *tensor.shape[dim + 1 :]) < 0.5
            else:
                others = torch.rand(*tensor.shape[:dim], batch, *tensor.shape[dim + 1 :])
            others.select(dim, place).copy_(tensor.detach().select(dim, 0))
            return others.requires_grad_(tensor.is_floating_point())

        return mapped(given, joined)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", SAME_BITS)
def test_a_sequence_has_the_same_bits_in_any_batch_on_any_number_of_threads(name: str, set_threads: Callable[[int], None], optimised: None):
    """Compiled as users have it. Parameters' gradients are sums over the batch, and the same on any number of threads."""
    sequence = Sequence(name)
    set_threads(1)
    alone = sequence.results(1, 0)
    shared = set()
    for batch, place in ((1, 0), (2, 1), (5, 0), (7, 3), (24, 23), (33, 11)):
        set_threads(1)
        expected = sequence.results(batch, place)
        assert same(expected[0], alone[0]), batch
        for threads in (2, 3):
            set_threads(threads)
            found = sequence.results(batch, place)
            shared.add(cpu_runs()["threads"])
            assert same(found[0], alone[0]), (batch, threads)
            assert same(found[1], expected[1]), (batch, threads)
    assert max(shared) == 3


@pytest.mark.skipif(not SHARE_UNITS, reason="a sequence alone has one thread")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["LSTMCell", "ChoGRU", "NASCell", "SLSTM", "Heads", "LayerNormLSTM"])
def test_bits_stay_whoever_goes_on_alone(name: str, reverse: bool, set_threads: Callable[[int], None]):
    sequence = Sequence(name, reverse=reverse)
    set_threads(2)
    expected = sequence.results(1, 0)
    assert cpu_runs()["threads"] == 2
    for _ in range(10):  # at other time steps each time
        torch.ops.sstkern.cpu_patience(0)
        found = sequence.results(1, 0)
        assert same(found[0], expected[0])
        assert same(found[1], expected[1])
        torch.ops.sstkern.cpu_patience(FOREVER)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 7, 24, 25, 33])
@pytest.mark.parametrize("name", ["LSTMCell", "ChoGRU", "KerasGRU reset before", "LMU", "GRUD", "NormalisedGRU"])
def test_batches_of_every_kind(name: str, batch: int, threads: int, set_threads: Callable[[int], None]):
    """Whole blocks of rows and parts of them, sums that are put together of several panels, threads that share units."""
    set_threads(threads)
    torch.manual_seed(0)
    entry, lengths = ZOO[name], [(3 * b) % 5 for b in range(batch)]
    assert_is_the_loop(sstkern.fuse(entry.cell(9, 33), strict=True), *entry.drawn(4, batch, 9, 33), lengths, returns=entry.returns)


@pytest.mark.parametrize(("reverse", "threads"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("name", ["LayerNormLSTM", "ChoGRU"])
def test_spans_of_time_steps(name: str, reverse: bool, threads: int, set_threads: Callable[[int], None]):
    """2,500 rows, 1,024 or more at a time: the last span has few sequences, and those that have ended keep their states. A gradient has the
    same bits where no other is wanted."""
    set_threads(threads)
    torch.manual_seed(0)
    entry = ZOO[name]
    layer, (x, hx) = sstkern.fuse(entry.cell(8, 40), strict=True, reverse=reverse), entry.drawn(80, 48, 8, 40)
    lengths = [80] * 14 + [(7 * b) % 73 for b in range(34)]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(4)  # of such random ones a GRU is chaotic

    def results() -> list[Tensor]:
        found = flatten(layer(x, hx, lengths=lengths))
        return [*found, *gradients_of(found, wanted(layer.cell, x, hx))]

    with sstkern.backend("cpu"):
        found = results()
    with sstkern.backend("reference"):
        torch.testing.assert_close(found, results(), rtol=1e-9, atol=1e-9)
    output = layer(x, hx, lengths=lengths)[0]
    of_all = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
    for wanted_one, gradient in zip(layer.parameters(), of_all, strict=True):
        layer.requires_grad_(False)
        wanted_one.requires_grad_()
        (alone,) = torch.autograd.grad(layer(x.detach(), mapped(hx, torch.detach), lengths=lengths)[0].square().sum(), wanted_one)
        assert torch.equal(alone, gradient)


# Where a program may call it from


def lstm(steps: int = 6, batch: int = 3) -> tuple[nn.Module, Tensor, Any]:
    torch.manual_seed(0)
    entry = ZOO["LSTMCell"]
    return sstkern.fuse(entry.cell(), strict=True), *entry.drawn(steps, batch)


def results(layer: nn.Module, x: Tensor, hx: Any) -> list[Tensor]:
    found = flatten(layer(x, hx))
    return [*found, *gradients_of(found, wanted(layer.cell, x, hx))]


class StraightThrough(nn.Module):
    """Its spikes are 0 or 1, with the derivative of a * g: what is added to them is a product less itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(4))

    def get_initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.9 * h + x
        soft = h * self.gain
        spikes = (h > 0).to(h.dtype) + (soft - soft.detach())
        return spikes, h - spikes * h


@pytest.mark.usefixtures("optimised")
def test_a_product_less_itself_is_zero():
    layer, x = sstkern.fuse(StraightThrough(), returns="output_and_state", strict=True), torch.randn(9, 5, 4, requires_grad=True)
    spikes, _ = layer(x)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.autograd.grad(spikes.sum(), x)[0].abs().min() > 0


@pytest.mark.parametrize("name", ["LSTMCell", "ChoGRU", "Heads", "SLSTM", "GRUD", "LayerNormLSTM", "Ordered"])
def test_recomputed(name: str):
    torch.manual_seed(0)
    entry = ZOO[name]
    layer = sstkern.fuse(entry.cell(), strict=True, recompute=True)
    assert_is_the_loop(layer, *entry.drawn(4, 3), [4, 0, 2], returns=entry.returns)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
def test_a_copy_is_a_layer_of_its_own(copied: Callable[[nn.Module], nn.Module]):
    layer, x, hx = lstm()
    expected, other = results(layer, x, hx), copied(layer)
    assert same(results(other, x, hx), expected)
    with torch.no_grad():
        other.cell.weight_ih.zero_()
    assert same(results(layer, x, hx), expected)
    assert not same(results(other, x, hx), expected)


def test_compiled_by_torch():
    layer, x, hx = lstm()
    before, compiled = cpu_runs(), torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = results_of_compiled(compiled, layer, x, hx)
    assert all(cpu_runs()[key] > before[key] for key in ("forward", "backward"))
    assert same(found, results(layer, x, hx))


def results_of_compiled(compiled: Callable, layer: nn.Module, x: Tensor, hx: Any) -> list[Tensor]:
    found = flatten(compiled(x, hx))
    return [*found, *gradients_of(found, wanted(layer.cell, x, hx))]


def test_second_derivatives():
    layer, x, hx = lstm(3, 2)
    tensors = wanted(layer.cell, x, hx)
    assert torch.autograd.gradgradcheck(lambda *_: flatten(layer(x, hx)), tensors, fast_mode=True)


def forked_child_after_a_call() -> int:
    """The exit status of a forked child: 0 where its results are right. One that hangs is ended by a signal."""
    layer, x, hx = lstm()
    torch.set_num_threads(2)
    expected = results(layer, x, hx)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            other = sstkern.fuse(ZOO["MGU"].cell(), strict=True)  # made for the first time in the child
            of_other = ZOO["MGU"].drawn(4, 3)
            assert_is_the_loop(other, *of_other, [4, 0, 2])
            status = 0 if same(results(layer, x, hx), expected) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forked_child():
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        assert pool.submit(forked_child_after_a_call).result() == 0


def test_two_python_threads_call_a_layer_at_once(set_threads: Callable[[int], None], anew: None):
    """The first call too."""
    set_threads(1)
    layer, x, hx = lstm()
    with ThreadPoolExecutor(4) as pool:
        first = [*pool.map(lambda _: results(layer, x, hx), range(4))]
        later = [*pool.map(lambda _: results(layer, x, hx), range(16))]
    expected = results(layer, x, hx)
    assert all(same(found, expected) for found in (*first, *later))


def test_no_mode_sees_that_a_program_is_forgotten():
    """Python collects garbage within any mode: one that counts operators, or torch.export's."""
    library, description, arguments = one_step("LSTMCell").calls[0]
    program = torch.ops.sstkern.make_program(library, description)
    with Counted() as counted:
        on_cpu._forget(program)
    assert counted.operators == 0
    with pytest.raises(ValueError, match=f"there is no program {program}"):
        torch.ops.sstkern.run_program(program, *arguments)


def test_a_program_that_is_forgotten_can_still_be_differentiated():
    layer, x, hx = lstm()
    found = flatten(layer(x, hx))
    engine.forget()
    expected = flatten(layer(x, hx))
    tensors = wanted(layer.cell, x, hx)
    assert same(gradients_of(found, tensors), gradients_of(expected, tensors))


# Steps whose values go from one stage or phase to another


class Twisted(nn.Module):
    """A step of six products and a vector."""

    def __init__(self, step: Callable, states: int) -> None:
        super().__init__()
        self.step, self.states = step, states
        self.a, self.i = nn.Linear(8, 6), nn.Linear(8, 6)
        self.h, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.z = nn.Linear(8, 12)
        self.v = nn.Parameter(torch.randn(6))

    def forward(self, x, state):
        return self.step(self, x, state)


def _before(m, x, h):
    z = m.a(x)
    z = z + m.b(torch.tanh(z))
    h = torch.tanh(m.c(z) + m.h(h))
    return h, h


def _after(m, x, h):
    h = torch.tanh(m.a(x) + m.h(h))
    y = m.b(h)
    return y + m.c(torch.tanh(y)), h


def _part_of_the_input(m, x, h):
    h = torch.tanh(m.i(x) + m.h(h)) * torch.sigmoid(x[:, :1])
    return h, h


def _state_after_the_loop(m, x, h):
    n = torch.tanh(m.i(x) + m.h(h))
    return m.b(n) * h, n


def _sum_as_a_state(m, x, states):
    h, c = states
    n = torch.tanh(m.i(x) + m.h(h) + c)
    return n, (n, c + x[:, :6])


def _vector_as_bias_and_spread(m, x, h):
    s = (m.z(x).view(-1, 2, 6) * m.v).tanh()
    h = torch.tanh(torch.nn.functional.linear(x, m.i.weight) + m.v + m.h(h) + s[:, 0] * s[:, 1])
    return h, h


def _rows_spread(m, x, h):
    """As a state space model's: (H, 1) with (H, N)."""
    s = torch.tanh(m.i(x))[:, :, None] * m.v.view(1, 1, 6) + h.view(-1, 6, 1) * torch.sigmoid(m.z(x)).view(-1, 1, 12)[:, :, :6]
    h = torch.tanh(s.view(-1, 36)[:, :6] * s.view(-1, 36)[:, 30:])
    return h, h


def _sum_of_bools(m, x, h):
    h = torch.tanh(m.i(x) + m.h(h))
    either = (h > 0.3) + (h < -0.3)
    return torch.where(torch.maximum(either, h > 0.2), h, 0.5 * h), h


TWISTED = {
    "before": (_before, 1),
    "after": (_after, 1),
    "part of the input": (_part_of_the_input, 1),
    "state after the loop": (_state_after_the_loop, 1),
    "sum as a state": (_sum_as_a_state, 2),
    "vector as bias and spread": (_vector_as_bias_and_spread, 1),
    "rows spread": (_rows_spread, 1),
    "sum of bools": (_sum_of_bools, 1),
}


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("name", TWISTED)
def test_values_that_go_from_one_phase_to_another(name: str, every: bool):
    torch.manual_seed(0)
    step, states = TWISTED[name]
    x, *hx = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3, 8), *[(3, 6)] * states))
    layer = sstkern.fuse(Twisted(step, states).double(), returns="output_and_state", strict=True)
    assert_is_the_loop(layer, x, hx[0] if states == 1 else tuple(hx), [4, 0, 2], returns="output_and_state", every=every)


def test_a_part_of_a_wide_input_is_few_windows():
    """Its gradient is zero elsewhere: as many chunks as the input is wide."""

    def described(width: int) -> int:
        cell = Twisted(_part_of_the_input, 1)
        cell.i = nn.Linear(width, 6)
        x, h = torch.randn(2, 2, width, requires_grad=True), torch.randn(2, 6, requires_grad=True)
        layer = sstkern.fuse(cell, returns="output_and_state", strict=True)
        return max(len(description) for _, description, _ in Recorded(lambda: layer(x, h)[0].sum().backward()).calls)

    assert described(64) == described(8)
