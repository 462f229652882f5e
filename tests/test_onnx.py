"""ONNX Runtime has our numbers: layers as the standard operators, projections as a Scan, at other sizes than the export's."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest
import torch
from architectures import VoiceActivity
from layers import as_hx
from torch import Tensor, nn
from torch.export import Dim

import sstkern

STEPS, BATCH = Dim("T", min=1, max=1000), Dim("B", min=1, max=1000)
LAYERS = {
    "LSTM, two layers, both directions": (lambda: sstkern.LSTM(4, 6, 2, bidirectional=True), {"LSTM": 2}),
    "LSTM without bias": (lambda: sstkern.LSTM(4, 6, bias=False), {"LSTM": 1}),
    "LSTM with a projection": (lambda: sstkern.LSTM(4, 6, bidirectional=True, proj_size=3), {"Scan": 2}),
    "GRU": (lambda: sstkern.GRU(4, 6, 2), {"GRU": 2}),
    "RNN": (lambda: sstkern.RNN(4, 6, bidirectional=True), {"RNN": 1}),
    "RNN with relu": (lambda: sstkern.RNN(4, 6, nonlinearity="relu", bidirectional=True), {"RNN": 1}),
}


class Runtime:
    """A model that was exported, in ONNX Runtime."""

    def __init__(self, model: nn.Module, arguments: tuple, folder: Path, **options):
        program = torch.onnx.export(model, arguments, dynamo=True, verbose=False, **options)
        self.operators = [node.op_type for node in program.model.graph]
        program.save(folder / "model.onnx")
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        names = [given.name for given in self.session.get_inputs()]
        values = self.session.run(None, {name: value.numpy() for name, value in zip(names, arguments, strict=True)})
        return [torch.from_numpy(value) for value in values]


def flat(results) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [tensor for part in results for tensor in flat(part)]


def assert_equal(found: list[Tensor], expected) -> None:
    torch.testing.assert_close(found, [tensor.detach() for tensor in flat(expected)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_lengths_and_states_at_other_sizes(name, tmp_path):
    torch.manual_seed(0)
    make, operators = LAYERS[name]
    layer = make().eval()

    def states(batch: int):
        rows = layer.num_layers * (1 + layer.bidirectional)
        return as_hx(tuple(torch.randn(rows, batch, size) for size in layer.cell.state_sizes(6, layer.proj_size or 6)))

    shapes = {0: STEPS, 1: BATCH}, as_hx(tuple({1: BATCH} for _ in layer.cell.states)), {0: BATCH}
    runtime = Runtime(layer, (torch.randn(5, 3, 4), states(3), torch.tensor([5, 0, 2])), tmp_path, dynamic_shapes=shapes)
    assert {kind: runtime.operators.count(kind) for kind in operators} == operators
    x, hx, lengths = torch.randn(9, 4, 4), states(4), torch.tensor([9, 0, 1, 4])
    x[torch.arange(9)[:, None] >= lengths] = 1e9  # the padding is not read
    assert_equal(runtime(x, *flat(hx), lengths), layer(x, hx, lengths))


class Episodes(nn.Module):
    """With resets, a first state that is learned, and every step's states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        rows = layer.num_layers * (1 + layer.bidirectional)
        sizes = layer.cell.state_sizes(6, layer.proj_size or 6)
        self.layer = layer
        self.first = nn.ParameterList([nn.Parameter(torch.randn(rows, 1, size)) for size in sizes])

    def forward(self, x: Tensor, lengths: Tensor, resets: Tensor):
        return self.layer(x, lengths=lengths, resets=resets, reset_to=as_hx(tuple(self.first)), return_states=True)


@pytest.mark.parametrize(
    "make", [LAYERS["LSTM, two layers, both directions"][0], LAYERS["LSTM with a projection"][0], lambda: sstkern.GRU(4, 6)]
)
def test_sequences_that_begin_anew_and_every_steps_states(make, tmp_path):
    torch.manual_seed(0)
    model = Episodes(make()).eval()

    def drawn(steps: int, batch: int) -> tuple[Tensor, ...]:
        return torch.randn(steps, batch, 4), torch.randint(0, steps + 1, (batch,)), torch.rand(steps, batch) < 0.3

    shapes = {0: STEPS, 1: BATCH}, {0: BATCH}, {0: STEPS, 1: BATCH}
    runtime = Runtime(model, drawn(5, 3), tmp_path, dynamic_shapes=shapes)
    assert "Scan" in runtime.operators
    given = drawn(9, 4)
    assert_equal(runtime(*given), model(*given))


@pytest.mark.parametrize("name", ["LSTM, two layers, both directions", "GRU"])
def test_a_layer_without_lengths_has_no_trace_of_them(name, tmp_path):
    torch.manual_seed(0)
    layer = LAYERS[name][0]().eval()
    runtime = Runtime(layer, (torch.randn(5, 3, 4),), tmp_path, dynamic_shapes=({0: STEPS, 1: BATCH},))
    assert "Where" not in runtime.operators
    x = torch.randn(9, 2, 4)
    assert_equal(runtime(x), layer(x))


def test_the_batch_may_come_first_and_weights_are_constants(tmp_path):
    torch.manual_seed(0)
    layer = sstkern.GRU(4, 6, batch_first=True).eval()
    runtime = Runtime(layer, (torch.randn(3, 5, 4), None, torch.tensor([5, 0, 2])), tmp_path)
    assert not {"Split", "Unsqueeze"} & set(runtime.operators[: runtime.operators.index("GRU")])
    x, lengths = torch.randn(3, 5, 4), torch.tensor([1, 3, 5])
    assert_equal(runtime(x, lengths), layer(x, None, lengths))


def test_the_engine_makes_no_difference(tmp_path):
    torch.manual_seed(0)
    layer = sstkern.GRU(4, 6).eval()
    with sstkern.backend("reference"):
        runtime = Runtime(layer, (torch.randn(5, 3, 4),), tmp_path, dynamic_shapes=({0: STEPS, 1: BATCH},))
    assert runtime.operators.count("GRU") == 1
    x = torch.randn(9, 4, 4)
    assert_equal(runtime(x), layer(x))


def test_a_call_in_another_thread_runs_as_ever(tmp_path):
    layer, x = sstkern.GRU(4, 6), torch.randn(5, 3, 4)
    with torch.no_grad():
        expected, calls, over = layer(x)[0], [], threading.Event()

    def work() -> None:
        with torch.no_grad():
            while not over.is_set():
                calls.append(torch.equal(layer(x)[0], expected))

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(work)
        try:
            Runtime(sstkern.LSTM(4, 6, 2).eval(), (torch.randn(5, 3, 4),), tmp_path)
        finally:
            over.set()
        worker.result()
    assert len(calls) > 10
    assert all(calls)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_cell(name, tmp_path):
    torch.manual_seed(0)
    cell = getattr(sstkern, name)(4, 6).eval()
    runtime = Runtime(cell, (torch.randn(3, 4),), tmp_path, dynamic_shapes=({0: BATCH},))
    x = torch.randn(5, 4)
    assert_equal(runtime(x), cell(x))


def test_a_whole_model(tmp_path):
    torch.manual_seed(0)
    model = sstkern.convert(VoiceActivity()).eval()
    runtime = Runtime(model, (torch.randn(2, 1, 96),), tmp_path)
    assert {"GRU", "LSTM"} <= set(runtime.operators)
    sound = torch.randn(2, 1, 96)
    assert_equal(runtime(sound), model(sound))


@pytest.mark.parametrize(("layer", "x"), [(sstkern.GRU(4, 6, 2), torch.randn(5, 3, 4)), (sstkern.LSTMCell(4, 6), torch.randn(3, 4))])
def test_the_old_exporter_is_refused_in_a_sentence(layer, x, tmp_path):
    try:
        with pytest.raises(NotImplementedError, match=r"call it with dynamo=True, for which sstkern\.onnx makes ONNX's own of them$"):
            torch.onnx.export(layer.eval(), (x,), tmp_path / "layer.onnx", dynamo=False)
    finally:
        torch.set_autocast_cache_enabled(True)  # which the old exporter leaves off after an error
