"""A layer as an ONNX model of one operator, with torch.nn's weights: what ONNX Runtime and OpenVINO are given."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sstkern import onnx
from sstkern.bench.cases import LAYERS

_OPSET, _IR = 17, 8  # old enough for every runtime of the last years


def model(cell: str, state: Mapping[str, Tensor], batch: int, steps: int, with_lengths: bool) -> bytes:
    """A serialized model, float32: input `x` (T, B, I), with lengths `lengths` (B,) int32, and output `y` (T, 1, B, H)."""
    from onnx import TensorProto, helper, numpy_helper

    w, r, b = _weights(cell, state)
    hidden_size = r.size(2)
    initializers = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in (("w", w), ("r", r), ("b", b))]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, w.size(2)])]
    if with_lengths:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [batch]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, 1, batch, hidden_size])
    attributes = {"hidden_size": hidden_size} | onnx.attributes(LAYERS[cell], 1)
    node = helper.make_node(cell, ["x", "w", "r", "b", "lengths" if with_lengths else ""], ["y"], **attributes)
    graph = helper.make_graph([node], "layer", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR).SerializeToString()


def _weights(cell: str, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """W (1, G * H, I), R (1, G * H, H) and B (1, 2 * G * H)."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w, r, b_ih, b_hh = (onnx.reordered(LAYERS[cell], state[name]) for name in names)
    return w.unsqueeze(0), r.unsqueeze(0), torch.cat([b_ih, b_hh]).unsqueeze(0)
