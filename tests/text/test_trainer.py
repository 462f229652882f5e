"""Training runs: what they learn, how they stop, and that resuming changes nothing."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sstkern
from sstkern.text import Batch, Vocabulary, checkpoint, collate, data, demo, load_examples, load_vectors, trainer
from sstkern.text.checkpoint import TrainingOptions, load_model
from sstkern.text.models import Classifier, ModelConfig
from sstkern.text.trainer import Run, evaluate

CONFIG = ModelConfig("lstm", layers=2, hidden_size=4, embedding_size=4, dropout=0.3, affixes=False)
SMALL = (*demo(1000, 200), "a small demo")
OPTIONS = TrainingOptions("demo", epochs=2, batch_size=125)
STEPS = 8  # in an epoch
TIMES = ("tokens_per_second", "seconds")


@pytest.fixture(autouse=True)
def little_data_many_lines_and_no_plot(monkeypatch):
    monkeypatch.setattr(trainer, "plot_training", lambda *_: None)
    monkeypatch.setattr(data, "load_examples", lambda data: SMALL if data == "demo" else load_examples(data))
    monkeypatch.setattr(trainer, "STEPS_PER_LINE", 3)


def start(output: Path, config: ModelConfig = CONFIG, **options) -> Run:
    return Run.start(config, replace(OPTIONS, **options), output)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Send a signal in the middle of a step of the run that comes next."""
    take_step = trainer.take_step
    steps = iter(range(1, 1000))

    def interrupted(*arguments):
        if next(steps) == step:
            signal.raise_signal(number)
        return take_step(*arguments)

    monkeypatch.setattr(trainer, "take_step", interrupted)


def metrics(output: Path) -> list[dict[str, float]]:
    """The lines of the metrics, less what tells the time."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same(output: Path, expected: Path) -> None:
    """Bit for bit, all that two runs have left."""
    assert metrics(output) == metrics(expected)
    for name in ("best/model", "last/model", "last/average", "last/optimizer", "last/processes"):
        assert (output / f"{name}.safetensors").read_bytes() == (expected / f"{name}.safetensors").read_bytes(), name
    assert vars(load_model(output).options) == vars(load_model(expected).options)


@pytest.mark.parametrize(("cell", "step"), [("lstm", 1), ("lstm", 5), ("gru", STEPS), ("average", STEPS + 3)])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, monkeypatch, cell, step):
    config = replace(CONFIG, cell=cell)
    assert start(tmp_path / "whole", config).train()
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        run = start(tmp_path / "parts", config)
        assert not run.train()
    assert (run.state.step, run.saved) == (step, True)
    torch.rand(5)  # what else draws random numbers in between does not matter
    assert Run.resume(tmp_path / "parts").train()
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_a_killed_run_goes_on_from_its_last_checkpoint_without_lines_twice(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(self, *_):
        if self.state.step == STEPS + 5:
            raise Killed
        return False

    start(tmp_path / "whole").train()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_any_process_noted", killed)
        with pytest.raises(Killed):
            start(tmp_path / "parts").train()
    assert metrics(tmp_path / "parts")[-1]["step"] > STEPS
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert Run.resume(tmp_path / "parts").train()
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_metrics_tell_steps_and_epochs(tmp_path):
    start(tmp_path).train()
    lines = metrics(tmp_path)
    assert [(line["event"], line["step"], line["epoch"]) for line in lines] == [
        ("step", 3, 0),
        ("step", 6, 0),
        ("epoch", 8, 1),
        ("step", 9, 1),
        ("step", 12, 1),
        ("step", 15, 1),
        ("epoch", 16, 2),
    ]
    assert all(math.isfinite(line["loss"]) and 0 <= line["accuracy"] <= 1 for line in lines)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_finished_run_has_nothing_to_resume(tmp_path):
    start(tmp_path).train()
    before = metrics(tmp_path)
    run = Run.resume(tmp_path)
    assert run.finished
    assert run.train()
    assert metrics(tmp_path) == before


def test_training_stops_without_a_gain_and_keeps_the_best(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    best_weights = []

    def evaluated(model, *_):
        accuracy = next(accuracies)
        if accuracy == 0.7 and not best_weights:
            best_weights.append(model.linear.weight.detach().clone())
        return trainer.Evaluation(0.1, accuracy, 1)

    monkeypatch.setattr(trainer, "evaluate", evaluated)
    run = start(tmp_path, epochs=5, patience=2)
    assert run.train()
    assert (run.state.epoch, run.state.best_accuracy) == (4, 0.7)
    assert torch.equal(load_model(tmp_path / "best").model.linear.weight, best_weights[0])
    assert not torch.equal(load_model(tmp_path / "last").model.linear.weight, best_weights[0])


@pytest.mark.parametrize("failing", [(2, 3), (2, 3, 4, 5)], ids=["for a while", "to the end"])
def test_a_full_disk_is_told_and_training_goes_on(tmp_path, monkeypatch, capsys, failing):
    save = checkpoint.save
    saves = iter(range(1, 100))

    def full(*arguments):
        if next(saves) in failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", full)
    run = start(tmp_path)
    assert run.train()
    told = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(told) == len(failing)
    assert told[0] == f"warning: step {STEPS} is not saved, an earlier checkpoint is kept ([Errno 28] No space left on device)"
    assert run.saved == (len(failing) == 2)
    assert checkpoint.read_state(tmp_path / "last").step == (2 * STEPS if run.saved else 0)
    assert Run.resume(tmp_path).train()
    monkeypatch.undo()


def test_a_loss_that_is_not_finite_ends_the_run_and_names_remedies(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+: try a smaller lr"):
        start(tmp_path, replace(CONFIG, cell="average"), lr=1e38, clip=1e38).train()
    assert load_model(tmp_path).model.linear.weight.isfinite().all()


def test_an_output_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is no empty folder"):
        start(tmp_path)
    with pytest.raises(ValueError, match="is no empty folder"):
        start(tmp_path / "notes.txt")


def test_resuming_names_what_has_changed(tmp_path, monkeypatch):
    run = start(tmp_path / "run", epochs=1)
    run.train()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        Run.resume(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(data, "load_examples", lambda _: (*demo(400, 100), "other sentences"))
        with pytest.raises(ValueError, match=r"the data is not what the run in .* was started with: other sentences"):
            Run.resume(tmp_path / "run")
    run.state.processes = 2
    run._save("last")
    with pytest.raises(ValueError, match="has 2 processes and goes on with as many only, not 1"):
        Run.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("file", "name", "damaged", "message"),
    [
        ("processes", "random_cpu", torch.full((1, 5056), 255, dtype=torch.uint8), "found a damaged random generator"),
        ("average", "linear.bias", torch.zeros(3), r"found a tensor of shape \[3\].* expected .*\[2\]"),
        ("optimizer", "linear.bias.exp_avg", torch.zeros(3), r"found a tensor of shape \[3\].* expected .*\[2\]"),
    ],
)
def test_resuming_from_a_damaged_file_names_it(tmp_path, file, name, damaged, message):
    start(tmp_path, epochs=1).train()
    path = tmp_path / "last" / f"{file}.safetensors"
    save_file(load_file(path) | {name: damaged}, path)
    with pytest.raises(ValueError, match=message) as error:
        Run.resume(tmp_path)
    assert str(path) in str(error.value)


def test_the_learning_rate_falls_in_a_line_to_0(tmp_path, monkeypatch):
    take_step = trainer.take_step
    rates = []

    def noted(accelerator, model, optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        return take_step(accelerator, model, optimizer, *arguments)

    monkeypatch.setattr(trainer, "take_step", noted)
    start(tmp_path, lr=0.5).train()
    assert rates == pytest.approx([0.5 * (1 - step / (2 * STEPS)) for step in range(2 * STEPS)])


def test_the_model_is_the_average_of_the_weights(tmp_path, monkeypatch):
    take_step = trainer.take_step
    weights = []

    def noted(accelerator, model, *arguments):
        if not weights:
            weights.append(model.linear.weight.detach().clone())
        answer = take_step(accelerator, model, *arguments)
        weights.append(model.linear.weight.detach().clone())
        return answer

    monkeypatch.setattr(trainer, "take_step", noted)
    run = start(tmp_path)
    assert run.train()
    average = weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        kept = min(0.99, step / (step + 10))
        average = kept * average + (1 - kept) * weight
    assert not average.allclose(weights[-1])
    torch.testing.assert_close(run.classifier.model.linear.weight.detach(), average)
    torch.testing.assert_close(load_model(tmp_path / "last").model.linear.weight.detach(), average)
    assert load_file(tmp_path / "last" / "model.safetensors")["linear.weight"].equal(weights[-1])


def test_the_best_model_is_as_accurate_as_validation_said(tmp_path):
    run = start(tmp_path, epochs=3)
    run.train()
    valid = SMALL[1]
    encoded = [run.classifier.vocabulary.encode(sentence) for sentence in valid.sentences]
    best = evaluate(load_model(tmp_path / "best").model, encoded, valid.labels)
    epochs = [line for line in metrics(tmp_path) if line["event"] == "epoch"]
    line = max(epochs, key=lambda line: line["valid_accuracy"])
    assert best.accuracy == line["valid_accuracy"] == run.state.best_accuracy
    assert best.loss == pytest.approx(line["valid_loss"])


def test_labels_are_smoothed_in_training_only(tmp_path):
    # A single step, so small that the initial weights stay: what is compared is the loss of one model.
    start(tmp_path, replace(CONFIG, dropout=0.0), epochs=1, label_smoothing=0.25, lr=1e-12, batch_size=1000).train()
    (line,) = metrics(tmp_path)
    model = load_model(tmp_path)
    for examples, share, loss in zip(SMALL[:2], (0.25, 0.0), (line["loss"], line["valid_loss"]), strict=True):
        surprise = -model._logits([model.vocabulary.encode(sentence) for sentence in examples.sentences]).log_softmax(1)
        own = surprise[range(len(examples)), examples.labels]
        assert loss == pytest.approx(((1 - share) * own + share * surprise.mean(1)).mean().item(), rel=1e-5)


def write_vectors(folder: Path) -> str:
    """Vectors of three numbers for all words of the demo but "the"."""
    words = {word for sentence in SMALL[0].sentences for word in sentence.split()} - {"the"}
    numbers = torch.randn(len(words), 3, generator=torch.Generator().manual_seed(0)).tolist()
    lines = (" ".join([word, *map(str, row)]) for word, row in zip(sorted(words), numbers, strict=True))
    (folder / "vectors.txt").write_text("\n".join(lines))
    return str(folder / "vectors.txt")


@pytest.mark.parametrize("frozen", [True, False])
def test_pretrained_vectors_are_trained_unless_they_are_frozen(tmp_path, frozen):
    vectors = write_vectors(tmp_path)
    config = replace(CONFIG, embedding_size=None, frozen=frozen)
    run = start(tmp_path / "run", config, vectors=vectors)
    vocabulary, matrix = load_vectors(vectors, SMALL[0].sentences)
    assert run.classifier.model.config.embedding_size == 3
    assert run.classifier.vocabulary.tokens == vocabulary.tokens
    assert run.classifier.model.embedding.weight.equal(matrix)
    assert run.train()
    assert run.classifier.model.embedding.weight.equal(matrix) == frozen
    assert load_model(tmp_path / "run").model.embedding.weight.requires_grad != frozen
    for name in ("average", "optimizer"):
        held = load_file(tmp_path / "run" / "last" / f"{name}.safetensors")
        assert any(key.startswith("embedding") for key in held) != frozen


def test_a_run_on_frozen_vectors_is_resumed_bit_for_bit_without_their_file(tmp_path, monkeypatch):
    vectors = write_vectors(tmp_path)
    config = replace(CONFIG, embedding_size=3, frozen=True)
    assert start(tmp_path / "whole", config, vectors=vectors).train()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert not start(tmp_path / "parts", config, vectors=vectors).train()
    Path(vectors).unlink()
    assert Run.resume(tmp_path / "parts").train()
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_the_size_of_a_word_vector_is_128_unless_it_is_given(tmp_path):
    assert start(tmp_path / "first", replace(CONFIG, embedding_size=None)).classifier.model.config.embedding_size == 128
    with pytest.raises(ValueError, match="found dimension 3, expected 4"):
        start(tmp_path / "second", vectors=write_vectors(tmp_path))


AFFIXES = replace(CONFIG, affixes=True)


def test_affixes_are_trained_saved_and_resumed_bit_for_bit(tmp_path, monkeypatch):
    start(tmp_path / "whole", AFFIXES).train()
    with monkeypatch.context() as patches:
        interrupt_at(patches, 5)
        start(tmp_path / "parts", AFFIXES).train()
    assert Run.resume(tmp_path / "parts").train()
    assert_same(tmp_path / "parts", tmp_path / "whole")
    classifier = load_model(tmp_path / "whole")
    assert classifier.vocabulary.affixes
    # An unknown word counts by its ending, an empty text has no word.
    known, unknown, empty = (classifier.model.eval()(*batch[:2]) for batch in (collated(classifier, t) for t in ("fresh", "xxesh", "")))
    assert not torch.equal(unknown, empty)
    assert not torch.equal(unknown, known)
    assert [token for token, _ in classifier.explain("a xxesh film")] == ["a", "xxesh", "film"]


def collated(classifier: checkpoint.TextClassifier, text: str) -> Batch:
    return collate([classifier.vocabulary.encode(text)], None, [0])


def test_pretrained_vectors_stand_beside_affixes(tmp_path):
    vectors = write_vectors(tmp_path)
    with Path(vectors).open("a") as file:
        file.write("\nneverseen 1 2 3")
    run = start(tmp_path / "run", replace(AFFIXES, frozen=True), vectors=vectors)
    vocabulary, matrix = load_vectors(vectors, run.data.train.sentences)
    model = run.classifier.model
    assert (model.config.embedding_size, model.config.vectors_size) == (4, matrix.shape[1])
    assert torch.equal(model.vectors.weight, matrix)
    assert run.classifier.vocabulary.tokens == vocabulary.tokens
    # Words that only the vectors have: no phrase trains their own.
    assert [word for row, word in enumerate(vocabulary.tokens[2:], start=2) if not model.embedding.weight[row].any()] == ["neverseen"]
    run.train()
    trained = load_model(tmp_path / "run").model
    assert torch.equal(trained.vectors.weight, model.vectors.weight)
    assert not trained.vectors.weight.requires_grad
    assert trained.embedding.weight.requires_grad


def test_the_loss_scale_of_float16_is_resumed(tmp_path, monkeypatch):
    class Scaler:
        scale = 65536.0

        def state_dict(self) -> dict[str, float]:
            return {"scale": self.scale}

        def load_state_dict(self, state: dict[str, float]) -> None:
            self.scale = state["scale"]

    run = start(tmp_path / "run", epochs=1)
    run.train()
    run.accelerator.scaler = Scaler()
    run.accelerator.scaler.scale = 8.0
    assert run._save("last")
    resumed = Run.resume(tmp_path / "run")
    resumed.accelerator.scaler = Scaler()
    resumed._restore(tmp_path / "run" / "last")
    assert resumed.accelerator.scaler.scale == 8.0


def test_ctrl_c_keeps_the_checkpoint_before_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    run = start(tmp_path / "run", lr=1e30, epochs=1)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(FloatingPointError, match="is kept as of the last checkpoint"):
        run.train()
    assert checkpoint.read_state(tmp_path / "run" / "last").step == 0


def test_affixes_are_of_words(tmp_path, monkeypatch):
    folder = tmp_path / "transformer"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"affixes is True, expected vectors of words, not of .*transformer's parts of words"):
        start(tmp_path / "run", AFFIXES, vectors=str(folder))


def test_there_are_affixes_unless_the_vectors_are_a_transformers(tmp_path, monkeypatch):
    either = replace(CONFIG, affixes=None, embedding_size=None)
    assert start(tmp_path / "words", either).classifier.model.config.affixes is True
    assert start(tmp_path / "glove", either, vectors=write_vectors(tmp_path)).classifier.model.config.affixes is True
    words = Vocabulary.build(SMALL[0].sentences)
    monkeypatch.setattr(trainer, "of_transformer", lambda _: True)
    monkeypatch.setattr(trainer, "load_vectors", lambda *_: (words, torch.zeros(len(words), 3)))
    assert start(tmp_path / "subwords", either, vectors="any").classifier.model.config.affixes is False


def test_random_vectors_are_not_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen is True and vectors is None, expected vectors"):
        start(tmp_path, replace(CONFIG, frozen=True))


def test_a_quiet_run_tells_only_what_went_wrong(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = start(tmp_path, epochs=1)
    monkeypatch.setattr(checkpoint, "save", full)
    assert run.train(quiet=True)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3
    assert all(line.startswith("warning: step ") for line in told)
    assert [line["event"] for line in metrics(tmp_path)] == ["step", "step", "epoch"]


def test_the_seed_decides(tmp_path):
    weights = []
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        start(tmp_path / name, epochs=1, seed=seed).train()
        weights.append(load_model(tmp_path / name).model.linear.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_evaluation_is_of_each_sentence_with_its_own_label():
    model = Classifier(4, 2, ModelConfig("average", embedding_size=1, dropout=0.0))
    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor([[0.0], [0.0], [-1.0], [1.0]]))
        model.linear.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.linear.bias.zero_()
    # Token 3 says 1, token 2 says 0, with logits 2 apart; sentences of many lengths, so that batches change their order.
    encoded = [[3] * 5, [2], [3] * 2, [2] * 9, [3, 3, 3]]
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    result = evaluate(model, encoded, [1, 0, 1, 0, 0])
    assert (result.accuracy, result.examples) == (0.8, 5)
    assert result.loss == pytest.approx((4 * right + wrong) / 5, rel=1e-6)


def test_evaluation_of_no_sentence_is_no_number():
    result = evaluate(Classifier(4, 2, ModelConfig("average", embedding_size=1)), [], [])
    assert (math.isnan(result.loss), math.isnan(result.accuracy), result.examples) == (True, True, 0)


def test_a_validation_file_takes_the_place_of_dev_and_its_labels_are_checked(tmp_path):
    file = tmp_path / "valid.tsv"
    file.write_text("sentence\tlabel\nthe plot is good .\t1\nthe plot is bad .\t0\n")
    assert len(start(tmp_path / "run", valid=str(file)).data.valid) == 2
    file.write_text("sentence\tlabel\nthe plot is good .\t1\nthe plot is bad .\t2\n")
    with pytest.raises(ValueError, match=r"valid.tsv, line 3: found label '2', expected 0 or 1, the model's labels"):
        start(tmp_path / "other", valid=str(file))


def test_without_validation_the_model_is_that_of_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "evaluate", None)
    run = start(tmp_path, valid="none", epochs=3, patience=1)
    assert run.train()
    assert run.state.epoch == 3
    assert not any("valid_accuracy" in line for line in metrics(tmp_path))
    best, last = (load_model(tmp_path / name).model.state_dict() for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_every_signal_to_stop_keeps_the_epoch(tmp_path, monkeypatch, number):
    handler = signal.signal(number, signal.default_int_handler)  # nohup, say, has this process ignore SIGHUP
    try:
        interrupt_at(monkeypatch, 5, number)
        run = start(tmp_path)
        assert not run.train()
        assert (run.saved, run.stopped_by) == (True, number)
        assert checkpoint.read_state(tmp_path / "last").step == 5
        assert Run.resume(tmp_path).train()
    finally:
        signal.signal(number, handler)


def test_a_signal_that_is_ignored_stops_nothing(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 5, signal.SIGHUP)
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = start(tmp_path, epochs=1)
        assert run.train()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_batches_that_do_not_fit_are_told_with_their_sizes(tmp_path, monkeypatch):
    run = start(tmp_path)
    monkeypatch.setattr(trainer, "take_step", lambda *_: torch.empty(2**60 - 1))
    longest = max(len(sentence.split()) for sentence in SMALL[0].sentences)
    advice = f"batches of 125 sentences of up to {longest} tokens, on cpu; try a smaller --batch-size, --hidden-size or --embedding-size"
    with pytest.raises(MemoryError, match=f"^out of memory: {advice}$"):
        run.train()


def test_training_learns(tmp_path):
    """A few thousand sentences of SST-2 where they are, the demo elsewhere: well above chance, by the model saved."""
    source, wanted = (None, 0.65) if os.environ.get("SSTKERN_DATA") else ("demo", 0.9)
    train, valid, _ = load_examples(source)
    folder = tmp_path / "data"
    folder.mkdir()
    for name, part, size in (("train", train, 4000), ("dev", valid, 1000)):
        rows = zip(part.sentences[:size], part.labels[:size], strict=True)
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    config = ModelConfig(hidden_size=64, embedding_size=64, dropout=0.2, pooling="last", affixes=False)
    run = start(tmp_path / "run", config, data=str(folder), epochs=4, batch_size=32, lr=3e-3)
    assert run.train()
    labels = [label for label, _ in load_model(tmp_path / "run").predict(valid.sentences)]
    correct = sum(label == expected for label, expected in zip(labels, valid.labels, strict=True))
    assert correct / len(valid) > wanted
    assert run.state.best_accuracy == pytest.approx(correct / len(valid))


SCRIPT = """
import signal
from pathlib import Path
from sstkern.text.checkpoint import TrainingOptions
from sstkern.text.models import ModelConfig
from sstkern.text.trainer import Run, end_training

class Interrupted(Run):
    def _train_on(self, batch):
        super()._train_on(batch)
        if self.state.step == 3 and self.accelerator.process_index == 1:
            signal.raise_signal(signal.SIGINT)

config, options = ModelConfig(hidden_size=4, embedding_size=4), TrainingOptions("demo", epochs=1, batch_size=1000)
assert Run.start(config, options, Path("whole")).train()
run = Interrupted.start(config, options, Path("parts"))
assert not run.train() and run.state.step == 3
run = Run.resume(Path("parts"))
assert run.train()
assert run.throughput(10 - 9.7 * run.accelerator.process_index)  # as long as the main process says
weights = run.accelerator.gather(run.classifier.model.linear.weight.detach()[None])
assert weights.shape[0] == 2 and weights[0].equal(weights[1])
end_training(run.accelerator)
"""


def on_two_processes(folder: Path) -> subprocess.CompletedProcess[str]:
    """What script.py in the folder leaves, with a cache of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "script.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sstkern.__file__).parents[1])}
    environment = {name: value for name, value in environment.items() if name != "SSTKERN_DATA"} | {"XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_two_processes_train_one_model_and_one_writes_and_they_resume(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    result = on_two_processes(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1/1") == 2
    state = checkpoint.read_state(tmp_path / "parts" / "last")
    assert (state.processes, state.step) == (2, 8)
    assert len(list((tmp_path / "whole" / "tensorboard").iterdir())) == 1
    assert_same(tmp_path / "parts", tmp_path / "whole")


OFFLINE = """
import pooch
from accelerate import Accelerator
from sstkern.text import glove, sst2
from sstkern.text.checkpoint import TrainingOptions
from sstkern.text.data import Data
from sstkern.text.models import ModelConfig
from sstkern.text.trainer import Run, end_training

def retrieve(*arguments, real=pooch.retrieve, **options):
    print("tried\\n", end="")
    return real(*arguments, **options)

pooch.retrieve = retrieve
sst2.URL = glove.URL = "http://127.0.0.1:1/absent.zip"
accelerator = Accelerator(cpu=True)
data = Data.load(TrainingOptions(), accelerator)
assert data.train == sst2.demo()[0] and data.description.startswith("generated demo sentences, not SST-2: ")
try:
    Run.start(ModelConfig(), TrainingOptions("demo", vectors=glove.NAME))
except OSError as error:
    assert "absent.zip could not be downloaded" in str(error)
    print("told\\n", end="")
end_training(accelerator)
"""


def test_what_one_process_cannot_download_the_other_does_not_try(tmp_path):
    (tmp_path / "script.py").write_text(OFFLINE)
    result = on_two_processes(tmp_path)
    assert result.returncode == 0, result.stderr
    assert (result.stdout.count("tried"), result.stdout.count("told")) == (2, 2)
    assert result.stderr.count("using generated demo sentences") == 1
