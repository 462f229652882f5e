"""Memory that is not there: what is told, before a model is made and after an allocation failed."""

import pytest
import torch

from sstkern.text import memory
from sstkern.text.memory import check_memory, count_numbers, is_out_of_memory, telling_out_of_memory, total_memory
from sstkern.text.models import Classifier, ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig("gru", hidden_size=10, embedding_size=20)
# GRU: 3 * 10 * (20 + 10 + 2); embedding: 1,000 * 20; linear: 2 * 10 + 2. Four bytes, five times.
NEEDED = 20 * (960 + 20_000 + 22)


def test_a_model_that_fits_is_not_refused(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda _: NEEDED)
    check_memory(1000, 2, CONFIG, 1000, CPU)
    monkeypatch.setattr(memory, "total_memory", lambda _: NEEDED - 1)
    with pytest.raises(MemoryError):
        check_memory(1000, 2, CONFIG, 1000, CPU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ModelConfig(hidden_size=10**6, embedding_size=128),
            "a model of hidden_size 1,000,000, layers 1, embedding_size 128, 50 tokens and affixes, 2 classes needs 74,515.5 GiB "
            "to be trained, and cpu has 1.0 GiB: try a smaller --hidden-size",
        ),
        (ModelConfig("average", embedding_size=10**8), "a smaller --embedding-size, or a larger --min-count"),
        (ModelConfig(embedding_size=10**9), "try a smaller --embedding-size, or a larger --min-count"),
        (ModelConfig(layers=10**6, embedding_size=128), "GiB: try a smaller --layers"),
        (ModelConfig(embedding_size=10**30), "classes: try a smaller --embedding-size"),
        (ModelConfig(hidden_size=10**15, embedding_size=1), "no memory holds a model of hidden_size 1,000,000,000,000,000"),
        (ModelConfig(hidden_size=10**30, embedding_size=1), "no memory holds a model of"),
    ],
)
def test_a_model_that_does_not_fit_is_told_with_its_sizes_and_what_makes_it_smaller(monkeypatch, config, message):
    monkeypatch.setattr(memory, "total_memory", lambda _: 2**30)
    with pytest.raises(MemoryError) as error:
        check_memory(50, 2, config, 50, CPU)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("vectors_size", [0, 5])
@pytest.mark.parametrize("pooling", ["last", "attention"])
@pytest.mark.parametrize(("cell", "layers", "both"), [("average", 1, False), ("rnn", 1, True), ("gru", 3, False), ("lstm", 4, True)])
def test_the_numbers_are_those_of_the_model(cell, layers, both, pooling, vectors_size, frozen):
    config = ModelConfig(cell, layers, 3, 7, both, pooling=pooling, frozen=frozen, affixes=True, vectors_size=vectors_size)
    model = Classifier(50, 3, config, tokens=20)
    trained = sum(parameter.numel() for parameter in model.trainable().values())
    assert count_numbers(50, 3, config, 20) == (trained, sum(parameter.numel() for parameter in model.parameters()) - trained)


def test_frozen_vectors_are_there_once(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda _: 20 * (960 + 22) + 4 * 20_000)
    check_memory(1000, 2, ModelConfig("gru", hidden_size=10, embedding_size=20, frozen=True), 1000, CPU)


@pytest.mark.parametrize(("limit", "there"), [("max\n", None), ("1048576\n", 2**20), ("9999999999999999\n", None), (None, None)])
def test_a_container_has_less(tmp_path, monkeypatch, limit, there):
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "none")
    machine = total_memory(CPU)
    assert machine > 2**20
    if limit is not None:
        monkeypatch.setattr(memory, "LIMIT", tmp_path / "memory.max")
        (tmp_path / "memory.max").write_text(limit)
    assert total_memory(CPU) == (there or machine)


def test_a_failed_allocation_is_told_and_nothing_else():
    with pytest.raises(MemoryError, match=r"^out of memory: try less$") as error, telling_out_of_memory("try less"):
        torch.empty(2**60 - 1, dtype=torch.uint8)
    assert is_out_of_memory(error.value.__cause__)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), telling_out_of_memory("try less"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
