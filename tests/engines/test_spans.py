"""16-bit tensors on the CPU engine: they stay 16 bits, and calls that are long enough run a span of time steps at a time."""

import copy
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
    products_are_narrow = torch.ops.sstkern.cpu_capability() == "avx512_bf16" and dtype == torch.bfloat16
    wide = copy.deepcopy(layer).float()
    (output, *states, _), (expected, *expected_states, _) = (
        results(one, x.to(kind_of), LENGTHS, grad_output.to(kind_of))[0] for one, kind_of in ((layer, dtype), (wide, torch.float32))
    )
    for mine, exact in zip([output, *states], [expected, *expected_states], strict=True):
        assert mine.dtype == dtype
        assert (mine.float() - exact.to(dtype).float()).norm() <= 0.02 * products_are_narrow * exact.norm()


@kinds
@narrow
def test_gradients_of_weights_are_sums_over_all_spans(kind: str, dtype: torch.dtype):
    layer, x, grad_output = call(kind, dtype)
    _, found = results(layer, x, LENGTHS, grad_output)
    _, expected = results(copy.deepcopy(layer).double(), x.double(), LENGTHS, grad_output.double())
    for mine, exact in zip(found, expected, strict=True):
        assert (mine.double() - exact).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()


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
