"""Random cells, by Hypothesis: a `Recipe` is a list of operations, which `RandomCell` carries out in plain PyTorch.

A recipe is made of names and numbers, so that a failing one can be copied from Hypothesis' report. Every value has a bound that is
followed while the recipe is drawn: what could grow is put through tanh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 8.0
"""Beyond this bound tanh follows."""


@dataclass(frozen=True)
class Step:
    """operation: a key of the tables below. of: its operands, places among the input, the states and the results of earlier steps.
    numbers: the width of a product, the ends of a slice, the heads of a row and the width of each head's result."""

    operation: str
    of: tuple[int, ...]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """output, next_states: places, as in `Step.of`."""

    input_size: int
    state_sizes: tuple[int, ...]
    steps: tuple[Step, ...]
    output: int
    next_states: tuple[int, ...]


PRODUCTS: dict[str, tuple[Callable[[int, int], list[tuple[int, ...]]], Callable[..., Tensor]]] = {
    "linear": (lambda i, o: [(o, i), (o,)], F.linear),
    "linear without bias": (lambda i, o: [(o, i)], F.linear),
    "matmul": (lambda i, o: [(i, o)], lambda v, w: v @ w),
    "addmm": (lambda i, o: [(i, o), (o,)], lambda v, w, b: torch.addmm(b, v, w, alpha=0.5)),
    "transposed": (lambda i, o: [(o, i)], lambda v, w: (w @ v.t()).t()),
    "skew": (lambda i, o: [(o, i)], lambda v, w: F.linear(v, w - 0.1 * w.tanh())),
    "normed": (lambda i, o: [(o, i), (o, 1)], lambda v, w, g: F.linear(v, g * w / w.norm(dim=1, keepdim=True))),
}
"""The shapes of the parameters, and the product."""
HEADS: dict[str, tuple[Callable[[int, int, int], list[tuple[int, ...]]], Callable[..., Tensor], Callable[[float, int], float]]] = {
    "einsum of heads": (
        lambda k, i, o: [(k, i, o)],
        lambda v, w: torch.einsum("bki,kio->bko", v.unflatten(1, w.shape[:2]), w).flatten(1),
        lambda b, w: 2 * b + 1,
    ),
    "bmm of heads": (
        lambda k, i, o: [(k, i, o)],
        lambda v, w: torch.bmm(v.unflatten(1, w.shape[:2]).transpose(0, 1), w).transpose(0, 1).flatten(1),
        lambda b, w: 2 * b + 1,
    ),
    "group_norm": (
        lambda k, i, _: [(k, i), (k, i)],
        lambda v, g, b: F.group_norm(v, g.size(0), g.flatten(), b.flatten(), eps=0.1),
        lambda b, w: w + 1,
    ),
}
"""Of a row as k heads of i elements, with results of o elements: the shapes of the parameters, the operation, and its bound from that of
its operand and the width."""
OWN: dict[str, tuple[Callable[[int], list[tuple[int, ...]]], Callable[..., Tensor], Callable[[float], float]]] = {
    "gain": (lambda w: [(w,)], lambda v, p: v * p, lambda b: 2 * b),
    "bias": (lambda w: [(w,)], lambda v, p: p + v, lambda b: b + 2),
    "decay": (lambda w: [()], lambda v, p: v * torch.sigmoid(p), lambda b: b),
    "mixed with a number": (lambda w: [(1,)], lambda v, p: torch.lerp(v, p.expand_as(v), 0.25), lambda b: b + 2),
    "prelu": (lambda w: [(1,)], F.prelu, lambda b: 2 * b),
}
"""The shapes of the parameters, the operation, and its bound."""
UNARY: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "sigmoid": (torch.sigmoid, lambda b: 1.0),
    "tanh": (torch.tanh, lambda b: 1.0),
    "relu": (F.relu, lambda b: b),
    "silu": (F.silu, lambda b: b),
    "gelu": (F.gelu, lambda b: b),
    "elu": (F.elu, lambda b: max(b, 1.0)),
    "leaky_relu": (F.leaky_relu, lambda b: b),
    "hardsigmoid": (F.hardsigmoid, lambda b: 1.0),
    "hardtanh": (F.hardtanh, lambda b: 1.0),
    "softsign": (F.softsign, lambda b: 1.0),
    "softplus": (F.softplus, lambda b: b + 1),
    "log_sigmoid": (F.logsigmoid, lambda b: b + 1),
    "abs": (torch.abs, lambda b: b),
    "neg": (torch.neg, lambda b: b),
    "1 - v": (lambda v: 1 - v, lambda b: b + 1),
    "0.5 * v": (lambda v: 0.5 * v, lambda b: b / 2),
    "square": (torch.square, lambda b: b * b),
    "sin": (torch.sin, lambda b: 1.0),
    "exp of the negated": (lambda v: torch.exp(-v.abs()), lambda b: 1.0),
    "sqrt": (lambda v: torch.sqrt(v * v + 1), lambda b: b + 1),
    "reciprocal": (lambda v: 1 / (1 + v.abs()), lambda b: 1.0),
    "clamp": (lambda v: v.clamp(-0.5, 0.75), lambda b: 1.0),
    "detach": (torch.detach, lambda b: b),
    "where": (lambda v: torch.where(v > 0.1, v, 0.2 * v), lambda b: b),
    "masked": (lambda v: v.masked_fill(v < 0, -0.3), lambda b: max(b, 1.0)),
    "in place": (lambda v: v.clone().mul_(2.0).sigmoid_(), lambda b: 1.0),
}
BINARY: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[float, float], float]]] = {
    "add": (torch.add, lambda a, b: a + b),
    "sub": (torch.sub, lambda a, b: a + b),
    "mul": (torch.mul, lambda a, b: a * b),
    "div": (lambda a, b: a / (1 + b.abs()), lambda a, b: a),
    "maximum": (torch.maximum, max),
    "minimum": (torch.min, max),
    "gated": (lambda a, b: torch.sigmoid(a) * b, lambda a, b: b),
    "selected": (lambda a, b: torch.where(a > b, a, b * b.sigmoid()), max),
    "difference of a multiple": (lambda a, b: torch.sub(a, b, alpha=0.5), lambda a, b: a + b),
    "addcmul": (lambda a, b: torch.addcmul(a, a, b, value=0.5), lambda a, b: a + a * b),
    "leaky": (lambda a, b: torch.lerp(a, b, torch.sigmoid(a)), max),
}
"""The operation, and its bound from those of its operands. One operand may have the width 1."""
ALONG: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float, int], float]]] = {
    "softmax": (lambda v: v.softmax(1), lambda b, w: 1.0),
    "log_softmax": (lambda v: v.log_softmax(-1), lambda b, w: 2 * b + w),
    "cumsum": (lambda v: v.cumsum(1), lambda b, w: w * b),
    "layer_norm": (lambda v: F.layer_norm(v, v.shape[1:], eps=0.1), lambda b, w: w),
    "rms_norm": (lambda v: F.rms_norm(v, v.shape[1:], eps=0.1), lambda b, w: w),
    "less the mean": (lambda v: v - v.mean(1, keepdim=True), lambda b, w: 2 * b),
    "normalize": (lambda v: F.normalize(v, dim=1, eps=0.1), lambda b, w: 1.0),
}
REDUCED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float, int], float]]] = {
    "sum": (lambda v: v.sum(1, keepdim=True), lambda b, w: w * b),
    "mean": (lambda v: v.mean(-1)[:, None], lambda b, w: b),
    "amax": (lambda v: v.amax(1, keepdim=True), lambda b, w: b),
    "max": (lambda v: v.max(1, keepdim=True).values, lambda b, w: b),
    "min": (lambda v: v.min(1).values.unsqueeze(1), lambda b, w: b),
    "logsumexp": (lambda v: v.logsumexp(1, keepdim=True), lambda b, w: b + w),
    "var": (lambda v: v.var(1, correction=0, keepdim=True), lambda b, w: 4 * b * b),
    "norm": (lambda v: v.norm(dim=1, keepdim=True), lambda b, w: w * b),
}
"""Along a row: the operation, and its bound from that of its operand and the width. Those of the second table give the width 1."""
TABLES: tuple[dict[str, tuple], ...] = (PRODUCTS, HEADS, OWN, UNARY, BINARY, ALONG, REDUCED)


class RandomCell(nn.Module):
    """A recipe with random parameters."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.own = nn.ModuleList(nn.ParameterList(torch.rand(s) * 2 - 1 for s in shapes) for shapes in _shapes(recipe))
        self.double()
        with torch.no_grad():
            for matrix in (parameter for parameter in self.parameters() if parameter.dim() > 1):
                matrix.div_(math.sqrt(matrix.numel()))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        values = [x, *(state if isinstance(state, tuple) else (state,))]
        for step, own in zip(self.recipe.steps, self.own, strict=True):
            values.append(_carried_out(step, [values[place] for place in step.of], list(own)))
        after = tuple(values[place] for place in self.recipe.next_states)
        return values[self.recipe.output], after if isinstance(state, tuple) else after[0]


def _carried_out(step: Step, of: list[Tensor], own: list[Tensor]) -> Tensor:
    name = step.operation
    if name == "cat":
        return torch.cat(of, dim=-1)
    if name == "slice":
        return of[0][:, step.numbers[0] : step.numbers[1]]
    if name.startswith("chunk"):
        return of[0].chunk(2, dim=1)[int(name[-1])]
    function = next(entry[-1 if table is PRODUCTS else -2] for table in TABLES for key, entry in table.items() if key == name)
    return function(*of, *own)


def _shapes(recipe: Recipe) -> list[list[tuple[int, ...]]]:
    """Of the parameters of each step."""
    draft, shapes = _Draft(recipe.input_size, recipe.state_sizes), []
    for step in recipe.steps:
        width = draft.widths[step.of[0]]
        if step.operation in PRODUCTS:
            shapes.append(PRODUCTS[step.operation][0](width, step.numbers[0]))
        elif step.operation in HEADS:
            heads, results = step.numbers
            shapes.append(HEADS[step.operation][0](heads, width // heads, results))
        else:
            shapes.append(OWN[step.operation][0](width) if step.operation in OWN else [])
        draft.append(step)
    return shapes


class _Draft:
    """A recipe under way, with the width and the bound of every value."""

    def __init__(self, input_size: int, state_sizes: tuple[int, ...]):
        self.steps: list[Step] = []
        self.widths, self.bounds = [input_size, *state_sizes], [3.0] + [1.0] * len(state_sizes)

    def append(self, step: Step) -> int:
        """The place of its result."""
        widths, bounds, name = [self.widths[place] for place in step.of], [self.bounds[place] for place in step.of], step.operation
        width, bound = max(widths), max(bounds)
        if name in PRODUCTS:
            width, bound = step.numbers[0], 2 * bound + 1
        elif name in HEADS:
            width, bound = math.prod(step.numbers), HEADS[name][2](bound, width)
        elif name in OWN:
            bound = OWN[name][2](bound)
        elif name in UNARY:
            bound = UNARY[name][1](bound)
        elif name in BINARY:
            bound = BINARY[name][1](*bounds)
        elif name in ALONG:
            bound = ALONG[name][1](bound, width)
        elif name in REDUCED:
            width, bound = 1, REDUCED[name][1](bound, width)
        elif name == "cat":
            width = sum(widths)
        elif name == "slice":
            width = step.numbers[1] - step.numbers[0]
        else:
            width //= 2
        self.steps.append(step)
        self.widths.append(width)
        self.bounds.append(bound)
        return len(self.widths) - 1

    def tamed(self, place: int, largest: float = LARGEST) -> int:
        return place if self.bounds[place] <= largest else self.append(Step("tanh", (place,)))


@st.composite
def recipes(draw: Callable) -> Recipe:
    """1 to 3 states, 1 to 4 products and what is needed for the states' widths."""
    sizes = draw(st.integers(1, 4)), tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    draft = _Draft(*sizes)
    count = draw(st.integers(1, 4))
    places = draw(st.sets(st.integers(0, 11), min_size=count, max_size=count))
    for place in range(12):
        step = draw(_product(draft) if place in places else _other(draft))
        draft.tamed(draft.append(step))
    next_states = tuple(draft.tamed(_of_width(draw, draft, width), 1.0) for width in sizes[1])
    output = draw(st.integers(0, len(draft.widths) - 1))
    return Recipe(*sizes, tuple(draft.steps), output, next_states)


def _of_width(draw: Callable, draft: _Draft, width: int) -> int:
    """A value of this width, preferably a late one; a product makes one where there is none."""
    found = [place for place in range(1, len(draft.widths)) if draft.widths[place] == width]
    if len(found) > 1 or (found and draw(st.booleans())):
        return draw(st.sampled_from(found[::-1]))
    return draft.append(Step("linear", (draw(_place(draft)),), (width,)))


def _place(draft: _Draft) -> st.SearchStrategy[int]:
    """Late values first, which Hypothesis shrinks towards: so does a recipe become deep."""
    return st.sampled_from(range(len(draft.widths))[::-1])


def _product(draft: _Draft) -> st.SearchStrategy[Step]:
    plain = st.builds(Step, st.sampled_from([*PRODUCTS]), st.tuples(_place(draft)), st.tuples(st.integers(1, 5)))
    heads = [
        Step(name, (place,), (count, results))
        for place, count, _ in _heads(draft)
        for name in ("einsum of heads", "bmm of heads")
        for results in (1, 2, 3)
    ]
    return st.one_of(plain, st.sampled_from(heads[::-1])) if heads else plain


def _heads(draft: _Draft) -> list[tuple[int, int, int]]:
    """Places, with the heads that their rows can have, more than one, and the width of each."""
    widths = enumerate(draft.widths)
    return [(place, count, width // count) for place, width in widths for count in range(2, width + 1) if width % count == 0]


def _other(draft: _Draft) -> st.SearchStrategy[Step]:
    pairs = [(a, b) for a, wide in enumerate(draft.widths) for b, other in enumerate(draft.widths) if wide == other or 1 in (wide, other)]
    binary = st.builds(Step, st.sampled_from([*BINARY]), st.sampled_from(pairs[::-1]))
    unary = st.builds(Step, st.sampled_from([*UNARY, *OWN]), st.tuples(_place(draft)))
    along = st.builds(Step, st.sampled_from([*ALONG, *REDUCED]), st.tuples(_place(draft)))
    cat = st.builds(Step, st.just("cat"), st.tuples(_place(draft), _place(draft)))
    return st.one_of(binary, unary, binary, unary, along, *_parts(draft), cat)


def _parts(draft: _Draft) -> list[st.SearchStrategy[Step]]:
    wide = [place for place, width in enumerate(draft.widths) if width > 1]
    even = [place for place in wide if draft.widths[place] % 2 == 0]
    slices = [Step("slice", (place,), (a, b)) for place in wide for b in range(1, draft.widths[place] + 1) for a in range(b)]
    chunks = [Step(name, (place,)) for place in even for name in ("chunk 0", "chunk 1")]
    normed = [Step("group_norm", (place,), (count, width)) for place, count, width in _heads(draft) if width > 1]
    return [st.sampled_from(steps[::-1]) for steps in (slices, chunks, normed) if steps]
