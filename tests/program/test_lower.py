"""Programs as stages of products and loops over units: what runs where, what is attached to what, and where everything lies."""

import pytest
import torch
from programs import EXAMPLES, captured, kinds_of

from sstkern.program.derive import derive
from sstkern.program.engine import leaves_of_backward
from sstkern.program.graph import Builder
from sstkern.program.lower import AFTER, BEFORE, CORE, MOST_PRODUCTS, Loop, Lowered, Stage, lowered
from sstkern.program.shapes import Kind, Leaves
from sstkern.program.values import Value
from sstkern.program.windows import NotLowered

INPUT, HIDDEN = 3, 5


def forward(name: str) -> Lowered:
    program, leaves = captured(name, INPUT, HIDDEN)
    return lowered(program, leaves, program.outputs)


def backward(name: str) -> Lowered:
    program, leaves = captured(name, INPUT, HIDDEN)
    derivative = derive(program, leaves)
    return lowered(derivative.backward, leaves_of_backward(program, leaves, derivative), derivative.backward.outputs)


def shape_of(found: Lowered, loop: Loop) -> tuple[int, list[tuple[int, int, str, bool]]]:
    """A loop's width, and for each attached product: gates, depth, what its operand is, whether it is made ahead."""
    of = [(part.gates, part.product.depth, found.slots[part.product.operand.slot].kind, part.ahead) for part in loop.attached]
    return loop.width, of


def shapes(found: Lowered, phase: int) -> list[list[tuple[int, list]]]:
    """The shapes of the loops of each stage."""
    return [[shape_of(found, loop) for loop in stage.loops] for stage in found.phases[phase]]


ONE_STAGE = {"LSTMCell": 4, "GRUCell": 3, "RNNCell": 1, "KerasLSTM": 4}


@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_stage(name: str):
    """All gates are attached to the one loop; the product of x is made for many time steps ahead."""
    found, gates = forward(name), ONE_STAGE[name]
    assert shapes(found, BEFORE) == shapes(found, AFTER) == []
    ((width, attached),) = shapes(found, CORE)[0]
    assert (width, sorted(attached)) == (HIDDEN, [(gates, INPUT, "x", True), (gates, HIDDEN, "h", False)])
    assert not any(stage.plain or stage.moves for stage in found.phases[CORE])
    (loop,) = found.phases[CORE][0].loops
    states = 2 if "LSTM" in name else 1
    assert sorted(found.slots[memory.slot].kind for _, memory in loop.stores) == ["n"] * states + ["o"]


TWO_STAGES = {
    "ChoGRU": [[(2, INPUT, "x", True), (2, HIDDEN, "h", False)], [(2, INPUT, "x", True), (1, INPUT, "x", True), (1, HIDDEN, "l", False)]],
    "MGU": [[(1, INPUT, "x", True), (1, HIDDEN, "h", False)], [(1, INPUT, "x", True), (1, HIDDEN, "l", False)]],
    "MultiplicativeLSTM": [[(1, INPUT, "x", True), (1, HIDDEN, "h", False)], [(4, INPUT, "x", True), (4, HIDDEN, "l", False)]],
}


@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stages(name: str):
    """The second reads what the first has put to memory, rows of one time step."""
    found = forward(name)
    assert shapes(found, CORE) == [[(HIDDEN, attached)] for attached in TWO_STAGES[name]]


def test_a_projection_is_a_stage_of_its_own():
    found = forward("ProjectedLSTM")
    first, product, copy = found.phases[CORE]
    assert shape_of(found, first.loops[0]) == (HIDDEN, [(4, INPUT, "x", True), (4, 2, "h", False)])
    ((plain,), moves, loops) = product.plain, product.moves, product.loops
    assert (plain.product.depth, plain.product.columns, moves, loops) == (HIDDEN, 2, [], [])
    assert copy.loops[0].windows == []  # the state is the output, once more
    assert [found.slots[plain.target.slot].kind] + [found.slots[memory.slot].kind for _, memory in copy.loops[0].stores] == ["o", "n"]


def test_a_product_of_the_input_alone_leaves_nothing_but_units():
    found = forward("IndRNN")
    assert shapes(found, CORE) == [[(HIDDEN, [(1, INPUT, "x", True)])]]
    assert shapes(found, BEFORE) == shapes(found, AFTER) == []


def test_the_derivative_of_an_lstm():
    """The gradients of the gates are kept for all time steps: the loop multiplies them with W_hh, and x's come after it."""
    found = backward("LSTMCell")
    first, second = found.phases[CORE]
    assert [loop.width for loop in first.loops] == [HIDDEN, INPUT]
    assert not any(loop.attached for loop in first.loops)
    (of_states,), (of_inputs,) = second.plain, found.phases[AFTER][0].plain
    gates = of_states.product.operand
    assert found.slots[gates.slot][0::2] == ("o", 4 * HIDDEN)
    assert of_inputs.product.operand == gates
    assert [(p.product.depth, p.product.columns, p.product.transposed) for p in (of_states, of_inputs)] == [
        (4 * HIDDEN, HIDDEN, True),
        (4 * HIDDEN, INPUT, True),
    ]
    assert found.slots[of_states.target.slot].kind == "n"
    assert found.slots[of_inputs.target.slot].kind == "o"


def own(step, inputs: list[int], states: list[int], parameters: list[tuple[int, ...]]) -> Lowered:
    """Of a program of rows of these widths. step: of the builder and all leaves to the output and the next states."""
    build = Builder()
    leaves = [build.input(1) for _ in inputs], [build.state(1) for _ in states], [build.parameter(len(shape)) for shape in parameters]
    output, after = step(build.node, *leaves[0], *leaves[1], *leaves[2])
    program = build.program([output], after)
    rows = [tuple(Kind((width,), torch.float64) for width in part) for part in (inputs, states)]
    kinds = Leaves(*rows, tuple(Kind(shape, torch.float64) for shape in parameters), ())
    return lowered(program, kinds, program.outputs)


def test_a_product_of_input_and_state_side_by_side():
    """W [x, h]: both lie in one row of a time step before it."""
    new = lambda do, x, h, w: do("tanh", do("product", do("cat", x, h, attributes=(-1,)), w))  # noqa: E731
    found = own(lambda do, *leaves: (new(do, *leaves), [new(do, *leaves)]), [INPUT], [HIDDEN], [(HIDDEN, INPUT + HIDDEN)])
    first, second = found.phases[CORE]
    joined = {(window.base, memory.start, loop.width) for loop in first.loops for window, memory in loop.stores}
    assert joined == {(Value("x", 0), 0, INPUT), (Value("h", 0), INPUT, HIDDEN)}
    assert shape_of(found, second.loops[0]) == (HIDDEN, [(1, INPUT + HIDDEN, "l", False)])
    (slot,) = {memory.slot for loop in first.loops for _, memory in loop.stores}
    assert found.slots[slot][:3] == ("l", 0, INPUT + HIDDEN)


def test_what_only_an_output_needs_comes_after_the_loop():
    """A product for all rows at once, and what is computed with it: also a state before its step, which is kept for it."""
    found = own(
        lambda do, x, h, w: (do("add", do("product", do("tanh", h), w), h), [do("add", h, x)]), [HIDDEN], [HIDDEN], [(HIDDEN, HIDDEN)]
    )
    (after,) = found.phases[AFTER]
    (loop,) = after.loops
    assert shape_of(found, loop) == (HIDDEN, [(1, HIDDEN, "r", False)])
    assert found.slots[found.read_by(loop, Value("h", 0)).slot].kind == "r"
    core = found.phases[CORE][0].loops[0]
    assert found.slots[found.read_by(core, Value("h", 0)).slot].kind == "h"
    assert found.read_by(loop, Value("h", 0)) in [memory for _, memory in core.stores]


def test_what_no_state_has_a_part_in_comes_before_the_loop():
    """Only if a product needs it: what is computed unit by unit is in registers in the loop."""
    found = own(
        lambda do, x, h, w: (do("add", do("product", do("tanh", x), w), do("sigmoid", x)), [do("add", do("product", do("tanh", x), w), h)]),
        [HIDDEN],
        [HIDDEN],
        [(HIDDEN, HIDDEN)],
    )
    (before,) = found.phases[BEFORE]
    assert [window.base for loop in before.loops for window in loop.windows] == [Value("v", 0)]
    (core,) = found.phases[CORE]
    assert shape_of(found, core.loops[0]) == (HIDDEN, [(1, HIDDEN, "r", True)])


def test_more_products_than_a_loop_can_have():
    """Those that are too many are put to memory before."""
    count = MOST_PRODUCTS + 2

    def step(do, x, h, *weights):
        total = do("product", h, weights[0])
        for weight in weights[1:]:
            total = do("add", total, do("product", h, weight))
        return total, [do("tanh", total)]

    found = own(step, [INPUT], [HIDDEN], [(HIDDEN, HIDDEN)] * count)
    stages = found.phases[CORE]
    assert [len(loop.attached) for stage in stages for loop in stage.loops] == [MOST_PRODUCTS]
    assert sum(len(stage.plain) for stage in stages) == 2
    assert len(found.weights) == count


def test_a_weight_that_two_products_share_is_one():
    found = own(lambda do, x, h, w: (do("product", x, w), [do("tanh", do("product", h, w))]), [HIDDEN], [HIDDEN], [(HIDDEN, HIDDEN)])
    assert found.weights == [Value("p", 0)]


def test_what_follows_from_parameters_only_is_computed_once_a_call():
    found = own(lambda do, x, h, u: (h, [do("add", do("mul", h, do("tanh", u)), x)]), [HIDDEN], [HIDDEN], [(HIDDEN,)])
    assert len(found.fixed) == 1


@pytest.mark.parametrize("name", ["LSTMCell", "SRU", "GRUD", "Heads", "LMU", "NASCell", "SharedHeads", "ProjectedLSTM"])
def test_every_loop_reads_and_writes_within_its_rows(name: str):
    for found in (forward(name), backward(name)):
        for phase, stages in enumerate(found.phases):
            for stage in stages:
                assert_within(found, stage, phase)


def assert_within(found: Lowered, stage: Stage, phase: int) -> None:
    def row(slot: int, start: int, width: int) -> None:
        kind = found.slots[slot].kind
        assert 0 <= start
        assert start + width <= found.slots[slot].width
        assert phase == CORE or kind in "xorl"

    for plain in stage.plain:
        row(plain.product.operand.slot, plain.product.operand.start, plain.product.rows * plain.product.depth)
        row(plain.target.slot, plain.target.start, plain.product.rows * plain.product.columns)
    for move in stage.moves:
        row(*move.target, len(move.places))
        for memory, width in move.sources:
            row(*memory, width)
        total = sum(width for _, width in move.sources)
        assert all(0 <= place < total for places in move.places for place in places)
    for loop in stage.loops:
        for part in loop.attached:
            row(part.product.operand.slot, part.product.operand.start, part.product.depth)
            assert part.gates * loop.width == part.product.columns
        for window, memory in loop.stores:
            assert window.width == loop.width
            row(*memory, window.width)


def test_a_result_without_rows_is_not_lowered():
    with pytest.raises(NotLowered, match="a result of its step is the same for all rows"):
        own(lambda do, x, h, u: (do("tanh", u), [do("add", h, x)]), [HIDDEN], [HIDDEN], [(HIDDEN,)])


def test_a_program_is_lowered_once():
    example = EXAMPLES["lstm"]()
    kinds = kinds_of(example)
    assert lowered(example.program, kinds, example.program.outputs) is lowered(EXAMPLES["lstm"]().program, kinds, example.program.outputs)
