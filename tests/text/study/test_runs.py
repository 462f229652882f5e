import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from sstkern.text import Examples, demo, read_tsv
from sstkern.text.checkpoint import TrainingOptions, load_model, read_config
from sstkern.text.models import ModelConfig
from sstkern.text.study.recipes import RECIPES, Recipe, of_problem
from sstkern.text.study.runs import Data, InterruptedStudyError, Runs, command, shuffled, whole_sentences
from sstkern.text.trainer import Run

RECIPE = Recipe("tiny", "4.1", "a tiny GRU", None, {"cell": "gru", "hidden_size": 8, "embedding_size": 8}, {"epochs": 2, "batch_size": 32})


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    train, dev = demo(160, 40)
    data = Data(train, train.pick(range(120)), dev.pick(range(20)), dev, tmp_path / "data")
    data.write()
    return Runs(data, tmp_path / "runs", {}, seeds=(0, 1))


def test_the_data_is_written_as_sstkern_train_reads_it(runs: Runs):
    data = runs.data
    for name, parts in (("split", (data.side, data.held_out)), ("whole", (data.whole, data.dev))):
        for file, examples in zip(("train.tsv", "dev.tsv"), parts, strict=True):
            assert read_tsv(data.folder / name / file) == examples
            assert read_tsv(data.folder / f"{name}-shuffled" / file) == shuffled(examples, 0)


def test_shuffling_keeps_the_words_and_the_labels():
    examples = Examples(["a b c d e f g h", "i"], [1, 0])
    mixed = shuffled(examples, 0)
    assert mixed.labels == [1, 0]
    assert mixed.sentences[0] != examples.sentences[0]
    assert [sorted(sentence.split()) for sentence in mixed.sentences] == [list("abcdefgh"), ["i"]]
    assert shuffled(examples, 0) == mixed != shuffled(examples, 1)


def test_a_recipe_is_measured_on_the_split(runs: Runs):
    split = runs.of(RECIPE)["split"]
    assert [epoch["epoch"] for epoch in split["epochs"]] == [1, 2]
    assert split["accuracy"] == split["epochs"][-1]["valid_accuracy"]
    assert split["throughput"]["torch"] > 0
    assert split["parameters"] == split["trained_parameters"] > 100
    assert 0 <= split["seconds_to_best"] <= sum(epoch["seconds"] for epoch in split["epochs"])
    assert read_config(runs.folder / "tiny-split" / "best")["training"].data == str(runs.data.folder / "split")


def test_dev_measures_models_of_all_the_data_that_nothing_validated(runs: Runs):
    measured = runs.of(RECIPE)["runs"]
    assert len(measured) == 2
    for seed, run in enumerate(measured):
        trained = load_model(runs.folder / f"tiny-{seed}")
        options = trained.options
        assert (options.seed, options.data, options.valid) == (seed, str(runs.data.folder / "whole"), "none")
        labels = [label for label, _ in trained.predict(runs.data.dev.sentences)]
        right = [label == expected for label, expected in zip(labels, runs.data.dev.labels, strict=True)]
        assert run["accuracy"]["dev"] == sum(right) / len(right)
        assert 0 <= run["accuracy"]["train"] <= 1


def test_what_is_there_is_not_done_again(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    known = runs.one(RECIPE, 0)
    monkeypatch.setattr(Run, "start", None)
    assert runs.one(RECIPE, 0) == known


def test_other_settings_are_a_new_run_and_the_old_one_is_kept(runs: Runs):
    runs.one(RECIPE, 0)
    other = runs.one(replace(RECIPE, model=RECIPE.model | {"hidden_size": 4}), 0)
    kept = json.loads((runs.folder / "tiny-0.old-1" / "result.json").read_bytes())
    assert kept["asked"]["model"]["hidden_size"] == 8
    assert kept["measured"]["loss"] != other["loss"]


def test_other_data_is_a_new_run(runs: Runs):
    runs.one(RECIPE, 0)
    train, dev = demo(160, 40, seed=1)
    other = replace(runs, data=Data(train, train, dev, dev, runs.data.folder))
    other.data.write()
    other.one(RECIPE, 0)
    assert (runs.folder / "tiny-0.old-1").is_dir()


def test_an_interrupted_run_goes_on(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    train_on, interruptions = Run._train_on, []

    def interrupted_once(run: Run, batch) -> None:
        train_on(run, batch)
        if not interruptions:
            interruptions.append(run.state.step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "_train_on", interrupted_once)
    with pytest.raises(InterruptedStudyError, match=r"tiny-0 is saved at step 1"):
        runs.one(RECIPE, 0)
    monkeypatch.setattr(Run, "start", None)
    broken = runs.one(RECIPE, 0)
    monkeypatch.undo()
    whole = replace(runs, folder=runs.folder / "whole").one(RECIPE, 0)
    assert broken["loss"] == whole["loss"]


def test_the_command_has_what_differs_from_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = ModelConfig("gru", bidirectional=True)
    options = TrainingOptions(data=str(tmp_path / "d"), vectors="hf:some/model", seed=2)
    expected = "sstkern train --cell gru --bidirectional --data d --vectors hf:some/model --seed 2 --output runs/x"
    assert command(config, options, Path("runs/x")) == expected


def test_whole_sentences_end_like_sentences():
    examples = Examples(["a film", "a b c d .", "a b c d e", "e f g h ."], [0, 1, 0, 1])
    assert whole_sentences(examples, 1) == Examples(["a b c d ."], [1])
    assert whole_sentences(examples, 9).sentences == ["a b c d .", "e f g h ."]
    assert whole_sentences(Examples(["a film", "fun"], [0, 1]), 9).sentences == ["a film", "fun"]


def test_every_recipe_has_settings_and_a_name_of_its_own(runs: Runs):
    assert len({recipe.name for recipe in RECIPES}) == len({recipe.title for recipe in RECIPES}) == len(RECIPES)
    for recipe in RECIPES:
        config, options = replace(runs, vectors={"glove": "g", "transformer": "t"}).settings(recipe, 3)
        assert options.seed == 3
        assert (options.vectors is None) == (recipe.vectors is None)
        assert not config.frozen or recipe.vectors
    assert [recipe.name for recipe in of_problem("4.1")] == ["lstm", "gru"]
