"""In forward mode what is added to tensors with a tangent has one too: PyTorch is slow without."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import jvp, vmap

import sstkern
from sstkern.engines.tangents import with_tangents


def tensors() -> tuple:
    torch.manual_seed(0)
    return torch.randn(3, 2, 4), [torch.randn(5, 4), torch.randn(5)], [torch.randn(1, 2, 5)]


def has_tangent(tensor: torch.Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


def test_vectors_and_states_get_tangents_of_zeros():
    x, weights, hx = tensors()
    with forward_ad.dual_level():
        x = forward_ad.make_dual(x, torch.ones_like(x))
        (given,), (matrix, vector), (state,) = with_tangents([x], weights, hx)
        assert given is x
        assert matrix is weights[0]
        for before, after in ((weights[1], vector), (hx[0], state)):
            assert torch.equal(forward_ad.unpack_dual(after).primal, before)
            assert torch.equal(forward_ad.unpack_dual(after).tangent, torch.zeros_like(before))


def test_an_input_gets_one_where_weights_have_tangents():
    x, weights, hx = tensors()
    counts, length = torch.arange(3), torch.tensor([2, 3])
    with forward_ad.dual_level():
        weights[0] = forward_ad.make_dual(weights[0], torch.ones_like(weights[0]))
        found, _, _ = with_tangents([x, counts, length], weights, hx)
        assert [has_tangent(tensor) for tensor in found if tensor.is_floating_point()] == [True]
        assert found[1] is counts


def test_without_forward_mode_tensors_stay_as_they_are():
    x, weights, hx = tensors()
    assert with_tangents([x], weights, hx) == ([x], weights, hx)
    with forward_ad.dual_level():
        assert with_tangents([x], weights, hx) == ([x], weights, hx)


@pytest.mark.parametrize("argument", [0, 1, 2, 3])
def test_a_layer_s_tangent_is_that_of_its_tensors(argument):
    """Whichever tensor alone has one, also within vmap, where no tensor can be given one."""
    torch.manual_seed(0)
    layer = sstkern.GRU(4, 5, dtype=torch.float64)
    names = ["weight_hh_l0", "bias_hh_l0"]
    given = [torch.randn(3, 2, 4).double(), torch.randn(1, 2, 5).double(), *(getattr(layer, name).detach() for name in names)]

    def output(changed: torch.Tensor) -> torch.Tensor:
        x, h, *weights = [changed if place == argument else tensor for place, tensor in enumerate(given)]
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x, h))[0]

    tangent, eps = torch.randn_like(given[argument]), 1e-6
    differences = (output(given[argument] + eps * tangent) - output(given[argument] - eps * tangent)) / (2 * eps)
    _, found = jvp(output, (given[argument],), (tangent,))
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-8)
    _, inside = jvp(lambda changed: vmap(lambda _: output(changed))(torch.ones(2)), (given[argument],), (tangent,))
    torch.testing.assert_close(inside, torch.stack([found, found]), rtol=1e-12, atol=1e-12)
