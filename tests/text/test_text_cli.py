"""The SST-2 application's commands: what they print, where, and with which exit code."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import call, start, told
from typer.testing import Result

from sstkern.text import checkpoint, cli, load_classifier, sst2
from sstkern.text.throughput import Throughput
from sstkern.text.trainer import Run

SMALL = ("--hidden-size", "4", "--embedding-size", "4", "--pooling", "last")
SENTENCES = {
    "train": [("good", 1), ("bad", 0), ("not good", 0), ("not bad", 1)] * 20,
    "dev": [("good", 1), ("not bad", 1), ("bad", 0)],
}


def write_data(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in SENTENCES.items():
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, Result]:
    """Data, a run on it, and what training said."""
    folder = tmp_path_factory.mktemp("cli")
    data = write_data(folder / "data")
    size = ("--hidden-size", "16", "--embedding-size", "16", "--pooling", "last", "--dropout", "0")
    schedule = ("--epochs", "30", "--patience", "30", "--lr", "0.02", "--batch-size", "8")
    result = call("train", "--data", data, *size, *schedule, "--output", folder / "run")
    assert result.exit_code == 0, result.output
    return data, folder / "run", result


def test_training_ends_with_the_accuracy_the_files_and_the_speeds(trained):
    _, run, result = trained
    *_, accuracy, files, timing, speed = result.stdout.splitlines()
    assert accuracy == "validation accuracy 1.0000, the best of 30 epochs"
    assert files.startswith(f"{run}: best (the model), last")
    assert re.fullmatch(r"timing torch.nn's layers beside ours, at most \d+\.\d s \(--no-compare leaves it out\)", timing)
    assert re.fullmatch(r"(sstkern [\d,]+ tokens/s, torch.nn )?[\d,]+ tokens/s( \(x \d+\.\d\d\))?, measured in this run", speed)
    assert {path.name for path in run.iterdir()} == {"best", "last", "metrics.jsonl", "tensorboard", "training.png"}
    assert (run / "training.png").read_bytes().startswith(b"\x89PNG")


def test_early_stopping_is_told(trained, tmp_path: Path):
    data, _, _ = trained
    sizes = ("--hidden-size", "2", "--embedding-size", "2", "--lr", "1e-9")  # which learns nothing: the accuracy stays
    result = call("train", "--data", data, *sizes, "--epochs", "9", "--patience", "2", "--no-compare", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "stopped after 3 of 9 epochs: no better accuracy in the last 2 (--patience)" in result.stdout.splitlines()


def test_why_there_is_no_sst2_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def unavailable(*arguments, **options):
        raise sst2.UnavailableError("no network")

    monkeypatch.delenv("SSTKERN_DATA", raising=False)
    monkeypatch.setattr(sst2, "fetch", unavailable)
    sizes = ("--cell", "average", "--embedding-size", "2", "--epochs", "1")
    result = call("train", *sizes, "--no-compare", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "data: generated demo sentences, not SST-2" in result.stdout.splitlines()
    assert "no network" not in result.stdout
    assert "using generated demo sentences, not SST-2: no network" in caplog.text


def test_the_comparison_has_a_tenth_of_the_time_and_can_be_left_out(trained, tmp_path, monkeypatch):
    given = []

    def throughput(run, seconds):
        given.append(seconds / run.seconds)
        return Throughput(3000.4, 2000.0)

    monkeypatch.setattr(Run, "throughput", throughput)
    arguments = ("train", "--data", trained[0], *SMALL, "--epochs", "1", "--output")
    *_, speed = call(*arguments, tmp_path / "first").stdout.splitlines()
    assert speed == "sstkern 3,000 tokens/s, torch.nn 2,000 tokens/s (x 1.50), measured in this run"
    *_, files, speed = call(*arguments, tmp_path / "second", "--no-compare").stdout.splitlines()
    assert files.startswith(f"{tmp_path / 'second'}: best")
    assert re.fullmatch(r"[\d,]+ tokens/s, measured in this run", speed)
    assert given == [pytest.approx(0.1)]


def test_training_without_validation(trained, tmp_path):
    data, _, _ = trained
    result = call("train", "--data", data, "--valid", "none", *SMALL, "--epochs", "2", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "80 sentences to train on, 0 to validate on" in result.stdout
    assert "validation loss" not in result.stdout
    assert "the model of the last of 2 epochs is kept" in result.stdout.splitlines()
    assert (tmp_path / "run" / "training.png").is_file()


def test_sentences_without_a_word_are_trained_on(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\t1\n\t0\n" * 20)
    result = call("train", "--data", tmp_path, *SMALL, "--epochs", "1", "--batch-size", "8", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "validation accuracy 0.5000" in result.stdout
    assert result.stdout.splitlines()[-1] == "0 tokens/s, measured in this run"
    assert call("evaluate", "--model", tmp_path / "run", "--data", tmp_path / "dev.tsv").stdout.startswith("accuracy 0.5000")


def test_evaluation_is_that_of_the_training(trained):
    data, run, _ = trained
    result = call("evaluate", "--model", run, "--data", data / "dev.tsv")
    assert result.stdout.startswith("accuracy 1.0000, loss 0.")
    assert result.stdout.endswith(" on 3 sentences\n")
    values = json.loads(call("evaluate", "--model", run, "--data", data / "dev.tsv", "--json").stdout)
    assert (values["accuracy"], values["examples"]) == (1.0, 3)


def test_prediction_of_arguments_and_of_lines(trained):
    _, run, _ = trained
    texts = ["not bad", "bad", "good", "not good", ""]
    expected = [f"{label}\t{probability:.4f}" for label, probability in load_classifier(run).predict(texts)]
    assert [line[0] for line in expected[:4]] == ["1", "0", "1", "0"]
    assert call("predict", "--model", run, *texts).stdout.splitlines() == expected
    assert call("predict", "--model", run, text="".join(f"{text}\n" for text in texts)).stdout.splitlines() == expected


def test_what_is_printed_for_a_line_does_not_depend_on_the_others_that_are_there(trained):
    _, run, _ = trained
    texts = [" ".join(["good", "bad", "not", "fine"][place % 4] for place in range(start, start + start % 17)) for start in range(700)]
    alone = {text: call("predict", "--model", run, text).stdout for text in texts[-17:]}
    found = call("predict", "--model", run, text="\n".join(texts)).stdout.splitlines(keepends=True)
    assert len(found) == len(texts)
    assert found[-17:] == [alone[text] for text in texts[-17:]]


def test_lines_that_are_there_are_answered_some_hundreds_at_once(trained, monkeypatch):
    given, predict = [], checkpoint.TextClassifier.predict
    monkeypatch.setattr(checkpoint.TextClassifier, "predict", lambda self, texts: given.append(len(texts)) or predict(self, texts))
    call("predict", "--model", trained[1], text="good\nbad\n" * 300)
    assert given == [256, 256, 88]


@pytest.mark.parametrize(
    "line",
    [b"\xef\xbb\xbfnot bad\n", b"not bad\r\n", b"not\rbad\n", b"not bad"],
    ids=["byte order mark", "CR LF", "CR inside", "unended"],
)
def test_a_line_of_standard_input_is_one_text_however_it_is_written(trained, line):
    _, run, _ = trained
    expected = call("predict", "--model", run, "not bad", "good").stdout.splitlines()
    assert call("predict", "--model", run, text=b"good\n" + line).stdout.splitlines() == expected[::-1]
    assert call("predict", "--model", run, text=line).stdout.splitlines() == expected[:1]


def test_a_line_that_is_not_utf8_is_named_and_the_others_are_answered(trained):
    _, run, _ = trained
    good, bad = call("predict", "--model", run, "good", "bad").stdout.splitlines()
    result = call("predict", "--model", run, text=b"good\ncaf\xe9\nbad\n")
    assert result.stdout.splitlines() == [good, "?\tnan", bad]
    assert result.stderr == "sstkern: standard input, line 2: found byte 0xe9, expected UTF-8\n"
    assert result.exit_code == 1
    result = call("predict", "--model", run, "good", "caf\udce9")
    assert result.stdout.splitlines() == [good, "?\tnan"]
    assert result.stderr == "sstkern: the arguments, line 2: found byte 0xe9, expected UTF-8\n"


def test_evaluation_names_a_line_that_is_not_utf8_and_is_of_the_others(trained, tmp_path):
    data, run, _ = trained
    (tmp_path / "dev.tsv").write_bytes(b"caf\xe9\t1\n".join((data / "dev.tsv").read_bytes().partition(b"good\t1\n")[::2]) + b"good\t1\n")
    result = call("evaluate", "--model", run, "--data", tmp_path / "dev.tsv")
    assert result.stdout.endswith(" on 3 sentences\n")
    assert result.stderr == f"sstkern: {tmp_path / 'dev.tsv'}, line 2: found byte 0xe9, expected UTF-8\n"
    assert result.exit_code == 1


def test_nothing_to_predict_is_told_unless_it_is_an_empty_file(trained):
    process = start("predict", "--model", trained[1], preexec_fn=lambda: os.close(0))
    said = "sstkern: texts: found none, and standard input is closed; expected texts as arguments, or lines there\n"
    assert process.communicate(timeout=60) == ("", said)
    result = call("predict", "--model", trained[1], text="")
    assert (result.exit_code, result.output) == (0, "")


def test_an_explanation_is_a_line_a_token_below_the_answer(trained):
    _, run, _ = trained
    explained = load_classifier(run).explain("not bad")
    assert all(value > 0 for _, value in explained)
    answer, *tokens, empty = call("predict", "--model", run, "--explain", "not bad", "").stdout.splitlines()
    assert answer.startswith("1\t0.")
    assert tokens == [f"  +{value:.2f}\t{token}" for token, value in explained]
    assert len(tokens) == 2
    assert empty[0] in "01"


def test_training_on_pretrained_vectors(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vectors.txt").write_text("good 1 2\nbad 3 4\n")
    arguments = ("--data", trained[0], "--vectors", "vectors.txt", "--no-affixes", "--epochs", "1", "--output", "run")
    assert call("train", "--frozen", "--hidden-size", "4", *arguments).exit_code == 0
    classifier = load_classifier("run")
    assert classifier.options.vectors == str(tmp_path / "vectors.txt")
    assert (classifier.model.config.frozen, classifier.model.config.embedding_size) == (True, 2)
    line = told(call("train", "--resume", *arguments, "--embedding-size", "3"))
    assert "--embedding-size: the run in run was started with embedding_size 2" in line


@pytest.mark.parametrize("vectors", ["glove.6B", "hf:a/model"])
def test_the_name_of_vectors_is_no_path(trained, monkeypatch, vectors):
    given = []
    monkeypatch.setattr(cli, "_check_given", lambda _, values: given.append(values["vectors"]))
    call("train", "--resume", "--output", trained[1], "--vectors", vectors)
    assert given == [vectors]


def test_an_output_with_a_run_is_kept(trained):
    data, run, _ = trained
    before = (run / "metrics.jsonl").read_bytes()
    assert "exists and is no empty folder" in told(call("train", "--data", data, "--output", run))
    assert (run / "metrics.jsonl").read_bytes() == before


def test_resuming_with_other_options_names_them(trained):
    data, run, _ = trained
    line = told(call("train", "--resume", "--output", run, "--epochs", "3", "--cell", "gru", "--batch-size", "8"))
    assert "--epochs, --cell: the run in" in line
    assert "was started with epochs 30, cell lstm" in line
    finished = call("train", "--resume", "--output", run, "--data", data)
    assert "validation accuracy 1.0000, the best of 30 epochs" in finished.stdout
    assert "timing" not in finished.stdout


def test_without_an_output_every_run_has_a_new_folder(trained, tmp_path, monkeypatch):
    data, _, _ = trained
    monkeypatch.chdir(tmp_path)
    arguments = ("train", "--data", data, "--cell", "average", "--embedding-size", "4", "--epochs", "1")
    for folder in ("average", "average-2"):
        result = call(*arguments)
        assert f"runs/{folder}: best" in result.stdout
        assert re.fullmatch(r"[\d,]+ tokens/s, measured in this run", result.stdout.splitlines()[-1])
    assert "runs/average-2: best" in call("train", "--resume", "--cell", "average").stdout


def test_data_that_was_moved_is_told_and_taken_from_its_new_place(tmp_path):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    valid = tmp_path / "valid.tsv"
    valid.write_bytes((data / "dev.tsv").read_bytes())
    assert call("train", "--data", data, "--valid", valid, *SMALL, "--epochs", "1", "--output", run).exit_code == 0
    data.rename(tmp_path / "moved")
    moved = f"if the data of the run in {run} was moved, give its new place as --data"
    assert moved in told(call("train", "--resume", "--output", run))
    valid.rename(tmp_path / "other.tsv")
    line = told(call("train", "--resume", "--output", run, "--data", tmp_path / "moved"))
    assert "valid.tsv" in line
    assert line.endswith("give its new place as --valid")
    places = ("--data", tmp_path / "moved", "--valid", tmp_path / "other.tsv")
    assert call("train", "--resume", "--output", run, *places).exit_code == 0
    (tmp_path / "moved" / "train.tsv").write_text("sentence\tlabel\nother\t1\nwords\t0\n")
    line = told(call("train", "--resume", "--output", run, *places))
    assert f"the data is not what the run in {run} was started with" in line


def test_a_run_ends_well_whose_lines_go_to_a_full_disk(trained, tmp_path):
    with open("/dev/full", "w") as full:
        arguments = ("--data", trained[0], *SMALL, "--epochs", "2", "--no-compare", "--output", tmp_path / "run")
        process = start("train", *arguments, stdout=full)
        assert "Traceback" not in process.communicate(timeout=60)[1]
    assert checkpoint.read_state(tmp_path / "run" / "last").epoch == 2
    assert (tmp_path / "run" / "training.png").is_file()


def test_answers_that_find_a_full_disk_name_stdout(trained):
    with open("/dev/full", "w") as full:
        process = start("predict", "--model", trained[1], "good", stdout=full)
        assert process.communicate(timeout=60)[1] == "sstkern: stdout: No space left on device\n"
    assert process.returncode == 1


def test_labels_that_are_strings_are_predicted_and_evaluated(trained, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in ("train", "dev"):
        text = (trained[0] / f"{name}.tsv").read_text()
        (data / f"{name}.tsv").write_text(text.replace("\t1\n", "\tfine\n").replace("\t0\n", "\tpoor\n"))
    schedule = ("--epochs", "20", "--patience", "20", "--lr", "0.02", "--batch-size", "8", "--cell", "average", "--no-affixes")
    assert call("train", "--data", data, *schedule, "--output", run).exit_code == 0
    answers = call("predict", "--model", run, "good good", "bad").stdout.splitlines()
    assert [answer.split("\t")[0] for answer in answers] == ["fine", "poor"]
    assert call("evaluate", "--model", run, "--data", data / "dev.tsv").stdout.startswith("accuracy ")
    said = told(call("evaluate", "--model", run, "--data", trained[0] / "dev.tsv"))
    assert "line 2: found label '1', expected one of the model's labels: fine, poor" in said
    said = told(call("evaluate", "--model", trained[1], "--data", data / "dev.tsv"))
    assert "line 2: found label 'fine', expected 0 or 1, the model's labels" in said
    assert call("train", "--resume", "--output", run).exit_code == 0


def test_what_is_too_large_is_one_line_with_its_sizes(tmp_path):
    line = told(call("train", "--data", "demo", "--hidden-size", "1000000", "--output", tmp_path / "run"))
    assert "a model of hidden_size 1,000,000, layers 1" in line
    assert line.endswith("try a smaller --hidden-size")
    assert not any(tmp_path.iterdir())


def test_any_other_want_of_memory_is_one_line_too(trained, monkeypatch):
    monkeypatch.setattr(checkpoint.TextClassifier, "predict", lambda *_: torch.empty(2**60 - 1))
    assert told(call("predict", "--model", trained[1], "good")).startswith("sstkern: out of memory (")


def test_a_disk_that_stays_full_is_exit_code_1(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    result = call("train", "--data", trained[0], *SMALL, "--epochs", "1", "--output", tmp_path / "run")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines.count("warning: step 0 is not saved, and there is no earlier checkpoint ([Errno 28] No space left on device)") == 1
    assert "no model was saved" in lines
    assert f"{tmp_path / 'run'}: metrics.jsonl, training.png, tensorboard" in lines
    assert "earlier checkpoint is kept" not in result.stdout
    assert "accuracy -1" not in result.stdout


def test_a_best_model_that_was_not_saved_is_told(trained, tmp_path, monkeypatch):
    save = checkpoint.save

    def full(folder, *arguments):
        if folder.name == "best":
            raise OSError(28, "No space left on device")
        save(folder, *arguments)

    monkeypatch.setattr(checkpoint, "save", full)
    lines = call("train", "--data", trained[0], *SMALL, "--epochs", "1", "--output", tmp_path / "run").stdout.splitlines()
    assert "the best model was not saved, only last is there" in lines
    assert f"{tmp_path / 'run'}: last (to resume), metrics.jsonl, training.png, tensorboard" in lines


@pytest.mark.parametrize("room", [0, 1024])
def test_a_full_disk_ends_in_warnings_and_whole_lines(trained, tmp_path, room):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # noqa: E731
    arguments = ("--data", trained[0], *SMALL, "--batch-size", "8", "--epochs", "9", "--patience", "9", "--output", tmp_path / "run")
    stdout, stderr = start("train", *arguments, preexec_fn=limit).communicate(timeout=100)
    assert stderr == ""
    assert "but not saved" not in stdout
    told = [line for line in stdout.splitlines() if line.startswith("warning: ")]
    assert sum("metrics.jsonl waits for room" in line for line in told) == 1
    assert all(f"File too large: '{tmp_path / 'run'}" in line for line in told)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == list(range(1, 5 if room else 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--data", "nowhere"), "nowhere/train.tsv is missing"),
        (("train", "--epochs", "0"), "epochs must be an integer of at least 1, not 0"),
        (("train", "--frozen", "--data", "demo"), "frozen is True and vectors is None, expected vectors"),
        (("train", "--dropout", "1"), "dropout must be a number from 0 to below 1, not 1.0"),
        (("train", "--resume", "--output", "nowhere"), "nowhere/last holds no checkpoint"),
        (("train", "--resume"), "runs has no run of the cell 'lstm' to go on with"),
        (("evaluate", "--model", "nowhere", "--data", "x.tsv"), "nowhere holds no checkpoint"),
        (("predict", "--model", "nowhere", "text"), "nowhere holds no checkpoint"),
        (("train", "--data", "demo", "--valid", "nowhere.tsv"), "nowhere.tsv: No such file or directory"),
    ],
)
def test_an_expected_error_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in told(call(*arguments))
    assert not any(tmp_path.iterdir())


def test_a_label_that_the_model_does_not_know_is_told_with_those_it_does(trained, tmp_path):
    file = tmp_path / "other.tsv"
    file.write_text("sentence\tlabel\ngood\t7\n")
    line = told(call("evaluate", "--model", trained[1], "--data", file))
    assert "other.tsv, line 2: found label '7', expected 0 or 1, the model's labels" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--cell", "tree"), "'average', 'rnn', 'gru', 'lstm'"),
        (("train", "--pooling", "min"), "'last', 'mean', 'max', 'attention'"),
        (("train", "--cell", "average", "--layers", "2", "--pooling", "max"), "--layers, --pooling: the cell 'average'"),
        (("train", "--epochs", "many"), "--epochs"),
        (("predict", "text"), "--model"),
    ],
)
def test_a_usage_error_names_what_is_allowed(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_run_under_way_is_not_resumed_and_the_next_has_another_folder(trained, tmp_path):
    arguments = ("train", "--data", trained[0], *SMALL, "--epochs")
    process = start(*arguments, "9999", "--patience", "9999", cwd=tmp_path)
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)  # it goes on to hold its folder, and takes no time from the others
    other = start("train", "--resume", cwd=tmp_path)
    assert other.communicate(timeout=60) == (
        "",
        "sstkern: runs/lstm is in use by another training; wait for its end, or choose another output\n",
    )
    assert "runs/lstm-2: best" in start(*arguments, "1", cwd=tmp_path).communicate(timeout=60)[0]
    process.kill()
    process.communicate()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"lstm", "lstm-2"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_stop_saves_and_says_how_to_go_on(tmp_path, number, code):
    output = tmp_path / "a run"
    process = start("train", "--data", "demo", *SMALL, "--epochs", "9999", "--patience", "9999", "--output", output)
    while not process.stdout.readline().startswith("epoch 2/"):
        assert process.poll() is None
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (code, "")
    step = checkpoint.read_state(output / "last").step
    assert step > 0
    assert stdout.splitlines()[-2:] == [
        f"interrupted at step {step} and saved; to go on:",
        f"  sstkern train --resume --output '{output}'",
    ]


def test_prediction_answers_line_by_line_and_ends_in_silence_with_its_reader(trained):
    process = start("predict", "--model", trained[1], stdin=subprocess.PIPE)
    for text in ("good", "bad"):
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("1\t" if text == "good" else "0\t")
    process.stdout.close()
    process.stdin.write("good\n" * 3)
    process.stdin.close()
    assert process.wait(timeout=60) != 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("package", ["accelerate", "tensorboard"])
def test_a_missing_package_is_one_line_that_says_how_to_get_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    imported = ("sstkern.text.trainer", "sstkern.text.data", "sstkern.text.history", "torch.utils.tensorboard", f"{package}.")
    for name in [name for name in sys.modules if name.startswith(imported)]:
        monkeypatch.delitem(sys.modules, name)
    line = told(call("train", "--data", "demo", "--output", tmp_path / "run"))
    assert line == f'sstkern: {package} is not installed: pip install "sstkern[train]"'
    assert not any(tmp_path.iterdir())
