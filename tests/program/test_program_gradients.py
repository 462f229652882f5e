"""Every operation's derivative is PyTorch's, where it has ties, edges and no numbers too."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sstkern
from sstkern.program import operator
from sstkern.program.gradients import RULES
from sstkern.program.graph import Builder, Number, Size
from sstkern.program.language import OPERATIONS
from sstkern.program.run import Call

EDGES = [0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 0.5, 6.0, 20.0, 21.0, 700.0, -700.0, math.inf, -math.inf, math.nan, 0.3, -2.2, 1e-9, -40.0, 2.0]
OTHERS = [0.0, 1.0, 1.0, -1.0, 2.0, -3.5, 0.5, -0.0, 20.0, 0.1, math.inf, -700.0, math.inf, 1.0, 0.7, math.nan, 3.0, 1e-9, 2.5, -2.0]
ATTRIBUTES: dict[str, list[tuple]] = {
    "softplus": [(1.0, 20.0), (2.0, 5.0)],
    "gelu": [("none",), ("tanh",)],
    "elu": [(1.0, 1.0, 1.0), (1.6732632423543772, 1.0507009873554805, 1.0), (0.7, 1.0, 1 / 0.7)],
    "leaky_relu": [(0.01,), (-0.2,)],
    "hardtanh": [(-1.0, 1.0), (0.0, 6.0)],
    "clamp": [(-1.0, 0.5), (0.0, math.inf), (-math.inf, 3.0)],
    "cast": [(torch.float32,), (torch.bool,)],
    "chunk": [(-1, 4, 1)],
    "slice": [(-1, Size(0), Size(1))],
    "cat": [(-1,)],
    "reshape": [(Size(2), Size(3))],
    "expand": [(Size(4),)],
    "transpose": [(-1, -1)],
    "cumsum": [(False,), (True,)],
    "mean": [(0,), (1,)],
    "count": [(0,), (1,)],
    "full": [(torch.float64, Size(4))],
}
SIZES = (2, 5, 4, 5, 20)
OF_BACKWARD = {"transposed_product", "full_like", "reshape_like", "expand_like", "sum_to", "cut", "placed"}
POINTWISE = [
    (name, attributes)
    for name, operation in OPERATIONS.items()
    if name not in OF_BACKWARD | {"product", "full", "cat", "reshape", "expand", "transpose"}
    for attributes in ATTRIBUTES.get(name, [()])
]


@pytest.fixture(autouse=True)
def in_plain_pytorch() -> Iterator[None]:
    """To the last bit. The C++ engine has functions of its own."""
    with sstkern.backend("reference"):
        yield


def run(operation: str, arguments: list, attributes: tuple, numbers: tuple = ()) -> tuple[list[Tensor], list[Tensor | None]]:
    """One step whose output is the operation's; its result and the gradients of the tensors, ours and autograd's, two rows of them."""
    build, tensors, values = Builder(), [], []
    for argument in arguments:
        values.append(build.input(argument.dim() - 1) if isinstance(argument, Tensor) else argument)
        tensors += [argument.detach().requires_grad_(argument.is_floating_point())] if isinstance(argument, Tensor) else []
    output = build.node(operation, *values, attributes=attributes)
    call = Call(build.program([output], [build.state(1)]), SIZES, numbers, reverse=False, padded=True)
    (ours,), _ = operator.layer(call, [tensor[None] for tensor in tensors], [], [torch.ones(tensors[0].size(0), 1)], None)
    rest = iter(tensors)
    given = [
        next(rest) if isinstance(argument, Tensor) else numbers[0] if isinstance(argument, Number) else argument for argument in arguments
    ]
    parts = [SIZES[part.place] if isinstance(part, Size) else part for part in attributes]
    rows = [tensors[0]] if OPERATIONS[operation].makes_rows else []
    theirs = OPERATIONS[operation].compute(*rows, *given, *parts)
    assert torch.equal(ours[0].isnan(), theirs.isnan())
    torch.testing.assert_close(ours[0], theirs, rtol=0, atol=0, equal_nan=True)
    if not theirs.requires_grad:
        return [], []
    weights = torch.linspace(0.5, 2, theirs.numel(), dtype=theirs.dtype).view_as(theirs)
    varied = [tensor for tensor in tensors if tensor.requires_grad]
    mine, its = (torch.autograd.grad(result, varied, weights, materialize_grads=True) for result in (ours[0], theirs))
    return list(mine), list(its)


def compare(mine: list[Tensor], its: list[Tensor]) -> None:
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


def samples(operation: str) -> list[Tensor]:
    first, second = (torch.tensor([values, values[::-1]], dtype=torch.float64) for values in (EDGES, OTHERS))
    condition = torch.tensor([[True, False] * 10] * 2)
    arity = OPERATIONS[operation].arity
    return [condition, first, second] if operation == "where" else [first, second][:arity]


def test_every_operation_has_a_derivative():
    assert set(RULES) | {"chunk"} | OF_BACKWARD == set(OPERATIONS)


@pytest.mark.parametrize(("operation", "attributes"), POINTWISE, ids=lambda part: str(part))
def test_of_an_operation(operation: str, attributes: tuple):
    compare(*run(operation, samples(operation), attributes))


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "pow", "lt", "ge", "eq"])
@pytest.mark.parametrize("number", [2, 0.5, 0, -1.5, 1])
def test_with_a_number_on_either_side(operation: str, number: float):
    tensor = samples(operation)[0]
    compare(*run(operation, [tensor, number], ()))
    compare(*run(operation, [tensor, Number(0)], (), (float(number),)))
    if operation != "pow" or number > 0:
        compare(*run(operation, [number, tensor], ()))


def test_a_number_to_the_power_of_a_tensor_needs_a_positive_one():
    with pytest.raises(NotImplementedError, match=r"-1.5 \*\* tensor has no derivative in a program; write torch.exp"):
        run("pow", [-1.5, torch.ones(2, 3, dtype=torch.float64)], ())


@pytest.mark.parametrize("operation", ["add", "mul", "div", "maximum", "where"])
def test_of_what_was_spread_over_a_row(operation: str):
    torch.manual_seed(0)
    wide, narrow = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 1, dtype=torch.float64)
    condition = [wide > 0] if operation == "where" else []
    compare(*run(operation, [*condition, wide, narrow], ()))
    compare(*run(operation, [*condition, narrow, wide], ()))


def test_of_parts_of_a_row():
    torch.manual_seed(0)
    wide, other = torch.randn(2, 20, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    compare(*run("cat", [wide, other, wide[:, :1]], (-1,)))
    compare(*run("reshape", [wide], ATTRIBUTES["reshape"][0]))
    compare(*run("expand", [other[:, :1]], (Size(2),)))
    compare(*run("transpose", [torch.randn(2, 3, 4, dtype=torch.float64)], (-1, -2)))
    compare(*run("slice", [torch.randn(2, 5, 4, dtype=torch.float64)], (-2, Size(0), Size(1))))
    compare(*run("chunk", [torch.randn(2, 6, 4, dtype=torch.float64)], (-2, 3, 2)))


def test_of_what_was_cast():
    torch.manual_seed(0)
    single, double = torch.randn(2, 4), torch.randn(2, 4, dtype=torch.float64)
    mine, its = run("mul", [single, double], ())
    assert [gradient.dtype for gradient in mine] == [torch.float32, torch.float64]
    compare(mine, its)


def test_of_a_product_with_one_row_too():
    torch.manual_seed(0)
    for rows in (0, 1, 3):
        build = Builder()
        x, h, w = build.input(1), build.state(1), build.parameter(2)
        program = build.program([build.node("product", x, w)], [h])
        x, weight = (
            torch.randn(rows, 2, 4, dtype=torch.float64, requires_grad=True),
            torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        )
        (ours,), _ = operator.layer(Call(program, (), (), False, True), [x], [weight], [torch.ones(2, 1)], None)
        theirs = x @ weight.T
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
        compare(*(list(torch.autograd.grad(result.square().sum(), [x, weight])) for result in (ours, theirs)))
