"""16-bit tensors on the CPU engine: they stay 16 bits, and calls that are long enough run a span of time steps at a time."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from layers import KINDS, flat, pair
from torch import Tensor, nn

import sstkern

NARROW = [torch.bfloat16, torch.float16]
STEPS, BATCH, INPUT, HIDDEN = 120, 12, 24, 64
"""1,440 rows are four spans and more; the 120 of a sequence alone are one."""
LENGTHS = [120, 120, 3, 119, 0, 61, 60, 1, 90, 30, 29, 100]
kinds = pytest.mark.parametrize("kind", sorted(KINDS))
NARROW_PRODUCTS = torch.ops.sstkern.cpu_capability() == "avx512_bf16"
"""Whether products of bfloat16 tensors are of bfloat16 numbers."""
narrow = pytest.mark.parametrize("dtype", NARROW, ids=str)


def results(layer: nn.Module, x: Tensor, lengths: list[int], grad_output: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output, final states, gradient of x; and those of the weights."""
    x = x.detach().requires_grad_()
    with sstkern.backend("cpu"):
        output, hx_n = layer(x, lengths=lengths)
        found = torch.autograd.grad([output, *flat(hx_n)], [x, *layer.parameters()], [grad_output, *map(torch.ones_like, flat(hx_n))])
    return [output.detach(), *(state.detach() for state in flat(hx_n)), found[0]], list(found[1:])


def call(kind: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    options = {"proj_size": 40} if kind == "lstm_projected" else {}
    layer, _ = pair(kind, INPUT, HIDDEN, bidirectional=True, dtype=dtype, **options)
    return layer, torch.randn(STEPS, BATCH, INPUT).to(dtype), torch.randn(STEPS, BATCH, 2 * (40 if options else HIDDEN)).to(dtype)


@kinds
@narrow
def test_spans_change_no_bits(kind: str, dtype: torch.dtype):
    layer, x, grad_output = call(kind, dtype)
    together, _ = results(layer, x, LENGTHS, grad_output)
    for b, length in enumerate(LENGTHS):
        alone, _ = results(layer, x[:, b : b + 1], [length], grad_output[:, b : b + 1])
        assert all(torch.equal(one[:, b : b + 1], other) for one, other in zip(together, alone, strict=True)), f"sequence {b}"


@kinds
@narrow
def test_outputs_are_float32s_rounded(kind: str, dtype: torch.dtype):
    layer, x, grad_output = call(kind, dtype)
    wide = copy.deepcopy(layer).float()
    (output, *states, _), (expected, *expected_states, _) = (
        results(one, x.to(kind_of), LENGTHS, grad_output.to(kind_of))[0] for one, kind_of in ((layer, dtype), (wide, torch.float32))
    )
    for mine, exact in zip([output, *states], [expected, *expected_states], strict=True):
        assert mine.dtype == dtype
        assert (mine.float() - exact.to(dtype).float()).norm() <= 0.02 * (NARROW_PRODUCTS and dtype == torch.bfloat16) * exact.norm()


@kinds
@narrow
def test_gradients_of_weights_are_sums_over_all_spans(kind: str, dtype: torch.dtype):
    layer, x, grad_output = call(kind, dtype)
    _, found = results(layer, x, LENGTHS, grad_output)
    _, expected = results(copy.deepcopy(layer).double(), x.double(), LENGTHS, grad_output.double())
    most = 4 if NARROW_PRODUCTS and dtype == torch.bfloat16 else 2  # rnn_relu: 2.9, where torch.nn's packed layer has 5.0
    for mine, exact in zip(found, expected, strict=True):
        assert (mine.double() - exact).norm() <= most * torch.finfo(dtype).eps * exact.norm()


@narrow
@pytest.mark.parametrize(("batch", "steps", "length"), [(256, 10, 1), (300, 6, 3), (8, 400, 320), (8, 3, 0)])
def test_time_steps_after_the_longest_sequence_are_no_span(dtype: torch.dtype, batch: int, steps: int, length: int):
    torch.manual_seed(0)
    layer = sstkern.LSTM(16, 64, bidirectional=True, dtype=dtype)
    x, grad_output = torch.randn(steps, batch, 16).to(dtype), torch.randn(steps, batch, 128).to(dtype)
    results(layer, torch.full_like(x, torch.nan), [steps] * batch, grad_output)  # leaves NaN in the memory that the next call has
    found, of_weights = results(layer, x, [length] * batch, grad_output)
    expected, of_exact = results(layer, x[:length], [length] * batch, grad_output[:length])
    assert torch.equal(found[0][:length], expected[0])
    assert not found[0][length:].any()
    assert torch.equal(found[-1][:length], expected[-1])
    assert all(torch.equal(mine, exact) for mine, exact in zip(of_weights, of_exact, strict=True))


@pytest.mark.parametrize(("threads", "batch"), [(1, BATCH), (2, BATCH), (4, BATCH), (4, 1)])
@pytest.mark.parametrize("patience", [10**9, 0], ids=["together", "alone after a wait"])
def test_the_number_of_threads_changes_no_bits(threads: int, batch: int, patience: int):
    layer, x, grad_output = call("gru", torch.bfloat16)
    x, grad_output, lengths = (
        x.repeat(5, 1, 1)[:, :batch],
        grad_output.repeat(5, 1, 1)[:, :batch],
        [5 * length for length in LENGTHS[:batch]],
    )
    before, waited = torch.get_num_threads(), torch.ops.sstkern.cpu_patience(patience)
    try:
        torch.set_num_threads(1)
        expected = results(layer, x, lengths, grad_output)
        torch.set_num_threads(threads)
        found = results(layer, x, lengths, grad_output)
    finally:
        torch.set_num_threads(before)
        torch.ops.sstkern.cpu_patience(waited)
    for mine, exact in zip(found, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(mine, exact, strict=True))


@narrow
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gradients_reach_the_beginning_of_a_long_memory(kind: str, dtype: torch.dtype):
    """Gates of 0.9985 over 784 steps: rounded to bfloat16 they would be 1, and torch.nn's gradient of the first state is twice as large."""
    torch.manual_seed(0)
    layer, _ = pair(kind, 8, 32, dtype=dtype)
    with torch.no_grad():
        layer.bias_hh_l0.zero_()
        layer.bias_ih_l0[32:64] = 6.5
        if kind == "lstm":
            layer.bias_ih_l0[:32] = -6.5
    exact, x = copy.deepcopy(layer).double(), torch.randn(784, 4, 8).to(dtype)
    found = {}
    for one, kept in ((layer, dtype), (exact, torch.float64)):
        hx = [torch.full((1, 4, 32), 0.125, dtype=kept, requires_grad=True) for _ in one.cell.states]
        last = flat(one(x.to(kept), tuple(hx) if kind == "lstm" else hx[0])[1])[-1]
        found[kept] = torch.autograd.grad(last.sum(), [hx[-1], *one.parameters()])
    for mine, true in zip(found[dtype], found[torch.float64], strict=True):
        assert (mine.double() - true).norm() <= 2 * torch.finfo(dtype).eps * true.norm()


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_small_gradients_keep_their_digits_in_float16(kind: str):
    """float16 has no normal number below 6e-5: what a gate passes on there is float32."""
    torch.manual_seed(0)
    ours, theirs = pair(kind, INPUT, HIDDEN, dtype=torch.float16)
    x = torch.randn(20, BATCH, INPUT).half()
    grad_output = (1e-5 * torch.randn(20, BATCH, HIDDEN)).half()
    exact = copy.deepcopy(theirs).double()
    errors = {}
    truth = torch.autograd.grad(exact(x.double())[0], list(exact.parameters()), grad_output.double())
    for name, layer in (("ours", ours), ("theirs", theirs)):
        found = torch.autograd.grad(layer(x)[0], list(layer.parameters()), grad_output)
        errors[name] = torch.stack([(mine.double() - true).norm() / true.norm() for mine, true in zip(found, truth, strict=True)])
    assert (errors["ours"] <= 0.3 * errors["theirs"]).all(), errors


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of each tensor that a graph saves."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.itemsize)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


@kinds
@narrow
def test_a_graph_saves_half_of_what_it_saves_in_float32(kind: str, dtype: torch.dtype):
    saved = {}
    for kept in (dtype, torch.float32):
        layer, x, _ = call(kind, kept)
        with sstkern.backend("cpu"), counted() as sizes:
            layer(x)
        saved[kept] = sum(sizes)
    assert 2 * saved[dtype] == saved[torch.float32]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two that share their steps wait for each other where a machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_time_grows_with_the_pieces_and_not_with_their_square():
    layer, x = sstkern.LSTM(8, 8, dtype=torch.bfloat16), torch.randn(2000, 128, 8, dtype=torch.bfloat16)

    def seconds(resets: torch.Tensor) -> float:
        def step() -> float:
            start = time.perf_counter()
            layer(x, resets=resets)[0].sum().backward()
            return time.perf_counter() - start

        return min(step() for _ in range(3))

    everywhere = torch.ones(2000, 128, dtype=torch.bool)
    assert seconds(everywhere) < 5 * seconds(~everywhere)  # 16 times where each span had all pieces' places and states
