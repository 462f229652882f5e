"""Made-up reviews whose label depends on the order of the words, for trying a model without data."""

import random

from sstkern.text.tsv import Examples

MAX_SIZE = 100_000

# What decides and what gives way are opposite in polarity, so swapping them keeps the words and turns the label: from
# the bag of words one can only guess. The first template has nothing to swap; it makes the others easier to learn.
TEMPLATES = (
    "the {noun} is {decides} .",
    "the {noun} is {yields} but {decides} .",
    "the {noun} is {yields} but the {other} is {decides} .",
    "although the {noun} is {yields} , the {other} is {decides} .",
    "the {noun} is {decides} , although the {other} is {yields} .",
)
NOUNS = ["acting", "plot", "script", "ending", "humor", "music", "story", "direction", "dialogue", "pacing"]
INTENSIFIERS = ("", "very ", "really ", "truly ", "particularly ")
ADJECTIVES = (
    ["bad", "dull", "boring", "weak", "clumsy", "bland", "tedious", "shallow"],
    ["good", "funny", "charming", "strong", "clever", "fresh", "gripping", "moving"],
)


# 16,000 sentences are what the defaults of `sstkern train` need: RNN, GRU and LSTM end at an accuracy of 1, of 4,000 at 0.5.
def demo(train_size: int = 16000, dev_size: int = 1000, seed: int = 0) -> tuple[Examples, Examples]:
    """Generated training and development examples: negative (0) and positive (1) by turns, no sentence twice.

    The sentences have negation ("not funny" is negative), contrast (in "X but Y" and "although X , Y" it is Y that
    decides) and intensifiers. The same arguments give the same sentences.

    Raises:
        ValueError: a size is negative, or both together are above 100,000.
    """
    if min(train_size, dev_size) < 0 or train_size + dev_size > MAX_SIZE:
        raise ValueError(f"train_size is {train_size} and dev_size is {dev_size}, expected 0 or more, together at most {MAX_SIZE}")
    rng = random.Random(seed)
    sentences: dict[str, int] = {}
    while len(sentences) < train_size + dev_size:
        label = len(sentences) % 2
        sentences.setdefault(_sentence(rng, label), label)
    texts, labels = list(sentences), list(sentences.values())
    return Examples(texts[dev_size:], labels[dev_size:]), Examples(texts[:dev_size], labels[:dev_size])


def _sentence(rng: random.Random, label: int) -> str:
    noun, other = rng.sample(NOUNS, 2)
    return rng.choice(TEMPLATES).format(noun=noun, other=other, decides=_phrase(rng, label), yields=_phrase(rng, 1 - label))


def _phrase(rng: random.Random, polarity: int) -> str:
    negated = rng.random() < 0.5
    adjective = rng.choice(ADJECTIVES[polarity != negated])
    return ("not " if negated else "") + rng.choice(INTENSIFIERS) + adjective
