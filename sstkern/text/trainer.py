"""The thin trainer: AdamW on cross entropy, on one process or, through Accelerate, on several.

The learning rate falls in a line to 0, and the model that is validated and kept has the running average of the weights.
The epoch that is best on the validation set is kept; without one, the last.
Only the main process writes. A run's folder holds ``best`` and ``last`` (see :mod:`sstkern.text.checkpoint`),
``metrics.jsonl``, TensorBoard's events and, at the end, ``training.png``.
"""

import hashlib
import json
import math
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.tensorboard import SummaryWriter

from sstkern.text import (
    AffixVocabulary,
    Batch,
    Batches,
    Examples,
    Subwords,
    Vocabulary,
    checkpoint,
    load,
    load_vectors,
    of_transformer,
    read_tsv,
)
from sstkern.text.checkpoint import TextClassifier, TrainingOptions, TrainingState
from sstkern.text.models import RECURRENT, Classifier, ModelConfig
from sstkern.text.plots import plot_training

STEPS_PER_LINE = 50  # steps between two lines of metrics.jsonl
EVALUATION_BATCH = 256
EMBEDDING_SIZE = 128  # without pretrained vectors
AVERAGING = 0.99  # share of the average of the weights that a step keeps


@dataclass(frozen=True)
class Evaluation:
    """Cross entropy (nats per sentence) and accuracy (0 to 1) on ``examples`` sentences."""

    loss: float
    accuracy: float
    examples: int


def evaluate(model: Classifier, encoded: list[list[int]], labels: list[int]) -> Evaluation:
    """Evaluate a model, which is left in evaluation mode, on encoded sentences and their labels."""
    device = model.linear.weight.device
    model.eval()
    loss, correct = 0.0, 0
    with torch.inference_mode():
        for batch in Batches(encoded, labels, EVALUATION_BATCH, shuffle=False).epoch(0):
            ids, lengths, classes, _ = (tensor.to(device) for tensor in batch)
            logits = model(ids, lengths).float()
            loss += cross_entropy(logits, classes, reduction="sum").item()
            correct += int((logits.argmax(1) == classes).sum())
    return Evaluation(loss / len(labels), correct / len(labels), len(labels))


@dataclass(frozen=True)
class Data:
    """The examples of a run, what they are in words, and their hash; ``valid`` may have none."""

    train: Examples
    valid: Examples
    description: str

    @classmethod
    def load(cls, options: TrainingOptions, accelerator: Accelerator) -> "Data":
        # One process at a time, so that a download happens once.
        with accelerator.main_process_first():
            train, valid, description = load(options.data)
        if len(set(train.labels)) < 2:
            raise ValueError(f"{description}: found only the label {train.labels[0]} to train on, expected two or more")
        if options.valid == "none":
            valid = Examples([], [])
            description += ", without validation"
        elif options.valid is not None:
            valid = read_tsv(options.valid)
            description += f", validated on {options.valid}"
            check_labels(valid, train.num_classes, options.valid)
        return cls(train, valid, description)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps([asdict(self.train), asdict(self.valid)]).encode()).hexdigest()


def check_labels(examples: Examples, classes: int, source: str | Path) -> None:
    """Raise ValueError, naming ``source``, if a label is none of a model's 0 to ``classes - 1``."""
    for row, label in enumerate(examples.labels, start=1):
        if label >= classes:
            known = ", ".join(map(str, range(classes))) if classes <= 10 else f"0 to {classes - 1}"
            raise ValueError(f"{source}: found the label {label} in example {row}, but the model knows {known}")


class Run:
    """A training run in a folder of its own; make one with :meth:`start` or :meth:`resume`.

    PyTorch's global random generators are seeded and used.

    Attributes:
        output: the run's folder.
        options: how it trains.
        classifier: the model under training and its vocabulary.
        data: what it trains and validates on.
        state: how far it has come.
        saved: whether the checkpoint ``last`` is as far.
    """

    def __init__(self, output: Path, accelerator: Accelerator, classifier: TextClassifier, data: Data, state: TrainingState) -> None:
        self.options = options = classifier.options
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.output = output
        self.classifier = classifier
        self.data = data
        self.state = state
        self.saved = False
        self.accelerator = accelerator
        if accelerator.num_processes != state.processes:
            raise ValueError(
                f"the run in {output} has {state.processes} processes and goes on with as many only, not {accelerator.num_processes}"
            )
        encode = classifier.vocabulary.encode
        train, valid = ([encode(sentence) for sentence in part.sentences] for part in (data.train, data.valid))
        self._batches = Batches(train, data.train.labels, options.batch_size, options.seed)
        self._validation = valid, data.valid.labels
        # Fused, because the step over all word vectors is a good part of the time.
        parameters = classifier.model.trainable().values()
        optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
        self._model, self._optimizer = accelerator.prepare(classifier.model, optimizer)
        # After that, because the weights are on their device now, and the same on every process.
        self._trainable = classifier.model.trainable()
        self._average = {name: parameter.detach().clone() for name, parameter in self._trainable.items()}
        # Rows: the epoch under way, the steps since the last line of metrics. Columns: loss, correct, examples.
        self._totals = torch.zeros(2, 3, dtype=torch.float64, device=accelerator.device)

    @classmethod
    def start(cls, config: ModelConfig, options: TrainingOptions, output: Path) -> "Run":
        """Prepare a new run.

        Raises:
            ValueError: ``output`` is neither new nor an empty folder, the data has one label only, it or the vectors cannot be read, the
                vectors have another dimension than ``config`` asks for, or there are none to be frozen.
            FileNotFoundError: the data or the vectors are not there.
        """
        if config.frozen and options.vectors is None:
            raise ValueError("frozen is True and vectors is None, expected vectors: random ones have to be trained")
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"{output} exists and is no empty folder; choose another output, or resume the run in it")
        accelerator = _accelerator()
        data = Data.load(options, accelerator)
        set_seed(options.seed)
        classifier = _new_classifier(config, options, data.train)
        run = cls(output, accelerator, classifier, data, TrainingState(data.sha256, accelerator.num_processes))
        set_seed(options.seed, device_specific=True)
        return run

    @classmethod
    def resume(cls, output: Path) -> "Run":
        """Prepare to go on with a run from its last checkpoint, with the options and the data it was started with.

        Raises:
            ValueError: there is no checkpoint, it is damaged, or the data or the number of processes has changed.
            FileNotFoundError: the data is not there any more.
        """
        folder = checkpoint.find(output / "last")
        state = checkpoint.read_state(folder)
        classifier = checkpoint.load_model(folder)
        accelerator = _accelerator()
        data = Data.load(classifier.options, accelerator)
        if data.sha256 != state.data_sha256:
            raise ValueError(f"the data is not what the run in {output} was started with: {data.description}")
        run = cls(output, accelerator, classifier, data, state)
        run._restore(folder)
        return run

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or enough of them without a gain."""
        return self.state.epoch >= self.options.epochs or self.state.epochs_without_gain >= self.options.patience

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-len(self._batches) // self.accelerator.num_processes)

    def train(self, quiet: bool = False) -> bool:
        """Train to the end, or to the first SIGINT, and save; at the end the model has the average of its weights.

        A checkpoint that cannot be written is reported; training goes on, and the previous one is kept.

        Args:
            quiet: tell of nothing but what went wrong.

        Returns:
            Whether the run is finished; otherwise it was interrupted and :meth:`resume` goes on with it.

        Raises:
            FloatingPointError: the loss is not finite any more.
        """
        main = self.accelerator.is_main_process
        with Reporter(self, quiet) as self._reporter, History(self.output, self.state, self._reporter, main) as self._history:
            with _noting_sigint() as sigint:
                self._train_until(sigint)
            if self.finished:
                self._set_weights(self._average)
            if self.finished and main:
                with self._reporter.reporting("no plot of the training"):
                    plot_training(self.output / "metrics.jsonl", self.steps_per_epoch, self.output / "training.png")
        return self.finished

    def throughput(self) -> "Throughput":
        """See :func:`measure_throughput`; every process must take part."""
        return measure_throughput(self.accelerator, self.classifier, self._batches)

    def _train_until(self, sigint: threading.Event) -> None:
        self.saved = self.state.step > 0 or self._save("last")
        while not self.finished:
            self._model.train()
            self._speed = Speed(self.accelerator.num_processes)
            for batch in self._epoch():
                self._train_on(batch)
                if self._any_process_noted(sigint):
                    self._check_finite(self.accelerator.reduce(self._totals[1].clone())[0].item())
                    self.saved = self._save("last")
                    return
            self._end_epoch()

    def _epoch(self) -> Iterator[Batch]:
        """The batches of the epoch under way that are not done."""
        process = self.accelerator
        return self._batches.epoch(self.state.epoch, self.state.batch, process.process_index, process.num_processes)

    def _train_on(self, batch: Batch) -> None:
        done = self.state.step / (self.options.epochs * self.steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = self.options.lr * (1 - done)
        loss, correct = _step(self.accelerator, self._model, self._optimizer, batch, self.options)
        examples = len(batch.labels)
        self._totals += torch.stack([loss.double() * examples, correct, torch.full_like(correct, examples)])
        self._speed.count(batch)
        self.state.step += 1
        self.state.batch += 1
        self._update_average()
        self._reporter.step()
        if self.state.step % STEPS_PER_LINE == 0:
            values = self._means(1)
            self._history.write("step", self.state, values)
            self._reporter.steps(values)

    def _update_average(self) -> None:
        # Of the first steps it keeps less: the initial weights would stay in it for long.
        kept = min(AVERAGING, self.state.step / (self.state.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.values()), list(self._trainable.values()), 1 - kept)

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self._trainable.values()), list(weights.values()))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model has the average of its weights."""
        trained = {name: parameter.detach().clone() for name, parameter in self._trainable.items()}
        self._set_weights(self._average)
        try:
            yield
        finally:
            self._set_weights(trained)

    def _means(self, row: int) -> dict[str, float]:
        """Loss and accuracy of a row of the totals, over all processes, and the speed; the row starts anew."""
        loss, correct, examples = self.accelerator.reduce(self._totals[row].clone()).tolist()
        self._totals[row] = 0
        self._check_finite(loss)
        return {"loss": loss / examples, "accuracy": correct / examples, "tokens_per_second": self._speed.tokens_per_second}

    def _check_finite(self, loss: float) -> None:
        """Before a checkpoint is overwritten with what nobody can train on."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.state.step}: try a smaller lr or clip; {self.output} is kept as of the last checkpoint"
            )

    def _end_epoch(self) -> None:
        values = self._means(0) | {"seconds": round(self._speed.seconds, 1)}
        accuracy = self.state.best_accuracy
        if self.data.valid:
            valid = self._validate()
            accuracy = valid.accuracy
            values |= {"valid_loss": valid.loss, "valid_accuracy": valid.accuracy}
        self.state.epoch += 1
        self.state.batch = 0
        self._history.write("epoch", self.state, values)
        if (accuracy > self.state.best_accuracy or not self.data.valid) and self._save("best"):
            self.state.best_accuracy = accuracy
            self.state.epochs_without_gain = 0
        else:
            self.state.epochs_without_gain += 1
        self._reporter.epoch(values)
        self.saved = self._save("last")

    def _validate(self) -> Evaluation:
        """Evaluate on every process and take the main one's numbers, so that all decide alike."""
        with self._averaged():
            result = evaluate(self.accelerator.unwrap_model(self._model), *self._validation)
        numbers = torch.tensor([result.loss, result.accuracy], dtype=torch.float64, device=self.accelerator.device)
        loss, accuracy = broadcast(numbers).tolist()
        return Evaluation(loss, accuracy, result.examples)

    def _any_process_noted(self, sigint: threading.Event) -> bool:
        """Whether to stop: all processes do, at the same step."""
        if self.accelerator.num_processes == 1:
            return sigint.is_set()
        if sigint.is_set():
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _save(self, name: str) -> bool:
        """Write the checkpoint ``name``; whether that went well, the same answer on every process."""
        processes = self._processes()
        if self.accelerator.scaler is not None:
            self.state.loss_scale = self.accelerator.scaler.state_dict()
        done = 0
        if self.accelerator.is_main_process:
            with self._reporter.reporting(f"step {self.state.step} is not saved, an earlier checkpoint is kept"):
                if name == "best":
                    with self._averaged():
                        checkpoint.save(self.output / name, self.classifier)
                else:
                    moments = _name_moments(self._trainable, self._optimizer)
                    resumable = checkpoint.Resumable(self.state, self._average, moments, processes)
                    checkpoint.save(self.output / name, self.classifier, resumable)
                done = 1
        return bool(broadcast(torch.tensor(done, device=self.accelerator.device)))

    def _processes(self) -> dict[str, Tensor]:
        """What every process holds, a row each."""
        tensors = {"random_cpu": torch.get_rng_state(), "totals": self._totals}
        if self.accelerator.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        gather, device = self.accelerator.gather, self.accelerator.device
        return {name: gather(tensor.to(device)[None]).cpu() for name, tensor in tensors.items()}

    def _restore(self, folder: Path) -> None:
        rank = self.accelerator.process_index
        path = folder / "processes.safetensors"
        # Clones, because PyTorch 2.13 crashes on a generator's state that is a view into another tensor.
        own = {name: rows[rank].clone() for name, rows in checkpoint.read_tensors(path, self._processes()).items()}
        self._totals.copy_(own["totals"])
        try:
            torch.set_rng_state(own["random_cpu"])
            if "random_cuda" in own:
                torch.cuda.set_rng_state(own["random_cuda"], self.accelerator.device)
        except RuntimeError as error:
            raise ValueError(f"{path}: found a damaged random generator, expected what one saved ({error})") from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.loss_scale)
        if self.state.step > 0:
            _load_moments(self._trainable, self._optimizer, folder / "optimizer.safetensors")
        # The model came with the average of its weights.
        model = self.classifier.model
        model.load_state_dict(checkpoint.read_tensors(folder / "model.safetensors", model.state_dict()))


def _new_classifier(config: ModelConfig, options: TrainingOptions, train: Examples) -> TextClassifier:
    words = Vocabulary.build(train.sentences, options.min_count)
    subwords = options.vectors is not None and of_transformer(options.vectors)
    if config.affixes and subwords:
        raise ValueError(f"affixes is True, expected vectors of words, not of {options.vectors}'s parts of words")
    config = replace(config, affixes=not subwords if config.affixes is None else config.affixes)
    vocabulary: Vocabulary | Subwords = words
    matrix = None
    if options.vectors is not None:
        dimension = None if config.affixes else config.embedding_size
        vocabulary, matrix = load_vectors(options.vectors, train.sentences, options.min_count, dimension)
        width = matrix.shape[1]
        config = replace(config, vectors_size=width) if config.affixes else replace(config, embedding_size=width)
    if config.affixes and isinstance(vocabulary, Vocabulary):
        vocabulary = AffixVocabulary.of_words(vocabulary, words.tokens)
    config = replace(config, embedding_size=config.embedding_size or EMBEDDING_SIZE)
    model = Classifier(len(vocabulary), train.num_classes, config, tokens=len(vocabulary.tokens))
    if matrix is not None:
        model.pretrained.weight.data.copy_(matrix)
    if config.affixes:
        # No phrase has the words that only the vectors have.
        model.embedding.weight.data[len(words) : len(vocabulary.tokens)] = 0
    return TextClassifier(model, vocabulary, train.num_classes, options)


def _accelerator() -> Accelerator:
    # Several processes without a GPU would each train alone, and write to one folder, if Accelerate were not told.
    return Accelerator(cpu=not torch.accelerator.is_available())


def _step(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, options: TrainingOptions
) -> tuple[Tensor, Tensor]:
    """One step of training; the mean loss and the number of sentences that were classified correctly."""
    ids, lengths, labels, _ = (tensor.to(accelerator.device) for tensor in batch)
    optimizer.zero_grad()
    logits = model(ids, lengths)
    loss = cross_entropy(logits, labels, label_smoothing=options.label_smoothing)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), options.clip)
    optimizer.step()
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def _name_moments(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by the names of the parameters; without one before the first step."""
    names = list(parameters)
    states = optimizer.state_dict()["state"]
    return {f"{names[i]}.{key}": tensor for i, state in states.items() for key, tensor in state.items()}


def _load_moments(parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, path: Path) -> None:
    expected: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        expected |= {f"{name}.step": torch.empty(()), f"{name}.exp_avg": parameter, f"{name}.exp_avg_sq": parameter}
    tensors = checkpoint.read_tensors(path, expected)
    state = {i: {key: tensors[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")} for i, name in enumerate(parameters)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def _noting_sigint() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, instead of breaking off in the middle of a step."""
    noted = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)


class Speed:
    """Valid tokens a second, over all of ``processes``, since it was made."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._tokens = 0
        self._began = time.perf_counter()

    def count(self, batch: Batch) -> None:
        self._tokens += int(batch.lengths.sum())

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def tokens_per_second(self) -> int:
        return round(self._tokens * self._processes / self.seconds)


class Reporter:
    """Tells the progress of a run: a bar on a terminal, plain lines elsewhere, nothing but on the main process.

    ``quiet`` leaves the warnings only.
    """

    def __init__(self, run: Run, quiet: bool) -> None:
        self._quiet = quiet
        self._state = run.state
        self._epochs = run.options.epochs
        self._steps = run.steps_per_epoch
        self._console = Console(quiet=not run.accelerator.is_main_process, highlight=False, markup=False, soft_wrap=True)
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}at most"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, disable=quiet or not self._console.is_terminal)
        self._task = self._bar.add_task("", total=self._epochs * self._steps, completed=self._state.step, epoch=self._epoch(), values="")

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
        self._console.print(", ".join([*parts, f"at most {left:.0f} s left"]))

    @contextmanager
    def reporting(self, consequence: str) -> Iterator[None]:
        """Tell of an OSError, such as a full disk, what follows from it, and go on."""
        try:
            yield
        except OSError as error:
            self._console.print(f"warning: {consequence} ({error})")

    def _epoch(self) -> str:
        return f"{min(self._state.epoch + 1, self._epochs)}/{self._epochs}"


def _describe(values: dict[str, float]) -> str:
    return f"loss {values['loss']:.4f} accuracy {values['accuracy']:.4f}, {values['tokens_per_second']:,} tokens/s"


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


@dataclass(frozen=True)
class Throughput:
    """Valid tokens a second in training; ``torch`` is None where there is nothing to compare with.

    That is a model without a recurrent layer, or one that torch.nn cannot run: bfloat16 on some CPUs.
    """

    sstkern: float
    torch: float | None


def measure_throughput(
    accelerator: Accelerator,
    classifier: TextClassifier,
    batches: Batches,
    rounds: int = 6,
    steps: int = 8,
) -> Throughput:
    """Measure training steps of a new model of a classifier's kind, with our recurrent layers and with torch.nn's.

    The layers take turns, ``rounds`` times ``steps`` steps each on the same batches; the median counts. torch.nn's
    runs both on packed and on padded sequences, where it computes steps that do not count, and its faster way counts.
    """
    config, options = classifier.model.config, classifier.options
    layers = {"sstkern": RECURRENT}
    if config.cell != "average":
        layers |= {way: {cell: _lookalike(cell, way) for cell in RECURRENT} for way in ("packed", "padded")}
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    first = next(batches.epoch(0, **share))
    models = {}
    for name, recurrent in layers.items():
        vocabulary = classifier.vocabulary
        model = Classifier(len(vocabulary), classifier.classes, config, recurrent, len(vocabulary.tokens))
        optimizer = torch.optim.AdamW(model.trainable().values(), lr=options.lr, fused=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        try:
            _step(accelerator, model, optimizer, first, options)
        except RuntimeError:
            if name == "sstkern":
                raise
        else:
            models[name] = model, optimizer
    speeds: dict[str, list[int]] = {name: [] for name in models}
    order = deque(models)
    for number in range(rounds):
        block = list(islice(batches.epoch(number, **share), steps))
        # Each takes every place in the round, because the first one after new batches is a little slower.
        order.rotate()
        for name in order:
            speed, (model, optimizer) = Speed(accelerator.num_processes), models[name]
            for batch in block:
                loss, _ = _step(accelerator, model, optimizer, batch, options)
                speed.count(batch)
            loss.item()  # waits for a GPU to be done
            speeds[name].append(speed.tokens_per_second)
    ours, *theirs = (statistics.median(values) for values in speeds.values())
    return Throughput(ours, max(theirs, default=None))


def _lookalike(cell: str, way: str) -> type[nn.Module]:
    """torch.nn's layer for a cell, called as ours is; ``padded`` does not heed the lengths."""
    layer: Any = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]

    class Lookalike(layer):
        def forward(self, x: Tensor, hx: Any = None, lengths: Any = None) -> tuple[Tensor, Any]:
            if way == "padded":
                return super().forward(x, hx)
            packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
            outputs, final = super().forward(packed, hx)
            return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0], final

    return Lookalike
