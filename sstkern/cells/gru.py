"""Gated recurrent unit: Cho et al. 2014 in cuDNN's form, as torch.nn.GRU writes it: n = tanh(x_n + r * h_n)."""

from torch import Tensor, sigmoid, tanh

from sstkern.cells.cell import Cell, Parameters, States


def step(gates_x: Tensor, gates_h: Tensor, states: States, parameters: Parameters) -> States:
    sizes = [gates_h.size(-1) // 3 * 2, gates_h.size(-1) // 3]
    (x_rz, x_n), (h_rz, h_n) = gates_x.split(sizes, dim=-1), gates_h.split(sizes, dim=-1)
    r, z = sigmoid(x_rz + h_rz).chunk(2, dim=-1)
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
