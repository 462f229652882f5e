"""The metrics of a run, on disk."""

import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from sstkern.atomic import GrowingFile
from sstkern.text.checkpoint import TrainingState
from sstkern.text.progress import Reporter


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, each with ``event``, ``step`` and ``epoch``.

    A torn line, which a power cut can leave, is no line.

    Raises:
        OSError: the file cannot be read.
    """
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and values.keys() >= {"event", "step", "epoch"}:
            found.append(values)
    return found


class History:
    """The metrics of a run, in ``metrics.jsonl`` and as TensorBoard's events; nothing but on the main process.

    What lies after ``state``'s position, from steps that will be done again, is overwritten. On a full disk the run goes on:
    what cannot be written waits until there is room.
    """

    def __init__(self, output: Path, state: TrainingState, reporter: Reporter, main: bool) -> None:
        self._state = state
        self._reporter = reporter
        self._files: tuple[GrowingFile, ...] = ()
        if main:
            self._files = GrowingFile(output / "metrics.jsonl", state.metrics_bytes), GrowingFile(_events_file(output / "tensorboard"))
            # Of the steps that come once more, TensorBoard shows the later ones.
            began = Event(step=state.step + 1, session_log=SessionLog(status=SessionLog.START))
            self._append(b"", _records(Event(file_version="brain.Event:2"), began))

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            if file.waiting:
                with self._reporter.reporting(f"the last {len(file.waiting):,} bytes of {file.path.name} are lost"):
                    file.append(b"")

    def write(self, event: str, values: dict[str, float]) -> None:
        """Add a line, and move the state's position to its end."""
        if not self._files:
            return
        step = self._state.step
        line = json.dumps({"event": event, "step": step, "epoch": self._state.epoch, **values}) + "\n"
        events = [Event(step=step, summary=scalar(f"{event}/{name}", value)) for name, value in values.items()]
        self._append(line.encode(), _records(*events))

    def _append(self, *pieces: bytes) -> None:
        for file, piece in zip(self._files, pieces, strict=True):
            known = bool(file.waiting)
            try:
                file.append(piece)
            except OSError as error:
                if not known:  # one warning, however many lines follow
                    self._reporter.warn(f"{file.path.name} waits for room, and what waits at the end is lost", error)
        self._state.metrics_bytes = self._files[0].size


def _events_file(folder: Path) -> Path:
    return folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"


def _records(*events: Event) -> bytes:
    """TensorBoard's events as its files have them.

    Not by way of its SummaryWriter, whose thread is gone for good after the first write that fails.
    """
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        event.wall_time = time.time()
        writer.write(event.SerializeToString())
    return buffer.getvalue()
