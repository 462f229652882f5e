"""Threads that share a time step: one that waits too long for another goes on alone, and so do calls after it for a while."""

import threading
from collections.abc import Iterator

import pytest
import torch
from layers import KINDS, SHARE_UNITS, as_hx, flat, gradients, pair, states_of

import sstkern
from sstkern import engines
from sstkern.engines import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs instead of the C++ engine")
FOREVER = 10**9  # microseconds


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before, patience = torch.get_num_threads(), torch.ops.sstkern.cpu_patience(FOREVER)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    torch.ops.sstkern.cpu_patience(patience)


def step(kind: str, bidirectional: bool) -> list[torch.Tensor]:
    """Results and gradients of a layer whose units, 132 a direction, two threads share."""
    torch.manual_seed(0)
    size = {"proj_size": 68} if "projected" in kind else {}
    layer, _ = pair(kind, 40, 132, bidirectional=bidirectional, dtype=torch.float32, **size)
    x, hx = torch.randn(60, 2, 40, requires_grad=True), states_of(layer, 2, torch.float32)
    output, hx_n = layer(x, as_hx(hx), lengths=[60, 41])
    results = [output, *flat(hx_n)]
    return results + gradients(results, [x, *hx, *layer.parameters()])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_stay_whoever_goes_on_alone(kind: str, bidirectional: bool):
    torch.set_num_threads(2 + 2 * bidirectional)
    expected = step(kind, bidirectional)
    assert engines.cpu_runs()["threads"] == 2 + 2 * bidirectional
    for _ in range(20):  # at other time steps each time
        torch.ops.sstkern.cpu_patience(0)
        assert all(torch.equal(a, b) for a, b in zip(step(kind, bidirectional), expected, strict=True))


@pytest.mark.skipif(not SHARE_UNITS, reason="a sequence alone has one thread")
def test_calls_after_a_late_thread_have_one_for_a_while():
    layer, x = sstkern.LSTM(64, 132), torch.randn(60, 1, 64)

    def threads() -> int:
        with torch.no_grad():
            layer(x)
        return engines.cpu_runs()["threads"]

    assert threads() == 2
    torch.ops.sstkern.cpu_patience(0)
    # Not at once: a call may have no late thread, and the 5 ms that follow one that had may end before the next call.
    assert any(threads() == 1 for _ in range(1000))
    assert torch.get_num_threads() == 2
    torch.ops.sstkern.cpu_patience(FOREVER)  # forgets it
    assert [threads() for _ in range(20)] == [2] * 20


def test_a_new_thread_keeps_the_number_of_threads_that_was_set():
    """Its first call while calls have one thread: OpenMP does not know torch's number there yet."""
    layer, x, found = sstkern.LSTM(64, 132), torch.randn(60, 1, 64), []

    def call() -> None:
        with torch.no_grad():
            layer(x)
        found.append(torch.get_num_threads())

    torch.set_num_threads(3)
    torch.ops.sstkern.cpu_patience(0)
    for _ in range(10):
        call()
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert set(found) == {3}
