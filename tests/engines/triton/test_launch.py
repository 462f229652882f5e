import dataclasses

import pytest
import torch

from sstkern.engines.triton import launch
from sstkern.engines.triton.launch import Card, Layer

H100 = Card(multiprocessors=132, shared_memory=232448, wgmma=True)
A100 = Card(multiprocessors=108, shared_memory=166912)


def lstm(hidden_size: int, batch: int = 64, dtype: torch.dtype = torch.bfloat16, precision: str = "ieee", gates: int = 4, **more) -> Layer:
    return Layer(dtype, precision, gates, batch, hidden_size, **more)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("layer", "schedule"),
    [
        (lstm(64), "resident"),
        (lstm(65), "grid"),
        (lstm(256, gates=1), "resident"),
        (lstm(257, gates=1), "grid"),
        (lstm(1024), "grid"),
        (lstm(2048), "streamed"),
        (lstm(4096), "stepwise"),
        (lstm(64, dtype=torch.float32, precision="tf32"), "resident"),
        (lstm(512, dtype=torch.float32, precision="tf32"), "grid"),
        (lstm(512, dtype=torch.float32, precision="tf32x3"), "streamed"),
        (lstm(256, dtype=torch.float64), "streamed"),
    ],
)
def test_the_table_on_an_h100(layer, schedule, backward):
    assert launch.choose(H100, layer, backward).schedule == schedule


def test_weights_in_registers_leave_room_for_little():
    assert launch.choose(A100, lstm(16), False).schedule == "resident"
    assert launch.choose(A100, lstm(64), False).schedule == "grid"
    assert launch.choose(A100, lstm(256), False).schedule == "streamed"


def test_a_triton_that_cannot_compile_the_float64_backward():
    old = dataclasses.replace(H100, float64_backward=())
    layer = lstm(64, dtype=torch.float64)
    assert [launch.choose(old, layer, backward).schedule for backward in (False, True)] == ["streamed", "stepwise"]
    rnn = dataclasses.replace(layer, gates=1)
    assert [launch.choose(H100, rnn, backward).schedule for backward in (False, True)] == ["streamed", "stepwise"]


@pytest.mark.parametrize(("batch", "rows"), [(1, 16), (64, 16), (65, 32), (129, 64), (5000, 64)])
def test_tiles_of_the_batch_are_as_small_as_run_at_once(batch, rows):
    plan = launch.choose(H100, lstm(512, batch), False)
    assert (plan.programs(512), plan.block_b) == (32, rows)


@pytest.mark.parametrize("hidden_size", [1, 5, 64, 100, 1000, 1024, 2000])
@pytest.mark.parametrize("gates", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backward", [False, True])
def test_tiles_cover_every_unit(hidden_size, gates, dtype, backward):
    for schedule in launch.SCHEDULES:
        try:
            plan = launch.choose(H100, Layer(dtype, "ieee", gates, 3, hidden_size), backward, schedule)
        except ValueError:
            continue
        assert plan.programs(hidden_size) * plan.block_h >= hidden_size
        if schedule == "resident":
            assert plan.programs(hidden_size) == 1
        if schedule != "stepwise":
            assert plan.chunks * plan.block_k >= plan.programs(hidden_size) * plan.block_h


@pytest.mark.parametrize(
    ("schedule", "layer", "reason"),
    [
        ("resident", lstm(256), "it keeps 524288 bytes of weights in a program, and this GPU has room for 139468"),
        ("grid", lstm(2048), "it keeps 262144 bytes"),
        ("streamed", lstm(4096), "its 256 programs have to run at once, on 132 multiprocessors"),
    ],
)
def test_a_forced_schedule_that_cannot_run_says_why(schedule, layer, reason):
    with pytest.raises(ValueError, match=f"schedule: '{schedule}' cannot run this layer: {reason}"):
        launch.choose(H100, layer, False, schedule)


def step(units: int, gates: int = 4, depth: int | None = None, dtype: torch.dtype = torch.bfloat16, live: int = 6, **more) -> launch.Step:
    """A program's, of one stage with one product."""
    part = launch.Part(units, gates, (units if depth is None else depth,), live=live)
    return launch.Step(dtype, more.pop("precision", "ieee"), 64, (part,), True, **more)


@pytest.mark.parametrize(
    ("given", "schedule", "programs"),
    [
        (step(64), "resident", 1),
        (step(65), "grid", 5),
        (step(256), "grid", 16),
        (step(256, gates=1, depth=1024), "grid", 8),
        (step(64, live=40), "grid", 4),  # no room for its tiles in one program
        (step(1024, dtype=torch.float32, precision="tf32x3"), "streamed", 128),
        (step(4096), "stepwise", 512),
    ],
)
def test_the_table_of_programs_on_an_h100(given, schedule, programs):
    found = launch.choose_step(H100, given)
    assert (found.schedule, found.programs) == (schedule, programs)
    assert all(
        size * count >= depth
        for part, depths in zip(given.parts, found.depths, strict=True)
        for depth, (size, count) in zip(part.depths, depths, strict=True)
    )
    assert found.programs * found.blocks[0] >= given.parts[0].units


def test_what_a_program_needs_is_said_where_a_schedule_lacks_it():
    with pytest.raises(ValueError, match="schedule: 'grid' cannot run this program: its 256 programs have to run at once, on 132 multi"):
        launch.choose_step(H100, step(4096), "grid")
    with pytest.raises(ValueError, match="schedule: 'resident' cannot run this program: it keeps 262144 bytes of weights in a program"):
        launch.choose_step(H100, step(64, gates=1, depth=2048), "resident")
    with pytest.raises(ValueError, match="a cumulative sum has 5000 numbers, and one program has room for 4096"):
        launch.choose_step(H100, launch.Step(torch.float32, "ieee", 1, (launch.Part(1, row=5000),), True), "stepwise")


def test_units_that_need_no_others_wait_for_none():
    alone = launch.Step(torch.float32, "ieee", 64, (launch.Part(4096, live=6),), False)
    found = launch.choose_step(H100, alone)
    assert (found.schedule, found.programs) == ("resident", 64)
    assert not found.exchanges


def test_where_registers_spill_other_tiles_of_the_same_schedule_are_tried():
    asked: list[launch.StepLaunch] = []

    def stack(of: dict[tuple[int, int], int]):
        """By programs and warps; 100 bytes of what is not named."""
        asked.clear()
        return lambda plan: (asked.append(plan), of.get((plan.programs, plan.num_warps), 100))[1]

    given = step(256)
    first = launch.choose_step(H100, given)
    assert (first.schedule, first.programs, first.num_warps) == ("grid", 16, 4)
    assert launch.with_least_stack(first, H100, given, stack({(16, 4): launch.SPILLED})) is first
    assert len(asked) == 1
    found = launch.with_least_stack(first, H100, given, stack({(32, 8): 0}))
    assert (found.schedule, found.programs, found.num_warps) == ("grid", 32, 8)
    assert [(plan.programs, plan.num_warps) for plan in asked] == [(16, 4), (16, 8), (32, 8)]
    found = launch.with_least_stack(first, H100, given, stack({(64, 4): 40, (64, 8): 60}))
    assert (found.programs, found.num_warps) == (64, 4)
    assert {plan.schedule for plan in asked} == {"grid"}
