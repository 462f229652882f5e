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
    """Somebody's own layer, with torch.nn's forward."""

    sizes = 2

    def __init__(self, *sizes: int, **options):
        super().__init__(*sizes, **options)
        self.calls = 0

    def twice(self, x):
        self.calls += 1
        return 2 * self(x)[0]


class Called(Mine):
    """One whose forward goes on to torch.nn's."""

    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


class OwnForward(nn.GRU):
    def forward(self, input, hx=None):
        return nn.GRU.forward(self, input, hx)


class Between(OwnForward):
    def forward(self, input, hx=None):
        return super().forward(input, hx)


class OwnName(nn.RNN):
    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.cell = nn.Linear(2, 2)


class Once(nn.LSTM):
    def __init_subclass__(cls):
        raise RuntimeError("one is enough")


class Ours(sstkern.LSTM):
    pass


class OwnCell(nn.GRUCell):
    pass


def assert_ours(module: nn.Module, name: str) -> None:
    """Of a class that is called as torch.nn's and is a subclass of it and of ours."""
    assert type(module).__name__ == name
    assert isinstance(module, getattr(sstkern, name))
    assert isinstance(module, getattr(nn, name))


@pytest.mark.parametrize("name", NAMES)
def test_each_class_becomes_ours_with_the_same_numbers(name):
    module = getattr(nn, name)(3, 5)
    x = torch.randn(4, 3)
    before = module(x)
    parameters = list(module.parameters())
    assert sstkern.convert(module) is module
    assert_ours(module, name)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    torch.testing.assert_close(module(x), before)
    assert sstkern.convert(module) is module
    assert_ours(module, name)
    assert type(sstkern.convert(module, to="torch")) is getattr(nn, name)
    assert type(sstkern.convert(getattr(sstkern, name)(3, 5), to="torch")) is getattr(nn, name)


def test_a_whole_model_is_converted_in_place():
    shared = nn.GRU(5, 5)
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 5), shared), "b": shared, "own": OwnForward(3, 5)})
    model.eval()
    shared.register_forward_hook(lambda module, inputs, output: seen.append(module))
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"left alone: own"):
        sstkern.convert(model)
    assert_ours(model["a"][1], "GRU")
    assert model["a"][1] is model["b"]
    assert type(model["own"]) is OwnForward
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
    for name, kind in recurrent.items():
        assert_ours(model.get_submodule(name), kind.__name__)
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
    model = nn.ModuleDict(
        {
            "own": OwnForward(3, 5),
            "between": nn.Sequential(Between(3, 5)),
            "named": OwnName(3, 5),
            "once": Once(3, 5),
            "fixed": torch.jit.script(nn.GRU(3, 5)),
            "replaced": nn.LSTM(3, 5),
            "one": nn.GRU(3, 5),
        }
    )
    model["replaced"].forward = model["replaced"].forward
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.warns(UserWarning, match="^convert: left alone: ") as warnings:
        sstkern.convert(model)
    assert str(warnings[0].message).removeprefix("convert: left alone: ").split("), ") == [
        "own (OwnForward, a subclass of torch's GRU: its forward does not call super().forward",
        "between.0 (Between, a subclass of torch's GRU: its forward does not call super().forward",
        "named (OwnName, a subclass of torch's RNN: sstkern needs the name cell, which it has for something else",
        "once (Once, a subclass of torch's LSTM: it cannot be subclassed: one is enough",
        "fixed (a scripted GRU",
        "replaced (LSTM: its forward has been replaced)",
    ]
    assert_ours(model["one"], "GRU")
    assert [name for name, module in model.named_modules() if type(module) is not before[name]] == ["one"]
    with pytest.warns(UserWarning, match=r"the model itself \(Ours, a subclass of sstkern's LSTM\)"):
        sstkern.convert(Ours(3, 5), to="torch")


@pytest.mark.parametrize(("kind", "base"), [(Mine, "LSTM"), (Called, "LSTM"), (OwnCell, "GRUCell")])
def test_a_subclass_keeps_what_it_is_and_runs_on_our_engine(kind, base, recwarn):
    torch.manual_seed(0)
    layer, x = kind(3, 5), torch.randn(4, 2, 3)
    x = x[0] if base.endswith("Cell") else x
    before, description = layer(x), repr(layer)
    sstkern.convert(layer)
    assert all(isinstance(layer, of) for of in (kind, getattr(nn, base), getattr(sstkern, base)))
    assert repr(layer) == description
    runs = cpu_runs()["forward"]
    torch.testing.assert_close(layer(x), before)
    assert cpu_runs()["forward"] == runs + 1
    if isinstance(layer, Mine):
        torch.testing.assert_close(layer.twice(x), 2 * before[0])
        assert (layer.calls, layer.sizes) == (1, 2)
    for twin in (copy.deepcopy(layer), copy.copy(layer), *(pickle.loads(pickle.dumps(layer, protocol)) for protocol in (0, 2, 5))):
        assert type(twin) is type(layer)
        assert vars(twin).keys() == vars(layer).keys()
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    assert type(sstkern.convert(kind(3, 5))) is type(layer)
    assert type(sstkern.convert(layer, to="torch")) is kind
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)
    assert not recwarn.list


def test_a_method_that_was_set_on_a_layer_is_called():
    layer, called = nn.GRU(3, 5), []
    layer.check_input = lambda *arguments: called.append(arguments[1])
    sstkern.convert(layer)(torch.randn(4, 2, 3))
    assert called == [None]
    sstkern.convert(sstkern.convert(layer, to="torch"))
    assert_ours(layer, "GRU")


def test_a_setting_of_ours_does_not_stand_in_the_way():
    layer = sstkern.convert(sstkern.GRU(3, 5, recompute=True), to="torch")
    assert sstkern.convert(layer).recompute


class Model(nn.Module):
    """One that asks what its layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Mine(3, 5)

    def forward(self, x):
        return self.layer(x)[0] if isinstance(self.layer, nn.LSTM) else x


def test_a_converted_model_is_compiled():
    model, x = sstkern.convert(Model()), torch.randn(4, 2, 3)
    expected = model(x)
    assert expected.shape == (4, 2, 5)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager")(x), expected)  # the layer is outside the graphs, as torch.nn's are
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


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
    assert isinstance(layer, nn.GRU)
    assert parametrize.is_parametrized(layer, "weight_hh_l0")
    assert [name for name, _ in layer.named_parameters()] == names
    output, _ = layer(x)
    expected, _ = sstkern.functional.gru(x, [layer.weight_ih_l0, weight, layer.bias_ih_l0, layer.bias_hh_l0])
    assert torch.equal(output, expected)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    sstkern.convert(layer, to="torch")
    assert isinstance(layer, nn.GRU)
    assert not isinstance(layer, sstkern.GRU)
    sstkern.convert(layer)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert_ours(layer, "GRU")
    assert torch.equal(layer(x)[0], expected)
    assert type(sstkern.convert(layer, to="torch")) is nn.GRU


def test_a_parametrized_subclass_comes_back():
    layer, x = weight_norm(Mine(3, 5), "weight_hh_l0"), torch.randn(4, 2, 3)
    before = layer.twice(x)
    sstkern.convert(layer)
    assert isinstance(layer, sstkern.LSTM)
    torch.testing.assert_close(layer.twice(x), before)
    sstkern.convert(layer, to="torch")
    assert not isinstance(layer, sstkern.LSTM)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is Mine


def test_converted_models_are_copied_and_pickled():
    model = sstkern.convert(nn.Sequential(nn.LSTM(3, 5)))
    x = torch.randn(4, 2, 3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_ours(twin[0], "LSTM")
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


@pytest.mark.parametrize("name", NAMES)
def test_scripting_is_refused_with_what_to_do(name):
    model = sstkern.convert(nn.Sequential(nn.Linear(3, 3), getattr(nn, name)(3, 5)))
    with pytest.raises(
        NotImplementedError, match=rf"torch\.jit\.script: it cannot compile sstkern's {name}; call sstkern\.convert\(model, to"
    ):
        torch.jit.script(model)
    x = torch.randn(4, 3)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(sstkern.convert(model, to="torch"))(x), expected)


class OfProperty(nn.LSTM):
    """Weights that are computed for every call."""

    @property
    def _flat_weights(self):
        return [2 * getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value):
        pass


class OfSize(nn.GRU):
    def __init__(self, size: int):
        super().__init__(size, size)
        self.size = size

    def __reduce__(self):
        return self.__class__, (self.size,)


def test_flat_weights_that_are_a_property_are_read():
    layer, x = OfProperty(3, 4), torch.randn(2, 1, 3)
    expected = layer(x)[0]
    torch.testing.assert_close(sstkern.convert(layer)(x)[0], expected)


def test_a_subclass_that_says_how_it_is_pickled():
    layer = pickle.loads(pickle.dumps(sstkern.convert(OfSize(3))))
    assert isinstance(layer, OfSize)
    assert isinstance(layer, sstkern.GRU)
    assert layer.size == 3
