"""Every cell of the library: fused it is the stepped cell, with every gradient, and it begins as its authors say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from each_alone import assert_is_the_loop, wanted
from layers import assert_close
from library_cells import HIDDEN, INPUT, drawn, layer_of, made, stepped
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

import sstkern
from sstkern import cells
from sstkern.cells import LIBRARY, MinLSTMCell, SLSTMCell, WeightDrop
from sstkern.cells.library.dropping import zoneout
from sstkern.structure import flatten, mapped

RANDOM = ("zoneout_lstm", "zoneout_gru", "recurrent_dropout_lstm", "recurrent_dropout_gru")


def test_the_library_has_every_cell_by_both_names():
    assert len(set(LIBRARY.values())) == len(LIBRARY) == 21
    for cell_class in LIBRARY.values():
        assert getattr(cells, cell_class.__name__) is cell_class
        assert cell_class.__name__ in dir(cells)
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchCell'"):
        cells.NoSuchCell  # noqa: B018


@pytest.mark.parametrize("name", LIBRARY)
def test_every_gradient_of_a_fused_layer(name: str):
    layer = layer_of(name)
    torch.manual_seed(1)
    x, hx = drawn(name, 2, 2)

    def results(*_: Tensor) -> list[Tensor]:
        return flatten(layer(x, hx, lengths=[2, 1]))

    assert torch.autograd.gradcheck(results, wanted(layer.cell, x, hx), check_undefined_grad=False)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_fused_layer_is_the_stepped_cell(name: str):
    torch.manual_seed(2)
    assert_is_the_loop(layer_of(name), *drawn(name, 4, 3), [4, 0, 2], every=False)


@pytest.mark.parametrize("name", LIBRARY)
def test_states(name: str):
    cell, layer = made(name), layer_of(name)
    x, _ = drawn(name, 3, 2)
    state = cell.get_initial_state(2)
    assert len(flatten(state)) == len(cell.STATES)
    assert all(h.shape == (2, HIDDEN) and h.dtype == torch.float64 and not h.any() for h in flatten(state))
    assert all(h.dtype == torch.float32 for h in flatten(cell.get_initial_state(2, dtype=torch.float32)))
    output, last = stepped(cell, x, state)
    assert [h.shape for h in flatten(last)] == [h.shape for h in flatten(state)]
    assert_close(flatten(layer(x)), [output, *flatten(last)], 1e-12)


@pytest.mark.parametrize("name", LIBRARY)
def test_every_argument_of_a_constructor_is_in_the_repr(name: str):
    parameters = islice(inspect.signature(LIBRARY[name]).parameters.items(), 2, None)
    options = {key: type(parameter.default)(parameter.default / 2) for key, parameter in parameters}
    cell = LIBRARY[name](3, 6, **options)
    assert cell.extra_repr() == ", ".join(["3, 6", *(f"{key}={value}" for key, value in options.items())])
    assert cell.extra_repr() in repr(cell)


@pytest.mark.parametrize("name", LIBRARY)
def test_reset_parameters_draws_all_of_them_anew(name: str):
    cell, found = made(name), []
    for _ in range(2):
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.add_(1)
        torch.manual_seed(3)
        cell.reset_parameters()
        found.append([parameter.detach().clone() for parameter in cell.parameters()])
    assert all(map(torch.equal, *found))


Check = Callable[[Tensor], bool]


def constant(value: float) -> Check:
    return lambda tensor: bool((tensor == value).all())


def uniform(low: float, high: float) -> Check:
    """The ends are within a tenth of where they should be, and nothing is beyond."""
    room = (high - low) / 10
    return lambda tensor: low <= tensor.min() < low + room and high - room < tensor.max() <= high


def normal(std: float, most: float = math.inf) -> Check:
    return lambda tensor: 0.8 * std < tensor.std() < 1.2 * std and tensor.abs().max() < most and abs(tensor.mean()) < 0.2 * std


def orthogonal(tensor: Tensor) -> bool:
    """Each gate's matrix."""
    return all(torch.allclose(gate @ gate.T, torch.eye(gate.size(1)), atol=1e-4) for gate in tensor.split(tensor.size(1)))


NN, GLOROT = uniform(-1 / 8, 1 / 8), uniform(-math.sqrt(6 / 96), math.sqrt(6 / 96))
"""torch.nn's for 64 units, and Glorot and Bengio's for 32 features and 64 units."""
DREAMER = math.sqrt(2 / (96 + 192)) / 0.87962566103423978
BEGINNINGS: dict[str, dict[str, Check]] = {
    "layer_norm_lstm": {
        **{"x.weight": uniform(-0.1, 0.1), "h.weight": orthogonal, "bias": constant(0)},
        **{f"{norm}.weight": constant(1) for norm in ("norm_x", "norm_h", "norm_c")},
        "norm_c.bias": constant(0),
    },
    "layer_norm_gru": {
        **{"x.weight": uniform(-0.1, 0.1), "h.weight": orthogonal, "bias": constant(0)},
        **{f"{norm}.weight": constant(1) for norm in ("norm_x", "norm_h", "norm_x_n", "norm_h_n")},
        **{f"{norm}.bias": constant(0) for norm in ("norm_x_n", "norm_h_n")},
    },
    "peephole_lstm": dict.fromkeys(("x.weight", "x.bias", "h.weight", "p_i", "p_f", "p_o"), uniform(-0.1, 0.1)),
    "coupled_lstm": dict.fromkeys(("x.weight", "x.bias", "h.weight"), normal(0.1)),
    "multiplicative_lstm": dict.fromkeys(("m_x.weight", "m_h.weight", "x.weight", "x.bias", "m.weight"), NN),
    "cho_gru": {
        **{f"x_{part}.weight": normal(0.01) for part in ("gates", "new")},
        **{f"x_{part}.bias": constant(0) for part in ("gates", "new")},
        **{f"h_{part}.weight": orthogonal for part in ("gates", "new")},
    },
    "augru": dict.fromkeys(("x.weight", "x.bias", "h.weight", "h.bias"), NN),
    "mgu": dict.fromkeys(("x.weight", "x.bias", "h_f.weight", "h_n.weight"), NN),
    "light_gru": {"x.weight": GLOROT, "h.weight": orthogonal, "norm.weight": constant(1), "norm.bias": constant(0)},
    "dreamer_gru": {
        **dict.fromkeys(("x.weight", "h.weight"), normal(0.87962566103423978 * DREAMER, 2 * DREAMER)),
        **{"norm.weight": constant(1), "norm.bias": constant(0)},
    },
    "indrnn": {"x.weight": uniform(-1 / math.sqrt(32), 1 / math.sqrt(32)), "x.bias": constant(0), "u": uniform(0, 1)},
    "min_gru": dict.fromkeys(("x.weight", "x.bias"), uniform(-1 / math.sqrt(32), 1 / math.sqrt(32))),
    "min_lstm": dict.fromkeys(("x.weight", "x.bias"), uniform(-1 / math.sqrt(32), 1 / math.sqrt(32))),
    "recurrent_highway": {
        **{f"layers.{place}.weight": uniform(-0.04, 0.04) for place in range(3)},
        **{f"layers.{place}.bias": lambda bias: uniform(-0.04, 0.04)(bias[:64]) and constant(-2)(bias[64:]) for place in range(3)},
        "x.weight": uniform(-0.04, 0.04),
    },
    "nas": {"x.weight": uniform(*(s * math.sqrt(6 / 544) for s in (-1, 1))), "h.weight": uniform(-0.1021, 0.1021), "h.bias": constant(0)},
    "slstm": {
        **{"x.weight": normal(math.sqrt(2 / 160)), "weight_hh": constant(0)},
        "x.bias": lambda bias: constant(0)(bias.view(4, 4, 16)[:, [0, 2, 3]]) and falls(bias.view(4, 4, 16)[:, 1]),
    },
    "cfc": {
        "backbone.weight": uniform(-math.sqrt(6 / 224), math.sqrt(6 / 224)),
        "backbone.bias": uniform(-1 / math.sqrt(96), 1 / math.sqrt(96)),
        "heads.weight": uniform(-math.sqrt(6 / 192), math.sqrt(6 / 192)),
        "heads.bias": uniform(-1 / math.sqrt(128), 1 / math.sqrt(128)),
    },
    **{name: dict.fromkeys(("x.weight", "x.bias", "h.weight"), NN) for name in ("zoneout_lstm", "recurrent_dropout_lstm")},
    **{name: dict.fromkeys(("x.weight", "x.bias", "h.weight", "h.bias"), NN) for name in ("zoneout_gru", "recurrent_dropout_gru")},
}


def falls(bias: Tensor) -> bool:
    """Whether a bias falls from 5 to -7 along each head."""
    return torch.equal(bias[:, [0, -1]], torch.tensor([[5.0, -7.0]] * 4)) and bool((bias.diff() < 0).all())


@pytest.mark.parametrize("name", LIBRARY)
def test_a_cell_begins_as_its_authors_say(name: str):
    torch.manual_seed(0)
    parameters = dict(LIBRARY[name](32, 64).named_parameters())
    assert parameters.keys() == BEGINNINGS[name].keys()
    for key, check in BEGINNINGS[name].items():
        assert check(parameters[key].detach()), key


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mgu", (0, 4), "input_size: expected at least 1, got 0"),
        ("nas", (3, 0), "hidden_size: expected at least 1, got 0"),
        ("slstm", (3, 6), "heads: expected a divisor of hidden_size, 6, got 4"),
        ("slstm", (3, 4, 0), "heads: expected at least 1, got 0"),
        ("recurrent_highway", (3, 4, 0), "depth: expected at least 1, got 0"),
        ("zoneout_lstm", (3, 4, -0.1), "zoneout_h: expected a probability from 0 to 1, got -0.1"),
        ("zoneout_lstm", (3, 4, 0.1, 2), "zoneout_c: expected a probability from 0 to 1, got 2"),
        ("zoneout_gru", (3, 4, 1.5), "zoneout: expected"),
        ("recurrent_dropout_lstm", (3, 4, 1.5), "dropout_g: expected"),
        ("recurrent_dropout_gru", (3, 4, 0.5, 1.5), "dropout_h: expected"),
    ],
)
def test_wrong_arguments(name: str, arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        LIBRARY[name](*arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nas", ("3", 4), "input_size: expected an int, got '3'"),
        ("mgu", (3, 4.0), "hidden_size: expected an int, got 4.0"),
        ("slstm", (3, 4, 2.0), "heads: expected an int, got 2.0"),
        ("recurrent_highway", (3, 4, None), "depth: expected an int, got None"),
        ("cfc", (3, 4, True), "backbone_size: expected an int, got True"),
        ("zoneout_gru", (3, 4, "0.1"), "zoneout: expected a probability from 0 to 1, got '0.1'"),
    ],
)
def test_arguments_of_a_wrong_type(name: str, arguments: tuple, message: str):
    with pytest.raises(TypeError, match=message):
        LIBRARY[name](*arguments)


def test_inputs_that_are_no_pair():
    x, h = torch.zeros(2, 3), torch.zeros(2, 4)
    for name, input, found in (("augru", x, "Tensor"), ("augru", (x,), "1 of them"), ("cfc", (x, x, x), "3 of them")):
        with pytest.raises(TypeError, match=rf"input: expected a pair of Tensors \(x, \w+\), got {found}"):
            LIBRARY[name](3, 4)(input, h)
    with pytest.raises(TypeError, match="expected a pair of Tensors"):
        sstkern.fuse(LIBRARY["augru"](3, 4))(torch.zeros(5, 2, 3))


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-v))


def norm(v: np.ndarray, gain: np.ndarray, bias: np.ndarray | float = 0.0, epsilon: float = 1e-5) -> np.ndarray:
    centred = v - v.mean(-1, keepdims=True)
    return gain * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) + bias


def layer_norm_gru(p: dict, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    (w_z, w_r, w_n), (u_z, u_r, u_n) = np.split(p["x.weight"], 3), np.split(p["h.weight"], 3)
    x_gates, h_gates = np.concatenate([x @ w_z.T, x @ w_r.T], 1), np.concatenate([h @ u_z.T, h @ u_r.T], 1)
    z, r = np.split(sigmoid(norm(x_gates, p["norm_x.weight"]) + norm(h_gates, p["norm_h.weight"]) + p["bias"]), 2, 1)
    n = norm(x @ w_n.T, p["norm_x_n.weight"], p["norm_x_n.bias"]) + r * norm(h @ u_n.T, p["norm_h_n.weight"], p["norm_h_n.bias"])
    return (1 - z) * h + z * np.tanh(n)


def dreamer_gru(p: dict, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    weight = np.concatenate([p["x.weight"], p["h.weight"]], 1)
    sums = norm(np.concatenate([x, h], 1) @ weight.T, p["norm.weight"], p["norm.bias"], 1e-3)
    r, n, z = np.split(sums, 3, 1)
    z = sigmoid(z - 1)
    return z * np.tanh(sigmoid(r) * n) + (1 - z) * h


def augru(p: dict, inputs: tuple, h: np.ndarray) -> np.ndarray:
    x, score = inputs
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (np.split(v @ p[f"{w}.weight"].T + p[f"{w}.bias"], 3, 1) for v, w in ((x, "x"), (h, "h")))
    z = score[:, None] * sigmoid(x_z + h_z)
    return (1 - z) * h + z * np.tanh(x_n + sigmoid(x_r + h_r) * h_n)


def recurrent_highway(p: dict, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    (w_n, w_t), zeros = np.split(p["x.weight"], 2), np.zeros_like(x)
    for layer, seen in ((0, x), (1, zeros)):
        (u_n, u_t), (b_n, b_t) = np.split(p[f"layers.{layer}.weight"], 2), np.split(p[f"layers.{layer}.bias"], 2)
        n, t = np.tanh(seen @ w_n.T + s @ u_n.T + b_n), sigmoid(seen @ w_t.T + s @ u_t.T + b_t)
        s = n * t + s * (1 - t)
    return s


@pytest.mark.parametrize("formula", [layer_norm_gru, dreamer_gru, augru, recurrent_highway], ids=lambda formula: formula.__name__)
def test_a_cell_that_no_other_package_has_is_its_papers_formula(formula: Callable):
    cell, (x, h) = made(formula.__name__), drawn(formula.__name__, 1, 3)
    parameters = {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}
    row = mapped(x, lambda part: part[0].detach())
    expected = formula(parameters, mapped(row, Tensor.numpy), h.detach().numpy())
    np.testing.assert_allclose(cell(row, h).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def torchs(cell: nn.Module) -> nn.Module:
    """torch.nn's cell with the same weights."""
    cell_class, bias_hh = (nn.GRUCell, cell.h.bias) if cell.h.bias is not None else (nn.LSTMCell, torch.zeros_like(cell.x.bias))
    theirs = cell_class(INPUT, HIDDEN, dtype=torch.float64)
    theirs.load_state_dict({"weight_ih": cell.x.weight, "weight_hh": cell.h.weight, "bias_ih": cell.x.bias, "bias_hh": bias_hh})
    return theirs


@pytest.mark.parametrize("name", RANDOM)
def test_evaluation_draws_nothing(name: str):
    """Recurrent dropout is then torch.nn's cell, zoneout the mean of the state before and that cell's."""
    cell, torch_cell = made(name), torchs(made(name))
    x, hx = drawn(name, 1, 2)
    before = torch.get_rng_state()
    found = flatten(cell(x[0], hx))
    assert torch.equal(torch.get_rng_state(), before)
    keep = {"zoneout_lstm": (0.05, 0.5), "zoneout_gru": (0.1,)}.get(name, (0.0, 0.0))
    expected = [p * old + (1 - p) * new for p, old, new in zip(keep, flatten(hx), flatten(torch_cell(x[0], hx)), strict=False)]
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("name", ["zoneout_lstm", "zoneout_gru"])
def test_zoneout_keeps_single_units_in_training(name: str):
    options = {"zoneout_h": 0.3, "zoneout_c": 0.6} if name == "zoneout_lstm" else {"zoneout": 0.3}
    cell = made(name, **options).train()
    x, hx = torch.randn(2000, INPUT, dtype=torch.float64), cell.get_initial_state(2000)
    hx = mapped(hx, torch.randn_like)
    for p, old, new, found in zip(options.values(), flatten(hx), flatten(torchs(cell)(x, hx)), flatten(cell(x, hx)), strict=True):
        kept = found == old
        torch.testing.assert_close(found, torch.where(kept, old, new))
        assert abs(kept.double().mean() - p) < 0.03
        assert kept.any(0).all()  # every unit, in some sequence
        assert not kept.all(1).all()


@pytest.mark.parametrize("name", ["recurrent_dropout_lstm", "recurrent_dropout_gru"])
def test_recurrent_dropout_drops_parts_of_the_candidate(name: str):
    """What is written to the last state, by the unit: nothing, or more by 1 / (1 - p)."""
    cell = made(name, dropout_g=0.2).train()
    x = torch.randn(2000, INPUT, dtype=torch.float64)
    zeros = cell.get_initial_state(2000)  # of which nothing is kept
    written, full = flatten(cell(x, zeros))[-1], flatten(torchs(cell)(x, zeros))[-1]
    dropped = written == 0
    torch.testing.assert_close(written, torch.where(dropped, 0.0, full / 0.8))
    assert abs(dropped.double().mean() - 0.2) < 0.03


@pytest.mark.parametrize("name", ["recurrent_dropout_lstm", "recurrent_dropout_gru"])
def test_recurrent_dropout_drops_parts_of_h(name: str):
    """With all of h dropped the products see zeros, and c or h itself is as it was."""
    cell = made(name, dropout_g=0.0, dropout_h=1.0).train()
    x, hx = drawn(name, 1, 2)
    if name == "recurrent_dropout_lstm":
        expected = torchs(cell)(x[0], (torch.zeros_like(hx[0]), hx[1]))
    else:
        z, n = cell.gates(x[0], torch.zeros_like(hx))
        expected = z * hx + (1 - z) * n
    assert_close(flatten(cell(x[0], hx)), flatten(expected), 1e-12)


@pytest.mark.parametrize("name", RANDOM)
def test_every_gradient_in_training(name: str):
    """A layer draws the same for the same seed."""
    layer = sstkern.fuse(made(name).train())
    torch.manual_seed(1)
    x, hx = drawn(name, 2, 2)

    def results(*_: Tensor) -> list[Tensor]:
        torch.manual_seed(4)
        return flatten(layer(x, hx))

    assert torch.autograd.gradcheck(results, wanted(layer.cell, x, hx), check_undefined_grad=False)
    torch.manual_seed(5)
    assert not torch.equal(layer(x, hx)[0], results()[0])


def test_an_augru_step_of_score_0_changes_nothing():
    layer, ((x, _), h) = layer_of("augru"), drawn("augru", 3, 2)
    output, h_n = layer((x, torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)), h)
    assert torch.equal(h_n, h)
    assert torch.equal(output, h.expand_as(output))


def test_cfc_without_times_takes_steps_of_one():
    cell, ((x, _), h) = made("cfc"), drawn("cfc", 2, 2)
    assert torch.equal(stepped(cell, x, h)[0], stepped(cell, (x, torch.ones(2, 2, 1, dtype=torch.float64)), h)[0])


def test_slstm_is_its_formula_without_a_stabiliser():
    """c and n without m, and no head sees another."""
    cell, (x, _) = made("slstm"), drawn("slstm", 4, 2)
    weight = torch.zeros(HIDDEN, 4, HIDDEN, dtype=torch.float64)  # units, gates, units
    for head in range(2):
        units = slice(2 * head, 2 * head + 2)
        weight[units, :, units] = cell.weight_hh[head].view(2, 4, 2)
    h, c, n = torch.zeros(3, 2, HIDDEN, dtype=torch.float64)
    expected = []
    for row in x:
        gates = cell.x(row).view(2, 2, 4, 2).transpose(1, 2).flatten(2) + torch.einsum("bu,ugv->bgv", h, weight)
        i, f, z, o = gates.unbind(1)
        c, n = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z), torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        expected.append(h)
    assert_close([stepped(cell, x, cell.get_initial_state(2))[0]], [torch.stack(expected)], 1e-12)


@pytest.mark.parametrize("i", [-300.0, 300.0])
@pytest.mark.parametrize("f", [-300.0, 300.0])
def test_slstm_bears_gates_whose_exponentials_no_float_holds(i: float, f: float):
    cell, x = SLSTMCell(2, 4, heads=2), torch.randn(5, 3, 2, requires_grad=True)
    with torch.no_grad():
        cell.x.bias.view(2, 4, 2)[:, :2] = torch.tensor([[i], [f]])
    for run in (partial(stepped, cell), sstkern.fuse(cell, strict=True)):
        output, state = run(x, cell.get_initial_state(3))
        inputs = [x, *cell.parameters()]
        found = [output, *state, *torch.autograd.grad(output.sum(), inputs)]
        assert all(tensor.isfinite().all() for tensor in found)
        assert (state[2] >= 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [-300.0, -90.0, -18.0, 0.0, 300.0])
def test_minlstm_shares_1_between_gates_that_are_both_0(bias: float, dtype: torch.dtype):
    cell = MinLSTMCell(1, 1).to(dtype)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.x.bias[1:] = bias
    x, h = torch.zeros(2, 1, 1, dtype=dtype), torch.full((1, 1), 0.25, dtype=dtype)
    for found in (stepped(cell, x, h)[0], sstkern.fuse(cell, strict=True)(x, h)[0]):
        torch.testing.assert_close(found.flatten(), torch.tensor([0.375, 0.4375], dtype=dtype))  # half way to g(0) = 0.5, twice
        found.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in cell.parameters())


def test_zoneout_gives_the_new_state_bit_for_bit():
    before, after = torch.full((4000,), 100.0), torch.full((4000,), 0.3)
    assert set(zoneout(before, after, 0.4, training=True).tolist()) == {100.0, after[0].item()}
    assert zoneout(torch.tensor(torch.inf), torch.tensor(1.0), 0.4, training=False).isposinf()


def test_weight_drop_draws_one_mask_for_all_time_steps():
    cell = made("mgu").train()
    register_parametrization(cell.h_n, "weight", WeightDrop(0.5))
    layer, (x, h) = sstkern.fuse(cell), drawn("mgu", 3, 2)
    torch.manual_seed(6)
    found = layer(x, h)[0]
    torch.manual_seed(6)
    with torch.nn.utils.parametrize.cached():
        expected = stepped(cell, x, h)[0]
        assert 0 < (cell.h_n.weight == 0).sum() < 16
    assert_close([found], [expected], 1e-12)
    assert not torch.equal(layer(x, h)[0], found)
    cell.eval()
    assert_close([layer(x, h)[0]], [stepped(cell, x, h)[0]], 1e-12)
    assert torch.equal(cell.h_n.weight, cell.h_n.parametrizations.weight.original)


def test_spectral_norm_of_a_recurrent_matrix():
    cell = made("coupled_lstm")
    spectral_norm(cell.h)
    layer, (x, hx) = sstkern.fuse(cell), drawn("coupled_lstm", 3, 2)
    assert_close([layer(x, hx)[0]], [stepped(cell, x, hx)[0]], 1e-12)
