"""What a training run tells while it goes."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sstkern.text.checkpoint import TrainingState


@contextmanager
def losing_lines() -> Iterator[None]:
    """What cannot be told is lost: a run is worth more than its lines, which may go to a full disk or a closed terminal."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


class Reporter:
    """Tells the progress of a run: a bar on a terminal, plain lines elsewhere, nothing but on the main process.

    Args:
        state: how far the run has come; it is read whenever something is told.
        epochs: the most there will be.
        steps: of an epoch.
        main: whether this is the main process.
        quiet: tell of nothing but what went wrong.
    """

    def __init__(self, state: TrainingState, epochs: int, steps: int, main: bool, quiet: bool) -> None:
        self._quiet = quiet
        self._state = state
        self._epochs = epochs
        self._console = Console(quiet=not main, highlight=False, markup=False, soft_wrap=True)
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}at most"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, disable=quiet or not self._console.is_terminal)
        self._task = self._bar.add_task("", total=epochs * steps, completed=self._state.step, epoch=self._epoch(), values="")

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self) -> None:
        """Tell that a step is done."""
        self._bar.update(self._task, completed=self._state.step, epoch=self._epoch())

    def steps(self, values: dict[str, float]) -> None:
        """Tell the means over the last steps."""
        self._bar.update(self._task, values=f"{_describe(values)}, ")

    def epoch(self, values: dict[str, float]) -> None:
        """Tell the means over the epoch that ended, and how the model does on the validation set."""
        if self._quiet:
            return
        parts = [f"epoch {self._state.epoch}/{self._epochs}: {_describe(values)}"]
        if "valid_loss" in values:
            parts.append(f"validation loss {values['valid_loss']:.4f} accuracy {values['valid_accuracy']:.4f}")
        left = (self._epochs - self._state.epoch) * values["seconds"]
        self._tell(", ".join([*parts, f"at most {left:.0f} s left"]))

    def warn(self, consequence: str, error: OSError) -> None:
        """Tell of an error, such as a full disk, and what follows from it."""
        self._tell(f"warning: {consequence} ({error})")

    @contextmanager
    def reporting(self, consequence: str) -> Iterator[None]:
        """Tell of an OSError what follows from it, and go on."""
        try:
            yield
        except OSError as error:
            self.warn(consequence, error)

    def _tell(self, line: str) -> None:
        with losing_lines():
            self._console.print(line)

    def _epoch(self) -> str:
        return f"{min(self._state.epoch + 1, self._epochs)}/{self._epochs}"


def _describe(values: dict[str, float]) -> str:
    return f"loss {values['loss']:.4f} accuracy {values['accuracy']:.4f}, {values['tokens_per_second']:,} tokens/s"
