"""Gated recurrent unit: Cho et al. 2014 in cuDNN's form, as torch.nn.GRU writes it: n = tanh(x_n + r * h_n)."""

from torch import Tensor, sigmoid, tanh

from sstkern.cells.cell import Cell, Parameters, States


def step(gates_x: Tensor, gates_h: Tensor, states: States, parameters: Parameters) -> States:
    x_r, x_z, x_n = gates_x.chunk(3, dim=-1)
    h_r, h_z, h_n = gates_h.chunk(3, dim=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = tanh(x_n + r * h_n)
    return (n + z * (states[0] - n),)


GRU = Cell(
    name="gru",
    gates=("r", "z", "n"),
    states=("h",),
    step=step,
    same_gate_gradients=False,
    triton="sstkern.engines.triton.cells.gru",
    torch_mode="GRU",
)
