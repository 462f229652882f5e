"""Gradients through time: exploding ones and what clipping does about them, and vanishing ones in RNN, GRU and LSTM."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, get_total_norm

from sstkern import RNN, engines
from sstkern.text import Batch, Batches, Examples, Vocabulary
from sstkern.text.models import Classifier, ModelConfig

SPECTRAL_RADIUS = 1.05
CONTROL_RADIUS = 0.9
LEARNING_RATE = 0.01
MOMENTUM = 0.9
MAX_NORM = 1.0
BATCH_SIZE = 128
SHORTEST = 20  # tokens: the longer the sentence, the more factors in the product that explodes
LAST = 50  # batches that the final numbers are means over

COLORS = {"rnn": "#0072B2", "gru": "#E69F00", "lstm": "#009E73"}  # of Okabe and Ito, which colour-blind readers tell apart
MARKERS = {"rnn": "o", "gru": "s", "lstm": "^"}
UNCLIPPED, CLIPPED, CONTROL = "#D55E00", "#0072B2", "#009E73"


def exploding(train: Examples, steps: int = 150, seed: int = 0) -> dict:
    """Train one network on the same batches without and with clipping of the gradient's norm (Pascanu et al. 2013).

    The network is the IRNN of Le et al. (2015), relu and an identity as its recurrent matrix, with that matrix times 1.05: every
    eigenvalue, and so the spectral radius, is above 1, and relu does not shrink what it lets through as tanh does. A step back in
    time multiplies a gradient by up to 1.05 at first, and by more as training moves the matrix. The last state is classified, so the
    gradient of the first words has come through all steps.

    The optimizer is SGD with momentum, whose step grows with the gradient. Adam's does not, as it divides by a running norm of the
    gradient, and would hide the explosion. That the step is not simply too long shows a control: with the same settings, no clipping
    and a spectral radius of 0.9 the network trains.

    Args:
        train: sentences with their classes; those of at least 20 tokens are used, in batches of 128, epoch after epoch.
        steps: batches to train on.
        seed: decides weights and batches.

    Returns:
        The settings, `chance_loss` (nats, the logarithm of the number of classes), and under `runs` for `unclipped`, `clipped` and
        `control` its `spectral_radius`; a number per step: `loss` (nats per sentence), `norm_before` and `norm_after` (the 2-norm of
        all gradients, before and after clipping, which are equal without it), None where it is not finite; `last_loss` and
        `last_accuracy`, means over the last 50 batches, each before its step but, from the second epoch on, on sentences trained on
        before; and `first_not_finite`, the first step (from 0) whose loss is not finite, None if there is none.

    Raises:
        ValueError: no sentence has 20 tokens.
    """
    long = [(sentence, label) for sentence, label in zip(train.sentences, train.labels, strict=True) if len(sentence.split()) >= SHORTEST]
    if not long:
        raise ValueError(f"train has no sentence of at least {SHORTEST} tokens")
    vocabulary = Vocabulary.build(sentence for sentence, _ in long)
    batches = Batches([vocabulary.encode(sentence) for sentence, _ in long], [label for _, label in long], BATCH_SIZE, seed)
    runs = {}
    for name, radius, max_norm in (
        ("unclipped", SPECTRAL_RADIUS, None),
        ("clipped", SPECTRAL_RADIUS, MAX_NORM),
        ("control", CONTROL_RADIUS, None),
    ):
        torch.manual_seed(seed)
        trained = _train(_irnn(len(vocabulary), train.num_classes, radius), islice(_endless(batches), steps), max_norm)
        runs[name] = {"spectral_radius": radius} | trained
    return {
        "spectral_radius": SPECTRAL_RADIUS,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "max_norm": MAX_NORM,
        "batch_size": BATCH_SIZE,
        "shortest": SHORTEST,
        "sentences": len(long),
        "steps": steps,
        "seed": seed,
        "chance_loss": math.log(train.num_classes),
        "runs": runs,
    }


def _irnn(vocabulary_size: int, classes: int, spectral_radius: float) -> Classifier:
    config = ModelConfig("rnn", hidden_size=128, embedding_size=128, dropout=0.0, pooling="last")
    model = Classifier(vocabulary_size, classes, config, {"rnn": partial(RNN, nonlinearity="relu")})
    with torch.no_grad():
        nn.init.eye_(model.encoder.weight_hh_l0).mul_(spectral_radius)
    return model


def _endless(batches: Batches) -> Iterator[Batch]:
    return (batch for epoch in count() for batch in batches.epoch(epoch))


def _train(model: Classifier, batches: Iterator[Batch], max_norm: float | None) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    losses, accuracies, before, after = [], [], [], []
    for ids, lengths, labels, _ in batches:
        optimizer.zero_grad()
        logits = model(ids, lengths)
        loss = cross_entropy(logits, labels)
        loss.backward()
        before.append(_gradient_norm(model))
        if max_norm is not None:
            clip_grad_norm_(model.parameters(), max_norm)
        after.append(_gradient_norm(model))
        optimizer.step()
        losses.append(loss.item())
        accuracies.append((logits.argmax(1) == labels).double().mean().item())
    return {
        "loss": [_finite(loss) for loss in losses],
        "norm_before": [_finite(norm) for norm in before],
        "norm_after": [_finite(norm) for norm in after],
        "last_loss": _finite(_mean(losses[-LAST:])),
        "last_accuracy": _mean(accuracies[-LAST:]),
        "first_not_finite": next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None),
    }


def _gradient_norm(model: Classifier) -> float:
    return get_total_norm(parameter.grad for parameter in model.parameters()).item()


def _finite(number: float) -> float | None:
    """The number, or None for one that JSON cannot write."""
    return number if math.isfinite(number) else None


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def plot_exploding(result: dict, target: Path) -> None:
    """Draw what `exploding` returned, norms above and losses below, to a PNG file."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    norms, losses = figure.subplots(2, 1, sharex=True)
    unclipped, clipped, control = (result["runs"][name] for name in ("unclipped", "clipped", "control"))
    radius = f"radius {unclipped['spectral_radius']:g}"
    for axes, name in ((norms, "norm_after"), (losses, "loss")):
        _draw(axes, unclipped[name], color=UNCLIPPED, label=f"{radius}, not clipped")
        _draw(axes, clipped[name], color=CLIPPED, label=f"{radius}, clipped")
        _draw(axes, control[name], color=CONTROL, linestyle="--", label=f"radius {control['spectral_radius']:g}, not clipped")
    _draw(norms, clipped["norm_before"], color=CLIPPED, linestyle=":", label=f"{radius}, before it is clipped")
    losses.axhline(result["chance_loss"], color="black", linewidth=1, linestyle=":", label=f"chance, {result['chance_loss']:.2f}")
    norms.set_title(f"IRNN by spectral radius of its recurrent matrix; SGD, norm clipped at {result['max_norm']:g}")
    norms.set_ylabel("norm of the gradient")
    losses.set_ylabel("loss (nats per sentence)")
    losses.set_xlabel("training step (batch)")
    for axes in (norms, losses):
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    # What explodes leaves the frame, so that one sees the others fall below chance.
    losses.set_ylim(0.3, 30)
    if (step := unclipped["first_not_finite"]) is not None:
        losses.axvline(step, color=UNCLIPPED, linewidth=1, linestyle=":")
        losses.text(step + 1, 0.9, "no longer finite", color=UNCLIPPED, transform=losses.get_xaxis_transform())
    figure.savefig(target, dpi=120)


def _draw(axes: Axes, numbers: list[float | None], **style: str) -> None:
    axes.plot([math.nan if number is None else number for number in numbers], **style)


def vanishing(layers: Mapping[str, nn.Module], inputs: Sequence[Tensor], distance: int = 30) -> dict:
    """How much of a gradient at the last step T is left d steps earlier: the spectral norm of the Jacobian dh_T / dh_{T-d}.

    It is measured through the fused kernels, in float64. The layer runs up to step T - d; then the state there, repeated in a row of
    a batch for each of the H hidden units, is the initial state for the last d steps. One backward with the identity as the gradient
    of the final state gives in row j the gradient of unit j: the Jacobian. Of several inputs the geometric mean is given.

    An LSTM has two states. dh_T / dh_t is the derivative with c_t held fixed and dc_T / dc_t that with h_t held fixed. As
    c_k = f_k * c_{k-1} + i_k * g_k, the direct path from c_t to c_T, on which no h changes, has the derivative
    diag(prod_{k=t+1..T} f_k): the constant error carousel of Hochreiter and Schmidhuber (1997), with forget gates. The full
    dc_T / dc_t also has the paths c_k -> h_k -> gates -> c_{k+1}, and can be larger or smaller. The gates' product is recomputed
    in plain PyTorch from the weights and the same hidden states; the largest over the units is the diagonal's spectral norm.

    Args:
        layers: names (rnn, gru, lstm for `plot_vanishing`) to recurrent layers of sstkern on the CPU, each of one layer and one
            direction, without a projection.
        inputs: embedded sentences, (T, I) each, T at least `distance`.
        distance: the largest d.

    Returns:
        `distance`: 0 to `distance`; `sentences`; `fused_backwards`: backwards that the C++ engine ran; `cells`: for each name `dh`
        and, of an LSTM, `dc`, `forget_max` and `forget_mean` (over units), a number per d.

    Raises:
        ValueError: there is no input, one is shorter than `distance`, or a layer is of another kind.
        RuntimeError: the C++ engine cannot run here.
    """
    if not inputs:
        raise ValueError("inputs: there is none")
    if (shortest := min(map(len, inputs))) < distance:
        raise ValueError(f"inputs: the shortest has {shortest} steps, expected at least {distance}")
    for name, layer in layers.items():
        if layer.num_layers != 1 or layer.bidirectional or layer.proj_size:
            raise ValueError(f"layers: {name} has several layers or directions or a projection, expected one layer and direction")
    with engines.backend("cpu"):
        ran = engines.cpu_runs()["backward"]
        cells = {name: _average([_decay(_doubled(layer), x.detach().double(), distance) for x in inputs]) for name, layer in layers.items()}
        ran = engines.cpu_runs()["backward"] - ran
    return {"distance": list(range(distance + 1)), "sentences": len(inputs), "fused_backwards": ran, "cells": cells}


def _doubled(layer: nn.Module) -> nn.Module:
    """A copy in float64, time first, without gradients of its own."""
    double = copy.deepcopy(layer).double().requires_grad_(False)
    double.batch_first = False
    return double


def _average(measured: list[dict[str, Tensor]]) -> dict[str, list[float]]:
    """The geometric mean over the sentences, by name."""
    return {name: torch.stack([each[name] for each in measured]).log().mean(0).exp().tolist() for name in measured[0]}


def _decay(layer: nn.Module, x: Tensor, distance: int) -> dict[str, Tensor]:
    """The norms (distance + 1,) for one sentence x (T, I)."""
    states = _states(layer, x)
    names = ("dh", "dc")[: len(states[0])]
    # At distance 0 the Jacobian is the identity.
    norms = {name: [1.0] for name in names}
    for d in range(1, distance + 1):
        for place, name in enumerate(names):
            norms[name].append(torch.linalg.matrix_norm(_jacobian(layer, x[-d:], states[-1 - d], place), 2).item())
    decay = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in norms.items()}
    if len(names) == 2:
        direct = _forget_products(layer, x, states, distance)
        decay |= {"forget_max": direct.amax(1), "forget_mean": direct.mean(1)}
    return decay


def _states(layer: nn.Module, x: Tensor) -> list[tuple[Tensor, ...]]:
    """The states (H,) after 0, 1, ..., T steps: h, and an LSTM's c."""
    hidden = x.new_zeros(1, layer.hidden_size)
    state = (hidden, hidden) if layer.mode == "LSTM" else (hidden,)
    states = [state]
    for step in x:
        states.append(_run(layer, step[None], states[-1]))
    return [tuple(each[0] for each in state) for state in states]


def _run(layer: nn.Module, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The final state after x, from a state; both with a leading dimension of 1 for the layer."""
    _, final = layer(x, state if len(state) == 2 else state[0])
    return final if len(state) == 2 else (final,)


def _jacobian(layer: nn.Module, x: Tensor, state: tuple[Tensor, ...], place: int) -> Tensor:
    """The derivative (H, H) of the state's entry `place` after x (d, I) with respect to that before, the other held fixed."""
    rows = layer.hidden_size
    start = tuple(each.repeat(1, rows, 1) for each in state)
    start[place].requires_grad_()
    final = _run(layer, x[:, None].expand(-1, rows, -1), start)
    (gradient,) = torch.autograd.grad(final[place], start[place], torch.eye(rows, dtype=x.dtype)[None])
    return gradient[0]


def _forget_products(layer: nn.Module, x: Tensor, states: list[tuple[Tensor, ...]], distance: int) -> Tensor:
    """The products (distance + 1, H) of the forget gates over the last 0, 1, ..., distance steps."""
    hidden = torch.stack([state[0] for state in states[:-1]])
    gates = x @ layer.weight_ih_l0.T + hidden @ layer.weight_hh_l0.T
    if layer.bias:
        gates = gates + layer.bias_ih_l0 + layer.bias_hh_l0
    forget = gates.chunk(4, dim=1)[1].sigmoid().flip(0)[:distance]
    return torch.cat([torch.ones_like(forget[:1]), forget.cumprod(0)])


def plot_vanishing(initial: dict, trained: dict, target: Path) -> None:
    """Draw what `vanishing` returned for layers at initialisation and after training to a PNG file."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, result, title in zip(panels, (initial, trained), ("at initialisation", "after training"), strict=True):
        for name, norms in result["cells"].items():
            style = {"color": COLORS[name], "marker": MARKERS[name], "markersize": 5, "markevery": 5}
            axes.plot(result["distance"], norms["dh"], **style, label=rf"{name.upper()}: $\partial h_T / \partial h_t$")
            if "dc" in norms:
                axes.plot(
                    result["distance"],
                    norms["dc"],
                    "--",
                    **style,
                    markerfacecolor="white",
                    label=rf"{name.upper()}: $\partial c_T / \partial c_t$",
                )
                axes.plot(result["distance"], norms["forget_max"], ":", color="black", label="product of forget gates, largest unit")
                axes.plot(result["distance"], norms["forget_mean"], "-.", color="#999999", label="product of forget gates, mean")
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("T - t (steps)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("spectral norm of the Jacobian")
    figure.suptitle("How much of the last state's gradient is left T - t steps earlier")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(target, dpi=120)
