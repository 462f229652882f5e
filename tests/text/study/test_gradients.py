import json
import math

import pytest
import torch
from torch import nn

import sstkern
from sstkern.text import Examples
from sstkern.text.study import gradients

LAYERS = {"rnn": (sstkern.RNN, nn.RNN), "gru": (sstkern.GRU, nn.GRU), "lstm": (sstkern.LSTM, nn.LSTM)}


def layer(cell: str, **options) -> nn.Module:
    torch.manual_seed(3)
    return LAYERS[cell][0](3, 4, **options)


def sentences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 3, generator=generator) for length in lengths]


def norm_by_torch(cell: str, x: torch.Tensor, d: int, place: int) -> float:
    """Of the Jacobian over the last d steps, with torch.nn's layer and nothing of sstkern."""
    twin = LAYERS[cell][1](3, 4).double()
    twin.load_state_dict(layer(cell).state_dict())
    x = x.double()
    _, before = twin(x[: len(x) - d])
    states = before if cell == "lstm" else (before,)

    def last(state: torch.Tensor) -> torch.Tensor:
        start = [*states[:place], state[None], *states[place + 1 :]]
        _, final = twin(x[len(x) - d :], tuple(start) if cell == "lstm" else start[0])
        return (final if cell == "lstm" else (final,))[place][0]

    return torch.linalg.matrix_norm(torch.autograd.functional.jacobian(last, states[place][0].detach()), 2).item()


@pytest.mark.parametrize(("cell", "name", "place"), [("rnn", "dh", 0), ("gru", "dh", 0), ("lstm", "dh", 0), ("lstm", "dc", 1)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_vanishing_is_the_jacobians_norm(cell, name, place, batch_first):
    inputs = sentences(7, 5)
    norms = gradients.vanishing({cell: layer(cell, batch_first=batch_first)}, inputs, distance=4)["cells"][cell][name]
    expected = [math.prod(norm_by_torch(cell, x, d, place) for x in inputs) ** 0.5 for d in range(1, 5)]
    assert norms == pytest.approx([1.0, *expected], rel=1e-10)


def test_vanishing_runs_the_fused_kernels():
    layers = {cell: layer(cell) for cell in LAYERS}
    result = gradients.vanishing(layers, sentences(7, 5, 4), distance=4)
    # Two of the LSTM's states, a sentence and a distance each; distance 0 needs none.
    assert result["fused_backwards"] == (1 + 1 + 2) * 3 * 4
    assert (result["distance"], result["sentences"]) == ([0, 1, 2, 3, 4], 3)
    assert all(parameter.grad is None and parameter.dtype == torch.float32 for each in layers.values() for parameter in each.parameters())
    json.dumps(result, allow_nan=False)


def test_without_a_path_through_h_dc_is_the_product_of_the_forget_gates():
    lstm = layer("lstm")
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()
    norms = gradients.vanishing({"lstm": lstm}, sentences(6, 5), distance=5)["cells"]["lstm"]
    assert norms["dc"] == pytest.approx(norms["forget_max"], rel=1e-12)
    assert norms["dh"] == [1, *[0] * 5]


def test_forget_products_of_constant_gates():
    lstm = layer("lstm")
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        lstm.bias_hh_l0[4:8] = torch.tensor([0.5, 0.6, 0.8, 0.9]).logit()
    norms = gradients.vanishing({"lstm": lstm}, sentences(3), distance=3)["cells"]["lstm"]
    assert norms["forget_max"] == pytest.approx([0.9**d for d in range(4)])
    assert norms["forget_mean"] == pytest.approx([sum(f**d for f in (0.5, 0.6, 0.8, 0.9)) / 4 for d in range(4)])


def test_forget_products_take_each_steps_own_gates():
    twin = nn.LSTM(3, 4).double()
    twin.load_state_dict(layer("lstm").state_dict())
    (x,) = sentences(6)
    state, gates = (torch.zeros(1, 4).double(), torch.zeros(1, 4).double()), []
    for step in x.double().split(1):
        sums = step @ twin.weight_ih_l0.T + twin.bias_ih_l0 + state[0] @ twin.weight_hh_l0.T + twin.bias_hh_l0
        gates.append(sums[0, 4:8].sigmoid())
        _, state = twin(step, state)
    norms = gradients.vanishing({"lstm": layer("lstm")}, [x], distance=6)["cells"]["lstm"]
    for d in range(1, 7):
        product = torch.stack(gates[-d:]).prod(0)
        assert norms["forget_max"][d] == pytest.approx(product.max().item(), rel=1e-12)
        assert norms["forget_mean"][d] == pytest.approx(product.mean().item(), rel=1e-12)


def test_vanishing_checks_its_arguments():
    with pytest.raises(ValueError, match="the shortest has 3 steps, expected at least 4"):
        gradients.vanishing({"gru": layer("gru")}, sentences(5, 3), distance=4)
    with pytest.raises(ValueError, match="inputs: there is none"):
        gradients.vanishing({"gru": layer("gru")}, [])
    with pytest.raises(ValueError, match="layers: gru has several"):
        gradients.vanishing({"gru": layer("gru", bidirectional=True)}, sentences(5), distance=4)


def test_plot_vanishing(tmp_path, figures):
    result = gradients.vanishing({cell: layer(cell) for cell in LAYERS}, sentences(5), distance=4)
    gradients.plot_vanishing(result, result, tmp_path / "vanishing.png")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["at initialisation", "after training"]
    assert [len(axes.lines) for axes in figure.axes] == [6, 6]
    assert list(figure.axes[0].lines[0].get_ydata()) == result["cells"]["rnn"]["dh"]


@pytest.fixture(scope="module")
def long_sentences() -> Examples:
    """The first of 24 words decides; one sentence in four is too short."""
    words = [["awful", "fine"][i % 2] + f" w{i % 7}" * (23 if i % 4 else 2) for i in range(64)]
    return Examples(words, [i % 2 for i in range(64)])


def test_exploding(long_sentences):
    result = gradients.exploding(long_sentences, steps=12)
    unclipped, clipped, control = result["runs"].values()
    assert (result["sentences"], result["steps"], result["chance_loss"]) == (48, 12, math.log(2))
    assert [run["spectral_radius"] for run in (unclipped, clipped, control)] == [1.05, 1.05, 0.9]
    assert all(len(run[name]) == 12 for run in (unclipped, clipped, control) for name in ("loss", "norm_before", "norm_after"))
    # The same weights and batches up to the first step of the optimizer, and nothing clipped where it should not be.
    assert unclipped["loss"][0] == clipped["loss"][0]
    assert all(run["norm_before"] == run["norm_after"] for run in (unclipped, control))
    assert clipped["norm_after"] == pytest.approx([min(norm, 1) for norm in clipped["norm_before"]], rel=1e-5)
    assert clipped["norm_before"][0] > max(1, control["norm_before"][0])
    assert clipped["last_loss"] == pytest.approx(sum(clipped["loss"]) / 12)
    json.dumps(result, allow_nan=False)


def test_exploding_is_repeatable(long_sentences):
    assert gradients.exploding(long_sentences, steps=3) == gradients.exploding(long_sentences, steps=3)
    assert gradients.exploding(long_sentences, steps=3) != gradients.exploding(long_sentences, steps=3, seed=1)


def test_the_spectral_radius_is_what_is_said():
    weight = gradients._irnn(5, 2, 1.3).encoder.weight_hh_l0
    assert torch.linalg.eigvals(weight.detach()).abs().max().item() == pytest.approx(1.3)


def test_exploding_needs_long_sentences():
    with pytest.raises(ValueError, match="no sentence of at least 20 tokens"):
        gradients.exploding(Examples(["too short"], [1]))


def test_on_sst2_it_trains_with_clipping_or_a_smaller_radius_only(sst2):
    runs = gradients.exploding(sst2[0])["runs"]
    assert runs["unclipped"]["first_not_finite"] is not None
    assert runs["unclipped"]["last_loss"] is None
    assert abs(runs["unclipped"]["last_accuracy"] - 0.5) < 0.03
    for name in ("clipped", "control"):
        assert runs[name]["first_not_finite"] is None
        assert runs[name]["last_loss"] < 0.63
        assert runs[name]["last_accuracy"] > 0.66


def test_plot_exploding(tmp_path, figures, long_sentences):
    result = gradients.exploding(long_sentences, steps=3)
    result["runs"]["unclipped"] |= {"loss": [1.0, 9.0, None], "first_not_finite": 2}
    gradients.plot_exploding(result, tmp_path / "exploding.png")
    norms, losses = figures[0].axes
    assert [len(axes.lines) for axes in (norms, losses)] == [4, 5]
    assert losses.lines[0].get_ydata()[:2].tolist() == [1, 9]
    assert math.isnan(losses.lines[0].get_ydata()[2])
    assert (norms.get_yscale(), losses.get_yscale()) == ("log", "log")
