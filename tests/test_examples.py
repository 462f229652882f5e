"""The scripts of examples/ run, and show what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_adding_problem_is_trained_alike_by_both(capsys):
    module = example("adding_problem")
    module.LENGTH = 10
    assert module.main(200) < 0.1  # always guessing the mean has 0.167
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("step  200: sstkern 0.0")


def test_an_own_cell_is_trained_fused_and_as_a_loop_alike(capsys):
    small = ["--steps", "30", "--beside", "20", "--length", "6", "--batch", "16", "--units", "8"]
    fused, loop = example("own_cell").main(small)
    assert len(fused.losses) == 30
    torch.testing.assert_close(fused.losses[:20], loop.losses, rtol=1e-3, atol=1e-5)
    assert sum(fused.losses[-5:]) < 0.5 * sum(fused.losses[:5])
    together, last = capsys.readouterr().out.splitlines()
    assert together.startswith("step   20: fused 0.")
    assert ", loop 0." in together
    assert last.startswith("step   30: fused 0.")
    assert "loop" not in last


def test_variable_lengths_are_timed(capsys):
    times = example("variable_lengths").main(2)
    assert len(times) == 3
    assert all(milliseconds > 0 for milliseconds in times.values())
    assert "64 sequences of 1 to 200 steps, " in capsys.readouterr().out


def test_episodes_are_remembered_and_timed(capsys):
    right, one_call, loop = example("episodes").main(25)
    assert right > 0.9  # without a memory half of the answers are right
    assert one_call > 0
    assert loop > 0
    *_, first, second = capsys.readouterr().out.splitlines()
    assert "in one call with resets" in first
    assert "by a loop over 64 steps" in second


def test_the_gradients_of_samples_have_the_fused_gradient_as_their_mean():
    agreement = example("sample_gradients").main(5)
    assert agreement.shape == (5,)
    assert agreement.abs().max() <= 1 + 1e-6
    assert torch.unique(agreement).numel() == 5
