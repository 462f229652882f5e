"""What lives around a module in PyTorch works with our layers as with any."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain_cells import MGU, Stepped
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, unpack_sequence
from torch.utils.checkpoint import checkpoint

import sstkern
from sstkern.engines import cpu_runs
from sstkern.structure import flatten

LENGTHS = torch.tensor([5, 0, 2])


@pytest.fixture
def layer() -> nn.Module:
    torch.manual_seed(0)
    return sstkern.GRU(4, 6, 2)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(layer, x, use_reentrant):
    found = []
    for call in (
        lambda x: layer(x, lengths=LENGTHS)[0],
        lambda x: checkpoint(lambda x: layer(x, lengths=LENGTHS)[0], x, use_reentrant=use_reentrant),
    ):
        layer.zero_grad()
        given = x.clone().requires_grad_()
        before = cpu_runs()["forward"]
        call(given).square().sum().backward()
        found.append([given.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
        runs = cpu_runs()["forward"] - before
    assert runs == 2 * layer.num_layers  # once more in the backward
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_hooks_see_inputs_and_outputs(layer, x):
    seen = []
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    layer.register_full_backward_hook(lambda module, grad_inputs, grad_outputs: seen.append(grad_inputs[0]))
    given = x.clone().requires_grad_()
    output, _ = layer(given)
    output.sum().backward()
    forward, gradient = seen
    torch.testing.assert_close(given.grad, gradient * 2)
    plain = sstkern.GRU(4, 6, 2)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(forward, plain(x * 2)[0])


def test_pruned_weights_stay_pruned(layer, x):
    prune.l1_unstructured(layer, "weight_hh_l0", amount=0.5)
    pruned = layer.weight_hh_l0 == 0
    assert pruned.sum() == pruned.numel() // 2
    layer(x)[0].sum().backward()
    assert not layer.weight_hh_l0_orig.grad[pruned].any()
    assert layer.weight_hh_l0_orig.grad[~pruned].any()
    before = layer(x)[0]
    prune.remove(layer, "weight_hh_l0")
    assert torch.equal(layer(x)[0], before)


def test_the_helpers_of_packed_sequences(layer, x):
    expected, _ = layer(x[:, [0, 2]], lengths=[5, 2])
    packed = pack_padded_sequence(x[:, [0, 2]], torch.tensor([5, 2]))
    output, lengths = pad_packed_sequence(layer(packed)[0])
    assert torch.equal(output, expected)
    assert lengths.tolist() == [5, 2]
    parts = unpack_sequence(layer(pack_sequence([x[:2, 2], x[:, 0]], enforce_sorted=False))[0])
    assert torch.equal(parts[0], expected[:2, 1])
    assert torch.equal(parts[1], expected[:, 0])


def test_functional_call_and_other_weights(layer, x):
    weights = {name: torch.zeros_like(weight) for name, weight in layer.named_parameters()}
    assert not torch.func.functional_call(layer, weights, (x,))[0].any()
    assert layer(x)[0].any()


def test_flat_weights_dtypes_and_shared_memory(layer, x):
    layer.flatten_parameters()
    assert [weight.shape for weight in layer._flat_weights] == [weight.shape for weight in layer.parameters()]
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert layer.to(dtype)(x.to(dtype))[0].dtype == dtype
    assert layer.float().share_memory().weight_ih_l0.is_shared()


def test_switches_of_pytorch_leave_the_bits(layer, x):
    expected = layer(x, lengths=LENGTHS)[0]
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(layer(x, lengths=LENGTHS)[0], expected)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


MADE = {
    "LSTM": lambda: sstkern.LSTM(3, 4, num_layers=2, bidirectional=True),
    "GRU, batch_first": lambda: sstkern.GRU(3, 4, batch_first=True),
    "RNN, recompute": lambda: sstkern.RNN(3, 4, recompute=True),
    "own": lambda: sstkern.fuse(MGU(), MGU()),
    "own, batch_first, recompute": lambda: sstkern.fuse(MGU(), batch_first=True, recompute=True),
    "own, stepped": lambda: sstkern.fuse(Stepped(), initial_state=4),
    "stack": lambda: sstkern.stack([sstkern.GRU(3, 4), sstkern.fuse(MGU(4, 4))]),
    "reference": lambda: Referred(sstkern.LSTM(3, 4)),
}


class Referred(nn.Module):
    """A layer on the reference engine."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *arguments: object, **options: object) -> object:
        with sstkern.backend("reference"):
            return self.layer(*arguments, **options)


@pytest.mark.filterwarnings("ignore:sstkern steps")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_was_made_under_inference_mode_is_trained_with(make, autocast):
    layer, found = make(), []
    for mode in (torch.inference_mode, torch.no_grad):
        torch.manual_seed(1)
        with mode():
            x, lengths = torch.randn(5, 5, 3), torch.tensor([5, 1, 2, 4, 3])
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            hx = layer(x)[1]  # as a warm-up leaves them; an own cell is captured here
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = [layer(x, hx)[0], layer(x, lengths=lengths)[0], *flatten(layer(packed, hx))]
        sum(tensor.float().sum() for tensor in results if isinstance(tensor, Tensor) and tensor.requires_grad).backward()
        found.append([parameter.grad for parameter in layer.parameters()])
    for of_inference, of_no_grad in zip(*found, strict=True):
        torch.testing.assert_close(of_inference, of_no_grad)


@pytest.mark.parametrize("make", [sstkern.LSTMCell, sstkern.GRUCell, sstkern.RNNCell])
def test_a_cell_is_trained_with_what_was_made_under_inference_mode(make):
    cell, found = make(3, 4), []
    for mode in (torch.inference_mode, torch.no_grad):
        torch.manual_seed(1)
        with mode():
            x = torch.randn(2, 3)
            state = cell(x)
        cell.zero_grad()
        flatten(cell(x, cell(x, state)))[0].sum().backward()
        found.append([parameter.grad for parameter in cell.parameters()])
    for of_inference, of_no_grad in zip(*found, strict=True):
        assert torch.equal(of_inference, of_no_grad)


def test_a_scaled_loss_under_autocast(layer, x):
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=torch.float16):
        output, _ = layer(x)
    assert output.dtype == torch.float16
    before = layer.weight_hh_l0.detach().clone()
    scaler.scale(output.float().square().mean()).backward()
    scaler.unscale_(optimizer)
    found = layer.weight_hh_l0.grad.clone()
    scaler.step(optimizer)
    layer.zero_grad()
    layer(x)[0].square().mean().backward()
    torch.testing.assert_close(found, layer.weight_hh_l0.grad, rtol=0.05, atol=1e-3)
    assert not torch.equal(before, layer.weight_hh_l0)


def test_a_weight_of_another_dtype_is_told(layer, x):
    layer.bias_hh_l0.data = layer.bias_hh_l0.data.bfloat16()
    with pytest.raises(
        ValueError, match=r"weights: expected all of dtype torch\.float32 like the first, got torch\.bfloat16 at place 3 of 8"
    ):
        layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x)[0].dtype == torch.bfloat16


def test_a_layer_made_without_memory_is_loaded(layer, x):
    empty = sstkern.GRU(4, 6, 2, device="meta")
    output, h_n = empty(x.to("meta"), lengths=LENGTHS.to("meta"))
    assert (output.shape, h_n.shape, output.device.type) == ((5, 3, 6), (2, 3, 6), "meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x)[0], layer(x)[0])
    again = sstkern.GRU(4, 6, 2, device="meta").to_empty(device="cpu")
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x)[0], layer(x)[0])


DISTRIBUTED = """
import os

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sstkern

dist.init_process_group("gloo")
rank = dist.get_rank()

def lstm():
    torch.manual_seed(0)
    return sstkern.LSTM(4, 6, 2, bidirectional=True, dtype=torch.float64)

def fused():
    # Two cells are children; one is none, and shares the layer's parameters.
    torch.manual_seed(0)
    cells = [torch.nn.GRUCell(size, 6, dtype=torch.float64) for size in (4, 4, 12)]
    return sstkern.stack([sstkern.fuse(*cells[:2]), sstkern.fuse(cells[2])])

x, lengths = torch.randn(5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 0, 2, 3])

def loss(model, rows):
    return model(x[:, rows], lengths=lengths[rows])[0].square().sum()

for model in (lstm, fused):
    whole = model()
    (loss(whole, slice(0, 4)) / 2).backward()  # of two processes' gradients the mean is taken
    mine = slice(2 * rank, 2 * rank + 2)

    ddp = DistributedDataParallel(model())
    loss(ddp, mine).backward()
    for (name, expected), parameter in zip(whole.named_parameters(), ddp.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=f"DDP {name}")

    sharded = fully_shard(model())
    loss(sharded, mine).backward()
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), whole.get_parameter(name).grad, msg=f"FSDP {name}")
    assert parameter.grad.to_local().numel() < parameter.grad.numel()
print("equal", flush=True)
dist.destroy_process_group()
# A thread of gloo's may still let go of tensors, and aborts the process if Python ends first: 2 of 12 on busy cores.
os._exit(0)
"""


def test_two_processes_have_the_gradients_of_one(tmp_path: Path):
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "script.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sstkern.__file__).parents[1])}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("equal") == 2
