"""The cost model follows the launch table and what the kernels exchange, and the documentation shows what it prints."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu_model
from gpu_model import CARD, Layer

from sstkern.cells import CELLS
from sstkern.engines.triton import device, launch, layer

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"


@pytest.fixture
def launches() -> list[tuple[str, tuple[int, ...], dict]]:
    """Kernel, grid and arguments of every launch that a layer on meta tensors makes."""
    seen = []
    target = device.Device(CARD, "cuda", lambda kernel, grid, arguments, _: seen.append((kernel.__name__, grid, arguments)), lambda: True)
    device.compile_for(target)
    yield seen
    device.compile_for(None)


def run_on_meta(cell: str, batch: int, steps: int, hidden_size: int) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    gates = len(CELLS[cell].gates) * hidden_size
    weights = [empty(gates, hidden_size), empty(gates, hidden_size), empty(gates), empty(gates)]
    x, hx = empty(steps, batch, hidden_size), [empty(1, batch, hidden_size) for _ in CELLS[cell].states]
    call = (cell, x, weights, hx, None, True, False)
    output, hx_n, saved = layer.forward(*call, steps * batch)
    layer.backward(*call, output, saved, output, hx_n, [True] * (5 + len(hx)))


class TestExchange:
    @pytest.mark.parametrize(("cell", "hidden_size"), [("lstm", 2048), ("gru", 512), ("rnn_tanh", 1024)])
    def test_the_memory_it_takes_is_what_the_kernels_are_given(self, launches: list, cell: str, hidden_size: int):
        shape = Layer(cell, "bfloat16", 64, 3, hidden_size)
        run_on_meta(cell, 64, 3, hidden_size)
        for (name, _, arguments), tensor in zip(launches, ("exchange", "parts"), strict=True):
            expected = gpu_model.exchange(shape, shape.launch(name), name)
            assert expected.memory == arguments[tensor].nbytes

    def test_forward_every_program_stores_its_h_and_loads_all_of_it(self):
        shape = Layer("lstm", "bfloat16", 16, 3, 256)
        plan = launch.Launch("grid", block_h=16, block_b=16, block_k=128, chunks=2)
        handed = gpu_model.exchange(shape, plan, "forward")
        assert handed.program == 2 * 16 * (16 + 256)
        assert handed.launch == 16 * handed.program

    def test_backward_every_program_stores_parts_for_all_units_and_loads_those_of_its_own(self):
        shape = Layer("lstm", "bfloat16", 16, 3, 256)
        plan = launch.Launch("grid", block_h=16, block_b=16, block_k=128, chunks=2)
        handed = gpu_model.exchange(shape, plan, "backward")
        assert handed.program == 2 * 16 * (256 + 16 * 16)
        assert handed.launch == 16 * handed.program

    def test_one_program_exchanges_nothing(self):
        shape = Layer("lstm", "bfloat16", 16, 3, 64)
        assert gpu_model.exchange(shape, shape.launch("forward", "resident"), "forward").launch == 0


class TestPrediction:
    def test_a_barrier_binds_a_small_step(self):
        assert gpu_model.predict(Layer("lstm", "bfloat16", 1, 64, 512), "forward").binds == "wait"

    def test_weights_bind_a_streamed_step_of_few_rows(self):
        predicted = gpu_model.predict(Layer("lstm", "bfloat16", 1, 64, 2048), "forward", "streamed")
        assert predicted.binds == "weights"
        assert predicted.step["weights"] == 4 * 2048 * 2048 * 2 / gpu_model.L2

    def test_the_host_binds_small_steps_of_one_launch_each(self):
        predicted = gpu_model.predict(Layer("gru", "bfloat16", 1, 64, 64), "backward", "stepwise")
        assert predicted.binds == "launch"
        assert predicted.seconds >= 64 * gpu_model.HOST_STEP

    def test_the_products_outside_the_loop_can_bind(self):
        assert gpu_model.predict(Layer("rnn_tanh", "tf32", 256, 64, 512), "backward").binds == "outside"

    def test_a_step_is_what_it_waits_for_or_what_goes_on_beside_it(self):
        predicted = gpu_model.predict(Layer("gru", "float16", 64, 10, 512), "forward")
        in_turn = sum(seconds for name, seconds in predicted.step.items() if name not in ("memory", "launch"))
        outside = gpu_model._outside(Layer("gru", "float16", 64, 10, 512), "forward", gpu_model.TENSOR_16)
        assert predicted.seconds == pytest.approx(10 * max(in_turn, predicted.step["memory"]) + outside)

    def test_time_steps_follow_one_another(self):
        short = Layer("lstm", "bfloat16", 64, 64, 256)
        times = [gpu_model.predicted_ms("forward_backward", shape) for shape in (short, replace(short, steps=128))]
        assert times[1] == pytest.approx(2 * times[0], rel=0.01)

    def test_rounds_of_shorter_sequences_take_fewer_steps(self):
        shape = Layer("lstm", "bfloat16", 256, 8, 2048, tuple([8] * 65 + [5] * 60 + [2] * 131))
        plan = launch.Launch("streamed", block_h=16, block_b=64, block_k=64, chunks=32)  # 128 programs: one tile of rows at a time
        assert gpu_model._step_count(shape, plan) == 8 + 8 + 2 + 2
        assert gpu_model._step_count(replace(shape, lengths=None), plan) == 4 * 8


class TestCudnn:
    @pytest.mark.parametrize(
        ("cell", "dtype", "batch", "hidden_size", "direction", "algorithm"),
        [
            ("lstm", "bfloat16", 64, 128, "forward", "persistent, small"),
            ("lstm", "bfloat16", 64, 256, "forward", "standard"),
            ("lstm", "float16", 64, 256, "forward", "persistent"),
            ("lstm", "float16", 256, 256, "forward", "standard"),
            ("gru", "float16", 64, 256, "forward", "standard"),
            ("rnn_tanh", "float16", 16, 1024, "forward", "persistent"),
            ("rnn_tanh", "tf32", 64, 256, "backward", "persistent, small"),
            ("lstm", "float64", 64, 64, "forward", "standard"),
        ],
    )
    def test_pytorch_asks_for(self, cell: str, dtype: str, batch: int, hidden_size: int, direction: str, algorithm: str):
        assert gpu_model.cudnn_algorithm(Layer(cell, dtype, batch, 64, hidden_size), direction) == algorithm

    def test_different_lengths_are_always_standard(self):
        assert gpu_model.cudnn_algorithm(Layer("lstm", "float16", 64, 64, 64, (64,) * 64), "forward") == "standard"

    def test_no_ratio_where_nothing_is_known(self):
        assert gpu_model.predicted_ratio("forward", Layer("lstm", "bfloat16", 64, 64, 64)) is None
        assert gpu_model.predicted_ratio("forward", Layer("lstm", "bfloat16", 64, 64, 256)) > 0


class TestLengths:
    @pytest.mark.parametrize(("batch", "steps"), [(1, 64), (16, 64), (256, 512)])
    def test_they_are_allowed_and_the_longest_is_whole(self, batch: int, steps: int):
        lengths = gpu_model.sst2_lengths(batch, steps)
        assert len(lengths) == batch
        assert lengths == sorted(lengths)
        assert (lengths[0] >= 1, lengths[-1]) == (True, steps)

    def test_they_are_spread_like_the_sentences_of_sst2(self):
        lengths = gpu_model.sst2_lengths(1000, 4700)  # of at most 47 words, 19.5 on average
        assert sum(lengths) / 1000 == pytest.approx(1950, rel=0.05)
        assert lengths[499] == pytest.approx(1900, rel=0.01)


def test_the_documentation_shows_what_the_model_prints():
    """Where this fails after a change to the kernels or the launch table, run the command in docs/gpu.md and paste what it prints."""
    text = DOCS.read_text()
    shown = re.findall(r"```\n\$ python benchmarks/gpu_model.py --cell (\w+) --dtype (\w+) --steps (\d+)\n(.*?)```", text, re.DOTALL)
    assert shown
    for cell, dtype, steps, table in shown:
        assert table.strip() == gpu_model.table(cell, dtype, int(steps)).strip()
