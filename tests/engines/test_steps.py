"""Rows cut into time steps and put together again, under every transform and with derivatives of any order."""

import pytest
import torch
from linear import assert_linear, differentiate
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, jvp, vmap

from sstkern.engines.steps import cat, split

SIZES = [3, 2, 0, 1]


def scaled(rows: Tensor) -> Tensor:
    """A step each, its square times its number, the other way round."""
    return cat([(t + 1) * step.square() for t, step in enumerate(split(rows, SIZES))][::-1])


def expected(rows: Tensor) -> Tensor:
    return torch.cat([(t + 1) * step.square() for t, step in enumerate(rows.split(SIZES))][::-1])


def rows(*more: int) -> Tensor:
    return torch.randn(*more, sum(SIZES), 2, dtype=torch.float64)


def test_values_and_derivatives_are_pytorchs_own():
    x = rows()
    torch.testing.assert_close(scaled(x), expected(x), rtol=0, atol=0)
    assert torch.autograd.gradcheck(
        scaled, x.requires_grad_(), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(scaled, x, check_fwd_over_rev=True)
    for transform in (jacfwd, jacrev, lambda f: jacfwd(jacrev(f)), lambda f: jacrev(jacfwd(f)), lambda f: jacrev(jacrev(f))):
        torch.testing.assert_close(transform(scaled)(x), transform(expected)(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_over_each_dimension(dim):
    x = rows(5)
    found = vmap(scaled, dim, dim)(x.movedim(0, dim))
    torch.testing.assert_close(found.movedim(dim, 0), torch.stack([expected(part) for part in x]), rtol=0, atol=0)


def test_steps_without_the_dimension_of_vmap_and_without_a_tangent():
    x, other = rows(5), rows()
    found = vmap(lambda x: cat([x, other]))(x)
    assert torch.equal(found, torch.stack([torch.cat([part, other]) for part in x]))
    _, tangent = jvp(lambda x: cat([other, x]), (other,), (torch.ones_like(other),))
    assert torch.equal(tangent, torch.cat([torch.zeros_like(other), torch.ones_like(other)]))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(cat([other, forward_ad.make_dual(other, torch.ones_like(other))])).tangent
    assert torch.equal(tangent, torch.cat([torch.zeros_like(other), torch.ones_like(other)]))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_any_order_are_linear(order):
    def work(x: Tensor) -> None:
        differentiate(cat([step.sin() for step in split(x, [2] * (len(x) // 2))]).sum(), [x], order)

    assert_linear(work, lambda steps: torch.randn(2 * steps, 8, requires_grad=True))


def test_a_graph_has_pytorchs_own_operators():
    program = torch.export.export(_Module(), (rows(),))
    operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {torch.ops.aten.split_with_sizes.default, torch.ops.aten.cat.default} <= operators


class _Module(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(x)
