"""How fast a classifier trains, beside the same one with torch.nn's layers."""

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sstkern.text import Batch, Batches
from sstkern.text.checkpoint import TextClassifier, TrainingOptions
from sstkern.text.models import RECURRENT, Classifier


def take_step(
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


ROUNDS, STEPS = 6, 8
"""At most: rounds in which each layer has its turn, and steps of a turn."""


@dataclass(frozen=True)
class Throughput:
    """Valid tokens a second in training; ``torch`` is None where there is nothing to compare with.

    That is a model without a recurrent layer, one that torch.nn cannot run (bfloat16 on some CPUs), or sentences without a token.
    """

    sstkern: float
    torch: float | None


def measure_throughput(
    accelerator: Accelerator,
    classifier: TextClassifier,
    batches: Batches,
    seconds: float = math.inf,
) -> Throughput | None:
    """Measure training steps of a new model of a classifier's kind, with our recurrent layers and with torch.nn's.

    The layers take turns, `ROUNDS` times `STEPS` steps each on the same batches; the median counts. torch.nn's
    runs both on packed and on padded sequences, where it computes steps that do not count, and its faster way counts.

    Args:
        accelerator: every process of it must take part.
        classifier: whose model is imitated.
        batches: to train on.
        seconds: the longest it may take, up to the step under way, as the main process says; with less time there are fewer and shorter
            rounds.

    Returns:
        None where the time is too short for a single round.
    """
    config = classifier.model.config
    layers = {"sstkern": RECURRENT}
    if config.cell != "average":
        layers |= {way: {cell: _lookalike(cell, way) for cell in RECURRENT} for way in ("packed", "padded")}
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    clock = _Clock(accelerator)
    seconds = clock.of_main(seconds)
    models: dict[str, _Trainee] = {}
    longest = 0.0
    for name, recurrent in layers.items():
        if (began := clock()) + longest > seconds:
            return None
        try:
            models[name] = trainee = _Trainee(accelerator, classifier, recurrent)
            trainee.train([next(batches.epoch(0, **share))])
        except RuntimeError:
            if name == "sstkern":
                raise
            models.pop(name, None)
        longest = max(longest, clock() - began)

    def take_turns(number: int, steps: int) -> dict[str, int]:
        block = list(islice(batches.epoch(number, **share), steps))
        # Each takes every place in the rounds, because the first one after new batches is a little slower.
        turns = deque(models)
        turns.rotate(number)
        return {name: models[name].train(block) for name in turns}

    # The first round is short, and tells how long the others may be.
    found: list[dict[str, int]] = []
    if (began := clock()) + len(models) * longest <= seconds:
        take_turns(0, 1)
        now = clock()
        steps = max(1, int(min(STEPS, (seconds - now) / (ROUNDS * (now - began)))))
        expected = steps * (now - began)
        while len(found) < ROUNDS and (began := clock()) + expected <= seconds:
            found.append(take_turns(len(found), steps))
            expected = clock() - began
    if not found:
        return None
    ours, *theirs = (statistics.median(speeds[name] for speeds in found) for name in models)
    return Throughput(ours, max(theirs, default=None) or None)


class _Clock:
    """The seconds since it was made, those of the main process, so that all decide alike."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._began = time.perf_counter()

    def __call__(self) -> float:
        return self.of_main(time.perf_counter() - self._began)

    def of_main(self, seconds: float) -> float:
        return broadcast(torch.tensor(seconds, dtype=torch.float64, device=self._accelerator.device)).item()


class _Trainee:
    """A new model of a classifier's kind with other recurrent layers, and what trains it."""

    def __init__(self, accelerator: Accelerator, classifier: TextClassifier, recurrent: Mapping[str, type[nn.Module]]) -> None:
        self._accelerator = accelerator
        self._options = classifier.options
        vocabulary = classifier.vocabulary
        model = Classifier(len(vocabulary), classifier.classes, classifier.model.config, recurrent, len(vocabulary.tokens))
        optimizer = torch.optim.AdamW(model.trainable().values(), lr=self._options.lr, fused=True)
        self._model, self._optimizer = accelerator.prepare(model, optimizer)

    def train(self, block: list[Batch]) -> int:
        """Take a step on each batch; the tokens a second."""
        speed = Speed(self._accelerator.num_processes)
        for batch in block:
            loss, _ = take_step(self._accelerator, self._model, self._optimizer, batch, self._options)
            speed.count(batch)
        loss.item()  # waits for a GPU to be done
        return speed.tokens_per_second


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
