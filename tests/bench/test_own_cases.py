"""Cases of own cells: their sizes, operations counted by hand, and numbers that are the same in every process."""

import pytest
import torch

from sstkern.bench import peers, ways
from sstkern.bench.own_cases import OwnCase, OwnProblem, evaluating, grid

NAME = "own_cells_to_time:"


def test_the_grid_is_every_combination_once():
    assert len(set(grid(["a:A", "b:B"]))) == 2 * 4 * 2
    assert grid(["a:A"], [(1, 2, 3)], ["training"], 7) == [OwnCase("a:A", 1, 2, 3, training=True, input_size=7)]


def test_what_a_case_says_of_itself():
    case = OwnCase("a:A", 2, 3, 4, training=True)
    assert (case.width, OwnCase("a:A", 2, 3, 4, input_size=7).width) == (4, 7)
    sizes = {"batch": 2, "steps": 3, "size": 4, "input_size": 4, "tokens": 6}
    assert case.as_row() == {"cell": "a:A", "phase": "training", "lengths": "full", "dtype": "float32", **sizes}
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        OwnCase("a:A", 2, 0, 4)


def test_the_products_of_every_step_are_counted():
    forward = 2 * 6 * (7 * 4 + 4 * 4)  # 6 tokens; weights of x and of h
    assert OwnCase(f"{NAME}Leaky", 2, 3, 4, input_size=7).flops == forward
    assert OwnCase(f"{NAME}Learned", 2, 3, 4, training=True, input_size=7).flops == 3 * forward
    assert OwnCase(f"{NAME}Default", 2, 3, 4, input_size=7).flops == forward


@pytest.mark.parametrize("cell", ["Stepped", "Broken", "no_cell", "missing"])
def test_what_is_no_program_has_no_count(cell: str):
    assert OwnCase(NAME + cell, 2, 3, 4).flops is None


def test_a_problem_has_the_same_numbers_each_time_and_touches_no_generator():
    before = torch.get_rng_state()
    one, two = (OwnProblem.of(OwnCase(f"{NAME}Leaky", 2, 3, 4, True, input_size=7), 1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.x, two.x)
    assert one.x.shape == (3, 2, 7)
    assert all(map(torch.equal, one.expected(), two.expected()))


def test_the_loop_is_stepped_and_differentiated():
    problem = OwnProblem.of(OwnCase(f"{NAME}Leaky", 2, 3, 4, True, input_size=7), 1)
    output, dx, *gradients = problem.expected()
    cell, x = problem.loop().cell, problem.x.clone().requires_grad_()
    h, outputs = torch.zeros(2, 4), []
    for row in x:
        h = cell(row, h)
        outputs.append(h)
    torch.stack(outputs).sum().backward()
    torch.testing.assert_close(output, torch.stack(outputs))
    torch.testing.assert_close(dx, x.grad)
    trained = [parameter for parameter in cell.parameters() if parameter.requires_grad]
    assert len(trained) == len(gradients) == 4  # the frozen one has none
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(parameter) if parameter is cell.unused else parameter.grad)


def test_inference_is_of_a_cell_that_does_not_train():
    assert not OwnCase(f"{NAME}Leaky", 2, 3, 4).make().training
    assert OwnCase(f"{NAME}Leaky", 2, 3, 4, training=True).make().training


@pytest.mark.parametrize(("cell", "training", "draws"), [("zoneout_gru", True, True), ("zoneout_gru", False, False), ("mgu", True, False)])
def test_a_cell_that_draws_is_timed_as_it_is_and_checked_in_evaluation_mode(cell: str, training: bool, draws: bool):
    problem = OwnProblem.of(OwnCase(cell, 8, 5, 16, training=training), 1)  # units enough for two masks to differ
    before = torch.get_rng_state()
    assert problem.draws == draws
    assert torch.equal(torch.get_rng_state(), before)
    for way in (problem.eager(), ways.ours(problem)):
        assert peers.difference(problem, way.results(), problem.expected()) < 1e-5
        first, second = (way.run()[0] for _ in range(2))
        assert torch.equal(first, second) != draws


def test_modes_are_as_they_were_after_evaluation():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False]
