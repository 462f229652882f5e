"""Cells that nobody wrote: a random one as a program is its own loop, forward and backward.

SSTKERN_RANDOM_CELLS=2000 tries that many new ones; without it the suite tries the same 25 each time.
"""

import os
from collections import Counter

import torch
from each_alone import assert_is_the_loop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_cells import TABLES, RandomCell, Recipe, Step, recipes

import sstkern

MANY = os.environ.get("SSTKERN_RANDOM_CELLS")


@settings(
    max_examples=int(MANY or 25),
    derandomize=MANY is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(recipes(), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_a_random_cell_is_its_loop(recipe: Recipe, lengths: list[int], reverse: bool, seed: int):
    torch.manual_seed(seed)
    layer = sstkern.fuse(RandomCell(recipe), returns="output_and_state", reverse=reverse, strict=True)
    x = torch.randn(3, len(lengths), recipe.input_size, dtype=torch.float64).clamp(-3, 3).requires_grad_()
    states = tuple((torch.rand(len(lengths), width, dtype=torch.float64) * 2 - 1).requires_grad_() for width in recipe.state_sizes)
    assert_is_the_loop(layer, x, states if len(states) > 1 else states[0], lengths, reverse, "output_and_state", every=not reverse)
    assert layer.fused, layer.reason


def test_a_recipe_is_carried_out():
    """The states swap places, and the output is a product of a part of their sum."""
    steps = (Step("add", (1, 2)), Step("slice", (3,), (1, 3)), Step("matmul", (4,), (1,)))
    cell = RandomCell(Recipe(2, (3, 3), steps, 5, (2, 1)))
    h, c = torch.randn(2, 4, 3, dtype=torch.float64)
    output, after = cell(torch.zeros(4, 2, dtype=torch.float64), (h, c))
    assert torch.equal(output, (h + c)[:, 1:] @ cell.own[2][0])
    assert after[0] is c
    assert after[1] is h


def test_recipes_have_everything():
    found: Counter[str] = Counter()

    @settings(max_examples=75, derandomize=True, database=None, deadline=None)
    @given(recipes())
    def look(recipe: Recipe) -> None:
        found.update(step.operation for step in recipe.steps)

    look()
    assert {"cat", "slice", "chunk 0", "chunk 1"} <= set(found)
    assert not [table.keys() for table in TABLES if len(found.keys() & table.keys()) <= len(table) / 3]
