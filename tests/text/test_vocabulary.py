import json

import pytest

from sstkern.text import Vocabulary

SENTENCES = ["b a  a c", "", "c <pad> d"]
# Distinct tokens in the training sentences, and those that occur at least twice.
SIZES = {"demo": (37, 37), "sst2": (14817, 14309)}


@pytest.mark.parametrize(("min_count", "words"), [(1, ["a", "c", "b", "d"]), (2, ["a", "c"]), (3, [])])
def test_frequent_words_first_and_ties_by_first_appearance(min_count, words):
    assert Vocabulary.build(SENTENCES, min_count).tokens == ["<pad>", "<unk>", *words]


@pytest.mark.parametrize("min_count", [1, 2])
def test_size(corpus, min_count):
    assert len(Vocabulary.build(corpus.train.sentences, min_count)) == SIZES[corpus.name][min_count - 1] + 2


@pytest.mark.parametrize(("sentence", "ids"), [("c a\tb", [3, 2, 4]), ("a new a", [2, 1, 2]), ("<pad> <unk>", [1, 1]), ("", [])])
def test_encode(sentence, ids):
    assert Vocabulary.build(SENTENCES).encode(sentence) == ids


def test_pieces_are_the_tokens_as_written():
    vocabulary = Vocabulary.build(SENTENCES)
    assert vocabulary.pieces("c new\t<pad>  a ") == ["c", "new", "<pad>", "a"]
    assert vocabulary.encode("c new\t<pad>  a ") == [3, 1, 1, 2]
    assert vocabulary.pieces("") == []


def test_contains():
    vocabulary = Vocabulary.build(SENTENCES)
    assert [token in vocabulary for token in ("a", "<unk>", "new")] == [True, True, False]


def test_save_and_load(tmp_path):
    file = tmp_path / "words.json"
    saved = Vocabulary.build(['naïve 映画 "quoted" \\'])
    saved.save(file)
    assert "naïve" in file.read_text(encoding="utf-8")
    assert Vocabulary.load(file).tokens == saved.tokens == ["<pad>", "<unk>", "naïve", "映画", '"quoted"', "\\"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "line 1"),
        (b"\xff\xfe\xfd", "decode"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": 2}', "holds a dict"),
        (b'["a", "b"]', "begin with"),
        (json.dumps(["<pad>", "<unk>", 3]).encode(), "hold 3"),
        (json.dumps(["<pad>", "<unk>", "two words"]).encode(), "hold 'two words'"),
        (json.dumps(["<pad>", "<unk>", "a", "b", "b"]).encode(), "hold 'b' twice"),
    ],
)
def test_load_names_a_file_that_is_no_vocabulary(tmp_path, content, reason):
    file = tmp_path / "words.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"words\.json is no vocabulary: .*{reason}"):
        Vocabulary.load(file)


def test_build_checks_its_arguments():
    with pytest.raises(TypeError, match="sentences is a string"):
        Vocabulary.build("a b c")
    with pytest.raises(ValueError, match="min_count is 0"):
        Vocabulary.build(SENTENCES, min_count=0)
