import pytest
import torch
from torch import nn

from sstkern.text import Batch, Batches, Vocabulary, demo
from sstkern.text.demo import ADJECTIVES


def polarity(phrase: str) -> int:
    words = phrase.split()
    return ("not" in words) ^ any(word in ADJECTIVES[1] for word in words)


def split(sentence: str) -> tuple[str, str]:
    """What decides, and what gives way (nothing in a sentence without contrast)."""
    if " but " in sentence:
        yields, decides = sentence.split(" but ")
    elif sentence.startswith("although"):
        yields, decides = sentence.split(" , ")
    else:
        decides, _, yields = sentence.partition(" , although ")
    return decides, yields


def test_labels_follow_from_the_order_of_the_words():
    train, _ = demo(2000, 0)
    parts = [split(sentence) for sentence in train.sentences]
    assert [polarity(decides) for decides, _ in parts] == train.labels
    turned = [polarity(yields) != label for (_, yields), label in zip(parts, train.labels, strict=True) if yields]
    assert all(turned)
    assert len(turned) > 0.7 * len(train)


def test_sentences_are_distinct_and_labels_balanced():
    train, dev = demo(3000, 500, seed=3)
    assert (len(train), len(dev)) == (3000, 500)
    assert len({*train.sentences, *dev.sentences}) == 3500
    assert (sum(train.labels), sum(dev.labels)) == (1500, 250)


def test_the_seed_decides():
    assert demo(50, 10, seed=1) == demo(50, 10, seed=1)
    assert demo(50, 10, seed=1) != demo(50, 10, seed=2)


@pytest.mark.parametrize("sizes", [(-1, 10), (10, -1), (100_000, 1)])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match=f"train_size is {sizes[0]} and dev_size is {sizes[1]}, expected 0 or more"):
        demo(*sizes)


class Model(nn.Module):
    """Reads a sentence by the mean of its embeddings or by an LSTM."""

    def __init__(self, words: int, reads_order: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True) if reads_order else None
        self.linear = nn.Linear(32, 2)

    def forward(self, batch: Batch) -> torch.Tensor:
        embedded = self.embedding(batch.ids)
        if self.lstm:
            output, _ = self.lstm(embedded)
            return self.linear(output[torch.arange(len(output)), batch.lengths - 1])
        inside = torch.arange(embedded.shape[1]) < batch.lengths[:, None]
        return self.linear((embedded * inside[..., None]).sum(1) / batch.lengths[:, None])


@pytest.mark.parametrize(("reads_order", "lowest", "highest"), [(False, 0.4, 0.75), (True, 0.95, 1.0)])
def test_only_a_model_that_reads_the_order_learns_it(reads_order, lowest, highest):
    train, dev = demo()
    vocabulary = Vocabulary.build(train.sentences)
    batches = Batches([vocabulary.encode(sentence) for sentence in train.sentences], train.labels, batch_size=64)
    torch.manual_seed(0)
    model = Model(len(vocabulary), reads_order)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(6):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), batch.labels).backward()
            optimizer.step()
    encoded = [vocabulary.encode(sentence) for sentence in dev.sentences]
    (batch,) = Batches(encoded, dev.labels, batch_size=len(dev), shuffle=False).epoch(0)
    accuracy = (model(batch).argmax(1) == batch.labels).double().mean().item()
    assert lowest <= accuracy <= highest
