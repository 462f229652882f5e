"""The ONNX model, run by ONNX's own definition of its operators."""

import numpy
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from sstkern.bench import graph, peers
from sstkern.bench.cases import LAYERS, Case


@pytest.mark.parametrize("cell", LAYERS)
def test_the_operator_computes_what_torch_does(cell: str):
    problem = peers.Problem.of(Case(cell, batch=3, steps=4, size=5), 1)
    model = onnx.load_from_string(graph.model(cell, problem.state, 3, 4, with_lengths=False))
    onnx.checker.check_model(model)
    (node,) = model.graph.node
    assert node.op_type == cell
    (y,) = ReferenceEvaluator(model).run(None, {"x": problem.x.numpy()})
    assert y.shape == (4, 1, 3, 5)
    numpy.testing.assert_allclose(y[:, 0], problem.expected()[0].numpy(), rtol=1e-5, atol=1e-6)


def test_lengths_are_an_input_of_the_operator():
    problem = peers.Problem.of(Case("LSTM", batch=3, steps=4, size=5, lengths="sst2"), 1)
    model = onnx.load_from_string(graph.model("LSTM", problem.state, 3, 4, with_lengths=True))
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == ["x", "lengths"]
    assert list(model.graph.node[0].input) == ["x", "w", "r", "b", "lengths"]


def test_the_order_of_the_gates():
    state = {name: torch.arange(4.0).repeat_interleave(2).view(8, 1).expand(8, 2) for name in ("weight_ih_l0", "weight_hh_l0")}
    state |= {name: torch.arange(4.0).repeat_interleave(2) for name in ("bias_ih_l0", "bias_hh_l0")}
    w, r, b = graph._weights("LSTM", state)
    assert (w.shape, r.shape, b.shape) == ((1, 8, 2), (1, 8, 2), (1, 16))
    assert w[0, :, 0].tolist() == r[0, :, 1].tolist() == [0, 0, 3, 3, 1, 1, 2, 2]
    assert b[0].tolist() == [0, 0, 3, 3, 1, 1, 2, 2] * 2
