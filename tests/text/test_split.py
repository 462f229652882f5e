import math
import random

import pytest

from sstkern.text import Examples, hold_out, share_inside
from sstkern.text.split import most_held_out

# Three sentences with phrases of theirs; "good fun" is in two of them, "a b c d e" has no end.
PHRASES = {
    "this is good fun .": 1,
    "good fun": 1,
    "is good fun .": 1,
    "no , not good fun at all !": 0,
    "at all": 0,
    "a dull and dreary film .": 0,
    "dull": 0,
    "film and dreary": 0,
    "a b c d e": 1,
    "why .": 1,
}
SIZES = {"demo": (14724, 850), "sst2": (57534, 850)}


@pytest.fixture
def examples() -> Examples:
    return Examples([f"{phrase} " for phrase in PHRASES], list(PHRASES.values()))


def test_held_out_are_whole_sentences_with_an_end(examples):
    _, valid = hold_out(examples, size=3)
    assert valid == Examples(["this is good fun . ", "no , not good fun at all ! ", "a dull and dreary film . "], [1, 0, 0])


def test_training_keeps_what_stands_in_no_held_out_sentence(examples):
    train, _ = hold_out(examples, size=3)
    assert train == Examples(["film and dreary ", "a b c d e ", "why . "], [0, 1, 1])
    train, valid = hold_out(examples, size=1)
    inside = f" {valid.sentences[0]}"
    assert set(examples.sentences) - set(train.sentences) == {phrase for phrase in examples.sentences if f" {phrase}" in inside}


def test_equal_sentences_are_held_out_once_and_never_trained_on():
    twice = Examples(["it is a fine day .", "it is a fine day .", "so"], [1, 1, 0])
    assert hold_out(twice, size=1) == (Examples(["so"], [0]), Examples(["it is a fine day ."], [1]))


def test_where_no_phrase_is_a_sentence_any_whole_one_is_held_out():
    examples = Examples(["a b c", "b c", "d e", "", ""], [1, 1, 0, 1, 0])
    assert most_held_out(examples) == 4
    train, valid = hold_out(examples, size=4)
    assert (train, valid) == (Examples([], []), examples.pick([0, 2, 3, 4]))
    train, valid = hold_out(Examples(["", "", ""], [0, 1, 0]), size=1)
    assert (len(train), len(valid)) == (2, 1)


def test_the_share_of_no_phrase_is_none(examples):
    assert math.isnan(share_inside(examples, Examples([], [])))


@pytest.mark.parametrize("size", [-1, 0, 4])
def test_a_size_that_cannot_be_held_out(examples, size):
    with pytest.raises(ValueError, match=f"size is {size}, expected 1 to 3"):
        hold_out(examples, size)


def test_on_a_corpus_nothing_held_out_is_trained_on(corpus):
    train, valid = hold_out(corpus.train)
    assert (len(train), len(valid)) == SIZES[corpus.name]
    held = [f" {' '.join(sentence.split())} " for sentence in valid.sentences]
    everything = "".join(held)
    assert not any(f" {' '.join(phrase.split())} " in everything for phrase in train.sentences)
    assert share_inside(train, valid) == 0
    assert hold_out(corpus.train) == (train, valid) != hold_out(corpus.train, seed=1)


def test_share_inside(examples):
    assert share_inside(examples, Examples(["good fun", "fun good", "dreary film .", "dreary film . and"], [1, 1, 0, 0])) == 0.5


def test_share_inside_of_a_random_split(corpus):
    order = random.Random(0).sample(range(len(corpus.train)), len(corpus.train))
    train, valid = (
        Examples([corpus.train.sentences[i] for i in part], [corpus.train.labels[i] for i in part]) for part in (order[850:], order[:850])
    )
    assert share_inside(train, valid) == pytest.approx({"demo": 0.078, "sst2": 0.895}[corpus.name], abs=0.01)
