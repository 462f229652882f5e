import pytest

from sstkern.text import PAD, AffixVocabulary
from sstkern.text.affixes import AFFIXES, BUCKETS, _affixes


@pytest.fixture
def vocabulary() -> AffixVocabulary:
    return AffixVocabulary.build(["really good", "sadly good"])


def test_affixes_of_two_to_five_letters_and_never_the_whole_word():
    assert _affixes("really") == ["<re", "<rea", "<real", "<reall", "ly>", "lly>", "ally>", "eally>"]
    assert _affixes("sad") == ["<sa", "ad>"]
    assert _affixes("a") == _affixes("of") == []


def test_a_token_is_its_word_and_its_affixes(vocabulary):
    really, sadly = vocabulary.encode("really sadly")
    assert (really[0], sadly[0]) == (vocabulary.tokens.index("really"), vocabulary.tokens.index("sadly"))
    words = len(vocabulary.tokens)
    assert len(really) == len(sadly) == 1 + AFFIXES
    assert all(words <= id_ < words + BUCKETS == len(vocabulary) for id_ in really[1:])
    assert really[5] == sadly[4]  # "ly>"
    assert sadly[1 + 6 :] == [PAD, PAD]  # "sadly" has no affix of five letters


@pytest.mark.parametrize("token", ["madly", "<unk>", "<pad>"])
def test_an_unknown_word_has_its_affixes_alone(vocabulary, token):
    ((word, *affixes),) = vocabulary.encode(token)
    assert word == PAD
    assert affixes[0] != PAD


def test_saved_and_loaded(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v")
    loaded = AffixVocabulary.load(tmp_path / "v")
    assert loaded.encode("really new") == vocabulary.encode("really new")
    assert loaded.pieces("really new") == ["really", "new"]
