"""Which engine runs, on how many threads, and that it is right wherever a program may call it from."""

import ctypes
import dataclasses
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from layers import SHARE_UNITS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import sstkern
from sstkern import engines
from sstkern.cells import CELLS
from sstkern.engines import cpu

STEPS, BATCH, SIZE = 20, 16, 64  # enough work for two threads
LAYER = dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), [(4 * SIZE, SIZE)] * 2 + [(4 * SIZE,)] * 2, strict=True))


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """Makes the engines look for the extension and warn anew, during the test and after it."""

    def clear() -> None:
        cpu.load.cache_clear()
        engines._warn_once.cache_clear()
        engines._capable.clear()

    yield clear
    clear()


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]) -> None:
    monkeypatch.setattr(cpu, "LIBRARY", Path("none"))
    forget()


@pytest.fixture
def broken_extension(monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "_cpu.so").write_bytes(b"cut off")
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_cpu.so")
    forget()


@pytest.fixture
def torch_is_too_old(monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]) -> None:
    monkeypatch.setattr(cpu, "OLDEST_TORCH", (9, 1))
    forget()


def runs_of(call: Callable[[], object]) -> tuple[int, int]:
    """How many forward and backward calls of the C++ engine `call` makes."""
    before = engines.cpu_runs()
    call()
    after = engines.cpu_runs()
    return after["forward"] - before["forward"], after["backward"] - before["backward"]


def small_call() -> Tensor:
    return sstkern.LSTM(3, 5)(torch.ones(2, 4, 3))[0]


def results(seed: int = 0) -> list[Tensor]:
    """Output, final states and gradients of one LSTM with lengths, large enough for two threads.

    No tensor here has so many elements that torch's own operators would use threads in a forked child.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.empty(shape).uniform_(-0.1, 0.1, generator=generator).requires_grad_() for shape in LAYER.values()]
    x = torch.randn(STEPS, BATCH, SIZE, generator=generator, requires_grad=True)
    lengths = torch.randint(0, STEPS + 1, (BATCH,), generator=generator)
    output, hx = sstkern.functional.lstm(x, weights, lengths=lengths)
    gradients = torch.autograd.grad([output, *hx], [x, *weights], [torch.ones_like(output), *map(torch.ones_like, hx)])
    return [output.detach(), *(state.detach() for state in hx), *gradients]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def single_threaded(set_threads: Callable[[int], None], seed: int = 0) -> list[Tensor]:
    before = torch.get_num_threads()
    set_threads(1)
    expected = results(seed)
    set_threads(before)
    return expected


# Which engine


@pytest.mark.parametrize(
    ("module", "calls"),
    [
        (sstkern.LSTM(3, 5), 1),
        (sstkern.LSTM(3, 5, bidirectional=True), 1),
        (sstkern.LSTM(3, 5, proj_size=2), 1),
        (sstkern.GRU(3, 5, num_layers=3), 3),
        (sstkern.RNN(3, 5, nonlinearity="tanh"), 1),
        (sstkern.RNN(3, 5, nonlinearity="relu"), 1),
    ],
    ids=str,
)
def test_every_layer_is_one_call_of_the_cpu_engine(module: torch.nn.Module, calls: int):
    x = torch.ones(2, 4, 3)
    with torch.no_grad():
        assert runs_of(lambda: module(x)) == (calls, 0)
    assert runs_of(lambda: module(x)[0].sum().backward()) == (calls, calls)
    with sstkern.backend("cpu"):
        assert runs_of(lambda: module(x)[0].sum().backward()) == (calls, calls)
    with sstkern.backend("reference"):
        assert runs_of(lambda: module(x)[0].sum().backward()) == (0, 0)


def test_the_innermost_block_decides_and_an_exception_restores():
    with sstkern.backend("reference"):
        with sstkern.backend("cpu"):
            assert runs_of(small_call) == (1, 0)
        assert runs_of(small_call) == (0, 0)
        with pytest.raises(KeyError), sstkern.backend("cpu"):
            raise KeyError
        assert runs_of(small_call) == (0, 0)
    assert runs_of(small_call) == (1, 0)


def test_a_block_holds_for_its_own_thread_only():
    entered, leave = threading.Event(), threading.Event()

    def inside_a_block() -> tuple[int, int]:
        with sstkern.backend("reference"):
            entered.set()
            leave.wait(60)
            return runs_of(small_call)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(inside_a_block)
        assert entered.wait(60)
        assert runs_of(small_call) == (1, 0)
        leave.set()
        assert other.result() == (0, 0)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="backend: 'gpu' is unknown; there are reference, cpu"), sstkern.backend("gpu"):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": torch.float8_e4m3fn}, "no kernel for torch.float8_e4m3fn"), ({"device": "meta"}, "x is on meta")],
    ids=["float8", "meta"],
)
def test_a_forced_engine_that_cannot_run_raises(options: dict, message: str):
    weights = [torch.zeros(shape).to(**options) for shape in LAYER.values()]
    x = torch.zeros(2, 3, SIZE).to(**options)
    with sstkern.backend("cpu"), pytest.raises(RuntimeError, match=f"backend: 'cpu' was asked for, but .*{message}"):
        sstkern.functional.lstm(x, weights)


def test_a_cell_that_operators_do_not_know_runs_on_the_reference_engine():
    cell = dataclasses.replace(CELLS["lstm"], name="new")
    assert engines.choose(cell, torch.zeros(1)) == "reference"
    with sstkern.backend("cpu"), pytest.raises(RuntimeError, match="the cell 'new' is not registered"):
        engines.choose(cell, torch.zeros(1))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("no_extension", "is not built; build it with"),
        ("broken_extension", "cannot be loaded: .*_cpu.so.*; install sstkern anew"),
        ("torch_is_too_old", "needs torch 9.1 or newer, and this is torch"),
    ],
)
def test_without_the_extension(state: str, message: str, request: pytest.FixtureRequest):
    expected = small_call()
    request.getfixturevalue(state)
    with pytest.raises(RuntimeError, match=f"backend: 'cpu' cannot run here: .*{message}"), sstkern.backend("cpu"):
        pass
    with pytest.warns(UserWarning, match=f"slow reference engine: .*{message}"):
        assert runs_of(small_call) == (0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert small_call().shape == expected.shape


@pytest.mark.parametrize(
    ("version", "loads"), [("2.11.0", True), ("2.13.1+cu130", True), ("3.0.0a0", True), ("2.10.2", False), ("1.13", False)]
)
def test_one_build_is_for_every_torch_since_2_11(monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None], version: str, loads: bool):
    monkeypatch.setattr(torch, "__version__", version)
    forget()
    assert (cpu.load() is None) == loads


def test_what_no_memory_is_for_is_named():
    x = torch.empty(1).expand(2**40, 1, 8)
    with pytest.raises(RuntimeError, match=r"no memory for a tensor of shape \[1099511627776, 1, 8\] of Float"):
        sstkern.LSTM(8, 16)(x)


# Threads


@pytest.mark.parametrize(
    ("shape", "bidirectional", "most"),
    [((STEPS, BATCH, SIZE), False, 2), ((STEPS * BATCH, 1, SIZE), True, 2), ((STEPS * BATCH, 1, SIZE), False, 1), ((1, 2, SIZE), False, 1)],
    ids=["two halves of a batch", "two directions", "one sequence", "too little work"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads(shape: tuple, bidirectional: bool, most: int, threads: int, set_threads: Callable[[int], None]):
    set_threads(threads)
    output, _ = sstkern.GRU(SIZE, SIZE, bidirectional=bidirectional)(torch.ones(shape))
    assert engines.cpu_runs()["threads"] == min(most, threads)
    output.sum().backward()
    assert engines.cpu_runs()["threads"] == min(most, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_call_gives_the_same_bits(threads: int, set_threads: Callable[[int], None]):
    set_threads(threads)
    assert same_bits(results(), results())


WIDE = 132  # hidden units that two threads share where there is one sequence, and no multiple of a vector


def of_first_sequence(cell: str, batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Output, final states and the gradients of x and hx of the first sequence of a batch, in which it is always the same."""
    torch.manual_seed(0)
    layer, x, gradient = (
        getattr(sstkern, cell)(WIDE, WIDE, bidirectional=True, dtype=dtype),
        torch.randn(STEPS, 1, WIDE),
        torch.randn(STEPS, 1, 2 * WIDE),
    )
    torch.manual_seed(batch)
    x = torch.cat([x, torch.randn(STEPS, batch - 1, WIDE)], 1).to(dtype).requires_grad_()
    hx = [torch.ones(2, batch, WIDE, dtype=dtype, requires_grad=True) for _ in range(2 if cell == "LSTM" else 1)]
    lengths = torch.cat([torch.tensor([STEPS - 3]), torch.randint(0, STEPS + 1, (batch - 1,))])
    output, hx_n = layer(x, tuple(hx) if len(hx) > 1 else hx[0], lengths=lengths)
    output.backward(torch.cat([gradient, torch.randn(STEPS, batch - 1, 2 * WIDE)], 1).to(dtype))
    results = [output, *(hx_n if len(hx) > 1 else [hx_n]), x.grad, *(state.grad for state in hx)]
    return [result[:, 0].detach().clone() for result in results]


@pytest.mark.parametrize("batch", [2, 7, 30])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_has_the_same_bits_whatever_else_is_in_its_batch(cell: str, batch: int, dtype: torch.dtype):
    assert same_bits(of_first_sequence(cell, batch, dtype), of_first_sequence(cell, 1, dtype))


@pytest.mark.parametrize("batch", [1, 30], ids=["threads share hidden units", "threads have rows of their own"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_the_number_of_threads_changes_no_bits(cell: str, batch: int, set_threads: Callable[[int], None]):
    set_threads(1)
    expected = of_first_sequence(cell, batch)
    set_threads(4)  # two for each direction
    assert same_bits(of_first_sequence(cell, batch), expected)
    assert engines.cpu_runs()["threads"] == (4 if batch > 1 or SHARE_UNITS else 2)


@pytest.mark.parametrize(
    ("layer", "threads"),
    [
        (partial(sstkern.LSTM, 100, 100), 2),
        (partial(sstkern.LSTM, 100, 150, proj_size=117), 3),
        (partial(sstkern.GRU, 30, 144), 2),
        (partial(sstkern.RNN, 300, 232), 3),
    ],
    ids=str,
)
def test_units_that_threads_cannot_share_equally_have_the_same_bits(
    layer: Callable[[], torch.nn.Module], threads: int, set_threads: Callable[[int], None]
):
    def results() -> list[Tensor]:
        torch.manual_seed(0)
        module = layer()
        output, _ = module(torch.randn(STEPS, 2, module.input_size))
        output.backward(torch.randn_like(output))
        return [output.detach(), module.weight_ih_l0.grad, module.weight_hh_l0.grad]

    set_threads(1)
    expected = results()
    set_threads(threads)
    assert same_bits(results(), expected)
    assert engines.cpu_runs()["threads"] == (threads if SHARE_UNITS else 2)


def fewer_threads_than_asked_for() -> list[list[Tensor]]:
    torch.set_num_threads(4)
    return [of_first_sequence("LSTM", batch) for batch in (1, 12, 30)] if engines.cpu_runs()["threads"] != 4 else []


def test_openmp_may_have_fewer_threads_to_give(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", "3")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for got, batch in zip(pool.submit(fewer_threads_than_asked_for).result(), (1, 12, 30), strict=True):
            assert same_bits(got, of_first_sequence("LSTM", batch))


# Places


class Layers(Dataset):
    """Item i holds the results of seed i."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> list[Tensor]:
        return results(i)


def test_data_loader_workers(set_threads: Callable[[int], None]):
    set_threads(2)
    results()  # the workers are forks of a process whose threads have worked
    items = list(DataLoader(Layers(), batch_size=None, num_workers=2, timeout=60))
    assert len(items) == 4
    for i, item in enumerate(items):
        assert same_bits(item, single_threaded(set_threads, i))


def forked_child_after_parallel_work() -> int:
    """The exit status of a forked child: 0 when its results are right. One that hangs is ended by a signal."""
    expected = single_threaded(torch.set_num_threads)
    torch.set_num_threads(2)
    results()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        status = 1
        try:
            right = same_bits(results(), expected) and torch.ops.sstkern.cpu_peak() > 0
            status = 0 if right and torch.get_num_threads() == 2 else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forked_child():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(forked_child_after_parallel_work).result() == 0


def test_inside_another_parallel_region(set_threads: Callable[[int], None]):
    set_threads(2)
    inside = []
    region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: inside.append((results(), engines.cpu_runs()["threads"])))
    torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))  # and what it is linked with
    torchs.GOMP_parallel(region, None, 2, 0)  # `#pragma omp parallel num_threads(2)` of the runtime that torch brings
    assert len(inside) == 2
    for got, threads in inside:
        assert same_bits(got, single_threaded(set_threads))
        assert threads == 1


def test_inside_a_checkpointed_backward(set_threads: Callable[[int], None]):
    set_threads(2)
    module, x = sstkern.LSTM(SIZE, SIZE), torch.ones(STEPS, BATCH, SIZE, requires_grad=True)
    plain = torch.autograd.grad(module(x)[0].sum(), x)
    # The reentrant kind runs the forward, and a backward of its own, inside the engine that runs the outer backward.
    output = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=True)
    assert runs_of(output.sum().backward) == (1, 1)
    assert torch.equal(x.grad, *plain)


def test_two_python_threads_at_once(set_threads: Callable[[int], None]):
    expected = [single_threaded(set_threads, seed) for seed in range(8)]
    set_threads(1)
    with ThreadPoolExecutor(2) as pool:
        assert all(map(same_bits, pool.map(results, range(8)), expected))


def test_other_python_threads_run_during_a_call():
    module, x = sstkern.LSTM(256, 256), torch.ones(100, 64, 256)
    done, ticks = threading.Event(), []

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        pool.submit(tick)
        started = time.perf_counter()
        module(x)
        ended = time.perf_counter()
        done.set()
    third = (ended - started) / 3
    assert any(started + third < at < ended - third for at in ticks)


def test_a_schedule_belongs_to_the_triton_engine():
    with (
        pytest.raises(ValueError, match="schedule: only the 'triton' engine has schedules, not 'cpu'; got 'grid'"),
        sstkern.backend("cpu", "grid"),
    ):
        pass


def test_the_triton_engine_needs_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="backend: 'triton' cannot run here: torch finds no GPU"), sstkern.backend("triton"):
        pass
