"""Rows as windows of what is computed: each is where its numbers come from."""

from collections.abc import Callable

import pytest
import torch
from programs import EXAMPLES, kinds_of

from sstkern.program.graph import Builder
from sstkern.program.shapes import Kind, Leaves
from sstkern.program.values import Value
from sstkern.program.windows import NotLowered, Values, Window

X, H, P, V = (lambda place, kind=kind: Value(kind, place) for kind in "xhpv")


def values_of(step: Callable[[Builder, Value, Value], Value], x: Kind, h: Kind) -> tuple[Values, Value]:
    """Of a program with one input and one state, whose output is what `step` makes of them; and that output."""
    build = Builder()
    inputs, states = build.input(len(x.shape)), build.state(len(h.shape))
    output = step(build, inputs, states)
    values = Values(build.program([output], [states]), Leaves((x,), (h,), (), ()))
    values.find_cuts([V(place) for place in range(len(build.nodes))])
    return values, output


def of_shape(*shape: int, dtype: torch.dtype = torch.float64) -> Kind:
    return Kind(shape, dtype)


def test_the_gates_of_an_lstm_cut_its_sums():
    example = EXAMPLES["lstm"]()
    values = Values(example.program, kinds_of(example))
    values.find_cuts([V(place) for place in range(len(example.program.nodes))])
    sums = next(V(place) for place, node in enumerate(example.program.nodes) if node.operation == "product")
    assert values.windows(sums) == [(start, Window(sums, start, 4)) for start in (0, 4, 8, 12)]
    gates = [V(place) for place, node in enumerate(example.program.nodes) if node.operation == "chunk"]
    of = example.program.nodes[gates[0].place].values()[0]
    assert [values.windows(gate) for gate in gates] == [[(0, Window(of, start, 4))] for start in (0, 4, 8, 12)]
    assert [values.width(value) for value in (X(0), H(0), sums, gates[0])] == [3, 4, 16, 4]


MOVED_IN_ONE_PIECE = {
    "chunk": (lambda do, x, h: do.node("chunk", h, attributes=(-1, 2, 1)), [(0, Window(H(0), 3, 3))]),
    "slice": (lambda do, x, h: do.node("slice", h, attributes=(-1, 1, 5)), [(0, Window(H(0), 1, 4))]),
    "a slice of a chunk": (
        lambda do, x, h: do.node("slice", do.node("chunk", h, attributes=(-1, 2, 1)), attributes=(-1, 1, 3)),
        [(0, Window(H(0), 4, 2))],
    ),
    "cat": (lambda do, x, h: do.node("cat", x, h, attributes=(-1,)), [(0, Window(X(0), 0, 4)), (4, Window(H(0), 0, 6))]),
    "a part of a cat": (
        lambda do, x, h: do.node("slice", do.node("cat", x, h, attributes=(-1,)), attributes=(-1, 2, 7)),
        [(0, Window(X(0), 2, 2)), (2, Window(H(0), 0, 3))],
    ),
    "placed": (
        lambda do, x, h: do.node("placed", x, h, attributes=(-1, 1, 5)),
        [(0, Window(None, 0, 1)), (1, Window(X(0), 0, 4)), (5, Window(None, 0, 1))],
    ),
    "cut": (lambda do, x, h: do.node("cut", do.node("cat", x, h, attributes=(-1,)), x, h, attributes=(-1, 1)), [(0, Window(H(0), 0, 6))]),
    "reshape": (lambda do, x, h: do.node("reshape", h, attributes=(2, 3)), [(0, Window(H(0), 0, 6))]),
    "a row of a reshape": (
        lambda do, x, h: do.node("slice", do.node("reshape", h, attributes=(2, 3)), attributes=(-2, 1, 2)),
        [(0, Window(H(0), 3, 3))],
    ),
    "transpose of one row": (
        lambda do, x, h: do.node("transpose", do.node("reshape", h, attributes=(1, 6)), attributes=(-1, -2)),
        [(0, Window(H(0), 0, 6))],
    ),
    "detach": (lambda do, x, h: do.node("detach", h), [(0, Window(H(0), 0, 6))]),
    "cast to its own dtype": (lambda do, x, h: do.node("cast", h, attributes=(torch.float64,)), [(0, Window(H(0), 0, 6))]),
}


@pytest.mark.parametrize("name", MOVED_IN_ONE_PIECE)
def test_what_moves_numbers_in_one_piece_is_gone(name: str):
    step, expected = MOVED_IN_ONE_PIECE[name]
    values, output = values_of(step, of_shape(4), of_shape(6))
    assert values.windows(output) == expected
    assert not values.is_moved(output)
    assert not values.is_pointwise(output)


MOVED_NUMBER_BY_NUMBER = {
    "transpose": (lambda do, x, h: do.node("transpose", do.node("reshape", h, attributes=(2, 3)), attributes=(-1, -2)), [0, 3, 1, 4, 2, 5]),
    "columns of a reshape": (
        lambda do, x, h: do.node("slice", do.node("reshape", h, attributes=(2, 3)), attributes=(-1, 1, 2)),
        [1, 4],
    ),
    "cat along the first": (
        lambda do, x, h: do.node("cat", *[do.node("reshape", part, attributes=(2, -1)) for part in (x, h)], attributes=(-1,)),
        [0, 1, 4, 5, 6, 2, 3, 7, 8, 9],
    ),
    "expand": (lambda do, x, h: do.node("expand", do.node("reshape", x, attributes=(4, 1)), attributes=(4, 2)), [0, 0, 1, 1, 2, 2, 3, 3]),
}


@pytest.mark.parametrize("name", MOVED_NUMBER_BY_NUMBER)
def test_what_moves_them_otherwise_has_the_place_of_each(name: str):
    step, expected = MOVED_NUMBER_BY_NUMBER[name]
    values, output = values_of(step, of_shape(4), of_shape(6))
    assert values.is_moved(output)
    assert values.places(output) == [[place] for place in expected]


def test_a_sum_has_the_places_of_all_its_parts():
    def step(build: Builder, x: Value, h: Value) -> Value:
        like = build.node("reshape", build.node("slice", x, attributes=(-1, 0, 3)), attributes=(1, 3))
        return build.node("sum_to", build.node("reshape", h, attributes=(2, 3)), like)

    values, output = values_of(step, of_shape(4), of_shape(6))
    assert values.is_moved(output)
    assert values.places(output) == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("shape", [(1,), (2, 1)])
def test_a_sum_of_numbers_that_follow_each_other_is_a_reduction(shape: tuple[int, ...]):
    def step(build: Builder, x: Value, h: Value) -> Value:
        rows = build.node("reshape", h, attributes=(*shape[:-1], -1))
        return build.node("sum_to", rows, build.node("slice", rows, attributes=(-1, 0, 1)))

    values, output = values_of(step, of_shape(4), of_shape(6))
    assert values.is_reduced(output)
    assert not values.is_moved(output)


def test_one_number_for_all_units_is_computed_with_them():
    values, output = values_of(
        lambda do, x, h: do.node("expand", do.node("slice", h, attributes=(-1, 2, 3)), attributes=(3,)), of_shape(4), of_shape(6)
    )
    assert values.is_spread(output)
    assert values.is_pointwise(output)
    assert not values.is_moved(output)


def test_products_that_are_summed_up_are_two_rows_where_both_are_used_elsewhere():
    def step(build: Builder, x: Value, h: Value, shared: bool) -> Value:
        sine = build.node("sin", h)
        total = build.node("sum", build.node("mul", sine, h))
        return build.node("mul", sine, total) if shared else total

    for shared in (False, True):
        values, _ = values_of(lambda build, x, h, shared=shared: step(build, x, h, shared), of_shape(4), of_shape(6))
        assert values.arguments(V(2)) == ([V(0), H(0)] if shared else [V(1)])


def test_what_is_computed_together_is_cut_together():
    """A chunk of the result cuts the arguments too, but not a state, which is in memory."""

    def step(build: Builder, x: Value, h: Value) -> Value:
        return build.node("chunk", build.node("tanh", build.node("mul", x, build.node("abs", h))), attributes=(-1, 3, 1))

    values, output = values_of(step, of_shape(6), of_shape(6))
    assert values.windows(V(0)) == [(at, Window(V(0), at, 2)) for at in (0, 2, 4)]
    assert values.windows(output) == [(0, Window(V(2), 2, 2))]
    assert values.windows(H(0), 1, 3) == [(0, Window(H(0), 1, 3))]


def test_zeros_of_no_width_are_no_windows():
    values, output = values_of(lambda do, x, h: do.node("placed", x, h, attributes=(-1, 0, 6)), of_shape(6), of_shape(6))
    assert values.parts(output) == [(0, Window(X(0), 0, 6))]


@pytest.mark.parametrize(
    ("dtypes", "named"),
    [
        ((torch.float32, torch.float64), "float32, float64"),
        ((torch.float16, torch.float16), "float16"),
        ((torch.bool, torch.bool), "bool only"),
        ((torch.int64, torch.float64), "float64, int64"),
    ],
)
def test_of_one_dtype_only(dtypes: tuple[torch.dtype, torch.dtype], named: str):
    kinds = [of_shape(4, dtype=dtype) for dtype in dtypes]
    with pytest.raises(NotLowered, match=f"^it computes in {named}; compiled are programs of one of float32 and float64$"):
        values_of(lambda do, x, h: do.node("eq", x, h), *kinds)


def test_bools_beside_numbers():
    values, output = values_of(lambda do, x, h: do.node("where", x, h, 0.5), of_shape(4, dtype=torch.bool), of_shape(4))
    assert values.dtype == torch.float64
    assert values.kinds[X(0)].dtype == torch.bool
    assert values.kinds[output].dtype == torch.float64
