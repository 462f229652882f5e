"""The library's cells beside other people's code: equal numbers in float64, with the weights carried over.

torchrecurrent and onnx are always there, the others are compared where they are installed. haste's package asks for CUDA's headers where it
finds nvcc; its plain functions, the folder frameworks/pytorch of its source, need none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
import torchrecurrent
from layers import assert_close
from library_cells import HIDDEN, INPUT, drawn, layer_of, made
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from sstkern.structure import flatten

F64 = torch.float64


def run(name: str, steps: int = 4, batch: int = 3, zeros: bool = False) -> tuple[nn.Module, Any, Any, list[Tensor]]:
    """The cell, an input, a first state, and the output and last states of the fused layer."""
    layer = layer_of(name)
    torch.manual_seed(7)
    x, hx = drawn(name, steps, batch)
    hx = layer.cell.get_initial_state(batch) if zeros else hx
    return layer.cell, x, hx, flatten(layer(x, hx))


def carry(peer: nn.Module, **tensors: Tensor) -> nn.Module:
    """The peer in float64, with these parameters, all that it has."""
    peer = peer.double().eval()
    peer.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()})
    return peer


def loop(step: Callable, x: Any, state: Any) -> list[Tensor]:
    """A peer's cell in a Python loop."""
    outputs = []
    for row in zip(*x, strict=True) if isinstance(x, tuple) else x:
        state = step(row, state)
        outputs.append(flatten(state)[0])
    return [torch.stack(outputs), *flatten(state)]


def of_torchrecurrent(name: str, **tensors: Tensor) -> nn.Module:
    """The peer's cell, with zeros for the biases that ours does not have twice."""
    peer = getattr(torchrecurrent, name)(INPUT, HIDDEN)
    rest = {key: torch.zeros_like(tensor) for key, tensor in peer.state_dict().items() if key not in tensors}
    assert all(re.match("bias_", key) for key in rest)
    return carry(peer, **rest, **tensors)


def test_peephole_lstm_is_torchrecurrents():
    cell, x, hx, found = run("peephole_lstm")
    peepholes = torch.cat([cell.p_i, cell.p_f, cell.p_o])
    peer = of_torchrecurrent("PeepholeLSTMCell", weight_ih=cell.x.weight, weight_hh=cell.h.weight, bias_ih=cell.x.bias, weight_ph=peepholes)
    assert_close(found, loop(peer, x, hx), 1e-12)


def test_multiplicative_lstm_is_torchrecurrents():
    cell, x, hx, found = run("multiplicative_lstm")
    peer = of_torchrecurrent(
        "MultiplicativeLSTMCell",
        weight_ih=torch.cat([cell.m_x.weight, cell.x.weight]),
        bias_ih=torch.cat([torch.zeros(HIDDEN, dtype=F64), cell.x.bias]),
        weight_hh=cell.m_h.weight,
        weight_mh=cell.m.weight,
    )
    assert_close(found, loop(peer, x, hx), 1e-12)


def test_mgu_is_torchrecurrents():
    cell, x, hx, found = run("mgu")
    weight_hh = torch.cat([cell.h_f.weight, cell.h_n.weight])
    peer = of_torchrecurrent("MGUCell", weight_ih=cell.x.weight, bias_ih=cell.x.bias, weight_hh=weight_hh)
    assert_close(found, loop(peer, x, hx), 1e-12)


def test_indrnn_is_torchrecurrents():
    cell, x, hx, found = run("indrnn")
    peer = of_torchrecurrent("IndRNNCell", weight_ih=cell.x.weight, bias_ih=cell.x.bias, vector_u=cell.u)
    peer.act = nn.ReLU()  # its default is tanh
    assert_close(found, loop(peer, x, hx), 1e-12)


def test_light_gru_is_torchrecurrents_after_the_norm():
    """It has no norm: it is given what ours normalises, through an identity."""
    cell, x, hx, found = run("light_gru")
    peer = torchrecurrent.LiGRUCell(2 * HIDDEN, HIDDEN, bias=False, recurrent_bias=False)
    zeros = {key: torch.zeros(2 * HIDDEN) for key in peer.state_dict() if key.startswith("bias")}
    carry(peer, weight_ih=torch.eye(2 * HIDDEN), weight_hh=cell.h.weight, **zeros)
    assert_close(found, loop(peer, nn.functional.layer_norm(cell.x(x), (2 * HIDDEN,), cell.norm.weight, cell.norm.bias), hx), 1e-12)


def test_nas_is_torchrecurrents_without_the_fourth_sum():
    """Where TensorFlow's cell, and ours, multiplies, torchrecurrent's adds: both are 0 for weights of 0."""
    cell, x, hx = made("nas"), *drawn("nas", 4, 3)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter[3 * HIDDEN : 4 * HIDDEN] = 0
    peer = of_torchrecurrent("NASCell", weight_ih=cell.x.weight, weight_hh=cell.h.weight, bias_hh=cell.h.bias)
    assert_close(loop(cell, x, hx), loop(peer, x, hx), 1e-12)


def onnx_model(kind: str, feeds: dict[str, Tensor], outputs: list[str], **attributes: Any) -> onnx.ModelProto:
    """One of ONNX's recurrent operators, with inputs of these names in its documentation."""
    names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    inputs = [name if name in feeds else "" for name in names]
    while not inputs[-1]:
        inputs.pop()
    kinds = {torch.float32: onnx.TensorProto.FLOAT, torch.float64: onnx.TensorProto.DOUBLE}
    dtype = kinds[feeds["X"].dtype]
    node = helper.make_node(kind, inputs, outputs, hidden_size=HIDDEN, **attributes)
    told = [helper.make_tensor_value_info(name, dtype, tensor.shape) for name, tensor in feeds.items()]
    given = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
    graph = helper.make_graph([node], kind, told, given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def as_feeds(x: Tensor, dtype: torch.dtype, **tensors: Tensor) -> dict[str, Tensor]:
    """Weights and states have a dimension of directions in ONNX."""
    return {name: tensor.detach().to(dtype) for name, tensor in {"X": x, **{name: t[None] for name, t in tensors.items()}}.items()}


def test_cho_gru_is_onnxs():
    cell, x, h, found = run("cho_gru")
    (r, z), (r_h, z_h), (b_r, b_z) = (t.chunk(2) for t in (cell.x_gates.weight, cell.h_gates.weight, cell.x_gates.bias))
    biases = torch.cat([b_z, b_r, cell.x_new.bias, torch.zeros(3 * HIDDEN, dtype=F64)])
    feeds = as_feeds(x, F64, W=torch.cat([z, r, cell.x_new.weight]), R=torch.cat([z_h, r_h, cell.h_new.weight]), B=biases, initial_h=h)
    model = onnx_model("GRU", feeds, ["Y", "Y_h"], linear_before_reset=0)
    y, y_h = ReferenceEvaluator(model).run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    assert_close(found, [torch.from_numpy(y).squeeze(1), torch.from_numpy(y_h).squeeze(0)], 1e-12)


def test_coupled_lstm_is_onnx_runtimes():
    """Which has float32 only. Its fourth gate, the forget gate, is not read."""
    runtime = pytest.importorskip("onnxruntime")
    cell, x, (h, c), found = run("coupled_lstm")

    def in_its_order(tensor: Tensor) -> Tensor:
        i, g, o = tensor.chunk(3)
        return torch.cat([i, o, torch.zeros_like(i), g])

    w, r, b = map(in_its_order, (cell.x.weight, cell.h.weight, cell.x.bias))
    feeds = as_feeds(x, torch.float32, W=w, R=r, B=torch.cat([b, torch.zeros_like(b)]), initial_h=h, initial_c=c)
    model = onnx_model("LSTM", feeds, ["Y", "Y_h", "Y_c"], input_forget=1)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *last = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    expected = [torch.from_numpy(y).squeeze(1), *(torch.from_numpy(state).squeeze(0) for state in last)]
    assert_close(found, [tensor.double() for tensor in expected], 1e-5)


def test_cfc_is_ncps():
    ncps = pytest.importorskip("ncps.torch")
    cell, x, hx, found = run("cfc")
    parts = dict(
        zip(("ff1", "ff2", "time_a", "time_b"), zip(cell.heads.weight.chunk(4), cell.heads.bias.chunk(4), strict=True), strict=True)
    )
    tensors = {f"{name}.{kind}": part[place] for name, part in parts.items() for place, kind in enumerate(("weight", "bias"))}
    tensors |= {f"backbone.0.{name}": tensor for name, tensor in cell.backbone.named_parameters()}
    peer = carry(ncps.CfCCell(INPUT, HIDDEN, backbone_units=5), **tensors)
    assert_close(found, loop(lambda row, h: peer(row[0], h, row[1][:, None])[0], x, hx), 1e-12)


@pytest.mark.parametrize(("name", "peer_name", "product"), [("min_gru", "minGRU", "gate"), ("min_lstm", "minLSTM", "f_i_gate")])
def test_min_gru_and_min_lstm_are_those_of_min_gru_pytorch(name: str, peer_name: str, product: str):
    """Its layers are as wide as their inputs and have no biases: they are given W x + b, and the identity as W."""
    pytest.importorskip("minGRU_pytorch")
    peer = getattr(import_module(f"minGRU_pytorch.{peer_name}"), peer_name)(HIDDEN)
    cell, x, h, found = run(name)
    sums = cell.x(x)
    getattr(peer, f"to_hidden_and_{product}").weight = nn.Parameter(torch.eye(sums.size(-1), dtype=F64))
    assert_close(found, loop(lambda row, h: peer(row[:, None], h[:, None]).squeeze(1), sums, h), 1e-12)


def slstm_tensors(cell: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W x (T, B, gates, heads, units) and the biases (gates, heads, units), as of FlashRNN and xLSTM; U (heads, units, gates, units)."""
    units = HIDDEN // cell.heads
    rows = nn.functional.linear(x, cell.x.weight).unflatten(2, (cell.heads, 4, units)).transpose(2, 3)
    return rows.detach(), cell.x.bias.view(cell.heads, 4, units).transpose(0, 1).detach(), cell.weight_hh.view(-1, units, 4, units).detach()


def test_slstm_is_flashrnns():
    flash: ModuleType = pytest.importorskip("flashrnn.flashrnn.vanilla")
    cell, x, _, found = run("slstm", zeros=True)
    rows, bias, recurrent = slstm_tensors(cell, x)
    pointwise = flash.flashrnn_pointwise_function_registry["slstm"]
    states, last = flash.flashrnn_forward(rows, torch.zeros(1, 3, 4, *bias.shape[1:], dtype=F64), recurrent, bias, pointwise)
    assert_close(found, [states[:, :, 0].flatten(2), *last[0].flatten(2).unbind(1)], 1e-12)


def test_slstm_is_xlstms():
    xlstm: ModuleType = pytest.importorskip("xlstm.blocks.slstm.src.vanilla")
    cell, x, _, found = run("slstm", zeros=True)
    rows, bias, recurrent = slstm_tensors(cell, x)
    pointwise = xlstm.slstm_pointwise_function_registry["slstm"]
    recurrent = recurrent.permute(0, 2, 3, 1).flatten(1, 2)
    states, last, _ = xlstm.slstm_forward(rows.flatten(2), torch.zeros(4, 3, HIDDEN, dtype=F64), recurrent, bias.flatten(), pointwise)
    assert_close(found, [states[0, 1:], *last], 1e-12)


def as_hastes(tensor: Tensor, order: list[int], dim: int = 0) -> Tensor:
    """Gates in haste's order, from those of ours."""
    gates = tensor.chunk(len(order), dim)
    return torch.cat([gates[place] for place in order], dim)


IGFO, ZRN = [0, 2, 1, 3], [1, 0, 2]


def of_haste(peer: nn.Module, x: Tensor, hx: tuple[Tensor, ...] | Tensor, **tensors: Tensor) -> list[Tensor]:
    """Output and last states of one of its layers, in evaluation mode; matrices are the other way round."""
    turned = {name: tensor.T if "kernel" in name else tensor for name, tensor in tensors.items()}
    states = tuple(h[None] for h in hx) if isinstance(hx, tuple) else hx[None]
    output, last = carry(peer, **turned)(x, states)
    return [output, *(state[0] for state in flatten(last))]


def test_layer_norm_lstm_is_hastes():
    haste = pytest.importorskip("haste_pytorch", reason="haste's package installs only beside CUDA's headers")
    cell, x, hx, found = run("layer_norm_lstm")
    gates = {"kernel": cell.x.weight, "recurrent_kernel": cell.h.weight, "bias": cell.bias}
    gammas = torch.stack([as_hastes(norm.weight, IGFO) for norm in (cell.norm_x, cell.norm_h)])
    tensors = {name: as_hastes(tensor, IGFO) for name, tensor in gates.items()} | {"gamma": gammas}
    peer = haste.LayerNormLSTM(INPUT, HIDDEN)
    assert_close(found, of_haste(peer, x, hx, **tensors, gamma_h=cell.norm_c.weight, beta_h=cell.norm_c.bias), 1e-12)


def test_zoneout_lstm_is_hastes():
    """Which zones h out, not c."""
    haste = pytest.importorskip("haste_pytorch", reason="haste's package installs only beside CUDA's headers")
    cell, (x, hx) = made("zoneout_lstm", zoneout_h=0.3, zoneout_c=0.0), drawn("zoneout_lstm", 4, 3)
    gates = {"kernel": cell.x.weight, "recurrent_kernel": cell.h.weight, "bias": cell.x.bias}
    tensors = {name: as_hastes(tensor, IGFO) for name, tensor in gates.items()}
    assert_close(loop(cell, x, hx), of_haste(haste.LSTM(INPUT, HIDDEN, zoneout=0.3), x, hx, **tensors), 1e-12)


def test_zoneout_gru_is_hastes():
    haste = pytest.importorskip("haste_pytorch", reason="haste's package installs only beside CUDA's headers")
    cell, x, h, found = run("zoneout_gru")
    gates = {"kernel": cell.x.weight, "recurrent_kernel": cell.h.weight, "bias": cell.x.bias, "recurrent_bias": cell.h.bias}
    tensors = {name: as_hastes(tensor, ZRN) for name, tensor in gates.items()}
    assert_close(found, of_haste(haste.GRU(INPUT, HIDDEN, zoneout=0.1), x, h, **tensors), 1e-12)
