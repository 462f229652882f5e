"""Memory that is not there: which sizes were asked for, and which options make them smaller."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sstkern.text.models import ModelConfig

COPIES = 5  # of a trained number: itself, its gradient, its average, and AdamW's two moments
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
OPTIONS = {
    "hidden_size": "--hidden-size",
    "layers": "--layers",
    "embedding_size": "--embedding-size, or a larger --min-count",
}
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def check_memory(vocabulary_size: int, classes: int, config: ModelConfig, tokens: int, device: torch.device) -> None:
    """Raise MemoryError if the classifier of these arguments cannot be trained in the memory of a machine, or of its GPU.

    Before it is made: Linux grants more than there is, and kills who uses it.
    """
    sizes = f"hidden_size {config.hidden_size:,}, layers {config.layers:,}" if config.cell != "average" else "the cell 'average'"
    asked = f"{sizes}, embedding_size {config.embedding_size:,}, {vocabulary_size:,} tokens and affixes, {classes:,} classes"

    def needed_by(**other: Any) -> int:
        trained, frozen = count_numbers(vocabulary_size, classes, replace(config, **other), tokens)
        return 4 * (COPIES * trained + frozen)

    there, needed = total_memory(device), needed_by()
    if needed <= there:
        return
    # What has the largest share is what leaves the least when it is as small as can be.
    name = min(OPTIONS, key=lambda name: needed_by(**{name: 1}))
    option = OPTIONS[name]
    if needed >= 2**64:
        raise MemoryError(f"no memory holds a model of {asked}: try a smaller {option}")
    raise MemoryError(f"a model of {asked} needs {_gib(needed)} to be trained, and {device.type} has {_gib(there)}: try a smaller {option}")


def count_numbers(vocabulary_size: int, classes: int, config: ModelConfig, tokens: int) -> tuple[int, int]:
    """The parameters of the :class:`sstkern.text.models.Classifier` of these arguments: how many are trained, and how many frozen.

    By arithmetic: PyTorch takes minutes to make a million layers, even without memory, and counts no more than 2^63.
    """
    assert config.embedding_size is not None
    tables = {"embedding": vocabulary_size * config.embedding_size, "vectors": tokens * config.vectors_size}
    frozen = tables["vectors" if config.vectors_size else "embedding"] if config.frozen else 0
    trained = sum(tables.values()) - frozen
    features = config.embedding_size + config.vectors_size
    if config.cell != "average":
        directions = 2 if config.bidirectional else 1
        rows = GATES[config.cell] * config.hidden_size * directions
        outputs = config.hidden_size * directions
        trained += rows * (features + config.hidden_size + 2)  # the weights of the input and of h, and two biases
        trained += (config.layers - 1) * rows * (outputs + config.hidden_size + 2)
        features = outputs
        if config.pooling == "attention":
            trained += features + 1
    return trained + (features + 1) * classes, frozen


def total_memory(device: torch.device) -> int:
    """The bytes that a process can have on a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else ""
    return min(there, int(limit)) if limit.isdigit() else there


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for in vain; PyTorch's own on the CPU has no class of its own."""
    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in said for words in ("can't allocate memory", "not enough memory", "std::bad_alloc"))
    )


@contextmanager
def telling_out_of_memory(advice: str) -> Iterator[None]:
    """An error for want of memory becomes a MemoryError that says so in one line, with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory: {advice}") from error


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
