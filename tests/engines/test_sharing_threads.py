"""Calls from several threads at once share the threads that torch.set_num_threads allows."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

import sstkern
from sstkern import engines
from sstkern.engines import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs instead of the C++ engine")
FORGOTTEN = 0.05  # seconds after which a call does not know of others


@pytest.fixture(autouse=True)
def patient_threads() -> Iterator[None]:
    """Four threads, and never one for a while since another came late."""
    before, patience = torch.get_num_threads(), torch.ops.sstkern.cpu_patience(10**9)
    torch.set_num_threads(4)
    time.sleep(FORGOTTEN)
    yield
    torch.set_num_threads(before)
    torch.ops.sstkern.cpu_patience(patience)


def threads_of_a_call(layer: torch.nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        layer(x)
    return engines.cpu_runs()["threads"]


def while_called(layer: torch.nn.Module, x: torch.Tensor, run: Callable[[], int], calls: int = 1) -> tuple[list[int], list[int]]:
    """Threads of each of so many calls at once, and what `run` gave, again and again, while they ran."""
    found: list[int] = []
    callers = [threading.Thread(target=lambda: found.append(threads_of_a_call(layer, x))) for _ in range(calls)]
    for caller in callers:
        caller.start()
    ran = []
    while any(caller.is_alive() for caller in callers):
        ran.append(run())
    return found, ran


@pytest.mark.parametrize("layer", [sstkern.LSTM(24, 40), sstkern.fuse(torch.nn.GRUCell(24, 40))], ids=["layer", "own cell"])
def test_calls_at_once_share_the_threads(layer: torch.nn.Module):
    long, short = torch.randn(20_000, 4, 24), torch.randn(40, 16, 24)
    assert threads_of_a_call(layer, short) == 4
    _, ran = while_called(layer, long, lambda: threads_of_a_call(layer, short))
    assert 2 in ran  # while the other ran; at its start and its end perhaps 4
    assert set(ran) <= {2, 4}
    time.sleep(FORGOTTEN)
    assert threads_of_a_call(layer, short) == 4


def test_with_as_many_callers_as_threads_each_has_one():
    layer, long, short = sstkern.LSTM(24, 40), torch.randn(20_000, 4, 24), torch.randn(40, 16, 24)
    _, ran = while_called(layer, long, lambda: threads_of_a_call(layer, short), calls=4)
    assert 1 in ran


def test_threads_that_call_one_after_the_other_have_all():
    layer, x = sstkern.LSTM(24, 40), torch.randn(40, 16, 24)
    for _ in range(5):
        found, _ = while_called(layer, x, lambda: 0)
        assert found == [4]


def test_a_call_that_fails_is_no_caller_any_more():
    layer, x = sstkern.LSTM(24, 40), torch.randn(40, 16, 24)
    wrong = [torch.zeros(1, 2, 40)] * 2  # of two sequences
    for _ in range(4):
        with pytest.raises(RuntimeError):
            torch.ops.sstkern.layer("lstm", x, list(layer.parameters()), wrong, None, True, False, None)
    time.sleep(FORGOTTEN)
    assert threads_of_a_call(layer, x) == 4


def test_bits_and_the_number_of_threads_stay_with_many_callers():
    layer, x = sstkern.LSTM(24, 40, bidirectional=True), torch.randn(30, 5, 24, requires_grad=True)

    def results() -> list[torch.Tensor]:
        output, (h, c) = layer(x)
        return [output, h, c, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])]

    expected, differing, numbers = results(), [], set()

    def call() -> None:
        for _ in range(30):
            differing.extend(a for a, b in zip(results(), expected, strict=True) if not torch.equal(a, b))
            numbers.add(torch.get_num_threads())

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not differing
    assert numbers == {4}
