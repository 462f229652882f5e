import pytest
import torch
from torch import nn

import sstkern

NAMES = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]


class Mine(nn.LSTM):
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
