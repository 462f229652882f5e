"""The classifiers."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

import sstkern
from sstkern.text.models import AffixEmbedding, Cell, Classifier, ModelConfig, Pooling

CONFIGS = [ModelConfig("average", embedding_size=6, dropout=0.0)] + [
    ModelConfig(cell, 2, 5, 6, bidirectional, 0.0, pooling)
    for cell, bidirectional in (("lstm", True), ("gru", False), ("rnn", True))
    for pooling in get_args(Pooling)
]
LENGTHS = torch.tensor([3, 0, 5, 1])


def name(config: ModelConfig) -> str:
    return f"{config.cell}-{config.pooling}"


def make(config: ModelConfig, **arguments) -> Classifier:
    torch.manual_seed(0)
    return Classifier(20, 3, config, **arguments).double()


def some_ids(padding: int, steps: int = 5) -> torch.Tensor:
    ids = torch.randint(2, 20, (4, 5), generator=torch.Generator().manual_seed(1))
    ids = nn.functional.pad(ids, (0, steps - 5))
    return ids.where(torch.arange(steps) < LENGTHS[:, None], padding)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize(("padding", "steps"), [(7, 5), (0, 9), (7, 9)])
def test_padding_changes_neither_logits_nor_gradients(config, padding, steps):
    model = make(config)
    results = []
    for ids in (some_ids(0), some_ids(padding, steps)):
        model.zero_grad()
        logits = model(ids, LENGTHS)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad.clone() for parameter in model.parameters())])
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain)


@pytest.mark.parametrize("affixes", [False, True])
@pytest.mark.parametrize("config", [replace(config, hidden_size=37) for config in CONFIGS], ids=name)
def test_a_sentence_alone_has_the_same_bits_in_any_company(config, affixes):
    model = make(replace(config, affixes=affixes)).float().eval()
    lengths = torch.randint(0, 30, (60,), generator=torch.Generator().manual_seed(2))
    ids = torch.randint(2, 20, (60, 30, 3) if affixes else (60, 30), generator=torch.Generator().manual_seed(1))
    together = model.alone(ids, lengths)
    torch.testing.assert_close(together, model(ids, lengths))
    for b, length in enumerate(lengths.tolist()):
        assert torch.equal(model.alone(ids[b : b + 1, : max(1, length)], lengths[b : b + 1]), together[b : b + 1])


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_a_sentence_of_length_0_has_the_sentence_vector_0_and_finite_gradients(config):
    model = make(config)
    logits = model(some_ids(0), LENGTHS)
    logits.sum().backward()
    torch.testing.assert_close(logits[1], model.linear.bias)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_pooling_is_that_of_each_sentence_alone(config):
    model = make(config)
    ids = some_ids(0)
    for row in (0, 2, 3):
        embedded = model.embedding(ids[row, : LENGTHS[row]])
        if config.cell == "average":
            vector = embedded.mean(0)
        else:
            steps, final = model.encoder(embedded)
            final = final[0] if config.cell == "lstm" else final
            vector = {
                "last": lambda final=final: torch.cat((final[-2], final[-1]) if config.bidirectional else (final[-1],)),
                "mean": lambda steps=steps: steps.mean(0),
                "max": lambda steps=steps: steps.max(0).values,
                "attention": lambda steps=steps: model.attention(steps).softmax(0).T[0] @ steps,
            }[config.pooling]()
        torch.testing.assert_close(model(ids, LENGTHS)[row], model.linear(vector))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_encoder_is_ours_unless_another_is_given(cell):
    config = ModelConfig(cell, embedding_size=6, dropout=0.25, layers=2)
    ours = make(config)
    theirs = make(config, recurrent={cell: getattr(nn, cell.upper())})
    assert type(ours.encoder) is getattr(sstkern, cell.upper())
    assert type(theirs.encoder) is getattr(nn, cell.upper())
    assert ours.encoder.dropout == theirs.encoder.dropout == 0.25
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_no_recurrent_layer_of_torch_runs(monkeypatch, cell):
    model = make(ModelConfig(cell, embedding_size=4))
    for function in ("rnn_tanh", "rnn_relu", "gru", "lstm"):
        monkeypatch.setattr(torch._VF, function, None)
    model(some_ids(0), LENGTHS).sum().backward()
    with pytest.raises(TypeError, match="not callable"):
        torch.nn.LSTM(2, 2)(torch.zeros(1, 1, 2))


def test_dropout_is_on_in_training_only():
    model = make(ModelConfig("average", embedding_size=6, dropout=0.5))
    first, second = (model(some_ids(0), LENGTHS) for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(some_ids(0), LENGTHS), model(some_ids(0), LENGTHS))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("cell", "LSTM", ", ".join(get_args(Cell))),
        ("cell", ["lstm"], ", ".join(get_args(Cell))),
        ("pooling", "min", ", ".join(get_args(Pooling))),
        ("layers", 0, "at least 1"),
        ("layers", True, "at least 1"),
        ("hidden_size", 1.5, "at least 1"),
        ("embedding_size", -3, "at least 1"),
        ("embedding_size", 4.0, "at least 1, or None"),
        ("bidirectional", 1, "True or False"),
        ("frozen", None, "True or False"),
        ("dropout", 1.0, "from 0 to below 1"),
        ("dropout", float("nan"), "from 0 to below 1"),
        ("dropout", "0.5", "from 0 to below 1"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=f"^{field} must be .*{allowed}") as error:
        ModelConfig(**{field: value})
    assert repr(value) in str(error.value)


def test_frozen_word_vectors_are_not_trained():
    config = ModelConfig("average", embedding_size=6)
    assert list(make(config).trainable()) == ["embedding.weight", "linear.weight", "linear.bias"]
    model = make(replace(config, frozen=True))
    assert list(model.trainable()) == ["linear.weight", "linear.bias"]
    model(some_ids(0), LENGTHS).sum().backward()
    assert model.embedding.weight.grad is None


def test_the_id_0_is_a_token_like_any_other():
    model = make(ModelConfig("average", embedding_size=6, dropout=0.0))
    model(torch.tensor([[0, 5]]), torch.tensor([2])).sum().backward()
    assert model.embedding.weight.grad[0].equal(model.embedding.weight.grad[5])
    assert model.embedding.weight.grad[0].any()


def test_a_model_needs_the_size_of_its_word_vectors():
    with pytest.raises(ValueError, match="embedding_size is None, expected an integer"):
        make(ModelConfig())


def test_a_word_is_its_own_vector_and_its_affixes():
    embedding = AffixEmbedding(10, 3).eval()
    row = embedding.weight
    ids = torch.tensor([[[4, 7, 8, 0, 0], [0, 9, 0, 0, 0]], [[5, 0, 0, 0, 0], [0, 0, 0, 0, 0]]])
    expected = torch.stack([row[4] + (row[7] + row[8]) / 2**0.5, row[9], row[5], torch.zeros(3)]).view(2, 2, 3)
    torch.testing.assert_close(embedding(ids), expected)
    assert embedding(torch.zeros(2, 1, dtype=torch.int64)).eq(0).all()


def test_in_training_half_of_the_words_that_have_affixes_go_without_their_own_vector():
    torch.manual_seed(0)
    embedding = AffixEmbedding(10, 3).train()
    with_affix, without = (embedding(torch.tensor([[row] * 4000]))[0] for row in ([4, 7, 0], [4, 0, 0]))
    alone = (with_affix == embedding.weight[7]).all(-1)
    assert alone.double().mean() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(with_affix[~alone], (embedding.weight[4] + embedding.weight[7]).expand(int((~alone).sum()), 3))
    assert without.equal(embedding.weight[4].expand(4000, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_affixes_keep_the_dtype_of_the_weights(dtype):
    model = Classifier(10, 2, ModelConfig("average", embedding_size=4, affixes=True)).to(dtype)
    assert model(torch.tensor([[[3, 7, 8]]]), torch.tensor([1])).dtype == dtype


def test_a_batch_without_a_word_has_a_gradient_of_zeros():
    model = Classifier(10, 2, ModelConfig("average", embedding_size=4, affixes=True))
    model(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0, 0])).sum().backward()
    assert model.embedding.weight.grad.eq(0).all()
