"""How fast a classifier trains, beside the same one with torch.nn's layers."""

import statistics
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
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
            take_step(accelerator, model, optimizer, first, options)
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
                loss, _ = take_step(accelerator, model, optimizer, batch, options)
                speed.count(batch)
            loss.item()  # waits for a GPU to be done
            speeds[name].append(speed.tokens_per_second)
    ours, *theirs = (statistics.median(values) for values in speeds.values())
    return Throughput(ours, max(theirs, default=None) or None)


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
