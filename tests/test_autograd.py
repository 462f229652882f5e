"""What eager autograd sees of a layer and of a cell: results that are nobody's views, tensors that were changed before the backward."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from layers import CELL_KINDS, ENGINES, as_hx, assert_close, flat
from torch import Tensor, nn

import sstkern

cells = pytest.mark.parametrize("kind", sorted(CELL_KINDS))


def cell_pair(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Our cell and torch.nn's, with the same weights."""
    ours, theirs, options = CELL_KINDS[kind]
    cell, other = ours(3, 5, dtype=dtype, **options), theirs(3, 5, dtype=dtype, **options)
    other.load_state_dict(cell.state_dict())
    return cell, other


def truncated(cell: nn.Module, x: Tensor, cut: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The last states, and the gradients of back-propagation through time that is cut after every other step."""
    hx = None
    for t, now in enumerate(x):
        hx = cell(now, hx)
        if t % 2:
            sum(state.square().sum() for state in flat(hx)).backward()
            hx = as_hx(tuple(cut(state) for state in flat(hx)))
    return [*flat(hx), *(parameter.grad for parameter in cell.parameters())]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["unbatched", "batched"])
@cells
def test_a_cells_states_are_detached_in_place(kind, batch, engine):
    torch.manual_seed(0)
    cell, other = cell_pair(kind)
    x = torch.randn(4, *batch, 3, dtype=torch.float64)
    with sstkern.backend(engine):
        found = truncated(cell, x, Tensor.detach_)
    assert_close(found, truncated(other, x, Tensor.detach), 1e-12)


WAYS = {
    "no_grad": lambda cell: torch.no_grad()(cell),
    "compiled": lambda cell: torch.compile(cell, backend="aot_eager"),
    "autocast": lambda cell: torch.autocast("cpu", torch.bfloat16)(cell),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["unbatched", "batched"])
@cells
def test_a_cells_states_are_no_views_whatever_the_way(kind, batch, way):
    cell, x = WAYS[way](cell_pair(kind, torch.float32)[0]), torch.randn(*batch, 3)
    for state in flat(cell(x, cell(x))):
        assert state.detach_().grad_fn is None


@cells
def test_a_cells_states_are_changed_in_place(kind):
    """What the backward reads is nobody's but ours."""
    torch.manual_seed(0)
    cell, other = cell_pair(kind)
    x = torch.randn(2, 3, dtype=torch.float64)
    changed = [state.mul_(3) for state in flat(cell(x, cell(x)))]
    expected = [state * 3 for state in flat(other(x, other(x)))]
    found = [torch.autograd.grad(sum(s.sum() for s in states), m.parameters()) for states, m in ((changed, cell), (expected, other))]
    assert_close(*map(list, found), 1e-12)


def change(what: str, layer: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> Tensor:
    """Runs the layer, and changes a tensor of the call in place; returns something to differentiate."""
    output, _ = layer(x, as_hx(states))
    with torch.no_grad() if what.startswith("weight") else nullcontext():
        {"input": x, "output": output, "initial h": states[0], "weight_hh": getattr(layer, "weight_hh_l0", None)}[what].mul_(2)
    return output


@pytest.mark.parametrize("what", ["input", "output", "initial h", "weight_hh"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", [sstkern.LSTM, sstkern.GRU])
def test_what_was_changed_before_the_backward_is_named(kind, recompute, autocast, what):
    layer = kind(3, 5, recompute=recompute)
    x, *states = (torch.ones(shape, requires_grad=True) * 1 for shape in ((4, 2, 3), *[(1, 2, 5)] * (1 + (kind is sstkern.LSTM))))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = change(what, layer, x, tuple(states))
    if recompute if what == "output" else autocast:  # nothing was saved, or a copy in another dtype
        output.sum().backward()
        return
    message = rf"sstkern: the {what} of a layer of '{layer.cell.name}' was changed in place .*, which reads it.*y = y \* 2.*is at version"
    with pytest.raises(RuntimeError, match=message):
        output.sum().backward()


def test_other_errors_of_a_backward_are_pytorchs():
    loss = sstkern.GRU(3, 5)(torch.ones(4, 2, 3))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"^Trying to backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("what", ["input", "initial h"])
def test_what_was_changed_after_a_step_is_named(what):
    x, h = torch.ones(2, 3), torch.ones(2, 5)
    stepped = sstkern.GRUCell(3, 5)(x, h)
    {"input": x, "initial h": h}[what].mul_(2)
    with pytest.raises(RuntimeError, match=f"sstkern: the {what} of a layer of 'gru' was changed in place"):
        stepped.sum().backward()


def test_a_residual_trains_out_of_place():
    """The remedies that the error names."""
    layer, first = sstkern.GRU(3, 3, batch_first=True), nn.Linear(3, 3)
    given, gradients = torch.randn(2, 5, 3), []
    for residual in (lambda x: x + layer(x)[0], lambda x: x.add_(layer(x.clone())[0])):
        gradients.append(torch.autograd.grad(residual(first(given)).square().sum(), first.weight)[0])
    torch.testing.assert_close(*gradients)
