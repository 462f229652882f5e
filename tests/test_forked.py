"""Calls in a forked child of a process whose threads have worked: torch's own operators hang there once they are large enough for two."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from plain_cells import MGU, Stepped
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import sstkern
from sstkern.structure import flatten

SIZE, BATCH = 256, 160  # 40,960 numbers in a state; torch uses threads from 32,768
LENGTHS = torch.arange(BATCH) % 3


def own(kind: type[nn.Module] = MGU, input_size: int = 8) -> nn.Module:
    return kind(input_size, SIZE)


def backward(layer: nn.Module, results: object) -> list[Tensor]:
    """Gradients of the parameters; where they begin is made of one number, by no thread but this."""
    wanted = [tensor for tensor in flatten(results) if isinstance(tensor, Tensor) and tensor.requires_grad]
    layer.zero_grad()
    torch.autograd.backward(wanted, [torch.ones((), dtype=tensor.dtype).expand_as(tensor) for tensor in wanted])
    return [parameter.grad for parameter in layer.parameters()]


def inference(layer: nn.Module, *arguments: object, **options: object) -> list[Tensor]:
    with torch.no_grad():
        return [tensor for tensor in flatten(layer(*arguments, **options)) if isinstance(tensor, Tensor)]


def training(layer: nn.Module, *arguments: object, **options: object) -> list[Tensor]:
    return backward(layer, layer(*arguments, **options))


def under_autocast(layer: nn.Module, *arguments: object) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        results = layer(*arguments)
    return backward(layer, results)


def on_the_reference_engine(layer: nn.Module, *arguments: object) -> list[Tensor]:
    with sstkern.backend("reference"):
        return training(layer, *arguments)


def penalty(layer: nn.Module, x: Tensor) -> list[Tensor]:
    results, weight = layer(x), next(layer.parameters())
    output = results[0] if isinstance(results, tuple) else results
    (gradient,) = torch.autograd.grad(output, weight, torch.ones(()).expand_as(output), create_graph=True)
    return backward(layer, gradient)[:1]


def transformed(layer: nn.Module, x: Tensor) -> list[Tensor]:
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    output, pullback = torch.func.vjp(lambda parameters: torch.func.functional_call(layer, parameters, (x,))[0], parameters)
    return list(pullback(torch.ones(()).expand_as(output))[0].values())


def twice_transformed(layer: nn.Module, x: Tensor) -> list[Tensor]:
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def gradients(parameters: dict[str, Tensor]) -> list[Tensor]:
        output, pullback = torch.func.vjp(lambda parameters: torch.func.functional_call(layer, parameters, (x,))[0], parameters)
        return list(pullback(torch.ones(()).expand_as(output))[0].values())

    found, pullback = torch.func.vjp(gradients, parameters)
    return list(pullback([torch.ones(()).expand_as(gradient) for gradient in found])[0].values())


def cases() -> dict[str, Callable[[], list[Tensor]]]:
    """Each is called in the parent and in a child."""
    torch.manual_seed(0)
    x = torch.randn(2, BATCH, 8)
    packed = pack_padded_sequence(x, LENGTHS.clamp(min=1), enforce_sorted=False)
    stacked = {"num_layers": 2, "bidirectional": True, "dropout": 0.5}
    calls = {
        "inference": (inference, sstkern.LSTM(8, SIZE), x),
        "stacked": (training, sstkern.LSTM(8, SIZE, **stacked), x),
        "packed": (training, sstkern.GRU(8, SIZE), packed),
        "recompute": (training, sstkern.RNN(8, SIZE, recompute=True), x),
        "autocast": (under_autocast, sstkern.LSTM(8, SIZE), x),
        "reference": (on_the_reference_engine, sstkern.GRU(8, SIZE), x),
        "penalty": (penalty, sstkern.LSTM(8, SIZE), x),
        "transformed": (transformed, sstkern.GRU(8, SIZE), x),
        "cell": (training, sstkern.LSTMCell(8, SIZE), x[0]),
        "cell, penalty": (penalty, sstkern.GRUCell(8, SIZE), x[0]),
        "own": (training, sstkern.fuse(own()), x),
        "own, packed": (training, sstkern.fuse(own(), own()), packed),
        "own, autocast": (under_autocast, sstkern.fuse(own()), x),
        "own, penalty": (penalty, sstkern.fuse(own()), x),
        "own, transformed twice": (twice_transformed, sstkern.fuse(own()), x),
        "own, transformed": (transformed, sstkern.fuse(own()), x),
        "own, stepped": (training, sstkern.fuse(own(Stepped), initial_state=SIZE), x),
        "stack": (training, sstkern.stack([sstkern.GRU(8, SIZE), sstkern.fuse(own(input_size=SIZE))], dropout=0.5), x),
    }
    named = {name: partial(*call) for name, call in calls.items()}
    return named | {"lengths": partial(training, sstkern.LSTM(8, SIZE, batch_first=True), x.transpose(0, 1), lengths=LENGTHS)}


def drawn(call: Callable[[], list[Tensor]]) -> list[Tensor]:
    torch.manual_seed(1)
    return call()


def in_children() -> dict[str, int]:
    """The exit status of each case's child: 0 where it has the parent's numbers, below 0 where it did not return and was ended."""
    torch.set_num_threads(1)
    called = {name: (call, [tensor.clone() for tensor in drawn(call)]) for name, call in cases().items()}
    torch.set_num_threads(2)
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)
    return {name: in_a_child(*found) for name, found in called.items()}


def in_a_child(call: Callable[[], list[Tensor]], expected: list[Tensor]) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        status = 1
        try:
            found, threads = drawn(call), torch.get_num_threads()
            torch.set_num_threads(1)  # for what is compared here
            same = all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected, strict=True))
            status = 2 if not same else 3 if threads != 2 else 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def statuses() -> dict[str, int]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(in_children).result()


@pytest.mark.filterwarnings("ignore:sstkern steps")
@pytest.mark.parametrize("name", cases())
def test_a_call_returns_with_the_parent_s_numbers_and_threads(statuses: dict[str, int], name: str):
    assert statuses[name] == 0
