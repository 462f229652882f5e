"""The word embedding of a pretrained transformer, and the tokenizer that cuts text into its rows."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from sstkern.atomic import write_atomically
from sstkern.text.download import UnavailableError
from sstkern.text.options import HUB

TOKENIZER = "tokenizer.json"
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
NEEDED = f"{TOKENIZER} and {MODEL}, or {INDEX} and the shard with the word embedding"

# Ends of the tensor's name: BERT, RoBERTa, DistilBERT, ELECTRA; T5, BART; Llama, Qwen; ModernBERT; GPT-2.
ENDS = ("word_embeddings.weight", "shared.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight")
DTYPES = ("F32", "F16", "BF16")


class Subwords:
    """The tokens of a pretrained tokenizer and their ids: a `Vocabulary` whose tokens are parts of words.

    Args:
        text: what a tokenizer.json holds.

    Raises:
        ModuleNotFoundError: tokenizers is not installed.
        ValueError: `text` is no tokenizer.

    Attributes:
        tokens: every token in the order of the ids, "" at an id that has none.
    """

    def __init__(self, text: str) -> None:
        tokenizers = _import("tokenizers")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises no narrower one
            raise ValueError(f"the tokenizer's JSON is damaged: {error}") from error
        # A sentence gives its own tokens, all of them and no others, whatever the file says.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A "[PAD]" written in the text is a word like any other.
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.tokens = [""] * (max(ids.values(), default=-1) + 1)
        for token, id_ in ids.items():
            self.tokens[id_] = token

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, sentence: str) -> list[int]:
        """The ids of the sentence's tokens, without special ones such as [CLS]; an empty sentence has none."""
        return self._tokenizer.encode(sentence, add_special_tokens=False).ids

    def pieces(self, sentence: str) -> list[str]:
        """The sentence's tokens as the tokenizer has them, such as "##ing"; `encode` has their ids."""
        return self._tokenizer.encode(sentence, add_special_tokens=False).tokens

    def save(self, path: str | Path) -> None:
        """Write the tokenizer's JSON. A fault leaves an older file whole."""
        write_atomically(Path(path), self._tokenizer.to_str().encode())

    @classmethod
    def load(cls, path: str | Path) -> Subwords:
        """Read what `save` wrote, or another tokenizer.json.

        Raises:
            FileNotFoundError: there is no such file.
            ModuleNotFoundError: tokenizers is not installed.
            ValueError: the file is no tokenizer; the message names it and says why.
        """
        try:
            return cls(Path(path).read_bytes().decode())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def read_transformer(source: str | Path) -> tuple[Tensor, Subwords]:
    """The word embedding of a pretrained transformer, and its tokenizer.

    Of the model's file only this tensor is read; of a model in shards only the shard that holds it is downloaded. Rows
    beyond the tokenizer's ids, there to make the matrix a round size, are left out.

    Args:
        source: a folder with tokenizer.json and model.safetensors (or model.safetensors.index.json and its shards), or
            "hf:NAME" for the model of that name on huggingface.co, from the hub's cache, downloaded on first use.

    Returns:
        (len(subwords), E) float32, row i the vector of the token with id i, and the tokenizer.

    Raises:
        FileNotFoundError: there is no such folder, or the folder or the hub's model lacks a file.
        ModuleNotFoundError: tokenizers, safetensors or huggingface_hub is not installed.
        UnavailableError: a file could not be downloaded.
        ValueError: a file is damaged, or a download is not what the hub says, and is deleted; there is no word embedding
            of two dimensions in float32, float16 or bfloat16, or it has fewer rows than the tokenizer has ids.
    """
    locate = _locator(str(source))
    subwords = Subwords.load(locate(TOKENIZER))
    return _read_matrix(_weights_file(locate), len(subwords)), subwords


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{error.name} is not installed: pip install "sstkern[train]"', name=error.name) from error


def _locator(source: str) -> Callable[[str], Path]:
    """A function that finds a file of the model by its name."""
    if source.startswith(HUB):
        return partial(_download, source.removeprefix(HUB))
    if not Path(source).is_dir():
        raise FileNotFoundError(f"{source} is no folder, expected one with {NEEDED}, or {HUB}NAME")
    return partial(_find, Path(source))


def _find(folder: Path, file: str) -> Path:
    if not (folder / file).is_file():
        raise FileNotFoundError(f"{folder / file} is missing, expected {NEEDED}")
    return folder / file


def _download(name: str, file: str) -> Path:
    hub, errors = _import("huggingface_hub"), _import("huggingface_hub.errors")
    page = f"https://huggingface.co/{name}"
    try:
        path = Path(hub.hf_hub_download(name, file))
    except errors.HFValidationError as error:
        raise ValueError(f"{HUB}{name} names no model: {error}") from error
    except Exception as error:  # the hub's versions use three HTTP libraries, each with errors of its own
        # Without network every file is one that the cache lacks, which does not mean that the model does.
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise FileNotFoundError(f"{page} has no {file}, expected {NEEDED}") from error
        reason = " ".join(str(error).split())
        by_hand = f"get {NEEDED} from {page}/tree/main by other means and give their folder in place of {HUB}{name}"
        raise UnavailableError(f"{page}: {file} could not be downloaded: {reason}; {by_hand}") from error
    _check_hash(path, f"{page}: {file}")
    return path


def _check_hash(path: Path, name: str) -> None:
    """Delete a large file whose content is not what the hub says, and raise ValueError.

    In the hub's cache `path` is a link to a file named after the etag, which for a large (LFS) file is its SHA-256. Where
    the file system has no links there is nothing to compare with.
    """
    if not path.is_symlink():
        return
    # One link further only: the named file may itself be a link, into a store that has other names.
    blob = path.parent / os.readlink(path)
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        for copy in (blob.resolve(), blob, path):
            copy.unlink(missing_ok=True)
        raise ValueError(f"{name} was damaged and is deleted: found SHA-256 {digest.hexdigest()}, expected {blob.name}")


def _weights_file(locate: Callable[[str], Path]) -> Path:
    """The file that holds the word embedding: the whole model, or one of its shards."""
    try:
        return locate(MODEL)
    except OSError as error:  # without network too: the cache may hold a model in shards
        missing = error
    try:
        index = locate(INDEX)
    except OSError:
        raise missing from None
    shards = _shards(index)
    return locate(shards[_matrix_name(shards, index)])


def _shards(index: Path) -> dict[str, str]:
    """The shard of each tensor."""
    try:
        shards = json.loads(index.read_bytes())["weight_map"]
        if not all(Path(shard).name == shard for shard in shards.values()):
            raise ValueError("a shard is not the name of a file beside it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of a model's shards: {error!r}") from error
    return shards


def _matrix_name(names: Collection[str], file: Path) -> str:
    """The name of the word embedding among a model's tensors."""
    for end in ENDS:
        fitting = [name for name in names if f".{name}".endswith(f".{end}")]
        if fitting:
            # Where encoder and decoder each have one, they are the same, or the encoder's is the one for reading.
            return min(fitting, key=lambda name: ("decoder" in name, name))
    few = ", ".join(sorted(names)[:5])
    raise ValueError(f"{file}: found no word embedding among {len(names)} tensors ({few}, ...), expected one of ..{', ..'.join(ENDS)}")


def _read_matrix(file: Path, rows: int) -> Tensor:
    """The first `rows` rows of the word embedding in `file`, (rows, E) float32."""
    safetensors = _import("safetensors")
    try:
        with safetensors.safe_open(file, "pt") as tensors:
            name = _matrix_name(tensors.keys(), file)
            matrix = tensors.get_slice(name)
            shape, dtype = matrix.get_shape(), matrix.get_dtype()
            if len(shape) != 2:
                raise ValueError(f"{file}: found {name} with the shape {tuple(shape)}, expected two dimensions")
            if dtype not in DTYPES:
                raise ValueError(f"{file}: found {name} in {dtype}, expected {', '.join(DTYPES)}")
            if shape[0] < rows:
                raise ValueError(f"{file}: found {name} with {shape[0]} rows, expected at least {rows}, the tokenizer's ids")
            # A copy, since the slice may lie in the file, mapped into memory.
            return matrix[:rows].to(torch.float32, copy=True)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged or no safetensors file: {error}") from error
