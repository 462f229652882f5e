"""torch.compile: whole graphs, equal results, one compilation for all sizes and lengths."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_sequence

import sstkern
from sstkern.engines import cpu_runs

LAYERS = {
    "LSTM": lambda: sstkern.LSTM(4, 6, 2, bidirectional=True, proj_size=3),
    "GRU": lambda: sstkern.GRU(4, 6, batch_first=True),
    "RNN": lambda: sstkern.RNN(4, 6, nonlinearity="relu"),
}
DIFFERENTIATED = ["jvp", "grad", "vmap", "per-sample gradients"]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    torch.manual_seed(0)


def sizes(layer: torch.nn.Module, steps: int, batch: int) -> tuple[int, int, int]:
    return (batch, steps, 4) if getattr(layer, "batch_first", False) else (steps, batch, 4)


def assert_equal(compiled, layer, x: Tensor, lengths: Tensor | None = None) -> None:
    """Results, and the gradients of the input and every parameter."""
    found = []
    for function in (compiled, layer):
        output, _ = function(x.requires_grad_(), lengths=lengths)
        found.append([output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.inference_mode():
        assert torch.equal(compiled(x, lengths=lengths)[0], layer(x, lengths=lengths)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_one_compilation_serves_all_sizes_and_lengths(name):
    layer = LAYERS[name]()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    assert_equal(compiled, layer, torch.randn(sizes(layer, 5, 3)), torch.tensor([5, 0, 2]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps, batch in ((7, 3), (7, 2), (2, 5), (9, 9)):
            assert_equal(compiled, layer, torch.randn(sizes(layer, steps, batch)), torch.randint(0, steps + 1, (batch,)))
        with pytest.raises(ValueError, match=r"lengths\[0\] is 5; allowed are 0 to 4"):
            compiled(torch.randn(sizes(layer, 4, 2)).requires_grad_(), lengths=torch.tensor([5, 1]))


@pytest.mark.parametrize(("name", "form"), [("LSTM", "packed"), ("LSTM", "nested"), ("GRU", "nested"), ("RNN", "packed")])
def test_a_packed_input_is_compiled_whole(name, form):
    """In the default mode a second shape makes a second graph, which serves all others."""
    layer, graphs = LAYERS[name](), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    for lengths in ([5, 2], [3, 7], [1, 4, 4], [6, 6, 6, 2]):
        parts, found = [torch.randn(length, 4) for length in lengths], []
        for function in (compiled, layer):
            if form == "packed":
                output, hx_n = function(pack_sequence(parts, enforce_sorted=False))
                values = output.data
            else:
                output, hx_n = function(torch.nested.nested_tensor(parts, layout=torch.jagged))
                values = output.values()
            h_n = hx_n[0] if isinstance(hx_n, tuple) else hx_n
            found.append([values, h_n, *torch.autograd.grad(values.sum() + h_n.sum(), list(layer.parameters()))])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert graphs.frame_count <= 3


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_compiled_cell_is_equal(name):
    cell, x = getattr(sstkern, name)(4, 6), torch.randn(3, 4)
    compiled = torch.compile(cell, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), cell(x), rtol=0, atol=0)


def test_the_graph_does_not_grow_with_the_time_steps():
    layer, graphs = sstkern.LSTM(4, 6, 2), []

    def noted(graph: torch.fx.GraphModule, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    for steps in (16, 512):
        torch._dynamo.reset()
        torch.compile(layer, fullgraph=True, dynamic=False, backend=noted)(torch.randn(steps, 2, 4))
    short, long = graphs
    assert short == long
    assert sum("sstkern.layer" in target for target in short) == 2


def test_dropout_states_and_lengths_as_a_list():
    layer = sstkern.LSTM(4, 6, 2, dropout=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, hx = torch.randn(5, 3, 4), (torch.randn(2, 3, 6), torch.randn(2, 3, 6))
    found = []
    for function in (compiled, layer):
        torch.manual_seed(1)
        found.append(function(x, hx, lengths=[5, 0, 2])[0])
    assert torch.equal(*found)


LISTS = [[5, 0, 2], [1, 2, 3], [4, 4, 4], [2, 3, 1], [5, 5, 5], [0, 0, 0], [1, 1, 2], [3, 2, 1]]
ONE_BY_ONE = [[5, 5, 5], [4, 5, 5], [4, 3, 5], [4, 3, 2], [4, 3, 1]]


@pytest.mark.parametrize(
    ("given", "kind", "dynamic", "graphs"),
    [
        (LISTS, list, None, 2),  # the second one, for all, once PyTorch has seen which values change
        (LISTS, tuple, None, 2),
        (ONE_BY_ONE, list, None, 4),  # it sees that of each place by itself
        (ONE_BY_ONE, list, True, 1),
        ([[3] * batch for batch in (1, 2, 3, 4)], list, True, 4),  # the number of a list's elements is its type
        (LISTS, torch.tensor, None, 1),
        ([[3] * batch for batch in (2, 3, 4, 5)], torch.tensor, True, 1),
    ],
)
def test_graphs_of_lists_of_lengths(given, kind, dynamic, graphs):
    layer, seen = sstkern.GRU(4, 6), []
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=lambda graph, _: seen.append(graph) or graph)
    with torch.no_grad():
        for lengths in given:
            x = torch.randn(5, len(lengths), 4)
            assert torch.equal(compiled(x, lengths=kind(lengths))[0], layer(x, lengths=lengths)[0])
    assert len(seen) == graphs


def differentiated(kind: str, layer: torch.nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    def output(x: Tensor) -> Tensor:
        return layer(x, lengths=lengths)[0]

    match kind:
        case "jvp":
            return torch.func.jvp(output, (x,), (x.cos(),))[1]
        case "grad":
            return torch.func.grad(lambda x: output(x).square().sum())(x)
        case "vmap":
            return torch.func.vmap(output)(torch.stack([x, 2 * x]))
        case "per-sample gradients":
            weights = dict(layer.named_parameters())

            def loss(weights: dict[str, Tensor], x: Tensor, length: Tensor) -> Tensor:
                return torch.func.functional_call(layer, weights, (x[:, None],), {"lengths": length[None]})[0].square().sum()

            return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1, 0))(weights, x, lengths)["weight_hh_l0"]


@pytest.mark.parametrize("kind", DIFFERENTIATED)
def test_transforms_inside_a_compiled_function_are_those_outside(kind):
    layer, x, lengths = sstkern.GRU(4, 6, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64), torch.tensor([1, 3])
    eager = differentiated(kind, layer, x, lengths)
    compiled = torch.compile(lambda x, lengths: differentiated(kind, layer, x, lengths), backend="aot_eager", fullgraph=True)
    before = cpu_runs()
    found = compiled(x, lengths)
    torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-14)
    assert eager.abs().max() > 1e-3  # no tangent was lost on both ways
    assert (cpu_runs()["forward"] > before["forward"]) == (kind != "jvp")
    assert (cpu_runs()["backward"] > before["backward"]) == (kind in ("grad", "per-sample gradients"))
    if kind != "vmap":  # and what is compiled can be differentiated once more
        (expected,) = torch.autograd.grad(eager.square().sum(), layer.weight_ih_l0)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), layer.weight_ih_l0)[0], expected, rtol=1e-10, atol=1e-12)
    with pytest.raises((ValueError, RuntimeError), match="0 to 3"):
        compiled(x, torch.tensor([1, 4]))


def test_a_second_derivative_of_a_compiled_layer_is_refused():
    layer, x = sstkern.GRU(4, 6), torch.randn(3, 2, 4, requires_grad=True)
    output, _ = torch.compile(layer, backend="aot_eager")(x)
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(gradient.sum(), x)


def runs(function, *arguments) -> int:
    before = cpu_runs()["forward"]
    function(*arguments)
    return cpu_runs()["forward"] - before


def test_a_forced_engine_has_a_graph_of_its_own():
    layer, x, graphs = sstkern.GRU(4, 6), torch.randn(3, 2, 4), []
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    found = []
    for _ in range(3):
        found.append(runs(compiled, x))
        for engine in ("reference", "cpu"):
            with sstkern.backend(engine):
                found.append(runs(compiled, x))
    assert found == [1, 0, 1] * 3
    assert len(graphs) == 3  # and outside again the first one
    with sstkern.backend("cpu"), sstkern.backend("reference"):
        with sstkern.backend("cpu"):
            assert runs(compiled, x) == 1
        assert runs(compiled, x) == 0
    with sstkern.backend("cpu"), pytest.raises(RuntimeError, match="backend: 'cpu' was asked for, but x is on meta"):
        torch.compile(sstkern.GRU(4, 6, device="meta"), backend="eager", fullgraph=True)(x.to("meta"))
    assert len(graphs) == 3


def test_an_engine_is_forced_inside_a_compiled_function():
    layer, x = sstkern.GRU(4, 6), torch.randn(3, 2, 4)

    def forced(x: Tensor) -> Tensor:
        with sstkern.backend("reference"):
            return layer(x)[0]

    compiled = torch.compile(forced, fullgraph=True, backend="eager")
    assert [runs(compiled, x), runs(layer, x), runs(compiled, x)] == [0, 1, 0]
