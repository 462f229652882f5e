"""The thin trainer: AdamW on cross entropy, on one process or, through Accelerate, on several.

The learning rate falls in a line to 0, and the model that is validated and kept has the running average of the weights.
The epoch that is best on the validation set is kept; without one, the last.
Only the main process writes. A run's folder holds ``best`` and ``last`` (see :mod:`sstkern.text.checkpoint`),
``metrics.jsonl``, TensorBoard's events and, at the end, ``training.png``.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sstkern.text import (
    AffixVocabulary,
    Batch,
    Batches,
    Examples,
    Subwords,
    Vocabulary,
    checkpoint,
    folders,
    load_vectors,
    of_transformer,
)
from sstkern.text.checkpoint import TextClassifier, TrainingOptions, TrainingState
from sstkern.text.data import Data
from sstkern.text.folders import RunFolder
from sstkern.text.history import History
from sstkern.text.memory import check_memory, telling_out_of_memory
from sstkern.text.models import Classifier, ModelConfig
from sstkern.text.plots import plot_training
from sstkern.text.progress import Reporter
from sstkern.text.throughput import Speed, Throughput, measure_throughput, take_step

T = TypeVar("T")

STEPS_PER_LINE = 50  # steps between two lines of metrics.jsonl
EVALUATION_BATCH = 256
EMBEDDING_SIZE = 128  # without pretrained vectors
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AVERAGING = 0.99  # share of the average of the weights that a step keeps


@dataclass(frozen=True)
class Evaluation:
    """Cross entropy (nats per sentence) and accuracy (0 to 1) on ``examples`` sentences; nan on none."""

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
    if not labels:
        return Evaluation(math.nan, math.nan, 0)
    return Evaluation(loss / len(labels), correct / len(labels), len(labels))


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
        stopped_by: the signal that :meth:`train` stopped at, on the process that got it; None at the end of the training.
        seconds: that :meth:`train` took.
        tokens_per_second: of the last epoch that it trained to its end; None before.
    """

    def __init__(self, output: Path, accelerator: Accelerator, classifier: TextClassifier, data: Data, state: TrainingState) -> None:
        self.options = options = classifier.options
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.output = output
        self._folder: RunFolder | None = None
        self.classifier = classifier
        self.data = data
        self.state = state
        self.saved = False
        self.stopped_by: int | None = None
        self.seconds = 0.0
        self.tokens_per_second: float | None = None
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
    def start(cls, config: ModelConfig, options: TrainingOptions, output: Path | None = None) -> "Run":
        """Prepare a new run.

        Args:
            config: the model's.
            options: how to train.
            output: the run's folder, new or empty; None makes runs/CELL, or CELL-2, CELL-3, ... behind the last there is.

        Raises:
            InUseError: another run was started in ``output`` just now.
            ValueError: ``output`` is neither new nor an empty folder, the data has one label only, it or the vectors cannot be read, the
                vectors have another dimension than ``config`` asks for, or there are none to be frozen.
            FileNotFoundError: the data or the vectors are not there.
            MemoryError: the model is too large to be trained here.
        """
        if config.frozen and options.vectors is None:
            raise ValueError("frozen is True and vectors is None, expected vectors: random ones have to be trained")
        if output is not None:
            folders.check_new(output)  # before minutes are spent on the vectors
        accelerator = _accelerator()
        data = Data.load(options, accelerator)
        set_seed(options.seed)
        classifier = _new_classifier(config, options, data.train, accelerator.device)
        # Late, so that what fails before leaves no folder behind.
        output, folder = _hold(accelerator, lambda: folders.take_next(config.cell) if output is None else folders.take(output))
        run = cls(output, accelerator, classifier, data, TrainingState(data.sha256, accelerator.num_processes))
        run._folder = folder
        set_seed(options.seed, device_specific=True)
        return run

    @classmethod
    def resume(cls, output: Path, data: str | None = None, valid: str | None = None) -> "Run":
        """Prepare to go on with a run from its last checkpoint, with the options and the data it was started with.

        Args:
            output: the run's folder.
            data: where the training data lies now; None is where it was.
            valid: the same of the validation file.

        Raises:
            InUseError: the run is being trained.
            ValueError: there is no checkpoint, it is damaged, or the data or the number of processes has changed.
            FileNotFoundError: the data is not there any more.
        """
        checkpoint.find(output / "last")
        accelerator = _accelerator()
        _, folder = _hold(accelerator, lambda: RunFolder(output))
        try:
            run = cls._from_checkpoint(output, accelerator, {name: place for name, place in (("data", data), ("valid", valid)) if place})
        except BaseException:
            if folder is not None:
                folder.release()
            raise
        run._folder = folder
        return run

    @classmethod
    def _from_checkpoint(cls, output: Path, accelerator: Accelerator, places: dict[str, Any]) -> "Run":
        last = checkpoint.find(output / "last")
        state = checkpoint.read_state(last)
        classifier = checkpoint.load_model(last)
        classifier.options = options = replace(classifier.options, **places)
        try:
            data = Data.load(options, accelerator)
        except FileNotFoundError as error:
            option = "--valid" if error.filename else "--data"
            raise FileNotFoundError(f"{error}; if the data of the run in {output} was moved, give its new place as {option}") from error
        if data.sha256 != state.data_sha256:
            raise ValueError(f"the data is not what the run in {output} was started with: {data.description}; give that one as --data")
        run = cls(output, accelerator, classifier, data, state)
        run._restore(last)
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
        """Train to the end, or to the first SIGINT, SIGTERM or SIGHUP, and save; at the end the model has the average of its weights.

        The run's folder is held until then.

        A checkpoint that cannot be written is reported; training goes on, and the previous one, if there is one, is kept.

        Args:
            quiet: tell of nothing but what went wrong.

        Returns:
            Whether the run is finished; otherwise it was interrupted and :meth:`resume` goes on with it.

        Raises:
            FloatingPointError: the loss is not finite any more.
            MemoryError: the batches do not fit; the message says how large they are.
        """
        began = time.perf_counter()
        try:
            return self._train(quiet)
        finally:
            self.seconds = time.perf_counter() - began
            if self._folder is not None:
                self._folder.release()

    def _train(self, quiet: bool) -> bool:
        main = self.accelerator.is_main_process
        self._reporter = Reporter(self.state, self.options.epochs, self.steps_per_epoch, main, quiet)
        with self._reporter, History(self.output, self.state, self._reporter, main) as self._history:
            longest = max(map(len, self._batches.encoded))
            advice = (
                f"batches of {self.options.batch_size:,} sentences of up to {longest:,} tokens, on {self.accelerator.device}; "
                "try a smaller --batch-size, --hidden-size or --embedding-size"
            )
            with _noting_signals() as signals, telling_out_of_memory(advice):
                self._train_until(signals)
            self.stopped_by = signals[0] if signals and not self.finished else None
            if self.finished:
                self._set_weights(self._average)
            if self.finished and main:
                with self._reporter.reporting("no plot of the training"):
                    plot_training(self.output / "metrics.jsonl", self.steps_per_epoch, self.output / "training.png")
        return self.finished

    def throughput(self, seconds: float = math.inf) -> Throughput | None:
        """See :func:`measure_throughput`; every process must take part."""
        return measure_throughput(self.accelerator, self.classifier, self._batches, seconds)

    def _train_until(self, signals: list[int]) -> None:
        self.saved = self.state.step > 0 or self._save("last")
        while not self.finished:
            self._model.train()
            self._speed = Speed(self.accelerator.num_processes)
            for batch in self._epoch():
                self._train_on(batch)
                if self._any_process_noted(signals):
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
        loss, correct = take_step(self.accelerator, self._model, self._optimizer, batch, self.options)
        examples = len(batch.labels)
        self._totals += torch.stack([loss.double() * examples, correct, torch.full_like(correct, examples)])
        self._speed.count(batch)
        self.state.step += 1
        self.state.batch += 1
        self._update_average()
        self._reporter.step()
        if self.state.step % STEPS_PER_LINE == 0:
            values = self._means(1)
            self._history.write("step", values)
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
        self.tokens_per_second = values["tokens_per_second"]
        accuracy = self.state.best_accuracy
        if self.data.valid:
            valid = self._validate()
            accuracy = valid.accuracy
            values |= {"valid_loss": valid.loss, "valid_accuracy": valid.accuracy}
        self.state.epoch += 1
        self.state.batch = 0
        self._history.write("epoch", values)
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

    def _any_process_noted(self, signals: list[int]) -> bool:
        """Whether to stop: all processes do, at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(signals)
        if signals:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _save(self, name: str) -> bool:
        """Write the checkpoint ``name``; whether that went well, the same answer on every process."""
        processes = self._processes()
        if self.accelerator.scaler is not None:
            self.state.loss_scale = self.accelerator.scaler.state_dict()
        done = 0
        if self.accelerator.is_main_process:
            there = "an earlier checkpoint is kept" if checkpoint.exists(self.output) else "and there is no earlier checkpoint"
            with self._reporter.reporting(f"step {self.state.step} is not saved, {there}"):
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


def end_training(accelerator: Accelerator) -> None:
    """Close what the trainers' processes have in common: call it last, on each."""
    accelerator.end_training()
    if accelerator.num_processes > 1:
        # A thread of gloo's lets go of the latest tensors after the call is done, and needs Python's lock for it. Where Python ends first,
        # the process is aborted: 8 of 28 on busy cores. The thread cannot be waited for: DistributedDataParallel keeps its group for good.
        time.sleep(0.5)


def _new_classifier(config: ModelConfig, options: TrainingOptions, train: Examples, device: torch.device) -> TextClassifier:
    words = Vocabulary.build(train.sentences, options.min_count)
    subwords = options.vectors is not None and of_transformer(options.vectors)
    if config.affixes and subwords:
        raise ValueError(f"affixes is True, expected vectors of words, not of {options.vectors}'s parts of words")
    config = replace(config, affixes=not subwords if config.affixes is None else config.affixes)
    vocabulary: Vocabulary | Subwords = words
    matrix = None
    if options.vectors is not None:
        dimension = None if config.affixes else config.embedding_size
        vocabulary, matrix = _main_first(partial(load_vectors, options.vectors, train.sentences, options.min_count, dimension))
        width = matrix.shape[1]
        config = replace(config, vectors_size=width) if config.affixes else replace(config, embedding_size=width)
    if config.affixes and isinstance(vocabulary, Vocabulary):
        vocabulary = AffixVocabulary.of_words(vocabulary, words.tokens)
    config = replace(config, embedding_size=config.embedding_size or EMBEDDING_SIZE)
    check_memory(len(vocabulary), train.num_classes, config, len(vocabulary.tokens), device)
    model = Classifier(len(vocabulary), train.num_classes, config, tokens=len(vocabulary.tokens))
    if matrix is not None:
        model.pretrained.weight.data.copy_(matrix)
    if config.affixes:
        # No phrase has the words that only the vectors have.
        model.embedding.weight.data[len(words) : len(vocabulary.tokens)] = 0
    return TextClassifier(model, vocabulary, train.num_classes, options, train.names)


def _main_first(read: Callable[[], T]) -> T:
    """What `read` gives, which may download it: the main process's first. What that cannot get no other tries to."""
    found: T | None = None
    answer: list[Exception | None] = [None]
    if PartialState().is_main_process:
        try:
            found = read()
        except (OSError, ValueError) as error:
            answer[0] = error
    (problem,) = broadcast_object_list(answer)
    if problem is not None:
        raise problem
    return read() if found is None else found


def _hold(accelerator: Accelerator, take: Callable[[], RunFolder]) -> tuple[Path, RunFolder | None]:
    """Take a run's folder on the main process, which writes; the others learn which one, or why there is none."""
    folder: RunFolder | None = None
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            folder = take()
            answer[0] = folder.path
        except (OSError, ValueError) as error:
            answer[1] = error
    path, problem = broadcast_object_list(answer)
    if problem is not None:
        raise problem
    return path, folder


def _accelerator() -> Accelerator:
    # Several processes without a GPU would each train alone, and write to one folder, if Accelerate were not told.
    return Accelerator(cpu=not torch.accelerator.is_available())


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
def _noting_signals() -> Iterator[list[int]]:
    """Ctrl-C, a scheduler's SIGTERM and a closed terminal are noted, instead of breaking off in the middle of a step."""
    noted: list[int] = []
    # nohup has SIGHUP ignored, and means it. A shell does the same with SIGINT for what runs in its background.
    numbers = [number for number in STOPS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
