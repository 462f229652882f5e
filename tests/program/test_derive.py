"""What the backward needs is saved where it is dear to compute again, and where it is cheap it is computed."""

import torch
from programs import EXAMPLES

from sstkern.program.derive import derive
from sstkern.program.graph import Builder
from sstkern.program.partition import partition, stages
from sstkern.program.shapes import Kind, Leaves


def leaves_of(example) -> Leaves:
    inputs, states, parameters = (
        tuple(Kind(shape, torch.float64) for shape in shapes) for shapes in (example.inputs, example.states, example.parameters)
    )
    return Leaves(inputs, states, parameters, ())


def saved_operations(example, recompute: bool = False) -> list[str]:
    kept = derive(example.program, leaves_of(example), recompute).kept
    return [example.program.nodes[value.place].operation if value.kind == "v" else str(value) for value in kept]


def test_results_of_sigmoid_and_tanh_are_saved_and_no_sums():
    assert saved_operations(EXAMPLES["lstm"]()) == ["h0", "h1", *["sigmoid", "sigmoid", "tanh"], *["sigmoid", "tanh"]]


def test_recompute_saves_states_alone():
    assert saved_operations(EXAMPLES["lstm"](), recompute=True) == ["h0", "h1"]


def test_a_state_that_no_gradient_needs_is_not_saved():
    build = Builder()
    x, h, w = build.input(1), build.state(1), build.parameter(2)
    program = build.program([h], [build.node("add", h, build.node("product", x, w))])
    derivative = derive(program, Leaves((Kind((3,), torch.float64),), (Kind((4,), torch.float64),), (Kind((4, 3), torch.float64),), ()))
    assert derivative.kept == ()


def test_gradients_of_inputs_and_parameters_wait_until_after_the_loop():
    example = EXAMPLES["lstm"]()
    derivative = derive(example.program, leaves_of(example))
    backward = derivative.backward
    parts = partition(backward, backward.outputs)
    products = {place for place, node in enumerate(backward.nodes) if node.operation == "transposed_product"}
    assert [place in parts.core for place in sorted(products)] == [True, False]  # of the weight of h, and of x
    assert not set(parts.before) & set(parts.core)
    assert all(node.operation not in ("sigmoid", "tanh", "product") for node in backward.nodes)


def test_before_in_and_after_the_loop():
    example = EXAMPLES["two_stages"]()
    program = example.program
    parts = partition(program, program.outputs)
    operations = [[program.nodes[place].operation for place in places] for places in (parts.before, parts.core, parts.after)]
    assert operations[0] == ["sigmoid", "sub"]  # of the score
    assert operations[2] == ["product", "abs", "cat"]
    assert sorted(stages(program, parts.core).values()) == [0, 0, 1]
    assert sorted([*parts.before, *parts.core, *parts.after]) == list(range(len(program.nodes)))


def test_gradients_of_chunks_are_put_together_once():
    example = EXAMPLES["lstm"]()
    operations = [node.operation for node in derive(example.program, leaves_of(example)).backward.nodes]
    assert operations.count("cat") == 1
    assert operations.count("placed") == 0
