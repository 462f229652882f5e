"""The text of a program's loops: what it calls, and that it is the same whatever the sizes and numbers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from programs import captured
from torch import Tensor, nn

import sstkern
from sstkern.program import cache, engine
from sstkern.program.cpp import Code, code
from sstkern.program.derive import derive
from sstkern.program.engine import leaves_of_backward
from sstkern.program.graph import Builder
from sstkern.program.lower import lowered
from sstkern.program.shapes import Kind, Leaves
from sstkern.program.values import Value


def codes(name: str, input_size: int, hidden_size: int, dtype: torch.dtype = torch.float64) -> tuple[Code, Code]:
    """The code of the step and of its derivative."""
    program, leaves = captured(name, input_size, hidden_size, dtype)
    derivative = derive(program, leaves)
    backward, of_backward = derivative.backward, leaves_of_backward(program, leaves, derivative)
    return code(lowered(program, leaves, program.outputs)), code(lowered(backward, of_backward, backward.outputs))


def lines(step, dtype: torch.dtype = torch.float64, parameters: tuple[tuple[int, ...], ...] = ()) -> list[str]:
    """The body of the one loop of a step with an input and a state of 4 numbers."""
    build = Builder()
    x, h = build.input(1), build.state(1)
    output = step(build, x, h, *(build.parameter(len(shape)) for shape in parameters))
    kind = Kind((4,), dtype)
    program = build.program([output], [h])
    found = code(lowered(program, Leaves((kind,), (kind,), tuple(Kind(shape, dtype) for shape in parameters), ()), program.outputs))
    body = re.search(r"constexpr int N = kTogether_0;\n(.*?)\n}", found.text, re.DOTALL)
    assert body is not None
    return [line.strip() for line in body[1].split("\n")]


def test_a_step_line_by_line():
    assert lines(lambda do, x, h: do.node("mul", do.node("tanh", do.node("sub", x, h)), 0.1)) == [
        "const auto v0 = load_row<T, N, Whole>(at, 2, 0, units);",
        "const auto v1 = load_row<T, N, Whole>(at, 3, 0, units);",
        "store_row<T, N, Whole>(at, 0, 0, units, v1);",
        "const auto v2 = v0 - v1;",
        "const auto v3 = tanh<T>(v2);",
        "const auto v4 = v3 * T(0.1);",
        "store_row<T, N, Whole>(at, 1, 0, units, v4);",
    ]


EXPRESSIONS = {
    "a number before": (lambda do, x, h: do.node("sub", 1.0, x), "T(1.0) - v0"),
    "a number of the call": (lambda do, x, h: do.node("mul", x, do.number(0.5)), "v0 * given.numbers[0]"),
    "infinity": (lambda do, x, h: do.node("mul", x, -torch.inf), "v0 * T(-__builtin_inf())"),
    "NaN": (lambda do, x, h: do.node("add", x, torch.nan), 'v0 + T(__builtin_nan(""))'),
    "minus zero": (lambda do, x, h: do.node("add", x, -0.0), "v0 + T(-0.0)"),
    "bounds": (lambda do, x, h: do.node("clamp", x, attributes=(-0.5, torch.inf)), "clamp<T>(v0, T(-0.5), T(__builtin_inf()))"),
    "a bound of the call": (
        lambda do, x, h: do.node("clamp", x, attributes=(do.number(-0.5), 2)),
        "clamp<T>(v0, given.numbers[0], T(2.0))",
    ),
    "softplus": (lambda do, x, h: do.node("softplus", x, attributes=(1.0, 20.0)), "softplus<T>(v0, T(1.0), T(20.0))"),
    "gelu": (lambda do, x, h: do.node("gelu", x, attributes=("none",)), "gelu<T>(v0)"),
    "gelu by tanh": (lambda do, x, h: do.node("gelu", x, attributes=("tanh",)), "gelu_tanh<T>(v0)"),
    "a comparison as a number": (lambda do, x, h: do.node("cast", do.node("lt", x, h), attributes=(torch.float64,)), "numbers<T>(v2)"),
    "a number times a comparison": (lambda do, x, h: do.node("mul", x, do.node("lt", x, h)), "v0 * numbers<T>(v2)"),
    "where": (lambda do, x, h: do.node("where", do.node("gt", x, 0.0), x, 0.1), "where<T>(v1, v0, T(0.1))"),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions(name: str):
    step, expected = EXPRESSIONS[name]
    assert f"= {expected};" in " ".join(lines(step))


def test_vectors_and_numbers_of_parameters():
    """A vector is loaded by units, of one number all units take it."""
    found = lines(lambda do, x, h, u, s: do.node("mul", do.node("add", x, u), s), parameters=((4,), (1,)))
    assert "const auto v1 = load_vector<T, N, Whole>(at, given.vectors[0] + 0, units);" in found
    assert any(line.endswith("* given.vectors[1][0];") for line in found)


def test_a_number_of_a_row_is_taken_by_all_its_units():
    found = lines(lambda do, x, h: do.node("mul", h, do.node("slice", x, attributes=(-1, 2, 3))))
    assert any("load_one_row<T, N>(at, " in line for line in found)


SAME = [(3, 7), (2, 6), (17, 9), (40, 33)]


@pytest.mark.parametrize("name", ["LSTMCell", "ChoGRU", "MultiplicativeLSTM", "SRU", "NASCell", "KerasLSTM", "LMU", "Heads", "GRUD"])
def test_the_text_is_the_same_for_other_sizes(name: str):
    """Where no two of different meaning are equal by chance, and none is 1."""
    texts = {tuple(found.text for found in codes(name, *sizes)) for sizes in SAME}
    assert len(texts) == 1


def test_what_depends_on_sizes_is_beside_the_text():
    """Where the gradients of an LSTM's gates begin in their row."""
    assert [codes("LSTMCell", 3, size)[1].starts for size in (4, 6)] == [[4, 8, 12], [6, 12, 18]]
    assert codes("LSTMCell", 3, 4)[0].vectors == [(Value("p", 1), (16,)), (Value("p", 3), (16,))]


def test_the_text_differs_by_dtype_and_structure():
    texts = [codes(name, 3, 4, dtype)[0].text for name in ("LSTMCell", "GRUCell", "MGU") for dtype in (torch.float32, torch.float64)]
    assert len(set(texts)) == len(texts)
    assert ["using T = float;" in text for text in texts] == [True, False] * 3
    assert texts[0].replace("using T = float;", "using T = double;") == texts[1]


class Scaled(nn.Module):
    def __init__(self, hidden_size: int, scale: float) -> None:
        super().__init__()
        self.hidden_size, self.scale = hidden_size, scale
        self.linear = nn.Linear(3 + hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.linear(torch.cat([x, h], 1))) * self.scale + (1 - self.scale) * h


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """Counts the libraries that were compiled."""
    monkeypatch.setenv("SSTKERN_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_known", {})
    engine.forget()
    return lambda: len([*tmp_path.glob("*.so")])


def train(layer: nn.Module, hidden_size: int) -> None:
    for steps, batch in ((1, 1), (7, 3)):
        output, _ = layer(torch.randn(steps, batch, 3), torch.zeros(batch, hidden_size))
        output.sum().backward()


def test_a_sweep_compiles_once(libraries: Callable[[], int]):
    """Over hidden_size and the numbers of time steps and sequences: a forward and a backward."""
    for size in (4, 5, 16, 33):
        train(sstkern.fuse(Scaled(size, 0.5), strict=True), size)
    assert libraries() == 2


def test_a_number_that_changes_compiles_once_more(libraries: Callable[[], int]):
    """What has changed once is an argument from then on."""
    layer = sstkern.fuse(Scaled(4, 0.5), strict=True)
    for scale in (0.5, 0.25, 0.125, 0.75):
        layer.cell.scale = scale
        train(layer, 4)
    assert libraries() == 4
