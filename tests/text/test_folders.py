"""The folders of runs: who takes one, has it alone."""

import fcntl
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sstkern.text import folders
from sstkern.text.folders import InUseError, RunFolder, check_new, newest, take, take_next


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def with_checkpoint(*names: str) -> None:
    for name in names:
        Path("runs", name, "last").mkdir(parents=True)
        Path("runs", name, "last", "config.json").touch()


def test_runs_that_are_started_together_have_a_folder_each():
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(take_next, ["lstm"] * 64))
    assert {folder.path for folder in taken} == {Path("runs/lstm"), *(Path(f"runs/lstm-{number}") for number in range(2, 65))}


def test_one_of_several_has_the_folder_that_all_want():
    def attempt(_):
        try:
            return take(Path("a/run"))
        except InUseError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(attempt, range(64)))
    assert len([answer for answer in answers if isinstance(answer, RunFolder)]) == 1
    assert {answer for answer in answers if isinstance(answer, str)} == {
        "a/run is in use by another training; wait for its end, or choose another output"
    }


def test_a_folder_that_is_released_can_be_held_again():
    folder = take(Path("run"))
    with pytest.raises(InUseError, match="run is in use by another training"):
        RunFolder(Path("run"))
    folder.release()
    folder.release()
    assert take(Path("run")).path == Path("run")


def test_what_is_not_empty_is_not_taken_nor_held():
    Path("run").mkdir()
    Path("run", "notes.txt").touch()
    with pytest.raises(ValueError, match=re.escape("run exists and is no empty folder; choose another output, or resume")):
        take(Path("run"))
    RunFolder(Path("run"))


def test_what_was_written_between_two_looks_is_seen(monkeypatch):
    Path("run").mkdir()
    holds = folders.RunFolder.__init__

    def late(self, path):
        holds(self, path)
        (path / "best").mkdir()

    monkeypatch.setattr(folders.RunFolder, "__init__", late)
    with pytest.raises(ValueError, match="run exists and is no empty folder"):
        take(Path("run"))


@pytest.mark.parametrize(
    ("there", "new", "last"),
    [
        (["gru"], "gru-2", "gru"),
        (["gru-2"], "gru-3", "gru-2"),
        (["gru", "gru-7", "gru-10"], "gru-11", "gru-10"),
        (["gru", "gru-old", "gru-02", "grus-5", "lstm-9"], "gru-2", "gru"),
    ],
)
def test_numbers_may_be_missing(there, new, last):
    with_checkpoint(*there)
    Path("runs/notes.txt").touch()
    assert newest("gru") == Path("runs", last)
    assert take_next("gru").path == Path("runs", new)
    assert newest("gru") == Path("runs", last)  # the new one has nothing yet to go on from


def test_a_file_has_a_number_too():
    Path("runs").mkdir()
    Path("runs/gru").touch()
    assert take_next("gru").path == Path("runs/gru-2")


def test_without_a_run_there_is_none_to_go_on_with():
    with pytest.raises(ValueError, match="runs has no run of the cell 'gru' to go on with; give the run's folder as --output"):
        newest("gru")


def test_a_run_under_way_in_a_new_runs_output_is_told(tmp_path):
    held = take(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").touch()
    for refused in (take, check_new):
        with pytest.raises(InUseError, match="run is in use by another training"):
            refused(tmp_path / "run")
    held.release()
    looking = RunFolder(tmp_path / "run", fcntl.LOCK_SH)
    with pytest.raises(ValueError, match="is no empty folder"):
        check_new(tmp_path / "run")
    looking.release()
