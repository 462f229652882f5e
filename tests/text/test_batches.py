import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sstkern.text import UNLABELLED, Batch, Batches, Vocabulary, batches, collate

SENTENCES = st.lists(st.lists(st.integers(1, 50), max_size=12), max_size=60)


def sentences_of(lengths: list[int]) -> list[list[int]]:
    return [[1] * length for length in lengths]


def as_lists(epoch) -> list[list]:
    return [[tensor.tolist() for tensor in batch] for batch in epoch]


def test_collate():
    batch = collate([[5], [6, 7, 8], [], [9, 4]], [0, 1, 2, 3], [3, 1, 2])
    assert batch.ids.tolist() == [[9, 4, 0], [6, 7, 8], [0, 0, 0]]
    assert batch.lengths.tolist() == [2, 3, 0]
    assert batch.labels.tolist() == [3, 1, 2]
    assert batch.indices.tolist() == [3, 1, 2]
    assert {tensor.dtype for tensor in batch} == {torch.int64}


def test_collate_without_tokens_and_labels():
    batch = collate([[], []], None, [1, 0])
    assert batch.ids.tolist() == [[0], [0]]
    assert batch.lengths.tolist() == [0, 0]
    assert batch.labels.tolist() == [UNLABELLED, UNLABELLED]
    assert {tensor.dtype for tensor in batch} == {torch.int64}


def test_collate_needs_a_sentence():
    with pytest.raises(ValueError, match="indices is empty"):
        collate([[1]], [0], [])


@given(
    encoded=SENTENCES,
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    number=st.integers(0, 1000),
    shuffle=st.booleans(),
)
def test_every_example_comes_once_and_whole(encoded, batch_size, seed, number, shuffle):
    labels = [sum(ids) for ids in encoded]
    made = Batches(encoded, labels, batch_size, seed, shuffle)
    epoch = list(made.epoch(number))
    assert len(epoch) == len(made)
    assert sorted(index for batch in epoch for index in batch.indices.tolist()) == list(range(len(encoded)))
    assert sorted((len(batch.indices) for batch in epoch), reverse=True)[:-1] == [batch_size] * (len(epoch) - 1)
    for batch in epoch:
        assert batch.ids.shape[1] == max(1, int(batch.lengths.max()))
        for ids, length, label, index in zip(*(tensor.tolist() for tensor in batch), strict=True):
            assert ids[:length] == encoded[index]
            assert not any(ids[length:])
            assert label == labels[index]


def test_labels_travel_with_their_sentences():
    lengths = [9, 2, 7, 0, 5, 3, 8, 1, 6, 4]
    for batch in Batches(sentences_of(lengths), lengths, batch_size=3).epoch(0):
        assert batch.labels.tolist() == batch.lengths.tolist()


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    def order(seed: int, number: int) -> list[list[int]]:
        epoch = Batches(sentences_of([n % 17 for n in range(500)]), None, 8, seed).epoch(number)
        return [batch.indices.tolist() for batch in epoch]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_without_shuffling_the_shortest_come_first_in_every_epoch():
    made = Batches(sentences_of([2, 0, 1] * 30), None, 30, shuffle=False)
    for number in (0, 1):
        order = [batch.indices.tolist() for batch in made.epoch(number)]
        assert order == [list(range(1, 90, 3)), list(range(2, 90, 3)), list(range(0, 90, 3))]


def test_a_sentence_keeps_changing_company():
    # Two pools; sorting all the sentences at once would give the same batches in every epoch.
    made = Batches(sentences_of(list(range(2 * batches.POOL * 4))), None, 4)
    company = {frozenset(batch.indices.tolist()) for number in (0, 1) for batch in made.epoch(number)}
    assert len(company) > 1.9 * len(made)


@pytest.mark.parametrize("start", [0, 3, 13])
def test_start_resumes_without_building_what_went_before(monkeypatch, start):
    made = Batches(sentences_of([n % 17 for n in range(100)]), list(range(100)), batch_size=8)
    whole = as_lists(made.epoch(5))
    built = []

    def counting(*args: object) -> Batch:
        built.append(args)
        return collate(*args)

    monkeypatch.setattr(batches, "collate", counting)
    assert as_lists(made.epoch(5, start)) == whole[start:]
    assert len(built) == len(whole) - start == 13 - start


@given(encoded=SENTENCES, batch_size=st.integers(1, 5), world_size=st.integers(1, 4))
def test_ranks_share_the_batches_of_one_larger_rank(encoded, batch_size, world_size):
    made = Batches(encoded, None, batch_size)
    shares = [list(made.epoch(1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    whole = list(Batches(encoded, None, batch_size * world_size).epoch(1))
    assert {len(share) for share in shares} == {len(whole)} == {-(-len(made) // world_size)}
    for batch, *parts in zip(whole, *shares, strict=True):
        indices = [index for part in parts for index in part.indices.tolist()]
        assert set(indices) == set(batch.indices.tolist())
        assert len(indices) == max(world_size, len(batch.indices))
        assert max(len(part.indices) for part in parts) <= batch_size


def test_ranks_have_sentences_of_similar_length(corpus):
    vocabulary = Vocabulary.build(corpus.train.sentences)
    made = Batches([vocabulary.encode(sentence) for sentence in corpus.train.sentences], corpus.train.labels, 64)
    pairs = zip(made.epoch(0, rank=0, world_size=2), made.epoch(0, rank=1, world_size=2), strict=True)
    tokens = torch.tensor([[int(batch.lengths.sum()) for batch in pair] for pair in pairs if len(pair[1].ids) == 64])
    assert (tokens[:, 1] - tokens[:, 0]).abs().max() <= 0.05 * tokens.max()


def test_little_padding_and_fast(corpus):
    vocabulary = Vocabulary.build(corpus.train.sentences)
    made = Batches([vocabulary.encode(sentence) for sentence in corpus.train.sentences], corpus.train.labels, 64)
    padding = [batch.ids.numel() - int(batch.lengths.sum()) for batch in made.epoch(0)]
    assert 0 < sum(padding) < 0.05 * sum(batch.ids.numel() for batch in made.epoch(0))
    begin = time.perf_counter()
    made.epoch(0)
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [1]}, "labels has 1 entries, expected 2"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(**{"encoded": [[1], [2]], "labels": None, "batch_size": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": -1}, "number is -1"),
        ({"start": 3}, "start is 3, expected 0 to 2"),
        ({"start": -1}, "start is -1, expected 0 to 2"),
        ({"rank": 2, "world_size": 2}, "rank is 2, expected 0 to world_size - 1, which is 1"),
    ],
)
def test_an_epochs_arguments_are_checked_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches([[1], [2]], None, 1).epoch(**{"number": 0, **arguments})


def test_small_batches_have_every_sentence_once_and_no_more_padding_for_a_long_one():
    encoded = [[1] * (place % 7) for place in range(600)] + [[1] * 40_000, [1] * 1000, [1] * 900]
    found = list(batches.small_batches(encoded))
    order = [index for batch in found for index in batch.indices.tolist()]
    assert sorted(order) == list(range(len(encoded)))
    assert [encoded[index] for index in order] == sorted(encoded, key=len)
    for batch in found:
        assert batch.lengths.tolist() == [len(encoded[index]) for index in batch.indices]
        assert len(batch.ids) == 1 or (len(batch.ids) <= 256 and batch.ids.numel() <= 32_768)
    assert len(found) == 5
    assert list(batches.small_batches([])) == []
