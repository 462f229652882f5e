import pytest
import torch

from sstkern.engines.triton import rows
from sstkern.lengths import with_beginnings

LENGTHS = [3, 0, 4, 1, 4]
STEPS = 5
PACKED = [(t, b) for t in range(STEPS) for b in (2, 4, 0, 3, 1) if t < LENGTHS[b]]
"""(step, sequence) of every valid step, as PackedSequence orders them: the longest first."""


def pairs(found: rows.Rows) -> list[tuple[int, int]]:
    return list(zip(found.step.tolist(), found.sequence.tolist(), strict=True))


def test_lengths_on_the_cpu_give_the_valid_steps_alone():
    found = rows.of_lengths(torch.tensor(LENGTHS), STEPS, torch.device("cpu"))
    assert found.order.tolist() == [2, 4, 0, 3, 1]
    assert found.lengths.tolist() == [4, 4, 3, 1, 0]
    assert found.offsets.tolist() == [0, 4, 7, 10, 12]
    assert (found.count, found.present) == (12, None)
    assert pairs(found) == PACKED
    assert [found.place[step].tolist() for step in found.step.unique()] == [
        [PACKED.index((t, b)) if (t, b) in PACKED else found.place[t, b].item() for b in range(5)] for t in range(4)
    ]


def test_lengths_on_the_gpu_give_every_step_the_valid_ones_first():
    found = rows.of_device_lengths(torch.tensor(LENGTHS), STEPS)
    assert found.count == STEPS * len(LENGTHS)
    assert pairs(found)[:12] == PACKED
    assert found.present.flatten().tolist() == [True] * 12 + [False] * 13
    assert found.place.max() < found.count


@pytest.mark.parametrize(
    "found",
    [rows.of_lengths(torch.tensor(LENGTHS), STEPS, torch.device("cpu")), rows._recent(tuple(LENGTHS), STEPS, torch.device("cpu"), None)],
)
def test_the_steps_beside_a_row(found):
    for distance, (step, there) in ((-1, found.before), (1, found.after)):
        beside = [(t + distance, b) in PACKED for t, b in PACKED]
        assert there.flatten().tolist() == beside
        assert [s for s, is_there in zip(step.tolist(), beside, strict=True) if is_there] == [
            t + distance for (t, _), is_there in zip(PACKED, beside, strict=True) if is_there
        ]


def test_a_gather_takes_nothing_from_padding():
    found = rows.of_device_lengths(torch.tensor([1, 0]), 2)
    table = torch.tensor([[1.0, float("nan")], [float("nan")] * 2])[..., None]
    assert rows.gather(table, found, (found.step, found.sequence)).flatten().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("lengths", [[0, 6], [-1, 2]])
def test_lengths_out_of_range(lengths):
    with pytest.raises(ValueError, match="allowed are 0 to 5"):
        rows.of_lengths(torch.tensor(lengths), STEPS, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="lengths have to be from 0 to 5"):
        rows.of_device_lengths(torch.tensor(lengths), STEPS)


def test_marks_are_in_the_order_of_the_slots():
    marks = torch.rand(STEPS, len(LENGTHS)) < 0.5
    found, mine = rows.of_operator(with_beginnings(torch.tensor(LENGTHS), marks), STEPS, torch.device("cpu"))
    assert mine.dtype == torch.uint8
    assert mine.tolist() == marks[:, found.order.long()].int().tolist()
    whole, same = rows.of_operator(with_beginnings(None, marks), STEPS, torch.device("cpu"))
    assert whole is None
    assert same.tolist() == marks.int().tolist()
    assert rows.starting(mine, found).tolist() == [bool(marks[0, b]) and LENGTHS[b] > 0 for b in found.order.tolist()]
    with pytest.raises(RuntimeError, match="resets: expected 5 time steps, as x has, got 4"):
        rows.of_operator(with_beginnings(None, marks[1:]), STEPS, torch.device("cpu"))
