import json

import pytest

from sstkern.text import PAD, AffixVocabulary, Vocabulary
from sstkern.text.affixes import AFFIXES, _affixes


@pytest.fixture
def vocabulary() -> AffixVocabulary:
    words = Vocabulary.build(["really good", "sadly good", "real"])
    return AffixVocabulary.of_words(words, words.tokens)


def test_affixes_of_two_to_five_letters_and_never_the_whole_word():
    assert _affixes("really") == ["<re", "<rea", "<real", "<reall", "ly>", "lly>", "ally>", "eally>"]
    assert _affixes("sad") == ["<sa", "ad>"]
    assert _affixes("a") == _affixes("of") == []


def test_affixes_are_those_of_at_least_two_words(vocabulary):
    assert vocabulary.tokens == ["<pad>", "<unk>", "good", "really", "sadly", "real"]
    assert vocabulary.affixes == ["<re", "<rea", "ly>"]
    assert len(vocabulary) == 6 + 3


def test_tokens_may_be_more_than_the_words_of_the_affixes(vocabulary):
    more = AffixVocabulary.of_words(Vocabulary([*vocabulary.tokens, "only"]), vocabulary.tokens)
    assert more.affixes == vocabulary.affixes
    assert more.encode("only") == [[6, 7 + 2] + [PAD] * (AFFIXES - 1)]


def test_a_token_is_its_word_and_its_affixes(vocabulary):
    assert vocabulary.encode("sadly good") == [[4, 8] + [PAD] * 7, [2] + [PAD] * 8]
    assert vocabulary.encode("really") == [[3, 6, 7, 8] + [PAD] * 5]
    assert vocabulary.encode("") == []


@pytest.mark.parametrize(("token", "ids"), [("madly", [8]), ("ready", [6, 7]), ("<unk>", []), ("<pad>", []), ("x", [])])
def test_an_unknown_word_has_its_affixes_alone(vocabulary, token, ids):
    assert vocabulary.encode(token) == [[PAD, *ids] + [PAD] * (AFFIXES - len(ids))]


def test_saved_and_loaded(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v")
    loaded = AffixVocabulary.load(tmp_path / "v")
    assert loaded.encode("really new") == vocabulary.encode("really new")
    assert loaded.pieces("really new") == ["really", "new"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object with the lists"),
        ({"tokens": ["<pad>", "<unk>"]}, "expected an object with the lists"),
        ({"tokens": ["<pad>", "<unk>"], "affixes": ["<a", "<a"]}, "affixes hold '<a' twice"),
        ({"tokens": ["<pad>", "<unk>"], "affixes": [1]}, "affixes hold something that is no string"),
        ({"tokens": ["a"], "affixes": []}, "tokens begin with"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, content, message):
    file = tmp_path / "v"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        AffixVocabulary.load(file)
    assert str(error.value).startswith(f"{file} is no vocabulary with affixes")
