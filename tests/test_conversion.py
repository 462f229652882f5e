"""convert: every layer becomes ours and back, in whole models, and what does not is reported."""

import copy
import pickle

import pytest
import torch
from architectures import ARCHITECTURES
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import sstkern
from sstkern.engines import cpu_runs

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]


class Mine(nn.LSTM):
    pass


class Ours(sstkern.LSTM):
    pass


class OwnCell(nn.GRUCell):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_each_class_becomes_ours_with_the_same_numbers(name):
    module = getattr(nn, name)(3, 5)
    x = torch.randn(4, 3)
    before = module(x)
    parameters = list(module.parameters())
    assert sstkern.convert(module) is module
    assert type(module) is getattr(sstkern, name)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    torch.testing.assert_close(module(x), before)


def test_a_whole_model_is_converted_in_place():
    shared = nn.GRU(5, 5)
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 5), shared), "b": shared, "own": Mine(3, 5)})
    model.eval()
    shared.register_forward_hook(lambda module, inputs, output: seen.append(module))
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"left alone: own"):
        sstkern.convert(model)
    assert type(model["a"][1]) is sstkern.GRU
    assert model["a"][1] is model["b"]
    assert type(model["own"]) is Mine
    assert not model["b"].training
    output, _ = model["a"](torch.randn(2, 3))
    assert seen == [shared]
    before = shared.weight_hh_l0.detach().clone()
    output.sum().backward()
    optimizer.step()
    assert not torch.equal(shared.weight_hh_l0, before)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The loss of one of the architectures and, by name, the gradients of its parameters."""
    loss, (names, parameters) = model(), zip(*model.named_parameters(), strict=True)
    return {"loss": loss.detach()} | dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.__name__)
def test_architectures_compute_the_same_before_and_after_and_back(architecture, monkeypatch):
    torch.manual_seed(0)
    model = architecture().double()
    recurrent = {name: type(module) for name, module in model.named_modules() if type(module).__name__ in NAMES}
    before, saved, optimizer = gradients(model), model.state_dict(), torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = list(model.parameters())
    sstkern.convert(model)
    assert all(type(model.get_submodule(name)) is getattr(sstkern, kind.__name__) for name, kind in recurrent.items())
    ran = cpu_runs()
    torch.testing.assert_close(gradients(model), before, rtol=1e-9, atol=1e-12)
    assert all(count > ran[name] for name, count in cpu_runs().items() if name != "threads")
    assert list(model.state_dict()) == list(saved)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))
    sstkern.convert(model, to="torch")
    assert {name: type(model.get_submodule(name)) for name in recurrent} == recurrent
    torch.testing.assert_close(gradients(model), before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.__name__)
def test_architectures_in_float32(architecture):
    torch.manual_seed(0)
    model = architecture()
    before = gradients(model)
    torch.testing.assert_close(gradients(sstkern.convert(model)), before, rtol=1e-3, atol=1e-5)


def test_torchs_layers_get_their_weights_in_one_piece(monkeypatch):
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self))
    model = nn.Sequential(sstkern.LSTM(3, 5).double(), sstkern.GRUCell(5, 5))
    model[0].flatten_parameters()
    assert not flattened  # ours are read where they are
    sstkern.convert(model, to="torch")
    assert flattened == [model[0]]


def test_what_is_left_alone_is_reported():
    scripted = torch.jit.script(nn.GRU(3, 5))
    model = nn.ModuleDict({"own": Mine(3, 5), "cells": nn.Sequential(OwnCell(3, 5)), "fixed": scripted, "one": nn.GRU(3, 5)})
    named = r"own \(Mine, a subclass of torch's LSTM\), cells\.0 \(OwnCell, a subclass of torch's GRUCell\), fixed \(a scripted GRU\)"
    with pytest.warns(UserWarning, match=f"^convert: left alone: {named}$"):
        sstkern.convert(model)
    assert type(model["one"]) is sstkern.GRU
    with pytest.warns(UserWarning, match=r"the model itself \(Ours, a subclass of sstkern's LSTM\)"):
        sstkern.convert(Ours(3, 5), to="torch")


def test_nothing_is_reported_where_nothing_is_left(recwarn):
    model = nn.Sequential(nn.LSTM(3, 5), sstkern.GRU(5, 5), nn.Linear(5, 2))
    sstkern.convert(sstkern.convert(model), to="torch")
    assert [type(module) for module in model] == [nn.LSTM, nn.GRU, nn.Linear]
    assert not [warning for warning in recwarn if "convert" in str(warning.message)]


@pytest.mark.parametrize("normed", [weight_norm, spectral_norm])
def test_a_parametrized_layer_stays_parametrized(normed):
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 5).double().eval(), torch.randn(4, 2, 3, dtype=torch.float64)
    normed(layer, "weight_hh_l0")
    weight = layer.weight_hh_l0
    names = [name for name, _ in layer.named_parameters()]
    sstkern.convert(layer)
    assert isinstance(layer, sstkern.GRU)
    assert not isinstance(layer, nn.GRU)
    assert parametrize.is_parametrized(layer, "weight_hh_l0")
    assert [name for name, _ in layer.named_parameters()] == names
    output, _ = layer(x)
    expected, _ = sstkern.functional.gru(x, [layer.weight_ih_l0, weight, layer.bias_ih_l0, layer.bias_hh_l0])
    assert torch.equal(output, expected)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    sstkern.convert(layer, to="torch")
    assert isinstance(layer, nn.GRU)
    sstkern.convert(layer)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is sstkern.GRU
    assert torch.equal(layer(x)[0], expected)


def test_converted_models_are_copied_and_pickled():
    model = sstkern.convert(nn.Sequential(nn.LSTM(3, 5)))
    x = torch.randn(4, 2, 3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is sstkern.LSTM
        assert torch.equal(twin(x)[0], model(x)[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "model: expected a torch.nn.Module, got int"),
        ((nn.LSTM,), TypeError, "model: expected a torch.nn.Module, got type"),
        ((nn.LSTM(1, 1), "jax"), ValueError, "to: expected one of sstkern, torch, got 'jax'"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        sstkern.convert(*arguments)
