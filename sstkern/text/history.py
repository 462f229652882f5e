"""The metrics of a run, on disk."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from sstkern.text.checkpoint import TrainingState
from sstkern.text.progress import Reporter


class History:
    """The metrics of a run, in ``metrics.jsonl`` and as TensorBoard's events; nothing but on the main process.

    What lies after ``state``'s position, from steps that will be done again, is overwritten.
    """

    def __init__(self, output: Path, state: TrainingState, reporter: Reporter, main: bool) -> None:
        self._path = output / "metrics.jsonl"
        self._reporter = reporter
        self._events = None
        if main:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            state.metrics_bytes = min(state.metrics_bytes, self._path.stat().st_size)
            self._events = SummaryWriter(str(output / "tensorboard"), purge_step=state.step + 1)

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            with self._reporter.reporting("TensorBoard's events are not complete"):
                self._events.close()

    def write(self, event: str, state: TrainingState, values: dict[str, float]) -> None:
        """Add a line, and move ``state``'s position to its end."""
        if self._events is None:
            return
        line = json.dumps({"event": event, "step": state.step, "epoch": state.epoch, **values}) + "\n"
        with self._reporter.reporting("a line of metrics is lost"):
            with self._path.open("ab") as file:
                file.truncate(state.metrics_bytes)
                file.write(line.encode())
            state.metrics_bytes += len(line)
            for name, value in values.items():
                self._events.add_scalar(f"{event}/{name}", value, state.step)
