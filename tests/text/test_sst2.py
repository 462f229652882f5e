import logging
from pathlib import Path

import pooch
import pytest

from sstkern.text import Examples, demo, load_examples, sst2

# Training and development examples, and how many of each are positive.
SIZES = {"demo": (16000, 1000, 8000, 500), "sst2": (67349, 872, 37569, 444)}


@pytest.fixture
def directory(tmp_path) -> Path:
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (folder / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n")
    return folder


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    """No data but the cache, which is where `directory` writes, and nobody to download from."""
    monkeypatch.delenv("SSTKERN_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path)
    monkeypatch.setattr(sst2, "URL", "http://127.0.0.1:1/SST-2.zip")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_sizes(corpus):
    train, dev = corpus.train, corpus.dev
    assert (len(train), len(dev), sum(train.labels), sum(dev.labels)) == SIZES[corpus.name]


@pytest.mark.parametrize("kind", [str, Path])
def test_loads_a_directory(directory, kind):
    train, dev, description = load_examples(kind(directory))
    assert train == Examples(["good", "bad"], [1, 0])
    assert dev == Examples(["fine"], [1])
    assert str(directory / "train.tsv") in description


def test_loads_from_the_environment(directory, monkeypatch):
    monkeypatch.setenv("SSTKERN_DATA", str(directory.parent))
    assert load_examples() == load_examples(directory)


def test_loads_the_demo():
    assert load_examples("demo") == (*demo(), "generated demo sentences")


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv"])
def test_a_missing_file_is_named(directory, monkeypatch, name):
    (directory / name).unlink()
    monkeypatch.setenv("SSTKERN_DATA", str(directory.parent))
    for data in (directory, None):
        with pytest.raises(FileNotFoundError, match=rf"sst2/{name} is missing"):
            load_examples(data)


def test_a_development_label_unknown_in_training_is_named(directory):
    (directory / "dev.tsv").write_text("sentence\tlabel\nfine\t1\nodd\t2\n")
    with pytest.raises(ValueError, match=r"dev\.tsv, line 3: found label '2', expected 0 or 1, the model's labels"):
        load_examples(directory)


@pytest.mark.parametrize("label", [2, 1234567890])
def test_labels_are_as_many_as_the_file_has(directory, label):
    (directory / "train.tsv").write_text(f"sentence\tlabel\ngood\t1\nodd\t{label}\nbad\t0\ngood\t1\n".replace("bad\t0", "bad\t1"))
    with pytest.raises(ValueError, match=rf"train\.tsv, line 3: found label {label}, expected 0 to 1, for the file has 2 labels"):
        load_examples(directory)


@pytest.mark.parametrize("label", ["0", "1", "good"])
def test_one_label_only_is_told(directory, label):
    (directory / "train.tsv").write_text(f"sentence\tlabel\ngood\t{label}\nfine\t{label}\n")
    with pytest.raises(ValueError, match=r"train\.tsv: found one label only, expected two or more$"):
        load_examples(directory)


def test_labels_that_are_strings_are_those_of_training(directory):
    (directory / "train.tsv").write_text("sentence\tlabel\nso so\tfair\ngood\tfine\nbad\tpoor\n")
    (directory / "dev.tsv").write_text("sentence\tlabel\nfine\tfine\n")
    train, dev, _ = load_examples(directory)
    assert (train.labels, dev.labels, train.names, dev.names) == ([0, 1, 2], [1], ["fair", "fine", "poor"], ["fair", "fine", "poor"])
    (directory / "dev.tsv").write_text("sentence\tlabel\nfine\tgreat\n")
    with pytest.raises(ValueError, match=r"dev\.tsv, line 2: found label 'great', expected one of the model's labels: fair, fine, poor"):
        load_examples(directory)


def test_without_network_it_says_so_and_gives_the_demo(offline, caplog):
    with caplog.at_level(logging.WARNING, logger="sstkern"):
        train, dev, description = load_examples()
    assert (train, dev) == demo()
    assert description.startswith("generated demo sentences, not SST-2: http://127.0.0.1:1/SST-2.zip could not")
    assert description.endswith("give the folder with train.tsv and dev.tsv as --data")
    assert description in caplog.text


def test_takes_the_cache(offline, directory):
    assert load_examples() == load_examples(directory)


def test_a_wrong_hash_does_not_fall_back_to_the_demo(offline, monkeypatch):
    def mismatch(*args: object, **options: object) -> Path:
        raise ValueError("does not match the known hash")

    monkeypatch.setattr(sst2, "fetch", mismatch)
    with pytest.raises(ValueError, match="does not match the known hash"):
        load_examples()
