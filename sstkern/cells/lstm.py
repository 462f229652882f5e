"""Long short-term memory: Hochreiter and Schmidhuber 1997 with forget gates (Gers et al. 2000), as torch.nn.LSTM writes it."""

from torch import Tensor, sigmoid, tanh

from sstkern.cells.cell import PROJECTION, RECURRENT, Cell, Parameters, States


def step(gates_x: Tensor, gates_h: Tensor, states: States, parameters: Parameters) -> States:
    i, f, g, o = (gates_x + gates_h).chunk(4, dim=-1)
    c = sigmoid(f) * states[1] + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


LSTM = Cell(
    name="lstm",
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    step=step,
    stages=(RECURRENT, PROJECTION),
    triton="sstkern.engines.triton.cells.lstm",
    torch_mode="LSTM",
)
