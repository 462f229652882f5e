"""The operator has every derivative, and every way of PyTorch's to a graph."""

import pytest
import torch
from programs import EXAMPLES, Example
from torch import Tensor

from sstkern.program import operator
from sstkern.program.run import Call

LENGTHS = [None, torch.tensor([1, 3])]


@pytest.fixture(params=EXAMPLES)
def example(request) -> Example:
    torch.manual_seed(0)
    return EXAMPLES[request.param]()


def function_of(example: Example, lengths: Tensor | None, call: Call | None = None):
    """The layer as a function of tensors, and tensors for it."""
    counts = len(example.inputs), len(example.parameters)
    tensors = [*example.tensors(example.inputs, 3, 2), *example.tensors(example.parameters), *example.tensors(example.states, 2)]
    call = call or Call(example.program, (), (), False, True)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, parameters, hx = tensors[: counts[0]], tensors[counts[0] : sum(counts)], tensors[sum(counts) :]
        outputs, hx_n = operator.layer(call, inputs, parameters, hx, lengths)
        return *outputs, *hx_n

    return function, tensors


@pytest.mark.parametrize("lengths", LENGTHS)
def test_derivatives_of_every_kind(example: Example, lengths: Tensor | None):
    function, tensors = function_of(example, lengths)
    assert torch.autograd.gradcheck(function, tensors, check_batched_grad=True, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_operators_checks(example: Example, lengths: Tensor | None):
    call = Call(example.program, (), (), False, True)
    inputs, hx = example.tensors(example.inputs, 3, 2), example.tensors(example.states, 2)
    for rows in (None, -1, 6 if lengths is None else 4):
        given = *operator._flat(call), inputs, example.tensors(example.parameters), hx, lengths, rows
        torch.library.opcheck(torch.ops.sstkern.program.default, given)


def test_one_graph_holds_the_text(example: Example):
    function, tensors = function_of(example, torch.tensor([1, 3]))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for found, right in zip(compiled(*tensors), function(*tensors), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=0)
    (graph,) = graphs
    called = [node for node in graph.graph.nodes if node.target == torch.ops.sstkern.program]
    assert [node.args[0] for node in called] == [example.program.text]


def test_compiled_gradients_are_the_same(example: Example):
    function, tensors = function_of(example, torch.tensor([1, 3]))
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    mine, its = (torch.autograd.grad(sum(result.sum() for result in run(*tensors)), tensors) for run in (compiled, function))
    assert all(map(torch.equal, mine, its))


def test_per_sample_gradients(example: Example):
    function, tensors = function_of(example, None)
    inputs, states = len(example.inputs), len(example.states)
    parameters = tensors[inputs:-states]

    def loss(parameters, *of_sample):
        given = [tensor[:, None] if place < inputs else tensor[None] for place, tensor in enumerate(of_sample)]
        return sum(result.square().sum() for result in function(*given[:inputs], *parameters, *given[inputs:]))

    dims = (None, *[1] * inputs, *[0] * states)
    found = torch.func.vmap(torch.func.grad(loss), dims)(parameters, *tensors[:inputs], *tensors[-states:])
    for b in range(2):
        alone = loss(parameters, *(tensor[:, b] for tensor in tensors[:inputs]), *(tensor[b] for tensor in tensors[-states:]))
        for each, right in zip(found, torch.autograd.grad(alone, parameters), strict=True):
            torch.testing.assert_close(each[b], right, rtol=1e-12, atol=1e-13)


def test_results_share_no_memory(example: Example):
    function, tensors = function_of(example, None)
    results = function(*tensors)
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*results, *tensors)]
    assert len(set(memory)) == len(memory)


def test_autocast_computes_in_its_dtype():
    example = EXAMPLES["lstm"]()
    function, tensors = function_of(example, None)
    tensors = [tensor.detach().float().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        results = function(*tensors)
    assert {result.dtype for result in results} == {torch.bfloat16}
    gradients = torch.autograd.grad(sum(result.float().square().sum() for result in results), tensors)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    rounded = function(*(tensor.bfloat16() for tensor in tensors))
    assert all(map(torch.equal, results, rounded))


def test_an_unwanted_gradient_is_not_computed(example: Example):
    function, tensors = function_of(example, None)
    for place, tensor in enumerate(tensors):
        others = [other.detach() if at != place else other for at, other in enumerate(tensors)]
        whole = torch.autograd.grad(sum(result.sum() for result in function(*tensors)), tensor)
        assert torch.equal(torch.autograd.grad(sum(result.sum() for result in function(*others)), tensor)[0], whole[0])
