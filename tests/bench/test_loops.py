"""What a loop over a cell begins with, and how it reads the cell's results."""

import own_cells_to_time as cells
import pytest
import torch

from sstkern.bench.loops import Loop, read_pair, read_state, unrolled


def test_it_begins_as_a_fused_layer_does():
    x = torch.randn(3, 2, 4)
    assert torch.equal(Loop(cells.Leaky(4, 5), x).first(), torch.zeros(2, 5))
    assert torch.equal(Loop(cells.Default(4, 5), x).first(), torch.ones(2, 5))
    assert Loop(cells.Stepped(4, 5), x).first() is None


def test_a_learned_first_state_has_its_gradient_and_others_are_new_each_time():
    cell = cells.Learned(4, 5)
    loop = Loop(cell, torch.randn(3, 2, 4))
    h, c = loop.first()
    (gradient,) = torch.autograd.grad(h.sum(), [cell.first])
    assert torch.equal(gradient, torch.full((5,), 2.0))
    assert not c.requires_grad
    assert h.is_contiguous()  # as scan asks
    with torch.no_grad():
        before, _ = loop.first()
        before.add_(1)  # as a cell may do that works in place
        assert torch.equal(loop.first()[0], cell.first.expand(2, -1))


@pytest.mark.parametrize(("cell", "read"), [(cells.Leaky, read_state), (cells.Learned, read_pair), (cells.Stepped, read_state)])
def test_results_are_a_state_or_an_output_and_a_state(cell: type, read):
    assert Loop(cell(4, 5), torch.randn(3, 2, 4)).read is read


def test_the_output_of_a_state_is_its_first_tensor():
    first, *rest = torch.randn(4, 2)
    assert read_state(((first, rest[0]), rest[1])) == (first, ((first, rest[0]), rest[1]))


@pytest.mark.parametrize("cell", [cells.Leaky, cells.Stepped])
def test_the_outputs_of_all_steps(cell: type):
    x, made = torch.randn(3, 2, 4), cell(4, 5)
    loop = Loop(made, x)
    found = unrolled(made, loop.read, x, loop.first())
    h = torch.zeros(2, 5) if cell is cells.Leaky else torch.ones(2, 5)
    for row, output in zip(x, found, strict=True):
        h = (0.5 if cell is cells.Leaky else 1) * h + torch.tanh(made.x(row) + made.h(h))
        torch.testing.assert_close(output, h)
