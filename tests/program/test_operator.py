"""The operator has every derivative, and every way of PyTorch's to a graph."""

import pytest
import torch
from programs import EXAMPLES, Example
from torch import Tensor

import sstkern
from sstkern.engines import cpu_runs
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
    before = cpu_runs()["backward"]
    found = torch.func.vmap(torch.func.grad(loss), dims)(parameters, *tensors[:inputs], *tensors[-states:])
    assert cpu_runs()["backward"] == before + 1
    for b in range(2):
        alone = loss(parameters, *(tensor[:, b] for tensor in tensors[:inputs]), *(tensor[b] for tensor in tensors[-states:]))
        for each, right in zip(found, torch.autograd.grad(alone, parameters), strict=True):
            torch.testing.assert_close(each[b], right, rtol=1e-12, atol=1e-13)


def backward_of(example: Example, lengths: Tensor | None, groups: int | None, share: slice = slice(None)) -> list[Tensor]:
    """All gradients of a batch of 4, or of a share of it, by the operator."""
    torch.manual_seed(0)
    call = Call(example.program, (), (), False, True)
    inputs, hx = example.tensors(example.inputs, 3, 4), example.tensors(example.states, 4)
    parameters = example.tensors(example.parameters)
    outputs, hx_n, _ = torch.ops.sstkern.program(*operator._flat(call), inputs, parameters, hx, lengths, None)
    grad_outputs, grad_hx = ([torch.randn_like(result) for result in results] for results in (outputs, hx_n))
    inputs, grad_outputs = ([tensor[:, share] for tensor in part] for part in (inputs, grad_outputs))
    hx, grad_hx = ([tensor[share] for tensor in part] for part in (hx, grad_hx))
    needs = [True] * (len(inputs) + len(parameters) + len(hx))
    lengths = None if lengths is None else lengths[share]
    with torch.no_grad():
        return torch.ops.sstkern.program_backward(
            *operator._flat(call), inputs, parameters, hx, lengths, [], grad_outputs, grad_hx, needs, groups
        )


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([1, 3, 0, 0])])
def test_gradients_of_groups_are_those_of_each_alone(example: Example, lengths: Tensor | None, engine: str):
    """Of two groups, of which one may have no time step at all."""
    with sstkern.backend(engine):
        found, together = backward_of(example, lengths, 2), backward_of(example, lengths, None)
        alone = [backward_of(example, lengths, None, share) for share in (slice(0, 2), slice(2, 4))]
    inputs, parameters = len(example.inputs), slice(len(example.inputs), len(example.inputs) + len(example.parameters))
    for place, gradient in enumerate(found):
        if place in range(parameters.start, parameters.stop):
            torch.testing.assert_close(gradient, torch.stack([part[place] for part in alone]), rtol=1e-12, atol=1e-13)
        else:
            torch.testing.assert_close(gradient, together[place], rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(gradient, torch.cat([part[place] for part in alone], int(place < inputs)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_groups_share_the_batch_equally(example: Example, engine: str):
    with sstkern.backend(engine), pytest.raises(ValueError, match="groups: 3 do not share 4 sequences equally"):
        backward_of(example, None, 3)


@pytest.mark.parametrize("groups", [None, 2])
def test_the_checks_of_the_backward(example: Example, groups: int | None):
    call = Call(example.program, (), (), False, True)
    parts = example.tensors(example.inputs, 3, 2), example.tensors(example.parameters), example.tensors(example.states, 2)
    parts = tuple([tensor.detach() for tensor in part] for part in parts)
    outputs, hx_n, saved = torch.ops.sstkern.program(*operator._flat(call), *parts, None, -1)
    needs = [place % 2 == 0 for place in range(sum(map(len, parts)))]
    given = *operator._flat(call), *parts, None, saved, outputs, hx_n, needs, groups
    torch.library.opcheck(torch.ops.sstkern.program_backward.default, given, test_utils=("test_schema", "test_faketensor"))


def test_gradients_of_groups_have_no_derivative():
    example = EXAMPLES["lstm"]()
    call = Call(example.program, (), (), False, True)
    parts = example.tensors(example.inputs, 3, 2), example.tensors(example.parameters), example.tensors(example.states, 2)
    outputs, hx_n, saved = torch.ops.sstkern.program(*operator._flat(call), *parts, None, -1)
    with pytest.raises(NotImplementedError, match="gradients of groups have no derivative"):
        torch.ops.sstkern.program_backward(*operator._flat(call), *parts, None, saved, outputs, hx_n, [True] * sum(map(len, parts)), 2)


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
