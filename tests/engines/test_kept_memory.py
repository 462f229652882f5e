"""Memory that one call of the C++ engine leaves for the next: never a tensor's own while somebody has it."""

import os
import signal

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import sstkern
from sstkern.engines import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs instead of the C++ engine")
SIZE = 64
"""16 sequences of 32 steps are 128 kB of output."""


@pytest.fixture
def layer() -> sstkern.LSTM:
    torch.manual_seed(0)
    return sstkern.LSTM(8, SIZE)


def output_of(layer: sstkern.LSTM, x: Tensor) -> Tensor:
    with torch.no_grad(), sstkern.backend("cpu"):
        return layer(x)[0]


def test_the_next_call_has_the_memory_of_a_dropped_output(layer):
    x = torch.randn(32, 16, 8)
    places = []
    for _ in range(4):
        output = output_of(layer, x)
        places.append(output.data_ptr())
        del output
    assert len(set(places[1:])) < 3


def test_no_call_has_the_memory_of_an_output_that_is_kept(layer):
    kept, copies = [], []
    for seed in range(8):
        x = torch.randn(32, 16, 8, generator=torch.Generator().manual_seed(seed))
        kept.append(output_of(layer, x)[seed:].numpy())  # a view of it, of another library
        copies.append(kept[-1].copy())
    assert len({array.ctypes.data for array in kept}) == 8
    assert all((array == copy).all() for array, copy in zip(kept, copies, strict=True))


def test_an_output_can_be_resized_and_copied_on_write(layer):
    output = output_of(layer, torch.randn(32, 16, 8))
    expected = output.clone()
    lazy = torch._lazy_clone(output)
    output.zero_()
    assert torch.equal(lazy, expected)
    assert torch.equal(lazy.resize_(64, 16, SIZE)[:32], expected)


def test_the_profiler_sees_every_call_alike(layer):
    x, allocated = torch.randn(32, 16, 8), []
    for _ in range(3):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            output = output_of(layer, x)
        allocated.append({event.key: event.cpu_memory_usage for event in profiled.key_averages()}["sstkern::layer"])
        del output
    assert allocated[0] == allocated[1] == allocated[2] >= 32 * 16 * SIZE * 4


def test_a_forked_child_has_memory_of_its_own(layer):
    x = torch.randn(32, 16, 8)
    expected = output_of(layer, x)
    output_of(layer, x)  # leaves its memory to both
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if all(torch.equal(output_of(layer, x), expected) for _ in range(3)) else 1)
    assert all(torch.equal(output_of(layer, x), expected) for _ in range(3))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
