"""Checkpoints: what is saved is what loads, whatever fails."""

import errno
import io
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import sstkern
from sstkern.text import Subwords, Vocabulary, checkpoint, load_classifier
from sstkern.text.checkpoint import TextClassifier, TrainingOptions, TrainingState, load_model
from sstkern.text.models import Classifier, ModelConfig

TEXTS = ["a fine film", "", "dull", "a dull film that nobody knows"]
CONFIG = ModelConfig("gru", hidden_size=4, embedding_size=3, bidirectional=True, pooling="attention")
STATE = TrainingState("a hash", 1, step=7, epoch=2, best_accuracy=0.75)


class Killed(BaseException):
    """The process ends here: no handler for an error runs."""


@cache
def make(seed: int = 0) -> TextClassifier:
    torch.manual_seed(seed)
    vocabulary = Vocabulary.build(["a fine film", "a dull film"])
    return TextClassifier(Classifier(len(vocabulary), 3, CONFIG), vocabulary, 3, TrainingOptions(lr=0.25))


def save(folder: Path, seed: int = 0) -> TextClassifier:
    classifier = make(seed)
    resumable = checkpoint.Resumable(STATE, averaged(classifier), {"moment": torch.ones(2)}, {"random": torch.zeros(3)})
    checkpoint.save(folder, classifier, resumable)
    return classifier


def averaged(classifier: TextClassifier) -> dict[str, torch.Tensor]:
    """An average that is what the weights are."""
    return {name: parameter.detach() for name, parameter in classifier.model.trainable().items()}


def seed_of(folder: Path) -> int:
    """The seed of the classifier that the checkpoint holds, whole."""
    found = load_model(folder).model.state_dict()
    assert checkpoint.read_state(checkpoint.find(folder)) == STATE
    (seed,) = (seed for seed in (0, 1) if all(torch.equal(found[name], tensor) for name, tensor in make(seed).model.state_dict().items()))
    return seed


def test_what_was_saved_is_loaded(tmp_path):
    saved = save(tmp_path / "last")
    loaded = load_model(tmp_path / "last")
    assert loaded.predict(TEXTS) == saved.predict(TEXTS)
    assert loaded.vocabulary.tokens == saved.vocabulary.tokens
    assert (loaded.classes, loaded.options, loaded.model.config) == (3, TrainingOptions(lr=0.25), CONFIG)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_load_is_lazy(tmp_path):
    save(tmp_path)
    assert isinstance(load_classifier(tmp_path), TextClassifier)
    code = "import sys, sstkern; sys.exit('sstkern.text.checkpoint' in sys.modules or 'sstkern.text' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(sstkern.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def subwords() -> Subwords:
    tokenizer = Tokenizer(models.WordLevel({"fine": 0, "dull": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Subwords(tokenizer.to_str())


def test_a_model_on_subwords_has_a_tokenizer_in_place_of_a_vocabulary(tmp_path):
    model = Classifier(3, 2, replace(CONFIG, frozen=True))
    saved = TextClassifier(model, subwords(), 2, TrainingOptions(vectors="hf:a/model"))
    checkpoint.save(tmp_path, saved)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    loaded = load_model(tmp_path)
    assert isinstance(loaded.vocabulary, Subwords)
    assert loaded.predict(TEXTS) == saved.predict(TEXTS)
    assert (loaded.options.vectors, loaded.model.config.frozen) == ("hf:a/model", True)
    assert not loaded.model.embedding.weight.requires_grad
    make().vocabulary.save(tmp_path / "vocabulary.json")
    with pytest.raises(ValueError, match=r"found vocabulary\.json and tokenizer\.json, expected one of them"):
        load_model(tmp_path)


def test_where_training_can_go_on_the_model_has_the_average(tmp_path):
    average = {name: torch.full_like(tensor, 0.5) for name, tensor in averaged(make()).items()}
    checkpoint.save(tmp_path, make(), checkpoint.Resumable(STATE, average, {}, {}))
    assert all(parameter.eq(0.5).all() for parameter in load_model(tmp_path).model.parameters())
    (tmp_path / "average.safetensors").unlink()
    with pytest.raises(ValueError, match=r"average\.safetensors is missing"):
        load_model(tmp_path)


def test_an_explanation_is_the_fall_of_the_log_odds_without_each_token():
    classifier = make()
    text = "a fine unheard film"
    ((label, _),) = classifier.predict([text])
    words = text.split()

    def log_odds(text: str) -> float:
        ids = torch.tensor([classifier.vocabulary.encode(text)])
        probability = classifier.model(ids, torch.tensor([ids.shape[1]])).double().softmax(1)[0, label]
        return probability.logit().item()

    explained = classifier.explain(text)
    assert [word for word, _ in explained] == words
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    assert [value for _, value in explained] == pytest.approx([log_odds(text) - log_odds(less) for less in without], abs=1e-5)


def test_explaining_one_token_and_none():
    classifier = make()
    ((word, value),) = classifier.explain("fine")
    label = classifier.predict(["fine"])[0][0]
    both = classifier._logits([classifier.vocabulary.encode("fine"), []])
    with_, without = (row.double().softmax(0)[label].logit().item() for row in both)
    assert (word, value) == ("fine", pytest.approx(with_ - without, abs=1e-5))
    assert classifier.explain("") == []


def test_a_run_means_its_best_model_or_else_its_last(tmp_path):
    save(tmp_path / "last", seed=0)
    assert seed_of(tmp_path) == 0
    save(tmp_path / "best", seed=1)
    assert seed_of(tmp_path) == 1
    assert load_classifier(tmp_path).predict(TEXTS) == make(1).predict(TEXTS)


def test_predictions_are_in_the_texts_order_with_the_labels_own_probability():
    classifier = make()
    texts = [" ".join(["fine", "dull", "film"][: 1 + i % 3] * (1 + i % 7)) for i in range(600)]
    for text, (label, probability) in zip(texts, classifier.predict(texts), strict=True):
        ids = torch.tensor([classifier.vocabulary.encode(text)])
        expected = classifier.model(ids, torch.tensor([ids.shape[1]])).softmax(1)[0]
        assert label == int(expected.argmax())
        assert probability == pytest.approx(expected[label].item(), abs=1e-6)


def test_predicting_nothing_and_a_lone_string():
    assert make().predict([]) == []
    with pytest.raises(TypeError, match="texts is a string"):
        make().predict("a fine film")


def fail_at(monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException) -> list[str]:
    """Of the calls that change something on the disk, number ``failing`` raises; a killed process makes no more.

    Returns the names of the functions called so far.
    """
    calls = []

    def wrap(function):
        def call(*arguments, **keywords):
            calls.append(function.__name__)
            number = len(calls) - 1
            if number == failing or (number > failing and isinstance(error, Killed)):
                raise error
            return function(*arguments, **keywords)

        return call

    for module, names in ((io, ["open"]), (os, ["fsync", "rename", "replace", "mkdir", "open", "unlink", "rmdir"])):
        for name in names:
            monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    return calls


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Killed()], ids=["full", "killed"])
def test_a_fault_at_any_moment_leaves_the_previous_checkpoint_or_the_new_one(tmp_path, monkeypatch, error):
    folder = tmp_path / "last"
    left = []
    for failing in itertools.count():
        save(folder, seed=0)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, failing, error)
            try:
                save(folder, seed=1)
                failed = False
            except type(error):
                failed = True
        if failed:
            left.append(seed_of(folder))
        else:
            assert seed_of(folder) == 1
        save(folder, seed=0)
        assert seed_of(folder) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["last"]
        if len(calls) <= failing:
            break
    assert len(left) > 20
    # The previous one until the new one is whole and in its place.
    assert left == sorted(left)
    assert left[0] == 0


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    save(tmp_path / "last")
    with monkeypatch.context() as patch:
        fail_at(patch, 9, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space left on device"):
            save(tmp_path / "last", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_folders_of_others_beside_it_are_left_alone(tmp_path):
    for name in ("last.old", "last.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    for _ in range(2):
        save(tmp_path / "last")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("notes.txt")) == ["last.new/notes.txt", "last.old/notes.txt"]


def test_a_pickle_is_not_loaded(tmp_path):
    weights = save(tmp_path).model.state_dict()
    torch.save(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="expected safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["vocabulary.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}( or affixes.json or tokenizer.json)? is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, name, share):
    save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * (len(data) - 2))])
    with pytest.raises(ValueError, match=name):
        load_model(tmp_path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoint: expected config\.json"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "found format 1, expected 2"),
        ({"format": None}, "found format None, expected 2"),
        ({"classes": 2}, r"shape \[3\] and float32 under the name linear.bias, expected a tensor of shape \[2\]"),
        ({"classes": "3"}, "found classes '3', expected an integer"),
        ({"model": {"cell": "lstm"}}, r"found the fields \['cell'\], expected \['affixes'"),
        ({"model": None}, r"found the fields None, expected \['affixes'"),
        ({"hidden_size": 10**6}, r"expected a tensor of shape \[1, 2000000\]"),
        ({"hidden_size": 10**15}, "found sizes that no model can have"),
        ({"cell": "tree"}, "cell must be one of average, rnn, gru, lstm, not 'tree'"),
        ({"cell": "average", "pooling": "max"}, "found a tensor .* under the name attention.bias, expected no tensor"),
        ({"embedding_size": None}, r"config.json: found sizes .* \(embedding_size is None"),
        ({"layers": 2}, "found no tensor under the name encoder.* expected a tensor of shape"),
        ({"lr": -1}, "lr must be a number above 0, not -1"),
        ({"data": 5}, "data must be a string, or None, not 5"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told(tmp_path, change, message):
    save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name, value in change.items():
        place = next((part for part in (config["model"], config["training"]) if name in part), config)
        place[name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("linear.bias"), "found no tensor under the name linear.bias"),
        (lambda weights: weights.update(more=torch.ones(1)), "under the name more, expected no tensor"),
        (lambda weights: weights.update({"linear.bias": torch.ones(3).half()}), "float16 .* expected .* float32"),
    ],
    ids=["fewer", "more", "other dtype"],
)
def test_weights_that_do_not_fit_are_told(tmp_path, change, message):
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "found a list, expected an object"),
        ("{", "is damaged: found 1 bytes, expected JSON"),
        ("{}", r"found the fields \[\], expected \['batch'"),
        (json.dumps(vars(STATE) | {"step": "7"}), "found step '7', expected the type int"),
    ],
)
def test_a_damaged_training_state_is_told(tmp_path, content, message):
    path = tmp_path / "training_state.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.read_state(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", 1.5, "at least 1"),
        ("seed", -1, "at least 0"),
        ("threads", 0, "at least 1, or None"),
        ("lr", float("inf"), "above 0"),
        ("clip", 0, "above 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("label_smoothing", 1.0, "from 0 to below 1"),
        ("vectors", 5, "a string, or None"),
    ],
)
def test_a_wrong_training_option_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=f"^{field} must be .*{allowed}, not {value!r}"):
        TrainingOptions(**{field: value})


def test_the_working_directory_is_a_folder_too(tmp_path, monkeypatch):
    save(tmp_path / "best")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.find(".") == Path("best")
    monkeypatch.chdir(tmp_path / "best")
    assert checkpoint.find(".") == Path(".")
