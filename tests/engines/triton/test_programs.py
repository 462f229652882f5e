"""Every cell of the zoo by the kernels generated of its program, interpreted: the numbers and gradients of its own Python loop."""

import threading
from dataclasses import replace

import pytest
import torch
from each_alone import assert_is_the_loop
from interpreter import patch_language_once
from torch import nn
from zoo import ZOO

import sstkern
from sstkern import operators
from sstkern.engines import triton_runs
from sstkern.engines.triton import device, rows
from sstkern.lengths import ALL_ROWS
from sstkern.program import engine

patch_language_once()
FUSED = [name for name, entry in ZOO.items() if entry.unfused is None]


def assert_runs(name: str, schedule: str, reverse: bool) -> None:
    torch.manual_seed(0)
    entry, before = ZOO[name], triton_runs().get(schedule, 0)
    layer = sstkern.fuse(entry.cell(), reverse=reverse, strict=True)
    with sstkern.backend("triton", schedule=schedule):
        assert_is_the_loop(layer, *entry.drawn(3, 3), [3, 0, 2], reverse, entry.returns)
    assert triton_runs()[schedule] > before


@pytest.mark.parametrize("name", FUSED)
def test_resident(name: str):
    assert_runs(name, "resident", reverse=False)


@pytest.mark.parametrize("name", FUSED)
def test_stepwise(name: str):
    assert_runs(name, "stepwise", reverse=True)


def lstm(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    layer = sstkern.fuse(nn.LSTMCell(3, 4).to(dtype), strict=True)
    x, h, c = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((4, 3, 3), (3, 4), (3, 4)))
    return layer, x, (h, c)


def test_gradcheck():
    layer, x, (h, c) = lstm()
    given = x, h, c, *layer.parameters()
    assert torch.autograd.gradcheck(lambda x, h, c, *_: layer(x, (h, c), lengths=[4, 1, 0])[0], given, fast_mode=True)


def test_the_cell_has_the_hand_written_layers_numbers():
    layer, x, (h, c) = lstm()
    written = sstkern.LSTM(3, 4, dtype=torch.float64)
    written.load_state_dict({f"{name}_l0": value for name, value in layer.state_dict().items()})
    output, _ = layer(x, (h, c), lengths=[2, 4, 3])
    expected, _ = written(x, (h[None], c[None]), lengths=[2, 4, 3])
    torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-13)
    weight = torch.randn_like(output)
    ours, theirs = (torch.autograd.grad((result * weight).sum(), [x, h, c]) for result in (output, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", ["resident", "stepwise"])
def test_the_same_bits_twice_and_whatever_the_padding(schedule: str):
    layer, x, hx = lstm(torch.float32)
    padded = torch.where(torch.arange(4)[:, None, None] < torch.tensor([4, 2, 1])[None, :, None], x, torch.nan)
    with sstkern.backend("triton", schedule=schedule), torch.no_grad():
        first, again, other = (layer(given, hx, lengths=[4, 2, 1])[0] for given in (x, x, padded))
    assert torch.equal(first, again)
    assert torch.equal(first, other)


def test_lengths_on_the_device_are_not_looked_at(monkeypatch):
    """Rows of steps that are not valid are then there too, after those that are."""
    layer, x, hx = lstm()

    def results() -> list[torch.Tensor]:
        output, hx_n = layer(x, hx, lengths=[4, 0, 2])
        return [output, *hx_n, *torch.autograd.grad(output.sum() + hx_n[1].sum(), [x, *hx, *layer.parameters()])]

    expected = results()
    monkeypatch.setattr(rows, "of_lengths", lambda lengths, steps, device: rows.of_device_lengths(lengths, steps))
    monkeypatch.setattr(operators, "saved_rows", lambda packed, lengths: ALL_ROWS)
    torch.testing.assert_close(results(), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_each_sample():
    layer, x, hx = lstm()
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters, x, h, c):
        return torch.func.functional_call(layer, parameters, (x[:, None], (h[None], c[None])))[0].sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1, 0, 0))(parameters, x.detach(), *(state.detach() for state in hx))
    for b in range(3):
        alone = torch.autograd.grad(layer(x[:, b : b + 1], tuple(state[b : b + 1] for state in hx))[0].sum(), list(layer.parameters()))
        for (_, every), one in zip(found.items(), alone, strict=True):
            torch.testing.assert_close(every[b], one, rtol=1e-12, atol=1e-12)


def test_no_time_steps_give_gradients_of_zero_to_each_sample():
    layer, x, hx = lstm()
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters, x, h, c):
        return torch.func.functional_call(layer, parameters, (x[:, None], (h[None], c[None])))[0].sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1, 0, 0))(parameters, x.detach()[:0], *(state.detach() for state in hx))
    assert {name: (gradient.shape[0], int(gradient.count_nonzero())) for name, gradient in found.items()} == dict.fromkeys(
        parameters, (3, 0)
    )


class Compared(nn.Module):
    """An output of bools."""

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        after = torch.tanh(x + h)
        return after > 0, after


@pytest.mark.parametrize("lengths", [None, [3, 0, 2]])
def test_an_output_of_bools_stays_one(lengths: list[int] | None):
    torch.manual_seed(0)
    layer = sstkern.fuse(Compared(), returns="output_and_state", strict=True)
    x, h = torch.randn(3, 3, 4), torch.randn(3, 4)
    with sstkern.backend("reference"):
        expected, _ = layer(x, h, lengths=lengths)
    output, _ = layer(x, h, lengths=lengths)
    assert output.dtype == expected.dtype == torch.bool
    assert torch.equal(output, expected)


class Cumulated(nn.Module):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh((x + h).cumsum(1))


def test_what_the_launch_table_refuses_runs_in_plain_pytorch_and_says_why():
    layer, x = sstkern.fuse(Cumulated(), strict=True), torch.randn(2, 1, 5000, requires_grad=True)
    with pytest.warns(UserWarning, match="runs Cumulated in plain PyTorch.*a cumulative sum has 5000 numbers"):
        output, _ = layer(x, torch.zeros(1, 5000))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert gradient.shape == x.shape
    with sstkern.backend("triton"), pytest.raises(sstkern.engines.BackendError, match="a cumulative sum has 5000 numbers"):
        layer(x, torch.zeros(1, 5000))


def test_a_backward_in_another_thread_has_its_forwards_engine():
    layer, x, hx = lstm()
    before = triton_runs().get("backward", 0)
    with sstkern.backend("reference"):
        output, _ = layer(x, hx)
    thread = threading.Thread(target=lambda: output.sum().backward())
    thread.start()
    thread.join()
    assert x.grad is not None
    assert triton_runs().get("backward", 0) == before


def test_a_loop_whose_registers_spill_runs_in_other_tiles(monkeypatch):
    layer, x, hx = lstm()
    plain, warps, asked = device.of(x.device), [], []

    def run(kernel, grid, arguments, options):
        warps.append(options["num_warps"])
        plain.run(kernel, grid, arguments, options)

    def stack(kernel, grid, arguments, options):
        asked.append(options["num_warps"])
        return 100 if len(asked) == 1 else 0

    with torch.no_grad(), sstkern.backend("triton", "resident"):
        expected, _ = layer(x, hx)
        engine.forget()
        monkeypatch.setattr(device, "of", lambda place: replace(plain, run=run, stack=stack))
        found = [layer(x, hx)[0], layer(x, hx)[0]]
    assert asked == [4, 8]  # once
    assert warps == [8, 8]
    assert all(torch.equal(output, expected) for output in found)
