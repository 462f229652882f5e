import pytest
import torch
from torch import Tensor

from sstkern.engines.loop import MaskedStates, PackedStates, recurrence

LENGTHS = [4, 2, 1, 0]
SIZES = [3, 2, 1, 1]


def step(rows, states):
    """A state of a vector and one of a matrix, of two inputs; the results: an output of other shape, and the states."""
    x, score = rows
    h, memory = states
    h = torch.tanh(x + h) * score[:, None]
    memory = 0.5 * memory + h[:, :, None] * x[:, None, :]
    return (memory.sum(1), h, memory), (h, memory)


def by_hand(x: Tensor, score: Tensor, first: tuple, reverse: bool) -> tuple[list[Tensor], tuple]:
    """Each sequence alone: its results, zero past its length, and its last states."""
    steps, finals = [[torch.zeros(len(LENGTHS), *shape, dtype=x.dtype) for _ in range(4)] for shape in ((2,), (2,), (2, 2))], []
    for b, length in enumerate(LENGTHS):
        states = tuple(state[b : b + 1] for state in first)
        for t in reversed(range(length)) if reverse else range(length):
            results, states = step((x[t, b : b + 1], score[t, b : b + 1]), states)
            for kept, result in zip(steps, results, strict=True):
                kept[t] = kept[t].index_copy(0, torch.tensor([b]), result)
        finals.append(states)
    return [torch.stack(kept) for kept in steps], tuple(map(torch.cat, zip(*finals, strict=True)))


@pytest.fixture
def given() -> tuple:
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "requires_grad": True}
    return torch.randn(4, 4, 2, **options), torch.rand(4, 4, **options), torch.randn(4, 2, **options), torch.randn(4, 2, 2, **options)


def valid() -> Tensor:
    return torch.arange(4)[:, None] < torch.tensor(LENGTHS)


def run(form: str, x: Tensor, score: Tensor, first: tuple, reverse: bool) -> list[Tensor]:
    if form == "masked":
        states = MaskedStates(first, valid())
        results = recurrence(step, (x.flatten(0, 1), score.flatten()), states, reverse)
        return [*(result.unflatten(0, (4, 4)) for result in results), *states.last()]
    states = PackedStates(first, SIZES, reverse)
    results = recurrence(step, (x[valid()], score[valid()]), states, reverse)
    padded = [torch.zeros(4, 4, *result.shape[1:], dtype=x.dtype).index_put((valid(),), result) for result in results]
    return [*padded, *states.last()]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_each_sequence_is_itself_alone(form, reverse, given):
    x, score, *first = given
    found = run(form, x, score, tuple(first), reverse)
    results, finals = by_hand(x, score, tuple(first), reverse)
    weights = [torch.randn_like(value) for value in found]
    torch.testing.assert_close(found, [*results, *finals])
    gradients = [torch.autograd.grad(values, given, weights) for values in (found, [*results, *finals])]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [3, 0])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_no_step_has_results_of_a_step_s_shape_that_belong_to_its_graph(form, batch, reverse):
    first = torch.ones(batch, 5, requires_grad=True), torch.ones(batch, 2, 3)
    weight = torch.ones(4, 7, requires_grad=True)

    def projected(rows, states):
        return (rows @ weight, states[1]), states

    states = MaskedStates(first, torch.ones(0, batch, dtype=torch.bool)) if form == "masked" else PackedStates(first, [], reverse)
    output, every = recurrence(projected, torch.ones(0, 4), states, reverse)
    assert output.shape == (0, 7)
    assert every.shape == (0, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(states.last(), first, strict=True))
    assert torch.equal(torch.autograd.grad(output.sum(), weight)[0], torch.zeros(4, 7))


def test_sequences_that_are_over_are_not_stepped():
    rows_of_steps = []

    def counting(rows, states):
        rows_of_steps.append(len(rows))
        assert len(states[0]) == len(rows)
        return (rows,), (states[0] + rows,)

    for reverse, expected in ((False, SIZES), (True, SIZES[::-1])):
        rows_of_steps.clear()
        states = PackedStates((torch.zeros(4, 1),), SIZES, reverse)
        recurrence(counting, torch.ones(7, 1), states, reverse)
        assert rows_of_steps == expected
        assert states.last()[0].flatten().tolist() == LENGTHS
