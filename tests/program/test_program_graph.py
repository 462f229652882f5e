"""A program's text is the program, and what is none is refused."""

import math

import pytest
import torch

from sstkern.program.graph import Builder, Program
from sstkern.program.values import Number, Size, Value

RNN = """\
inputs 1
states 1
parameters 2 2 1
v0 = product x0 p0
v1 = product h0 p1
v2 = add v0 v1
v3 = add v2 p2
v4 = tanh v3
outputs v4
states v4"""


def rnn() -> Program:
    build = Builder()
    x, h, w_x, w_h, b = build.input(1), build.state(1), build.parameter(2), build.parameter(2), build.parameter(1)
    build.node("sigmoid", x)  # nothing needs it
    sums = build.node("add", build.node("product", x, w_x), build.node("product", h, w_h))
    new = build.node("tanh", build.node("add", sums, b))
    return build.program([new], [new])


def test_the_text_of_a_program():
    assert rnn().text == RNN
    assert Program.parse(RNN) == rnn()
    assert hash(Program.parse(RNN)) == hash(rnn())


def test_arguments_attributes_sizes_and_numbers_are_read_as_they_were_written():
    build = Builder()
    h = build.state(1)
    x = build.input(1)
    size, number = build.size(7), build.number(0.25)
    assert (size, number, build.size(7), build.size(8)) == (Size(0), Number(0), Size(0), Size(1))
    assert (build.sizes, build.numbers) == ([7, 8], [0.25])
    value = build.node("clamp", build.node("mul", x, number), attributes=(-math.inf, 1e-30))
    value = build.node("where", build.node("gt", value, -0.0), True, build.node("pow", 2, value))
    value = build.node("slice", value, attributes=(-1, size, build.size(8)))
    value = build.node("cat", value, h, build.node("cast", h, attributes=(torch.bfloat16,)), attributes=(-1,))
    value = build.node(
        "cat",
        value,
        build.node("gelu", value, attributes=("tanh",)),
        build.node("full", 1, attributes=(torch.int64, size)),
        attributes=(-1,),
    )
    program = build.program([value, h], [h])
    again = Program.parse(program.text)
    assert again == program
    assert [[type(part) for part in node.arguments + node.attributes] for node in again.nodes] == [
        [type(part) for part in node.arguments + node.attributes] for node in program.nodes
    ]


def test_what_is_written_twice_is_one_node_and_numbers_of_other_types_are_others():
    build = Builder()
    x = build.input(1)
    assert build.node("add", x, 1) == build.node("add", x, 1)
    different = {build.node("add", x, number) for number in (1, 1.0, True, 0.0, -0.0, 0)}
    assert len(different) == 6


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("v4 = tanh v3", "v4 = evil v3", "'v4 = evil v3'"),
        ("v4 = tanh v3", "v5 = tanh v3", "'v5 = tanh v3'"),
        ("v4 = tanh v3", "v4 = tanh v4", "v4 = tanh v4 takes v4, which does not exist there"),
        ("v4 = tanh v3", "v4 = tanh p3", "takes p3"),
        ("v4 = tanh v3", "v4 = tanh v3 v3", "tanh takes 1 arguments and 0 attributes"),
        ("v4 = tanh v3", "v4 = chunk v3 -1", "chunk takes 1 arguments and 3 attributes"),
        ("outputs v4", "outputs v9", "there is no value v9"),
        ("states v4", "states v4 v4", "1 states before the step and 2 after it"),
        ("states v4", "states 4", "expected 'states' and values"),
        ("inputs 1", "inputs one", "expected 'inputs' and numbers of dimensions"),
        ("inputs 1\n", "", "expected 'inputs'"),
        (RNN, "", "this text is none"),
        (RNN, "import os", "this text is none"),
    ],
)
def test_what_is_no_program_is_told(before: str, after: str, message: str):
    with pytest.raises(ValueError, match="program: ") as told:
        Program.parse(RNN.replace(before, after))
    assert message in str(told.value)


def test_a_product_takes_a_parameter():
    with pytest.raises(ValueError, match="product takes a parameter, the same for all rows"):
        Program.parse(RNN.replace("product h0 p1", "product h0 x0"))


def test_values_show_as_in_the_text():
    assert [str(Value("x", 0)), str(Size(1)), str(Number(2))] == ["x0", "#1", "$2"]
