from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from sstkern.text import Subwords, load_vectors, vectors

SENTENCES = ["good film", "good <unk> , good film"]
GLOVE = "film 3 0\n<unk> 8 8\ngood 1 2\nbad 50 60\n"
SCALE = 0.6 / torch.tensor([3.0, 0, 1, 2, 50, 60]).std(correction=0)


@pytest.fixture
def glove(tmp_path) -> str:
    file = tmp_path / "vectors.txt"
    file.write_text(GLOVE)
    return str(file)


@pytest.fixture
def transformer(tmp_path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"good": 0, "film": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"shared.weight": torch.tensor([[0.01, 0.02], [-0.01, 0.01], [0.0, 0.03]])}, folder / "model.safetensors")
    return str(folder)


def test_words_keep_their_order_and_those_without_a_vector_have_zeros(glove):
    vocabulary, matrix = load_vectors(glove, SENTENCES)
    assert vocabulary.tokens == ["<pad>", "<unk>", "good", "film", ",", "bad"]
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix, torch.tensor([[0.0, 0], [0, 0], [1, 2], [3, 0], [0, 0], [50, 60]]) * SCALE)


def test_the_name_of_gloves_vectors_is_theirs_where_a_folder_has_it(transformer, monkeypatch):
    Path(transformer).rename(Path(transformer).with_name("glove.6B"))
    monkeypatch.chdir(Path(transformer).parent)
    asked = []
    monkeypatch.setattr(vectors, "read_glove", lambda source, *_: asked.append(source) or (["good"], torch.tensor([[1.0, 2.0]])))
    load_vectors("glove.6B", SENTENCES)
    assert asked == ["glove.6B"]
    assert isinstance(load_vectors("./glove.6B", SENTENCES)[0], Subwords)


def test_rare_words_are_unknown_but_for_the_most_frequent_of_the_file(glove, monkeypatch):
    monkeypatch.setattr(vectors, "MOST_FREQUENT", 1)
    vocabulary, matrix = load_vectors(glove, SENTENCES, min_count=3)
    assert vocabulary.tokens == ["<pad>", "<unk>", "good", "film"]
    assert matrix.shape == (4, 2)


def test_a_transformer_brings_its_own_tokens(transformer):
    subwords, matrix = load_vectors(transformer, SENTENCES, min_count=9)
    assert isinstance(subwords, Subwords)
    assert subwords.encode("film good bad") == [1, 0, 2]
    assert matrix.std(correction=0) == pytest.approx(0.6)
    # All by the same factor.
    torch.testing.assert_close(matrix / matrix[0, 0], torch.tensor([[1.0, 2], [-1, 1], [0, 3]]))


@pytest.mark.parametrize("source", ["glove", "transformer"])
def test_the_dimension_is_checked(request, source):
    path = request.getfixturevalue(source)
    assert load_vectors(path, SENTENCES, dimension=2)[1].shape[1] == 2
    with pytest.raises(ValueError, match=r"found (the )?dimension 2, expected 3") as error:
        load_vectors(path, SENTENCES, dimension=3)
    assert path in str(error.value)


@pytest.mark.parametrize(("number", "found"), [(1.0, "0.0"), (float("nan"), "nan")])
def test_numbers_that_cannot_be_scaled_are_told(transformer, number, found):
    save_file({"shared.weight": torch.full((3, 2), number)}, Path(transformer, "model.safetensors"))
    with pytest.raises(ValueError, match=f"found numbers with the standard deviation {found}, expected a finite one above 0"):
        load_vectors(transformer, SENTENCES)


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        load_vectors(str(Path(tmp_path, "nowhere.txt")), SENTENCES)
