import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import tokenizers
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

from sstkern.text import Subwords, read_transformer
from sstkern.text.download import UnavailableError

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "##ness", "film", "[", "]", "pad"]
NAME = "embeddings.word_embeddings.weight"
OTHERS = {"embeddings.position_embeddings.weight": torch.zeros(8, 4), "pooler.bias": torch.zeros(4)}

needs_data = pytest.mark.skipif("SSTKERN_DATA" not in os.environ, reason="SSTKERN_DATA is not set")


def tokenizer_json() -> str:
    """BERT's, small; it cuts sentences to three tokens, pads them to eight and adds [CLS] and [SEP]."""
    made = tokenizers.Tokenizer(models.WordPiece({token: id_ for id_, token in enumerate(TOKENS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens(TOKENS[:4])
    made.enable_truncation(3)
    made.enable_padding(length=8)
    return made.to_str()


def matrix_of(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers that all three dtypes hold exactly."""
    return (torch.arange(rows * 4).reshape(rows, 4) - 7).to(dtype)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer_json())
    save_file({NAME: matrix_of(10), **OTHERS}, folder / "model.safetensors")
    return folder


def shard(folder: Path) -> None:
    """Replace the folder's model with one in two shards, of which the second has the matrix."""
    (folder / "model.safetensors").unlink()
    save_file(OTHERS, folder / "model-00001-of-00002.safetensors")
    save_file({NAME: matrix_of(10)}, folder / "model-00002-of-00002.safetensors")
    shards = {**dict.fromkeys(OTHERS, "model-00001-of-00002.safetensors"), NAME: "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))


# ---- the tokenizer


@pytest.mark.parametrize(
    ("sentence", "pieces", "ids"),
    [
        ("Goodness film good film good", ["good", "##ness", "film", "good", "film", "good"], [4, 5, 6, 4, 6, 4]),
        ("good 映", ["good", "[UNK]"], [4, 1]),
        ("[PAD] film", ["[", "pad", "]", "film"], [7, 9, 8, 6]),
        ("", [], []),
        (" \t", [], []),
    ],
    ids=["neither-cut-nor-padded", "unknown", "special-token-in-text", "empty", "blank"],
)
def test_subwords(sentence, pieces, ids):
    subwords = Subwords(tokenizer_json())
    assert subwords.pieces(sentence) == pieces
    assert subwords.encode(sentence) == ids


def test_subwords_have_tokens_in_the_order_of_the_ids():
    subwords = Subwords(tokenizer_json())
    assert subwords.tokens == TOKENS
    assert len(subwords) == 10


def test_an_id_without_a_token_counts():
    made = tokenizers.Tokenizer(models.WordLevel({"a": 3, "<unk>": 1}, unk_token="<unk>"))
    subwords = Subwords(made.to_str())
    assert (subwords.tokens, len(subwords)) == (["", "<unk>", "", "a"], 4)


def test_subwords_of_a_byte_level_tokenizer():
    made = tokenizers.Tokenizer(models.BPE({"!": 0, "Ġ": 1, "o": 2, "k": 3, "ok": 4, "Ġok": 5}, [("o", "k"), ("Ġ", "ok")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    subwords = Subwords(made.to_str())
    assert (subwords.pieces("ok ok!"), subwords.encode("ok ok!")) == (["ok", "Ġok", "!"], [4, 5, 0])


def test_save_and_load(tmp_path):
    saved = Subwords(tokenizer_json())
    saved.save(tmp_path / "new" / "tokenizer.json")
    loaded = Subwords.load(tmp_path / "new" / "tokenizer.json")
    sentence = "Goodness film good film good [CLS]"
    assert loaded.tokens == saved.tokens
    assert loaded.encode(sentence) == saved.encode(sentence)
    # What was switched off stays so for others who read the file.
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    assert (plain.truncation, plain.padding) == (None, None)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"model": {}}', b"\xff\xfe", tokenizer_json().encode()[:-20]])
def test_load_names_a_damaged_tokenizer(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    for read, source in ((Subwords.load, folder / "tokenizer.json"), (read_transformer, folder)):
        with pytest.raises(ValueError, match=r"model/tokenizer\.json: .*(damaged|decode)"):
            read(source)


# ---- the matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_a_folder(folder, dtype):
    save_file({NAME: matrix_of(10, dtype), **OTHERS}, folder / "model.safetensors")
    for source in (folder, str(folder)):
        matrix, subwords = read_transformer(source)
        assert matrix.dtype == torch.float32
        assert torch.equal(matrix, matrix_of(10))
        assert subwords.tokens == TOKENS


def test_rows_beyond_the_tokenizer_are_left_out(folder):
    save_file({NAME: matrix_of(16)}, folder / "model.safetensors")
    assert torch.equal(read_transformer(folder)[0], matrix_of(10))


def test_the_matrix_is_no_view_of_the_file(folder):
    matrix, _ = read_transformer(folder)
    assert matrix.untyped_storage().nbytes() == 10 * 4 * 4
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert torch.equal(matrix, matrix_of(10))


@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.word_embeddings.weight",
        "model.embed_tokens.weight",
        "model.embeddings.tok_embeddings.weight",
        "wte.weight",
        "transformer.wte.weight",
        "shared.weight",
    ],
)
def test_finds_the_matrix_of_a_family(folder, name):
    decoys = {"decoder.embed_tokens.weight": torch.zeros(10, 4)} if name == "shared.weight" else {}
    save_file({name: matrix_of(10), "xwte.weight": torch.zeros(10, 4), **decoys, **OTHERS}, folder / "model.safetensors")
    assert torch.equal(read_transformer(folder)[0], matrix_of(10))


def test_prefers_the_encoders_matrix(folder):
    save_file(
        {"decoder.embed_tokens.weight": torch.zeros(10, 4), "encoder.embed_tokens.weight": matrix_of(10)}, folder / "model.safetensors"
    )
    assert torch.equal(read_transformer(folder)[0], matrix_of(10))


def test_reads_one_shard(folder):
    shard(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert torch.equal(read_transformer(folder)[0], matrix_of(10))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"c": torch.zeros(1), "a": torch.zeros(1), "xwte.weight": torch.zeros(1)},
            r"no word embedding among 3 tensors \(a, c, xwte\.weight, \.\.\.\), expected one of \.\.word_embeddings\.weight, ",
        ),
        ({NAME: torch.zeros(40)}, r"with the shape \(40,\), expected two dimensions"),
        ({NAME: torch.zeros(9, 4)}, r"with 9 rows, expected at least 10, the tokenizer's ids"),
        ({NAME: torch.zeros(10, 4, dtype=torch.int8)}, "in I8, expected F32, F16, BF16"),
    ],
)
def test_names_what_is_wrong_with_the_matrix(folder, tensors, message):
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model/model\.safetensors: found .*{message}"):
        read_transformer(folder)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[8:], lambda data: data[:20] + b"\xff" + data[21:]]
)
def test_a_damaged_model_is_named(folder, damage):
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"model/model\.safetensors is damaged or no safetensors file: "):
        read_transformer(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"wte.weight": "../x.safetensors"}}'])
def test_a_damaged_index_is_named(folder, content):
    shard(folder)
    (folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is no index of a model's shards: "):
        read_transformer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"model/{name} is missing, expected tokenizer\.json and model\.safetensors, or "):
        read_transformer(folder)


def test_a_missing_shard_or_folder_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        read_transformer(folder)
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder, expected one with .*, or hf:NAME"):
        read_transformer("nowhere")


@pytest.mark.parametrize("package", ["tokenizers", "safetensors", "huggingface_hub"])
def test_a_missing_package_is_named(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'{package} is not installed: pip install "sstkern\[train\]"') as caught:
        read_transformer("hf:owner/model" if package == "huggingface_hub" else folder)
    assert caught.value.name == package


def test_importing_the_package_imports_none_of_them():
    code = (
        "import sys, sstkern, sstkern.text; print({'tokenizers', 'huggingface_hub', 'pooch', 'safetensors', 'requests'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@needs_data
def test_real_model():
    folder = Path(os.environ["SSTKERN_DATA"]) / "minilm"
    matrix, subwords = read_transformer(folder)
    assert torch.equal(matrix, load_file(folder / "model.safetensors")[NAME].float())
    assert subwords.tokens == (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:30522]
    assert subwords.pieces("a witty , seductive movie .") == ["a", "witty", ",", "seductive", "movie", "."]
    assert subwords.encode("unbelievably " * 100) == [4895, 8671, 2666, 3567, 6321] * 100
    film, movie, potato = torch.nn.functional.normalize(matrix[[subwords.encode(word)[0] for word in ("film", "movie", "potato")]])
    assert film @ movie > 2 * abs(film @ potato)


# ---- the hub


class Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does for the model owner/model; with `lie`, the model's hashes are others."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        if data := self._answer():
            self.server.sent.append(self.path.rpartition("/")[2])
            self.wfile.write(data)

    def _answer(self) -> bytes:
        found = re.fullmatch("/owner/model/resolve/main/(.+)", self.path)
        file = self.server.folder / found[1] if found else None
        if file is None or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if found else "RepoNotFound")
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        data = file.read_bytes()
        # What is stored with LFS has the SHA-256, other files git's SHA-1.
        etag = hashlib.sha1(data).hexdigest()
        if file.suffix == ".safetensors":
            etag = hashlib.sha256(data + self.server.lie).hexdigest()
        self.send_response(200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return data

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(folder, tmp_path, monkeypatch) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.sent, server.lie = folder, [], b""
        site = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", site)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", site + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_downloads_a_model_once(hub):
    for _ in range(2):
        matrix, subwords = read_transformer("hf:owner/model")
        assert torch.equal(matrix, matrix_of(10))
        assert subwords.tokens == TOKENS
    assert hub.sent == ["tokenizer.json", "model.safetensors"]


def test_downloads_the_shard_with_the_matrix_only(hub, folder):
    shard(folder)
    assert torch.equal(read_transformer("hf:owner/model")[0], matrix_of(10))
    assert hub.sent == ["tokenizer.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors"]


def test_a_download_that_is_not_what_the_hub_says_is_deleted(hub, tmp_path):
    hub.lie = b"x"
    with pytest.raises(
        ValueError, match=r"co/owner/model: model\.safetensors was damaged and is deleted: found SHA-256 [0-9a-f]{64}, expected"
    ):
        read_transformer("hf:owner/model")
    left = [path for path in (tmp_path / "cache").rglob("*") if not path.is_dir()]
    assert not any(re.search(r"safetensors$|/[0-9a-f]{64}$", str(path)) for path in left)
    hub.lie = b""
    assert torch.equal(read_transformer("hf:owner/model")[0], matrix_of(10))
    assert hub.sent.count("model.safetensors") == 2


def test_what_was_damaged_in_the_cache_is_deleted(hub, tmp_path):
    read_transformer("hf:owner/model")
    (blob,) = (tmp_path / "cache").rglob("blobs/" + "?" * 64)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="was damaged and is deleted"):
        read_transformer("hf:owner/model")
    assert torch.equal(read_transformer("hf:owner/model")[0], matrix_of(10))


def test_a_blob_may_be_a_link_into_a_store_of_other_names(hub, tmp_path):
    read_transformer("hf:owner/model")
    (blob,) = (tmp_path / "cache").rglob("blobs/" + "?" * 64)
    store = tmp_path / ("f" * 64)
    blob.rename(store)
    blob.symlink_to(store)
    assert torch.equal(read_transformer("hf:owner/model")[0], matrix_of(10))
    store.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="was damaged and is deleted"):
        read_transformer("hf:owner/model")
    assert not store.exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_model_that_lacks_a_file(hub, folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"https://huggingface\.co/owner/model has no {name}, expected tokenizer\.json and "):
        read_transformer("hf:owner/model")


def test_a_model_that_is_not_there(hub):
    with pytest.raises(
        UnavailableError, match=r"co/owner/other: .* could not be downloaded: 404 .* give their folder in place of hf:owner/other$"
    ):
        read_transformer("hf:owner/other")
    with pytest.raises(ValueError, match="hf:two words names no model: "):
        read_transformer("hf:two words")


@pytest.mark.parametrize("in_shards", [False, True])
def test_without_network_it_takes_the_cache_or_says_what_to_do(hub, folder, monkeypatch, in_shards):
    if in_shards:
        shard(folder)
    read_transformer("hf:owner/model")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub tries again and again
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}")
    assert torch.equal(read_transformer("hf:owner/model")[0], matrix_of(10))
    message = (
        r"huggingface\.co/owner/new: tokenizer\.json could not be downloaded: .*; get tokenizer\.json and model\.safetensors, or .* from "
    )
    with pytest.raises(
        UnavailableError, match=message + r"https://huggingface\.co/owner/new/tree/main by other means and give their folder"
    ):
        read_transformer("hf:owner/new")
