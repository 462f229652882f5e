"""Programs for tests, each with its step in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from zoo import ZOO

import sstkern
from sstkern.program.graph import Builder, Program
from sstkern.program.shapes import Kind, Leaves, row_kind
from sstkern.structure import flatten, mapped


@dataclass(frozen=True)
class Example:
    """inputs, states, parameters: their shapes, without rows. step: of inputs, states and parameters to outputs and new states."""

    program: Program
    inputs: list[tuple[int, ...]]
    states: list[tuple[int, ...]]
    parameters: list[tuple[int, ...]]
    step: Callable[[list[Tensor], list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]

    def tensors(self, shapes: list[tuple[int, ...]], *lead: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        return [torch.randn(*lead, *shape, dtype=dtype).requires_grad_() for shape in shapes]


def lstm() -> Example:
    build = Builder()
    x, h, c = build.input(1), build.state(1), build.state(1)
    w_x, w_h, b = build.parameter(2), build.parameter(2), build.parameter(1)
    do = build.node
    sums = do("add", do("add", do("product", x, w_x), b), do("product", h, w_h))
    i, f, g, o = (do("chunk", sums, attributes=(-1, 4, k)) for k in range(4))
    new_c = do("add", do("mul", do("sigmoid", f), c), do("mul", do("sigmoid", i), do("tanh", g)))
    new_h = do("mul", do("sigmoid", o), do("tanh", new_c))

    def step(inputs, states, parameters):
        sums = inputs[0] @ parameters[0].T + parameters[2] + states[0] @ parameters[1].T
        i, f, g, o = sums.chunk(4, -1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return [h], [h, c]

    return Example(build.program([new_h], [new_h, new_c]), [(3,)], [(4,), (4,)], [(16, 3), (16, 4), (16,)], step)


def two_stages() -> Example:
    """A gate, a product of what it lets through, a second input that weighs, an output that only the output hangs on, and a state that is
    the input before."""
    build = Builder()
    x, score, h, last = build.input(1), build.input(1), build.state(1), build.state(1)
    w_r, w_h, u, w_o, w_l = (build.parameter(dimensions) for dimensions in (2, 2, 1, 2, 2))
    do = build.node
    r = do("sigmoid", do("product", h, w_r))
    n = do("tanh", do("add", do("product", do("mul", r, h), w_h), do("mul", u, do("product", do("mul", x, last), w_l))))
    z = do("sigmoid", score)
    new = do("add", do("mul", z, h), do("mul", do("sub", 1.0, z), n))
    output = do("cat", do("product", new, w_o), do("abs", h), attributes=(-1,))

    def step(inputs, states, parameters):
        (x, score), (h, last), (w_r, w_h, u, w_o, w_l) = inputs, states, parameters
        r = (h @ w_r.T).sigmoid()
        n = ((r * h) @ w_h.T + u * ((x * last) @ w_l.T)).tanh()
        z = score.sigmoid()
        new = z * h + (1 - z) * n
        return [torch.cat([new @ w_o.T, h.abs()], -1)], [new, x]

    program = build.program([output], [new, x])
    return Example(program, [(3,), (1,)], [(4,), (3,)], [(4, 4), (4, 4), (4,), (2, 4), (1, 3)], step)


EXAMPLES = {"lstm": lstm, "two_stages": two_stages}


def kinds_of(example: Example, dtype: torch.dtype = torch.float64) -> Leaves:
    inputs, states, parameters = (
        tuple(Kind(shape, dtype) for shape in part) for part in (example.inputs, example.states, example.parameters)
    )
    return Leaves(inputs, states, parameters, ())


def captured(name: str, input_size: int, hidden_size: int, dtype: torch.dtype = torch.float64) -> tuple[Program, Leaves]:
    """A cell of the zoo as a program for tensors of these sizes. It is not compiled."""
    entry = ZOO[name]
    layer = sstkern.fuse(entry.cell(input_size, hidden_size).to(dtype), strict=True)
    x, hx = (
        mapped(given, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
        for given in entry.drawn(1, 1, input_size, hidden_size)
    )
    with torch.no_grad(), sstkern.backend("reference"):
        layer(x, hx)
    found = layer._direction.programs.last
    inputs, states = (tuple(row_kind(tensor, lead) for tensor in flatten(given)) for given, lead in ((x, 2), (hx, 1)))
    parameters = tuple(row_kind(parameter, 0) for parameter in found.parameters(found.leaves()))
    return found.program, Leaves(inputs, states, parameters, found.sizes)
