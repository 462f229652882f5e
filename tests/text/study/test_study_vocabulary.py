"""Not test_vocabulary: pytest wants the names of test files to differ, and tests/text has that one."""

import json

import pytest

from sstkern.text import Examples
from sstkern.text.study import vocabulary


def examples(*sentences: str) -> Examples:
    return Examples(list(sentences), [0] * len(sentences))


def train_by_law(exponent: float) -> Examples:
    """The word of rank r comes 1e5 / r^exponent times."""
    return examples(*(f"w{rank} " * round(1e5 / rank**exponent) for rank in range(1, 61)))


@pytest.fixture
def train() -> Examples:
    """13 words, 12 of them twice or more."""
    return examples("a a a b b", *(f"{word} {word}" for word in "cdefghijkl"), "once")


def test_counts(train):
    result = vocabulary.counts(train, examples("a once"))
    assert [result[name] for name in ("tokens", "distinct", "at_least_twice", "specials")] == [26, 13, 12, 2]
    assert result["most_frequent"][:2] == [["a", 3], ["b", 2]]
    assert result["rank"] == list(range(1, 14))
    assert result["frequency"] == [3, *[2] * 11, 1]
    json.dumps(result, allow_nan=False)


def test_coverage(train):
    coverage = vocabulary.counts(train, examples("a once a new", "b b", "new", "a <unk>"))["coverage"]
    assert coverage["1"] == {"vocabulary_size": 15, "tokens": 6 / 9, "words": 3 / 5, "sentences_with_unknown": 3 / 4}
    assert coverage["2"] == {"vocabulary_size": 14, "tokens": 5 / 9, "words": 2 / 5, "sentences_with_unknown": 3 / 4}


@pytest.mark.parametrize("exponent", [0.8, 1.2])
def test_the_fit_finds_the_exponent(exponent):
    zipf = vocabulary.counts(train_by_law(exponent), examples("w1"))["zipf"]
    assert zipf["exponent"] == pytest.approx(exponent, rel=1e-3)
    assert zipf["constant"] == pytest.approx(1e5, rel=1e-2)
    assert (zipf["first_rank"], zipf["last_rank"]) == (10, 60)
    assert zipf["r_squared"] == pytest.approx(1, abs=1e-4)


def test_words_that_all_come_as_often_have_no_share_that_is_explained():
    zipf = vocabulary.counts(examples(" ".join(f"w{number}" for number in range(20))), examples("w1"))["zipf"]
    assert (zipf["exponent"], zipf["r_squared"]) == (pytest.approx(0, abs=1e-12), None)


def test_the_fit_leaves_out_the_first_ranks():
    usual = train_by_law(1)
    doubled = examples(*(sentence * (2 if rank < 10 else 1) for rank, sentence in enumerate(usual.sentences, start=1)))
    dev = examples("w1")
    assert vocabulary.counts(doubled, dev)["zipf"] == vocabulary.counts(usual, dev)["zipf"]


def test_on_sst2(sst2):
    result = vocabulary.counts(*sst2)
    assert (result["distinct"], result["at_least_twice"]) == (14817, 14309)
    assert [result["coverage"][least]["vocabulary_size"] for least in "12"] == [14819, 14311]
    assert result["coverage"]["1"]["tokens"] == pytest.approx(0.9374, abs=1e-4)
    assert result["coverage"]["2"]["tokens"] == pytest.approx(0.9349, abs=1e-4)
    assert result["zipf"]["exponent"] == pytest.approx(1.005, abs=1e-3)
    assert result["zipf"]["last_rank"] == 5000
    assert len(result["rank"]) == len(result["frequency"]) <= 200
    assert (result["rank"][0], result["rank"][-1], result["frequency"][-1]) == (1, 14817, 1)


def test_counts_checks_its_arguments(train):
    with pytest.raises(ValueError, match="train has 1 words, expected at least 12"):
        vocabulary.counts(examples("a"), train)
    with pytest.raises(ValueError, match="dev has no token"):
        vocabulary.counts(train, examples(" "))


def test_plot_counts(tmp_path, figures, train):
    result = vocabulary.counts(train, train)
    vocabulary.plot_counts(result, tmp_path / "zipf.png")
    points, line = figures[0].axes[0].lines
    assert list(points.get_ydata()) == result["frequency"]
    zipf = result["zipf"]
    assert list(line.get_ydata()) == pytest.approx([zipf["constant"] * rank ** -zipf["exponent"] for rank in (10, 13)])
