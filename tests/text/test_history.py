"""The metrics of a run: what a full disk and a torn line do to them."""

import errno
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sstkern.text.checkpoint import TrainingState
from sstkern.text.history import History, read_metrics
from sstkern.text.plots import plot_training
from sstkern.text.progress import Reporter

LINES = [{"event": "step", "step": step, "epoch": 0, "loss": 1 / step} for step in (1, 2, 3, 4)]


def write(output: Path, state: TrainingState, full: tuple[int, ...] = ()) -> None:
    """The lines after a state's step, the disk being full at some of them."""
    opens = Path.open

    def open_unless_full(path, *arguments, **keywords):
        if state.step in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opens(path, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch, History(output, state, Reporter(state, 1, 4, main=True, quiet=True), main=True) as history:
        patch.setattr(Path, "open", open_unless_full)
        for line in LINES[state.step :]:
            state.step = line["step"]
            history.write("step", {"loss": line["loss"]})


def events(output: Path) -> list[tuple[int, float]]:
    found = EventAccumulator(str(output / "tensorboard"))
    found.Reload()
    return [(scalar.step, pytest.approx(scalar.value)) for scalar in found.Scalars("step/loss")]


def test_lines_for_which_there_was_no_room_are_written_when_there_is(tmp_path, capsys):
    state = TrainingState("", 1)
    write(tmp_path, state, full=(2, 3))
    assert read_metrics(tmp_path / "metrics.jsonl") == LINES
    assert events(tmp_path) == [(line["step"], line["loss"]) for line in LINES]
    assert state.metrics_bytes == (tmp_path / "metrics.jsonl").stat().st_size
    metrics, tensorboard = capsys.readouterr().out.splitlines()
    assert metrics == (
        "warning: metrics.jsonl waits for room, and what waits at the end is lost "
        f"([Errno 28] No space left on device: '{tmp_path / 'metrics.jsonl'}')"
    )
    assert tensorboard.startswith("warning: events.out.tfevents.")


def test_what_waits_at_the_end_is_told_to_be_lost(tmp_path, capsys):
    write(tmp_path, TrainingState("", 1), full=(3, 4))
    assert read_metrics(tmp_path / "metrics.jsonl") == LINES[:2]
    assert events(tmp_path) == [(line["step"], line["loss"]) for line in LINES[:2]]
    assert "bytes of metrics.jsonl are lost ([Errno 28]" in capsys.readouterr().out


def test_steps_that_are_done_again_are_there_once(tmp_path):
    state = TrainingState("", 1)
    write(tmp_path, state)
    size = sum(len(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:2])
    write(tmp_path, TrainingState("", 1, step=2, metrics_bytes=size))
    assert read_metrics(tmp_path / "metrics.jsonl") == LINES
    assert [step for step, _ in events(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("torn", ['{"event": "st', "\0\0", "7", '{"event": "step"}', "\udcff", "[" * 100_000])
def test_a_torn_line_is_none(tmp_path, torn):
    write(tmp_path, TrainingState("", 1))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + torn.encode(errors="surrogateescape"))
    assert read_metrics(path) == LINES


def test_a_plot_needs_no_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "ep')
    plot_training(tmp_path / "metrics.jsonl", 4, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
