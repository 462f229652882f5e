"""Cross entropy three ways, what a logarithm after a softmax loses, and what labels in another order than the sentences cost."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

from sstkern.text import Batch, Examples, Vocabulary, collate
from sstkern.text.models import Classifier, ModelConfig
from sstkern.text.trainer import evaluate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GAPS = [number / 2 for number in range(257)]
TABLE = (0.0, 1.0, 10.0, 17.0, 18.0, 50.0, 90.0, 93.0, 103.0, 104.0, 120.0)

SUBSET = 20_000  # training phrases
BATCH_SIZE = 64

COLORS = {"log_of_softmax": "#D55E00", "log_softmax": "#0072B2"}  # of Okabe and Ito: colour-blind readers tell them apart
STYLES = {"log_of_softmax": ("-", "log(softmax(x))"), "log_softmax": ("--", "log_softmax(x)")}
FLOOR = 1e-9  # of the plot


def cross_entropy_is_nll(seed: int = 0) -> dict:
    """Cross entropy is the negative log-likelihood of the log-softmax: the same number on random logits, in float64.

    Args:
        seed: decides 64 rows of 5 logits, normal with a standard deviation of 3, and their labels.

    Returns:
        `cross_entropy`; `nll_of_log_softmax`; `by_hand`, minus the mean logarithm of the softmax's probability of the label, from its
        definition (nats per row); and `largest_difference` between any two of them.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(64, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (64,), generator=generator)
    powers = logits.exp()
    probabilities = powers / powers.sum(1, keepdim=True)
    values = {
        "cross_entropy": cross_entropy(logits, labels).item(),
        "nll_of_log_softmax": nll_loss(log_softmax(logits, 1), labels).item(),
        "by_hand": -probabilities[torch.arange(64), labels].log().mean().item(),
    }
    return values | {"largest_difference": max(values.values()) - min(values.values())}


def log_after_softmax() -> dict:
    """log(softmax(x)) beside log_softmax(x), of a class whose logit is `gap` below the largest: a model that is sure, and wrong.

    The logits are 0 for the first class and -gap for all others; the second class counts. Its probability p is about exp(-gap). First
    the logarithm's derivative 1 / p overflows, and times p, in the softmax's derivative, it is not a number: one such sentence spoils
    every weight. Then p is subnormal, with few bits left, and in the end 0, and its logarithm minus infinity. log_softmax subtracts
    the logsumexp from the logit and never holds p. The gaps are 0, 0.5, ..., 128, exact in all of the dtypes; "exact" is
    float64's log_softmax.

    Returns:
        `gap`: those tried. `dtypes`: for float32, bfloat16 and float16, and in it for 2 and 10 classes (keys "2" and "10"), for
        `log_of_softmax` and `log_softmax`:

        - `error`: the relative error per gap, None where infinite;
        - `first_infinite`: the first gap with the value minus infinity;
        - `first_inexact`: the first gap with a relative error above 1%;
        - `first_bad_gradient`: the first gap with a derivative, of the value with respect to its own logit, that is off by more
          than 1% or not a number, and `bad_gradient`, that derivative as a string.

        These are None where there is no such gap. `table`: for a few gaps and two classes, `gap`, `exact` and, under each dtype,
        the two values, as strings.
    """
    dtypes = {
        name: {str(classes): {way: _survey(function, classes, dtype) for way, function in WAYS.items()} for classes in (2, 10)}
        for name, dtype in DTYPES.items()
    }
    return {"gap": GAPS, "dtypes": dtypes, "table": [_row(gap) for gap in TABLE]}


def _log_of_softmax(logits: Tensor) -> Tensor:
    return logits.softmax(0).log()


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(0)


WAYS = {"log_of_softmax": _log_of_softmax, "log_softmax": _log_softmax}


def _survey(function: Callable[[Tensor], Tensor], classes: int, dtype: torch.dtype) -> dict:
    values, gradients = zip(*(_at(gap, function, classes, dtype) for gap in GAPS), strict=True)
    exact, exact_gradients = zip(*(_at(gap, _log_softmax, classes, torch.float64) for gap in GAPS), strict=True)
    errors = [abs(value / true - 1) for value, true in zip(values, exact, strict=True)]
    # Not "> 0.01", which is false of what is not a number.
    bad = [not abs(value / true - 1) <= 0.01 for value, true in zip(gradients, exact_gradients, strict=True)]
    first = _first(bad)
    return {
        "error": [error if math.isfinite(error) else None for error in errors],
        "first_infinite": _first([math.isinf(value) for value in values]),
        "first_inexact": _first([error > 0.01 for error in errors]),
        "first_bad_gradient": first,
        "bad_gradient": None if first is None else str(gradients[GAPS.index(first)]),
    }


def _at(gap: float, function: Callable[[Tensor], Tensor], classes: int, dtype: torch.dtype) -> tuple[float, float]:
    """The second class's value, and its derivative with respect to its logit."""
    logits = torch.full((classes,), -gap, dtype=dtype)
    logits[0] = 0
    value = function(logits.requires_grad_())[1]
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient[1].item()


def _first(holds: Sequence[bool]) -> float | None:
    """The first gap for which it holds."""
    return next((gap for gap, it in zip(GAPS, holds, strict=True) if it), None)


def _row(gap: float) -> dict:
    def value(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> str:
        return f"{_at(gap, function, 2, dtype)[0]:.7g}"

    row = {name: {way: value(function, dtype) for way, function in WAYS.items()} for name, dtype in DTYPES.items()}
    return {"gap": gap, "exact": value(_log_softmax, torch.float64)} | row


def plot_log_after_softmax(result: dict, target: Path) -> None:
    """Draw the relative errors for two classes that `log_after_softmax` returned, a panel a dtype, to a PNG file."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    panels = figure.subplots(len(result["dtypes"]), 1, sharex=True, sharey=True)
    for axes, (name, classes) in zip(panels, result["dtypes"].items(), strict=True):
        for way, (line, label) in STYLES.items():
            # A logarithmic axis has no place for 0: what is smaller than the floor is drawn there.
            errors = [math.nan if error is None else max(error, FLOOR) for error in classes["2"][way]["error"]]
            axes.plot(result["gap"], errors, line, color=COLORS[way], label=label)
        broken = classes["2"]["log_of_softmax"]
        end = result["gap"][-1]
        axes.axvspan(broken["first_bad_gradient"], end, color="0.9", label="log(softmax(x)): gradient not a number")
        axes.axvspan(broken["first_infinite"], end, color="0.7", label="log(softmax(x)): value minus infinity")
        axes.set_title(
            f"{name}: gradient not a number from {broken['first_bad_gradient']:g}, value infinite from {broken['first_infinite']:g}"
        )
        axes.set_ylabel("relative error")
        axes.set_yscale("log")
        axes.set_ylim(FLOOR / 3, 0.3)
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    panels[-1].set_xlabel("gap between the largest logit and the label's")
    figure.suptitle("Log-probability of the improbable one of two classes (errors below $10^{-9}$ drawn there)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(target, dpi=120)


def label_order(train: Examples, valid: Examples, seed: int = 0) -> dict:
    """Train on batches sorted by length, once with the labels moved along and once with the labels left in their old order.

    A packed sequence wanted its sentences sorted by length. Sort the sentences of a batch and forget their labels, and almost every
    sentence gets the label of another: nothing raises, and the loss stays near the entropy of the labels. The
    classifier is the mean of 64-dimensional word vectors, trained for an epoch of Adam on 20,000 phrases in batches of 64.

    Args:
        train: at most 20,000 of them are used, at random.
        valid: what the accuracy is measured on.
        seed: decides phrases, weights and batches; both runs have the same.

    Returns:
        `labels_moved` and `labels_left_behind`, each with validation `accuracy` and `loss` (nats per sentence) and `labels_right`, the
        share of training sentences that had their own label's class; `majority`, the share of `valid`'s largest class; `sentences`
        trained on.
    """
    chosen = random.Random(seed).sample(range(len(train)), min(SUBSET, len(train)))
    vocabulary = Vocabulary.build(train.sentences[i] for i in chosen)
    encoded, labels = [vocabulary.encode(train.sentences[i]) for i in chosen], [train.labels[i] for i in chosen]
    validation = [vocabulary.encode(sentence) for sentence in valid.sentences], valid.labels
    result = {}
    for name, moved in (("labels_moved", True), ("labels_left_behind", False)):
        torch.manual_seed(seed)
        model = Classifier(len(vocabulary), train.num_classes, ModelConfig("average", embedding_size=64, dropout=0.0))
        right = _train(model, _sorted_batches(encoded, labels, moved), labels)
        measured = evaluate(model, *validation)
        result[name] = {"accuracy": measured.accuracy, "loss": measured.loss, "labels_right": right}
    majority = max(Counter(valid.labels).values()) / len(valid)
    return result | {"majority": majority, "sentences": len(chosen)}


def _sorted_batches(encoded: list[list[int]], labels: list[int], moved: bool) -> Iterator[Batch]:
    """One epoch of batches, each from its shortest sentence to its longest; what is encoded comes in random order already."""
    for begin in range(0, len(encoded), BATCH_SIZE):
        indices = range(begin, min(begin + BATCH_SIZE, len(encoded)))
        batch = collate(encoded, labels, sorted(indices, key=lambda index: len(encoded[index])))
        yield batch if moved else batch._replace(labels=collate(encoded, labels, indices).labels)


def _train(model: Classifier, batches: Iterator[Batch], labels: list[int]) -> float:
    """One pass over the batches; the share of sentences that came with the class that is theirs."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    own = torch.tensor(labels)
    right = 0
    for ids, lengths, given, indices in batches:
        optimizer.zero_grad()
        cross_entropy(model(ids, lengths), given).backward()
        optimizer.step()
        right += int((given == own[indices]).sum())
    return right / len(labels)
