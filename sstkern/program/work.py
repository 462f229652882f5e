"""How much a program computes."""

from __future__ import annotations

from sstkern.program.graph import Program, Value
from sstkern.program.language import PRODUCTS
from sstkern.program.shapes import Examples, Leaves, on_examples


def flops_of_products(program: Program, leaves: Leaves) -> int:
    """Operations of the matrix products of one step of one sequence: two for every multiplication. All else of a step is not counted."""
    count = 0
    with on_examples():
        found = Examples(leaves)
        for place, node in enumerate(program.nodes):
            value = Value("v", place)
            found.add(value, node)
            if node.operation in PRODUCTS:
                rows = found.of[node.values()[0]]
                count += 2 * rows[0].numel() * found.of[value].size(-1)
    return count
