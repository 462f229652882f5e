"""Other libraries' recurrent policies with our layers, where these libraries are installed."""

import pytest
import torch

import sstkern


def process_sequence(features, lstm_states, episode_starts, lstm):
    """As docs/episodes.md has it."""
    sequences = lstm_states[0].shape[1]
    x = features.reshape(sequences, -1, lstm.input_size).swapaxes(0, 1)
    resets = episode_starts.reshape(sequences, -1).swapaxes(0, 1).bool()
    output, states = lstm(x, lstm_states, resets=resets)
    return output.transpose(0, 1).flatten(0, 1), states


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("replaced", [False, True])
def test_a_recurrent_ppo_policy_trains_unchanged(replaced):
    sb3 = pytest.importorskip("sb3_contrib")
    found = []
    for ours in (False, True):
        options = {"lstm_hidden_size": 16}
        model = sb3.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=64, n_epochs=2, seed=0, device="cpu", policy_kwargs=options)
        if ours:
            sstkern.convert(model.policy)
            assert isinstance(model.policy.lstm_actor, sstkern.LSTM)
            if replaced:
                model.policy._process_sequence = process_sequence
        model.learn(256)
        found.append([parameter.detach() for parameter in model.policy.parameters()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_torchrl_module_trains_unchanged():
    modules, tensordict = pytest.importorskip("torchrl.modules"), pytest.importorskip("tensordict")
    torch.manual_seed(0)
    x, starts = torch.randn(4, 20, 3), torch.rand(4, 20, 1) < 0.1
    zeros = torch.zeros(4, 20, 1, 8)
    found = []
    for ours in (False, True):
        torch.manual_seed(1)
        keys = {"in_keys": ["x", "h", "c"], "out_keys": ["y", ("next", "h"), ("next", "c")]}
        module = modules.LSTMModule(input_size=3, hidden_size=8, **keys)
        if ours:
            sstkern.convert(module)
            assert isinstance(module.lstm, sstkern.LSTM)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            with modules.set_recurrent_mode(True):
                y = module(tensordict.TensorDict({"x": x, "h": zeros, "c": zeros, "is_init": starts}, [4, 20]))["y"]
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()
        found.append([y.detach(), *(parameter.detach() for parameter in module.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    with torch.no_grad(), modules.set_recurrent_mode(True):
        expected = module(tensordict.TensorDict({"x": x, "h": zeros, "c": zeros, "is_init": starts}, [4, 20]))["y"]
        torch.testing.assert_close(module.lstm(x, resets=starts.squeeze(-1))[0], expected)
