"""How fast a model trains beside torch.nn's layers, and how long that is measured."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from sstkern.text import Batches, Vocabulary, throughput
from sstkern.text.checkpoint import TextClassifier, TrainingOptions
from sstkern.text.models import Classifier, ModelConfig
from sstkern.text.throughput import Throughput, measure_throughput

SENTENCES = [" ".join(["a", "good", "film"][: 1 + number % 3]) for number in range(64)]


def measure(cell: str = "lstm", seconds: float = float("inf"), sentences: list[str] = SENTENCES) -> Throughput | None:
    vocabulary = Vocabulary.build(SENTENCES)
    model = Classifier(len(vocabulary), 2, ModelConfig(cell, hidden_size=4, embedding_size=4))
    batches = Batches([vocabulary.encode(sentence) for sentence in sentences], [0, 1] * (len(sentences) // 2), 4)
    return measure_throughput(Accelerator(cpu=True), TextClassifier(model, vocabulary, 2, TrainingOptions()), batches, seconds)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A time in which each step of ours takes 1 s, and each of torch.nn's 3 s."""
    time = SimpleNamespace(now=0.0, steps=0)
    take_step = throughput.take_step

    def step(accelerator, model, *arguments):
        time.now += 1 if type(model.encoder).__module__ == "sstkern.modules" else 3
        time.steps += 1
        return take_step(accelerator, model, *arguments)

    monkeypatch.setattr(throughput, "take_step", step)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: time.now)
    return time


@pytest.mark.parametrize("cell", ["lstm", "average"])
def test_recurrent_layers_only_are_compared(cell):
    speed = measure(cell)
    assert speed.sstkern > 0
    assert speed.torch is None if cell == "average" else speed.torch > 0


def test_a_torch_layer_that_cannot_run_is_left_out(monkeypatch):
    def unable(*_):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(torch.nn.LSTM, "forward", unable)
    speed = measure()
    assert speed.sstkern > 0
    assert speed.torch is None


def test_sentences_without_a_token_have_nothing_to_compare():
    assert measure(sentences=[""] * 64) == Throughput(0, None)


def test_the_layers_take_turns_for_six_rounds_of_eight_steps(clock):
    speed = measure()
    assert clock.steps == 3 * (1 + 1 + 6 * 8)
    assert speed.sstkern == pytest.approx(3 * speed.torch, rel=0.15)  # whole tokens a second


@pytest.mark.parametrize(("seconds", "steps"), [(0, 1), (3, 2), (12, 3), (25, 9), (60, 24), (150, 60), (400, 150)])
def test_the_time_given_is_kept(clock, seconds, steps):
    speed = measure(seconds=seconds)
    assert clock.steps == steps
    # But for the first step of a layer, whose time nobody knows.
    assert clock.now <= max(seconds, 7)
    assert (speed is None) == (seconds < 25)
    if speed is not None:
        assert speed.sstkern == pytest.approx(3 * speed.torch, rel=0.15)  # whole tokens a second
