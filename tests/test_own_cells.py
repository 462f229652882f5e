"""A cell that the library does not have: what one writes is its definition, what one gets is a layer."""

import copy
import dataclasses
import io
import re

import pytest
import torch
from layers import FUSED
from own_cells import PEEPHOLE, PEEPHOLES
from torch import Tensor, nn

import sstkern
from sstkern import cells, engines
from sstkern.cells import CELLS, RECURRENT, Stage, Weight
from sstkern.modules import Recurrent, RecurrentCell
from sstkern.testing import assert_gradients, gradcheck


class PeepholeLSTM(Recurrent):
    """Gers and Schmidhuber 2000."""

    cell = PEEPHOLE


class PeepholeLSTMCell(RecurrentCell):
    cell = PEEPHOLE


@pytest.fixture(autouse=True)
def _registered():
    cells.register(PEEPHOLE)
    yield
    del cells._registered[PEEPHOLE.name]


def one_direction(weights: dict[str, Tensor], suffix: str, x: Tensor, h: Tensor, c: Tensor, reverse: bool) -> tuple:
    """One sequence (T, I), written out: sums over the inputs of each gate."""
    of = {name.removesuffix(suffix): weight for name, weight in weights.items() if name.endswith(suffix)}
    outputs = [h] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        sums = of["weight_ih"] @ x[t] + of["bias_ih"] + of["weight_hh"] @ h + of["bias_hh"]
        i, f, g, o = sums.view(4, -1)
        i, f = (i + of["weight_ci"] * c).sigmoid(), (f + of["weight_cf"] * c).sigmoid()
        c = f * c + i * g.tanh()
        h = (o + of["weight_co"] * c).sigmoid() * c.tanh()
        outputs[t] = h
    return outputs, h, c


class Loop(nn.Module):
    """A layer's numbers, one sequence after the other."""

    def __init__(self, layer: PeepholeLSTM):
        super().__init__()
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
        self.num_layers, self.directions, self.hidden_size = layer.num_layers, 1 + layer.bidirectional, layer.hidden_size

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None) -> tuple:
        steps, batch = input.shape[:2]
        zeros = input.new_zeros(self.num_layers * self.directions, batch, self.hidden_size)
        h_0, c_0 = (zeros, zeros) if hx is None else hx
        lengths = [steps] * batch if lengths is None else lengths.tolist()
        found = [self.sequence(input[:length, b], h_0[:, b], c_0[:, b], steps) for b, length in enumerate(lengths)]
        return tuple(torch.stack(part, 1) for part in zip(*found, strict=True))

    def sequence(self, x: Tensor, h_0: Tensor, c_0: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        weights, finals = dict(self.named_parameters()), []
        for layer in range(self.num_layers):
            outputs = []
            for d in range(self.directions):
                row, suffix = layer * self.directions + d, f"_l{layer}" + ("_reverse" if d else "")
                output, *final = one_direction(weights, suffix, x, h_0[row], c_0[row], reverse=d == 1)
                outputs.append(torch.stack(output) if output else x.new_zeros(0, self.hidden_size))
                finals.append(final)
            x = torch.cat(outputs, -1)
        padded = torch.cat([x, x.new_zeros(steps - len(x), x.size(1))])
        h_n, c_n = (torch.stack(state) for state in zip(*finals, strict=True))
        return padded, h_n, c_n


@pytest.fixture
def layer() -> PeepholeLSTM:
    torch.manual_seed(0)
    return PeepholeLSTM(2, 3, 2, bidirectional=True, dtype=torch.float64)


def test_results_and_gradients_are_those_of_a_plain_loop(layer):
    report = gradcheck(layer, reference=Loop(layer), shapes=[(3, 3)], elements=3)
    assert report.ok, report.table()
    found = {(row.tensor, row.against) for row in report.rows if "lengths" in row.case}
    own = {f"d {name}_l{i}{way}" for name in PEEPHOLES for i in range(2) for way in ("", "_reverse")}
    assert {(name, against) for name in own for against in ("numerical", "reference")} <= found
    assert all(Loop(layer)(torch.ones(4, 3, 2).double())[0].std(0).flatten() > 0)


def test_a_fault_in_a_parameter_of_its_own_is_named(layer):
    class Dropped(PeepholeLSTM):
        def _weights(self):
            return [weight.detach() if weight is self.weight_cf_l1_reverse else weight for weight in super()._weights()]

    layer.__class__ = Dropped
    with pytest.raises(AssertionError, match=r"wrong: d weight_cf_l1_reverse\n.* numerical  float64   unit \d; "):
        assert_gradients(layer, shapes=[(2, 2)], elements=3)


def test_a_cell_of_one_step():
    torch.manual_seed(0)
    cell = PeepholeLSTMCell(2, 3, dtype=torch.float64)
    assert [name for name, _ in cell.named_parameters()] == ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *PEEPHOLES]
    assert [name for name, _ in PeepholeLSTMCell(2, 3, bias=False).named_parameters()] == ["weight_ih", "weight_hh", *PEEPHOLES]
    assert_gradients(cell)
    x, h, c = torch.randn(2), *torch.randn(2, 3)
    _, *expected = one_direction(dict(cell.named_parameters()), "", x[None].double(), h.double(), c.double(), False)
    torch.testing.assert_close(cell(x.double(), (h.double(), c.double())), tuple(expected), rtol=1e-13, atol=1e-13)


def test_parameters_shapes_and_initialisation():
    torch.manual_seed(0)
    layer = PeepholeLSTM(2, 16, 2, bidirectional=True, bias=False)
    names = [f"{name}_l{i}{way}" for i in range(2) for way in ("", "_reverse") for name in ("weight_ih", "weight_hh", *PEEPHOLES)]
    assert list(layer.state_dict()) == layer._flat_weights_names == names
    assert [tuple(layer.state_dict()[name].shape) for name in names[10:15]] == [(64, 32), (64, 16), (16,), (16,), (16,)]
    assert all(weight is getattr(layer, name) for name, weight in zip(names, layer._flat_weights, strict=True))
    assert [len(weights) for weights in layer.all_weights] == [5] * 4
    assert (layer.weight_co_l1_reverse == 1 / 16).all()  # its own
    assert 0.2 < layer.weight_ci_l0.abs().max() <= 0.25  # torch.nn's
    assert repr(layer) == "PeepholeLSTM(2, 16, num_layers=2, bias=False, bidirectional=True)"


def test_it_is_copied_saved_and_moved_as_any_layer(layer):
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    expected = layer(x, lengths=[4, 0, 2])[0]
    layer.flatten_parameters()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = PeepholeLSTM(2, 3, 2, bidirectional=True, device="meta", dtype=torch.float64).to_empty(device="cpu")
    assert other.flatten_parameters() is None
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(layer), layer.float().double()):
        torch.testing.assert_close(twin(x, lengths=[4, 0, 2])[0], expected, rtol=1e-6, atol=1e-6)
    assert isinstance(layer, nn.RNNBase)


def test_recompute_compile_and_conversion_leave_it_as_it_is(layer, recwarn):
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    plain = torch.autograd.grad(layer(x)[0].sum(), x)
    sparing = PeepholeLSTM(2, 3, 2, bidirectional=True, dtype=torch.float64, recompute=True)
    sparing.load_state_dict(layer.state_dict())
    assert torch.equal(torch.autograd.grad(sparing(x)[0].sum(), x)[0], plain[0])
    by_func = torch.func.grad(lambda x: layer(x)[0].sum())(x.detach())
    torch.testing.assert_close(by_func, plain[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x)[0], layer(x)[0], rtol=1e-12, atol=1e-14)
    for to in ("sstkern", "torch"):
        assert type(sstkern.convert(layer, to=to)) is PeepholeLSTM
    assert not [warning for warning in recwarn if "convert" in str(warning.message)]


def test_the_function_takes_a_name_or_a_definition(layer):
    cell = PeepholeLSTMCell(2, 3, dtype=torch.float64)
    x, weights = torch.randn(4, 2, dtype=torch.float64), list(cell.parameters())
    expected = cell(x)
    for given in (PEEPHOLE, "own_peephole_lstm"):
        assert all(map(torch.equal, sstkern.functional.cell_step(given, x, None, weights), expected))
    output, hx_n = sstkern.functional.layer(PEEPHOLE, x[None], weights)
    assert torch.equal(output[0], expected[0])
    assert [state.shape for state in hx_n] == [(1, 4, 3)] * 2
    with pytest.raises(ValueError, match="weights: a own_peephole_lstm layer with bias=True has 7 tensors for each direction, got 6 for 1"):
        sstkern.functional.layer(PEEPHOLE, x[None], weights[:6])


def test_what_it_cannot_do_is_told():
    with pytest.raises(ValueError, match="proj_size: only LSTM has a projection, PeepholeLSTM has none; got 2"):
        PeepholeLSTM(2, 3, proj_size=2)
    with sstkern.backend(FUSED), pytest.raises(RuntimeError, match="no kernel for the cell 'own_peephole_lstm'"):
        PeepholeLSTM(2, 3)(torch.zeros(1, 1, 2))


def test_a_name_belongs_to_one_definition():
    assert cells.register(PEEPHOLE) is CELLS["own_peephole_lstm"]
    replaced = (
        "cell: 'gru' is the name of another cell, which only a new process can replace; there are lstm, gru, rnn_tanh, rnn_relu, own_"
    )
    with pytest.raises(ValueError, match=replaced):
        cells.register(dataclasses.replace(PEEPHOLE, name="gru"))
    assert CELLS["gru"].gates == ("r", "z", "n")
    with pytest.raises(TypeError):
        CELLS["mine"] = PEEPHOLE


def test_a_definition_that_makes_no_sense_is_told():
    with pytest.raises(ValueError, match=r"states: expected h first, got \('c', 'h'\)"):
        dataclasses.replace(PEEPHOLE, states=("c", "h"))
    with pytest.raises(ValueError, match=r"shape: expected sizes of I, H, P, G\*H, got 4H"):
        dataclasses.replace(PEEPHOLE, parameters=(Weight("weight_ci", ("4H",)),))
    with pytest.raises(ValueError, match="stages: expected RECURRENT, and perhaps PROJECTION after it, got"):
        dataclasses.replace(PEEPHOLE, stages=(RECURRENT, Stage("weight_uh", "new h", ("H", "H"))))


@pytest.mark.parametrize(
    "change", [{"gates": ()}, {"gates": ("i", "i")}, {"states": ("h", "h")}, {"parameters": (Weight("weight_hr", ("H",)),)}]
)
def test_names_that_stand_twice_or_are_every_layers_are_refused(change):
    (what,) = change
    with pytest.raises(ValueError, match=f"{what}: expected a tuple of names that differ, at least one, got"):
        dataclasses.replace(PEEPHOLE, **change)


def test_another_definition_of_a_name_runs_as_it_is_written():
    """Operators, and so the fused engines, know a cell by its name."""

    def nothing(gates_x, gates_h, states, parameters):
        return tuple(torch.zeros_like(state) for state in states)

    class Nothing(Recurrent):
        cell = dataclasses.replace(CELLS["lstm"], step=nothing)

    class NothingCell(RecurrentCell):
        cell = Nothing.cell

    x = torch.randn(4, 2, 3)
    assert (Nothing(3, 4)(x)[0] == 0).all()
    assert (NothingCell(3, 4)(x[0])[0] == 0).all()
    with (
        sstkern.backend(FUSED),
        pytest.raises(RuntimeError, match="the cell 'lstm' is not registered"),
    ):
        Nothing(3, 4)(x)
    found = engines.support(Nothing.cell)
    assert found.pop("reference") is None
    assert None not in found.values()


STEPS = {
    "[(2, 1), (2, 4)]": lambda gates_x, gates_h, states, parameters: (states[0][:, :1], states[1]),
    "[(4,), (2, 4)]": lambda gates_x, gates_h, states, parameters: (states[0].mean(0), states[1]),
    "[(2, 4)]": lambda gates_x, gates_h, states, parameters: (states[0],),
    "Tensor": lambda gates_x, gates_h, states, parameters: gates_h[:, :4],
    "NoneType": lambda gates_x, gates_h, states, parameters: None,
}


@pytest.mark.parametrize("got", STEPS)
def test_a_step_that_returns_something_else_is_told(got):
    """A tensor of fewer dimensions would be spread over the batch, and rows of the batch would become states."""

    class Wrong(Recurrent):
        cell = dataclasses.replace(PEEPHOLE, name="wrong", parameters=(), step=STEPS[got])

    message = f"step of 'wrong': expected the states (h, c), each of shape (2, 4), got {got}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Wrong(3, 4)(torch.zeros(5, 2, 3))


def test_one_step_cells_take_what_torchs_take():
    for ours, theirs in ((sstkern.LSTMCell, nn.LSTMCell), (sstkern.GRUCell, nn.GRUCell), (sstkern.RNNCell, nn.RNNCell)):
        for arguments in ((3, 0), (3, 4, None), (3, 4, 2)):
            assert [*ours(*arguments).state_dict()] == [*theirs(*arguments).state_dict()]


@pytest.mark.parametrize("projected", [False, True])
def test_the_weights_of_a_direction_in_order(projected):
    cell = CELLS["lstm"]
    shapes = cell.shapes(True, projected, input_size=2, hidden_size=5, output_size=3 if projected else None)
    expected = {"weight_ih": (20, 2), "weight_hh": (20, 3 if projected else 5), "bias_ih": (20,), "bias_hh": (20,)}
    assert list(shapes.items()) == list((expected | ({"weight_hr": (3, 5)} if projected else {})).items())
    theirs = nn.LSTM(2, 5, proj_size=3 if projected else 0)
    assert [tuple(weight.shape) for weight in theirs._flat_weights] == list(shapes.values())
    assert (cell.projects, CELLS["gru"].projects) == (True, False)
