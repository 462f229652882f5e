"""Checkpoints: folders of safetensors and JSON files that a fault at any moment leaves loadable.

A checkpoint holds

* ``config.json``: the format's version, the model's configuration, the number of classes and their names, the training options;
* ``vocabulary.json``: the words in the order of their ids, ``affixes.json``: the same where affixes have ids too, or
  ``tokenizer.json``: a pretrained tokenizer;
* ``model.safetensors``: the weights;

and, if training can go on from it,

* ``training_state.json``: see :class:`TrainingState`;
* ``average.safetensors``: the running average of the weights that are trained, which is the model to use;
  ``model.safetensors`` has them as training goes on from them;
* ``optimizer.safetensors``: AdamW's moments, as ``<parameter>.exp_avg`` and so on;
* ``processes.safetensors``: what each process holds, one row a process: random generators and running totals.

Nothing read from a checkpoint is unpickled or executed.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast, get_origin

import torch
from torch import Tensor

from sstkern.atomic import write_atomically
from sstkern.text.affixes import AffixVocabulary
from sstkern.text.batches import small_batches
from sstkern.text.models import Classifier
from sstkern.text.options import ModelConfig, TrainingOptions
from sstkern.text.transformer import Subwords
from sstkern.text.vocabulary import Vocabulary

FORMAT = 2
VOCABULARIES: dict[str, type[Vocabulary] | type[Subwords]] = {
    "vocabulary.json": Vocabulary,
    "affixes.json": AffixVocabulary,
    "tokenizer.json": Subwords,
}

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass
class TrainingState:
    """How far a training run has come.

    Attributes:
        data_sha256: of the training and validation examples; a run goes on with the same data only.
        processes: that train together; a run goes on with as many only.
        step: optimizer steps so far.
        epoch: epochs finished.
        batch: batches of the epoch under way that are done.
        best_accuracy: on the validation set, of the best model saved; -1 before the first.
        epochs_without_gain: epochs since then.
        metrics_bytes: length of the file of metrics.
        loss_scale: state of float16's gradient scaler; empty without one.
    """

    data_sha256: str
    processes: int
    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_accuracy: float = -1.0
    epochs_without_gain: int = 0
    metrics_bytes: int = 0
    loss_scale: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), cast(type, get_origin(field.type) or field.type)
            if not isinstance(value, expected):
                raise ValueError(f"found {field.name} {value!r}, expected the type {expected.__name__}")


class Resumable(NamedTuple):
    """What training needs to go on, beside the model."""

    state: TrainingState
    average: Mapping[str, Tensor]
    """The running average of the trained weights, which is the model to use."""
    optimizer: Mapping[str, Tensor]
    """The optimizer's moments."""
    processes: Mapping[str, Tensor]
    """What each process holds, a row each."""


@dataclass
class TextClassifier:
    """A trained model with its vocabulary.

    Attributes:
        model: the classifier, in evaluation mode when it comes from :func:`load_model`.
        vocabulary: the tokens it knows, words or parts of words.
        classes: number of classes; the labels are 0 to ``classes - 1``, those of the training data.
        options: how it was trained.
        names: of the classes, where the training data's labels are strings; else empty.
    """

    model: Classifier
    vocabulary: Vocabulary | Subwords
    classes: int
    options: TrainingOptions
    names: list[str] = dataclasses.field(default_factory=list)

    def predict(self, texts: Sequence[str]) -> list[tuple[int | str, float]]:
        """Classify texts: for each, in order, its most probable label and that label's probability, from 0 to 1.

        The label is what the training data has: an integer, or a string. On the CPU a text's are the same in any company.

        Raises:
            TypeError: ``texts`` is a single string.
        """
        if isinstance(texts, str):
            raise TypeError("texts is a string, expected several, such as a list of strings")
        logits = self._logits([self.vocabulary.encode(text) for text in texts])
        probabilities, labels = logits.softmax(1).max(1)
        found = [self.names[label] if self.names else label for label in labels.tolist()]
        return list(zip(found, probabilities.tolist(), strict=True))

    def explain(self, text: str) -> list[tuple[str, float]]:
        """How much each token of a text speaks for the label that is predicted, in the text's order.

        That is by how much the log-odds of the label, against all others together, fall when only that token is left
        out; it is below 0 where they rise. An empty text has no tokens. With a single class there are no odds: nan.
        """
        ids = self.vocabulary.encode(text)
        if not ids:
            return []
        logits = self._logits([ids, *(ids[:i] + ids[i + 1 :] for i in range(len(ids)))])
        label = int(logits[0].argmax())
        others = torch.arange(self.classes) != label
        odds = logits[:, label] - logits[:, others].logsumexp(1)
        return list(zip(self.vocabulary.pieces(text), (odds[0] - odds[1:]).tolist(), strict=True))

    def _logits(self, encoded: Sequence[Sequence[int]]) -> Tensor:
        """(len(encoded), classes) float32 on the CPU, of encoded texts."""
        device = self.model.linear.weight.device
        logits = torch.empty(len(encoded), self.classes)
        self.model.eval()
        score = self.model.alone if device.type == "cpu" else self.model
        with torch.inference_mode():
            for batch in small_batches(encoded):
                logits[batch.indices] = score(batch.ids.to(device), batch.lengths.to(device)).float().cpu()
        return logits


def save(
    folder: Path,
    classifier: TextClassifier,
    resumable: Resumable | None = None,
) -> None:
    """Write a checkpoint in the place of the one in ``folder``; ``resumable`` allows resuming.

    Raises:
        OSError: a write failed, for instance on a full disk. The previous checkpoint is whole and still loads.
    """
    config = {
        "format": FORMAT,
        "model": asdict(classifier.model.config),
        "classes": classifier.classes,
        "training": asdict(classifier.options),
    }
    if classifier.names:
        config["names"] = classifier.names
    with _replacing(folder) as new:
        _write_json(new / "config.json", config)
        (name,) = (name for name, kind in VOCABULARIES.items() if type(classifier.vocabulary) is kind)
        classifier.vocabulary.save(new / name)
        _write_tensors(new / "model.safetensors", classifier.model.state_dict())
        if resumable is not None:
            _write_json(new / "training_state.json", asdict(resumable.state))
            _write_tensors(new / "average.safetensors", resumable.average)
            _write_tensors(new / "optimizer.safetensors", resumable.optimizer)
            _write_tensors(new / "processes.safetensors", resumable.processes)


def find(path: str | Path) -> Path:
    """The checkpoint that ``path`` means: itself, or in the folder of a run its best, or else its last.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    for folder in (path, path / "best", path / "last"):
        for candidate in (folder, _previous(folder)):
            if (candidate / "config.json").is_file():
                return candidate
    raise ValueError(f"{path} holds no checkpoint: expected config.json in it, in {path / 'best'} or {path / 'last'}")


def exists(path: str | Path) -> bool:
    """Whether :func:`find` finds a checkpoint."""
    try:
        find(path)
    except ValueError:
        return False
    return True


def load_model(path: str | Path, device: str | torch.device = "cpu") -> TextClassifier:
    """Load the model of a checkpoint, or the best one of a run's folder.

    Where training can go on, the model has the average of its weights.

    Raises:
        ModuleNotFoundError: the model has a pretrained tokenizer, and tokenizers is not installed.
        ValueError: a file is missing or damaged, the format is another one, or the weights do not fit the
            configuration. The message names the file, what it holds and what is expected.
    """
    folder = find(path)
    config = read_config(folder)
    vocabulary = _load_vocabulary(folder)
    # Without memory, so that a damaged configuration fails on its shapes, not by asking for terabytes.
    try:
        with torch.device("meta"):
            model = Classifier(len(vocabulary), config["classes"], config["model"], tokens=len(vocabulary.tokens))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: found sizes that no model can have ({error})") from error
    weights = read_tensors(folder / "model.safetensors", model.state_dict())
    if (folder / "training_state.json").is_file():
        weights |= read_tensors(folder / "average.safetensors", model.trainable())
    model.load_state_dict(weights, assign=True)
    return TextClassifier(model.to(device).eval(), vocabulary, config["classes"], config["training"], config["names"])


def _load_vocabulary(folder: Path) -> Vocabulary | Subwords:
    there = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not there:
        raise ValueError(f"{folder / ' or '.join(VOCABULARIES)} is missing; the checkpoint is not complete")
    if len(there) > 1:
        raise ValueError(f"{folder}: found {' and '.join(there)}, expected one of them")
    return VOCABULARIES[there[0]].load(folder / there[0])


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's ``config.json``: ``model`` (a ModelConfig), ``classes``,
    ``training`` (TrainingOptions), ``names`` (of the classes, or none).

    Raises:
        ValueError: the file is missing or damaged, of another format, or a value is not allowed.
    """
    path = folder / "config.json"
    values = read_json(path)
    found = values.get("format")
    if found != FORMAT:
        raise ValueError(f"{path}: found format {found!r}, expected {FORMAT}")
    classes = values.get("classes")
    if type(classes) is not int or classes < 1:
        raise ValueError(f"{path}: found classes {classes!r}, expected an integer of at least 1")
    names = values.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or (names and len(set(names)) != classes):
        raise ValueError(f"{path}: found names {names!r}, expected {classes} different strings")
    model, training = (build(kind, values.get(name), path) for name, kind in (("model", ModelConfig), ("training", TrainingOptions)))
    return {"model": model, "classes": classes, "training": training, "names": names}


def read_state(folder: Path) -> TrainingState:
    """How far the run had come that saved the checkpoint.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / "training_state.json"
    return build(TrainingState, read_json(path), path)


def read_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a safetensors file whose tensors have the names, shapes and dtypes of ``expected``.

    Raises:
        ValueError: the file is missing or damaged, or its tensors are others.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    with _missing_is_value_error(path):
        data = path.read_bytes()
    try:
        # Copies, because the tensors share one buffer that is not aligned as a new tensor is.
        found = {name: tensor.clone() for name, tensor in load(data).items()}
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: found {len(data)} bytes, expected safetensors ({error})") from error
    for name in sorted(found.keys() | expected.keys()):
        there, wanted = _describe(found.get(name)), _describe(expected.get(name))
        if there != wanted:
            raise ValueError(f"{path}: found {there} under the name {name}, expected {wanted}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    with _missing_is_value_error(path):
        data = path.read_bytes()
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: found {len(data)} bytes, expected JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: found a {type(values).__name__}, expected an object")
    return values


def build(kind: type[T], values: object, path: Path) -> T:
    """Make a dataclass from the JSON object that holds its fields.

    Raises:
        ValueError: a field is missing or unknown, or its value is not allowed; the message names ``path``.
    """
    expected = sorted(field.name for field in dataclasses.fields(kind))
    if not isinstance(values, dict) or sorted(values) != expected:
        found = sorted(values) if isinstance(values, dict) else values
        raise ValueError(f"{path}: found the fields {found}, expected {expected}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which then takes the place of ``folder``.

    A filled folder cannot be replaced in one step. So the old one is renamed away first; a reader that finds none in
    its place takes that one. Both have hidden names: a folder "best.old" beside it is somebody's copy.
    """
    new, old = folder.parent / f".{folder.name}.new", _previous(folder)
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        _sync_folder(new)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        _sync_folder(folder.parent)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"  # with_name refuses "."


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    # Encoded in memory, so that a full disk is an ordinary OSError from an ordinary write.
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


@contextmanager
def _missing_is_value_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; the checkpoint is not complete") from error


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return "no tensor"
    return f"a tensor of shape {list(tensor.shape)} and {str(tensor.dtype).removeprefix('torch.')}"
