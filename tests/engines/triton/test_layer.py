"""The kernels, interpreted, against the reference engine.

Schedules whose programs wait for each other run here with one program a task; test_exchange.py has several at once.
"""

from dataclasses import replace

import pytest
import torch
from layers import assert_close, gradients
from test_operators import Call
from torch.autograd import gradcheck

import sstkern
from sstkern import autograd, functional
from sstkern.cells import CELLS, register
from sstkern.engines import reference, triton_runs
from sstkern.engines.triton import launch, rows
from sstkern.engines.triton.cells import lstm
from sstkern.lengths import ALL_ROWS

SCHEDULES = launch.SCHEDULES
LENGTHS = {"full": None, "varied": [2, 0, 4], "empty": [0, 0, 0], "short": [1, 2, 2], "packed": [4, 2, 0]}
EVERY_CELL_AND_SCHEDULE = [("resident", cell) for cell in CELLS] + [(schedule, "lstm") for schedule in SCHEDULES[1:]]
VARIANTS = [(False, True, "full"), (True, True, "varied"), (True, False, "short"), (True, True, "packed")]
"""(bidirectional, bias, lengths)"""
PAIRS = [(schedule, cell, *VARIANTS[(i + j) % len(VARIANTS)]) for i, schedule in enumerate(SCHEDULES) for j, cell in enumerate(CELLS)]
"""Every two of schedule, cell and variant together."""


class Layer(Call):
    """One call of the operator, of odd sizes."""

    def __init__(self, *call, lengths="full", hidden_size=5, batch=3, dtype=torch.float64):
        super().__init__(*call, "full", dtype=dtype, hidden_size=hidden_size, batch=batch)
        self.lengths = None if LENGTHS[lengths] is None else torch.tensor((LENGTHS[lengths] * batch)[:batch])
        if lengths == "packed":
            self.lengths = self.lengths.sort(descending=True).values
            self.x = self._random(int(self.lengths.sum()), self.x.size(2), dtype=dtype)


def run(call: Layer, schedule: str | None = None) -> list[torch.Tensor]:
    """Results and gradients, of the schedule asked for and no other."""
    before = triton_runs()
    with sstkern.backend("triton", schedule):
        results = call.run()
        found = [*results, *gradients(list(results), call.inputs)]
    ran = {name for name in SCHEDULES if triton_runs().get(name, 0) > before.get(name, 0)}
    assert schedule is None or ran == {schedule}
    return found


def expected(call: Layer) -> list[torch.Tensor]:
    """The reference engine's results and gradients, in float64."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in call.inputs]
    cell, x, weights, hx, *options = call.arguments(inputs)
    output, hx_n = reference.layer(CELLS[cell], x, weights, hx, *options)
    return [output, *hx_n, *gradients([output, *hx_n], inputs)]


@pytest.mark.parametrize(("schedule", "cell", "bidirectional", "bias", "lengths"), PAIRS)
def test_every_schedule_computes_what_the_reference_does(schedule, cell, bidirectional, bias, lengths):
    call = Layer(cell, bidirectional, bias, False, lengths=lengths)
    assert_close(run(call, schedule), expected(call), 1e-12)


@pytest.mark.parametrize(("schedule", "cell"), EVERY_CELL_AND_SCHEDULE)
def test_gradients_of_every_input(schedule, cell):
    call = Layer(cell, False, True, False, hidden_size=2, batch=2, lengths="varied")
    before = triton_runs()
    with sstkern.backend("triton", schedule):
        assert gradcheck(call.run, call.inputs, fast_mode=True)
    after = triton_runs()
    assert after["backward"] > before.get("backward", 0)
    assert after[schedule] > before.get(schedule, 0)


@pytest.mark.parametrize(
    ("schedule", "bidirectional", "bias", "lengths"), [(schedule, *variant) for schedule, variant in zip(SCHEDULES, VARIANTS, strict=True)]
)
def test_a_projection_in_every_schedule(schedule, bidirectional, bias, lengths):
    call = Layer("lstm", bidirectional, bias, True, lengths=lengths)
    assert_close(run(call, schedule), expected(call), 1e-12)


def test_gradients_of_a_projection():
    call = Layer("lstm", True, True, True, hidden_size=3, batch=2, lengths="varied")
    with sstkern.backend("triton"):
        assert gradcheck(call.run, call.inputs, fast_mode=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_a_projection_in_lower_precision(dtype, tolerance):
    call = Layer("lstm", False, True, True, lengths="varied", dtype=dtype)
    for result, value in zip(run(call), expected(call), strict=True):
        assert result.dtype == dtype
        assert (result.double() - value).abs().max() <= tolerance * max(1, value.abs().max().item())


def test_a_projection_gives_only_the_gradients_that_are_needed():
    call = Layer("lstm", True, True, True)
    *arguments, needs, _ = call.backward_arguments()
    every = torch.ops.sstkern.layer_backward(*arguments, [True] * len(needs), None)
    some = [place % 3 == 1 for place in range(len(needs))]
    found = torch.ops.sstkern.layer_backward(*arguments, some, None)
    assert all(torch.equal(a, b) for a, b in zip(found, (g for g, need in zip(every, some, strict=True) if need), strict=True))


def test_weights_of_a_projection_have_a_gradient_for_each_share_of_the_batch():
    call = Layer("lstm", False, True, True, batch=4)
    *arguments, needs, _ = call.backward_arguments()
    whole = torch.ops.sstkern.layer_backward(*arguments, [True] * len(needs), None)
    halves = torch.ops.sstkern.layer_backward(*arguments, [True] * len(needs), 2)
    for of_halves, of_whole in zip(halves[1:-2], whole[1:-2], strict=True):
        assert of_halves.shape == (2, *of_whole.shape)
        torch.testing.assert_close(of_halves.sum(0), of_whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="groups: 3 do not share 4 sequences equally"):
        torch.ops.sstkern.layer_backward(*arguments, [True] * len(needs), 3)


def looked_at(gates_x, gates_h, states, parameters):
    assert gates_x.isfinite().all()
    return CELLS["lstm"].step(gates_x, gates_h, states, parameters)


def test_a_projection_of_what_is_no_program_is_left_to_the_reference_engine(monkeypatch: pytest.MonkeyPatch):
    cell = register(replace(CELLS["lstm"], name="looked_at", step=looked_at))
    monkeypatch.setitem(lstm.KERNELS, "looked_at", lstm.KERNELS["lstm"])
    shapes = cell.shapes(True, True, input_size=3, hidden_size=5, output_size=2)
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes.values()]
    before = triton_runs()
    functional.layer(cell, torch.randn(4, 2, 3), weights)[0].sum().backward()
    assert triton_runs() == before
    with (
        pytest.raises(RuntimeError, match="backend: 'triton' was asked for, but with a projection its step is no program: all mixes"),
        sstkern.backend("triton"),
    ):
        functional.layer(cell, torch.randn(4, 2, 3), weights)


def test_sizes_of_a_projection_are_checked():
    call = Layer("lstm", False, True, True)
    cell, x, weights, *rest = call.arguments(call.inputs)
    with pytest.raises(RuntimeError, match=r"sstkern::layer: expected weight_hr of shape \(\d, 5\), got \(\d, 4\)"):
        torch.ops.sstkern.layer(cell, x, [*weights[:-1], weights[-1][:, :4]], *rest, None)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
@pytest.mark.parametrize(("schedule", "cell"), EVERY_CELL_AND_SCHEDULE)
def test_lower_precision(schedule, cell, dtype, tolerance):
    call = Layer(cell, False, True, False, lengths="varied", dtype=dtype)
    results, exact = run(call, schedule), expected(call)
    assert all(result.dtype == dtype for result in results)
    for result, value in zip(results, exact, strict=True):
        assert (result.double() - value).abs().max() <= tolerance * max(1, value.abs().max().item())


@pytest.mark.parametrize(("cell", "gate"), [("lstm", 9), ("gru", 9), ("rnn_tanh", 4)])
def test_saturated_gates_keep_their_gradients_in_float16(cell, gate):
    """sigmoid(9) is 1 in float16, and 1 - 1 would leave nothing; the true slope is 1.2e-4, and comes out to the 3 digits that 9 has."""
    call = Layer(cell, False, False, False, dtype=torch.float16)
    with torch.no_grad():
        call.x.zero_()
        call.x[..., 0] = 1
        call.weights[0].zero_()
        call.weights[0][:, 0] = gate
        call.weights[1].zero_()
    of_x = len(call.hx) + 1
    found, exact = run(call)[of_x], expected(call)[of_x]
    assert exact.abs().max() > 1e-4
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=2e-6)


@pytest.mark.parametrize("schedule", ["resident", "streamed"])
def test_more_rows_than_a_tile(schedule):
    call = Layer("gru", True, True, False, batch=37, lengths="varied")
    assert_close(run(call, schedule), expected(call), 1e-12)


@pytest.mark.parametrize("lengths", ["full", "empty"])
@pytest.mark.parametrize("cell", CELLS)
def test_all_sequences_empty(cell, lengths):
    call = Layer(cell, True, True, False, lengths=lengths)
    if lengths == "full":
        call.x = call.x.detach()[:0].requires_grad_()
    assert_close(run(call), expected(call), 1e-12)


def test_no_sequence():
    call = Layer("lstm", True, True, False, batch=0)
    results = run(call)
    assert [tuple(result.shape) for result in results[:3]] == [(4, 0, 10), (2, 0, 5), (2, 0, 5)]
    assert all((gradient == 0).all() for gradient in results[3:])


def test_padding_is_never_read():
    call = Layer("lstm", True, True, False, lengths="varied")
    clean = run(call)
    with torch.no_grad():
        for b, length in enumerate(call.lengths.tolist()):
            call.x[length:, b] = float("nan")
    assert all(torch.equal(a, b) for a, b in zip(run(call), clean, strict=True))


def test_programs_that_the_interpreter_cannot_run_at_once():
    layer = sstkern.GRU(2, 20, dtype=torch.float64)
    with (
        pytest.raises(ValueError, match="'grid' cannot run this layer: its 2 programs have to run at once"),
        sstkern.backend("triton", "grid"),
    ):
        layer(torch.randn(2, 2, 2, dtype=torch.float64))


def test_bfloat16_is_left_to_the_reference_engine():
    layer, x = sstkern.GRU(2, 3, dtype=torch.bfloat16), torch.randn(2, 2, 2, dtype=torch.bfloat16)
    before = triton_runs()
    layer(x)
    assert triton_runs() == before
    with pytest.raises(RuntimeError, match="Triton's interpreter gets products in bfloat16 wrong"), sstkern.backend("triton"):
        layer(x)


def test_a_schedule_that_is_unknown_or_over():
    with (
        pytest.raises(ValueError, match="schedule: 'fast' is unknown; there are resident, grid, streamed, stepwise"),
        sstkern.backend("triton", "fast"),
    ):
        pass
    with sstkern.backend("triton", "grid"), sstkern.backend("triton"):
        assert launch.forced() is None
    assert launch.forced() is None
    with pytest.raises(RuntimeError, match="backend: 'cpu' cannot run here: TRITON_INTERPRET has"), sstkern.backend("cpu"):
        pass


def test_lengths_that_stay_on_the_gpu(monkeypatch: pytest.MonkeyPatch):
    call = Layer("gru", True, True, False, lengths="varied")
    with torch.no_grad():
        call.x[2:, 0] = float("nan")  # padding
    exact = expected(call)
    monkeypatch.setattr(rows, "of_lengths", lambda lengths, steps, device: rows.of_device_lengths(lengths, steps))
    monkeypatch.setattr(autograd, "saved_rows", lambda packed, lengths: ALL_ROWS)  # as for lengths on a GPU
    assert_close(run(call), exact, 1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_infinity_is_no_nan_for_the_padding_of_a_tile(schedule):
    call = Layer("rnn_relu", False, False, False, dtype=torch.float32)
    with torch.no_grad():
        call.x.fill_(1)
        for tensor in (*call.weights, *call.hx):
            tensor.fill_(1e30)
    output = run(call, schedule)[0]
    assert (output == float("inf")).any()
    assert not output.isnan().any()


def test_strided_results_in_the_backward():
    call = Layer("gru", True, True, False)
    *arguments, output, saved, grad_output, grad_hx, needs, _ = call.backward_arguments()

    def strided(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(2, -1)[..., ::2]

    exact = torch.ops.sstkern.layer_backward(*arguments, output, saved, grad_output, grad_hx, needs, None)
    odd = strided(output), [strided(kept) for kept in saved], strided(grad_output), [strided(gradient) for gradient in grad_hx]
    assert all(torch.equal(a, b) for a, b in zip(torch.ops.sstkern.layer_backward(*arguments, *odd, needs, None), exact, strict=True))


def test_lengths_are_checked_where_there_is_no_step():
    call = Layer("gru", False, True, False, lengths="varied")
    call.x = call.x.detach()[:0]
    with pytest.raises(ValueError, match=r"lengths\[0\] is 2; allowed are 0 to 0"):
        run(call)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_same_bits_twice(schedule):
    call = Layer("gru", True, True, False, lengths="varied", dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(run(call, schedule), run(call, schedule), strict=True))


def test_second_derivatives_follow_the_kernels_first():
    layer = sstkern.GRU(2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    before = triton_runs().get("backward", 0)
    (first,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    assert triton_runs()["backward"] == before + 1
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    with sstkern.backend("reference"):
        (first,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        (wanted,) = torch.autograd.grad(first.pow(2).sum(), x)
    torch.testing.assert_close(second, wanted, rtol=1e-12, atol=1e-12)
