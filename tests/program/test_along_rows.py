"""Sums, means, maxima and running sums along a row on the C++ engine: PyTorch's numbers at every width, and bits that rest on the width
alone."""

import math
from collections.abc import Callable

import pytest
import torch
from each_alone import assert_is_the_loop
from programs import captured
from torch import Tensor, nn

import sstkern
from sstkern.engines import cpu_runs, interpreting
from sstkern.program.cpp import code
from sstkern.program.derive import derive
from sstkern.program.engine import leaves_of_backward, wanted_sum
from sstkern.program.lower import AFTER, BEFORE, CORE, Lowered, Reduction, lowered

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs instead of the C++ engine")


class Along(nn.Module):
    """A step of one function of the input's row; a state of no use."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(x), h


def along(function: Callable[[Tensor], Tensor], *rows: Tensor) -> Tensor:
    """The function along some rows, which are the sequences of one step."""
    layer = sstkern.fuse(Along(function), returns="output_and_state", initial_state=1, strict=True)
    before = cpu_runs()["forward"]
    output, _ = layer(rows[0][None] if len(rows) == 1 else tuple(row[None] for row in rows))
    assert cpu_runs()["forward"] == before + 1
    return output[0]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda v: v.sum(1, keepdim=True),
    "mean": lambda v: v.mean(1, keepdim=True),
    "sum of products": lambda v: (v * v).sum(1, keepdim=True),
    "amax": lambda v: v.amax(1, keepdim=True),
    "min": lambda v: v.min(1, keepdim=True).values,
    "cumsum": lambda v: v.cumsum(1),
    "var": lambda v: v.var(1, keepdim=True),
    "softmax": lambda v: v.softmax(1),
    "logsumexp": lambda v: v.logsumexp(1, keepdim=True),
    "layer_norm": lambda v: nn.functional.layer_norm(v, v.shape[1:]),
}
WIDTHS = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 200, 511, 1030]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_width(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    for width in WIDTHS:
        v = torch.randn(5, width, dtype=dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(along(FUNCTIONS[name], v), FUNCTIONS[name](v), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", ["sum", "mean", "sum of products", "cumsum", "var", "softmax", "logsumexp", "layer_norm"])
def test_as_accurate_as_pytorch(name: str):
    """In float32, of numbers of one sign, whose sums round most. PyTorch sums a variance up in double."""
    torch.manual_seed(0)
    function, v = FUNCTIONS[name], torch.rand(64, 3000)
    exact = function(v.double())
    ours, theirs = ((found - exact).abs().mean() for found in (along(function, v), function(v)))
    assert ours <= (1.3 if name == "var" else 1.1) * theirs


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bits_of_a_run_are_its_own(name: str):
    """Whatever stands beside it: other rows, other runs of the same row."""
    torch.manual_seed(0)
    function, runs = FUNCTIONS[name], torch.randn(6, 37)
    alone = torch.cat([along(function, run[None]) for run in runs])
    assert torch.equal(along(function, runs), alone)
    beside = along(lambda v: torch.cat([function(part) for part in v.chunk(3, 1)], 1), runs.view(2, 3 * 37))
    assert torch.equal(beside.view(alone.shape), alone)


@pytest.mark.parametrize("width", [3, 8, 20])
def test_what_is_no_number(width: int):
    v = torch.randn(4, width)
    v[0, width // 2] = math.nan
    v[1, -1] = math.inf
    v[2] = -math.inf
    for function in (FUNCTIONS[name] for name in ("sum", "amax", "min", "cumsum", "softmax", "logsumexp")):
        torch.testing.assert_close(along(function, v), function(v), equal_nan=True)


EACH: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda v: v.sum(2, keepdim=True) * v,
    "sum over the first": lambda v: v.sum(1, keepdim=True) * v,
    "layer_norm": lambda v: nn.functional.layer_norm(v, v.shape[2:]),
    "softmax": lambda v: v.softmax(2) + v.softmax(1),
    "cumsum": lambda v: v.cumsum(2) * v.cumsum(1),
    "max": lambda v: v - v.max(2, keepdim=True).values + v.amax((1, 2), keepdim=True),
    "flattened": lambda v: v.sum(2, keepdim=True).flatten(1).unsqueeze(2) * v + v.amax((1, 2), keepdim=True).view(-1, 1, 1),
    "ties": lambda v: v.round().amax(2, keepdim=True) * v + v.round().max(1, keepdim=True).values,
    "seen as more sequences": lambda v: v.view(v.size(0) * 11, 3).softmax(-1).view_as(v) + v.view(-1, 11).sum(1).view(-1, 3, 1),
    "cosine_similarity": lambda v: v * nn.functional.cosine_similarity(v, v[:, :1] + 0.5, dim=2).unsqueeze(2),
    "of one": lambda v: v[:, :, :1].sum(2, keepdim=True) * v + v[:, :1].softmax(1),
}


@pytest.mark.parametrize("name", EACH)
def test_rows_of_two_dimensions(name: str):
    torch.manual_seed(0)

    class Cell(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(EACH[name](x + 0.5 * h))

    x, h = (torch.randn(*lead, 3, 11, dtype=torch.float64, requires_grad=True) for lead in ((4, 3), (3,)))
    assert_is_the_loop(sstkern.fuse(Cell(), strict=True), x, h, [4, 0, 2])


def test_of_the_input_before_the_loop_and_of_the_output_after_it():
    program, leaves = captured("LayerNormLSTM", 3, 5)
    found = lowered(program, leaves, program.outputs)
    assert [one.operation for one in _reductions(found, BEFORE)] == ["sum"] * 2
    in_loop = [(one.groups, one.width, len(one.sources)) for one in _reductions(found, CORE)]
    assert in_loop == [(1, 20, 1), (1, 20, 2), (1, 5, 1), (1, 5, 2)]
    assert {one.divisor for one in _reductions(found, CORE)} == {20, 5}
    derivative = derive(program, leaves)
    back = lowered(derivative.backward, leaves_of_backward(program, leaves, derivative), derivative.backward.outputs)
    assert [len([*_reductions(back, phase)]) for phase in (BEFORE, CORE, AFTER)] == [0, 4, 2]
    assert not any(stage.moves for stages in back.phases for stage in stages)


def _reductions(found: Lowered, phase: int) -> list[Reduction]:
    return [reduction for stage in found.phases[phase] for reduction in stage.reductions]


def test_another_width_has_the_same_code():
    """And compiles nothing."""
    texts = {code(lowered(program, leaves, program.outputs)).text for program, leaves in (captured("LayerNormLSTM", 3, h) for h in (5, 9))}
    assert len(texts) == 1


def test_what_only_the_gradients_of_gains_need_is_not_kept_for_all_time_steps():
    """It is computed after the loop, for some rows at once. Kept are the gradients of the gates and of both products."""
    program, leaves = captured("LayerNormLSTM", 3, 5)
    derivative = derive(program, leaves)
    backward, sums = derivative.backward, tuple(wanted_sum(derivative, part) for part in derivative.sums)
    found = lowered(backward, leaves_of_backward(program, leaves, derivative), backward.outputs[:1], sums)
    assert sum(slot.kind == "r" and slot.width == 20 for slot in found.slots) == 3
    gains = [found.slots[part.left] for part in found.sums if part.right.slot < 0]
    assert sorted((slot.kind, slot.width) for slot in gains) == [("l", 5), ("l", 20), ("l", 20), ("r", 5), ("r", 20), ("r", 20)]


def test_what_is_kept_has_one_place():
    """A result that is saved for the backward is put there once, and read there."""
    program, leaves = captured("LayerNormLSTM", 3, 5)
    kept = derive(program, leaves).kept
    found = lowered(program, leaves, (*program.outputs, *kept))
    stored = [window for stages in found.phases for stage in stages for loop in stage.loops for window, _ in loop.stores]
    assert not any(slot.kind == "r" and slot.width > 1 for slot in found.slots)
    twice = {window.base for window in stored if stored.count(window) > 1}
    assert twice == {*program.outputs, *program.next_states}
