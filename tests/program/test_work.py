"""Operations of a program's products, counted by hand."""

import torch
from torch import Tensor, nn

from sstkern.program import work
from sstkern.program.layer import Programs, kinds


class Cell(nn.Module):
    """A product of x and h together, one of a product's result, and one of a state of several rows."""

    def __init__(self):
        super().__init__()
        self.both, self.again, self.inner = nn.Linear(3 + 5, 5), nn.Linear(5, 5), nn.Linear(2, 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, rows = state
        return torch.tanh(self.again(torch.tanh(self.both(torch.cat([x, h], 1))))), self.inner(rows)


def test_a_product_is_two_operations_for_each_multiplication():
    state = torch.zeros(1, 5), torch.zeros(1, 4, 2)
    captured = Programs().of_call(Cell(), torch.zeros(1, 3), state, 1, "auto")
    assert work.flops_of_products(captured.program, kinds(captured)) == 2 * ((3 + 5) * 5 + 5 * 5 + 4 * 2 * 2)
