"""Memory that is not there: which sizes were asked for, and which options make them smaller."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sstkern.text.models import Classifier, ModelConfig

COPIES = 5  # of a trained number: itself, its gradient, its average, and AdamW's two moments
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def check_memory(vocabulary_size: int, classes: int, config: ModelConfig, tokens: int, device: torch.device) -> None:
    """Raise MemoryError if the classifier of these arguments cannot be trained in the memory of a machine, or of its GPU.

    Before it is made: Linux grants more than there is, and kills who uses it.
    """
    sizes = f"hidden_size {config.hidden_size:,}, layers {config.layers}" if config.cell != "average" else "the cell 'average'"
    asked = f"{sizes}, embedding_size {config.embedding_size:,}, {vocabulary_size:,} tokens and affixes, {classes:,} classes"
    there = total_memory(device)
    try:
        with torch.device("meta"):
            model = Classifier(vocabulary_size, classes, config, tokens=tokens)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise MemoryError(f"no memory holds a model of {asked}: try a smaller --hidden-size or --embedding-size") from error
    bytes_of = {name: 4 * weight.numel() * (COPIES if weight.requires_grad else 1) for name, weight in model.named_parameters()}
    if (needed := sum(bytes_of.values())) > there:
        largest = max(bytes_of, key=lambda name: bytes_of[name])
        smaller = "--embedding-size, or a larger --min-count" if largest.startswith(("embedding", "vectors")) else "--hidden-size"
        raise MemoryError(
            f"a model of {asked} needs {_gib(needed)} to be trained, and {device.type} has {_gib(there)}: try a smaller {smaller}"
        )


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
