"""Every cell of the zoo, as its author wrote it, is a layer: the numbers and gradients of its own Python loop, run as a program."""

import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torchrecurrent
from each_alone import assert_is_the_loop, gradients_of, loop, wanted
from layers import assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from zoo import ASKED_FOR_STATES, RECURRENT, ZOO, Entry

import sstkern
from sstkern.structure import flatten, mapped

FUSED = [name for name, entry in ZOO.items() if entry.unfused is None]
UNFUSED = [name for name, entry in ZOO.items() if entry.unfused is not None]
LENGTHS = [4, 0, 2]


@contextmanager
def warning_of(entry: Entry) -> Iterator[None]:
    """The one warning of a cell that is no program; none of the others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [entry.unfused in str(warning.message) for warning in caught] == ([] if entry.unfused is None else [True])


def test_the_package_is_there_with_all_its_cells():
    assert len(RECURRENT) == 41


def test_the_exceptions():
    """What is no program. None of them is from torchrecurrent."""
    assert UNFUSED == ["Sorted", "FastWeights", "Spiking", "Adversarial", "ClippedGradients"]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", ZOO)
def test_a_layer_has_the_numbers_and_gradients_of_its_cells_loop(name: str, reverse: bool):
    torch.manual_seed(0)
    entry = ZOO[name]
    layer = sstkern.fuse(entry.cell(), reverse=reverse)
    with warning_of(entry):
        assert_is_the_loop(layer, *entry.drawn(4, 3), LENGTHS, reverse, entry.returns, every=name in ASKED_FOR_STATES)
    assert layer.fused == (entry.unfused is None), layer.reason
    assert (layer.reason is None) == layer.fused


@pytest.mark.parametrize("name", UNFUSED)
def test_strict_raises_where_a_cell_is_no_program(name: str):
    entry = ZOO[name]
    layer = sstkern.fuse(entry.cell(), strict=True)
    with pytest.raises(Exception, match=re.escape(entry.unfused)):
        layer(*entry.drawn(2, 3))


@pytest.mark.parametrize("name", FUSED)
def test_packed(name: str):
    torch.manual_seed(0)
    entry, lengths = ZOO[name], [2, 4, 1]
    cell, (x, hx) = entry.cell(), entry.drawn(4, 3)

    def packed(x: Tensor) -> PackedSequence:
        return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)

    every = name in ASKED_FOR_STATES
    output, hx_n, *states = sstkern.fuse(cell, strict=True)(mapped(x, packed), hx, return_states=every)
    expected, hx_n_expected, states_expected = loop(cell, x, hx, lengths, returns=entry.returns)
    found = [output.data, *flatten(hx_n), *(leaf.data for all_steps in states for leaf in leaves_of(all_steps, hx))]
    expected = [packed(expected).data, *flatten(hx_n_expected), *(packed(leaf).data for leaf in flatten(states_expected) if every)]
    assert_close(found, expected, 1e-10)
    tensors = wanted(cell, x, hx)
    assert_close(gradients_of(found, tensors), gradients_of(expected, tensors), 1e-10)


def leaves_of(states: PackedSequence | tuple | list, hx: Tensor | tuple | list) -> list[PackedSequence]:
    """A PackedSequence is a tuple too: `hx` tells where the leaves are."""
    if isinstance(hx, Tensor):
        return [states]
    return [leaf for part, below in zip(states, hx, strict=True) for leaf in leaves_of(part, below)]


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.has_default])
def test_without_a_state_a_layer_starts_as_its_cell_does(name: str):
    torch.manual_seed(0)
    entry = ZOO[name]
    cell, (x, _) = entry.cell(), entry.drawn(4, 3)
    output, hx_n = sstkern.fuse(cell, returns=entry.returns, strict=True)(x)
    result = cell(x[0])
    first, state = result if entry.returns == "output_and_state" else (flatten(result)[0], result)
    rest, expected, _ = loop(cell, x[1:], state, [3, 3, 3], returns=entry.returns)
    assert_close([output, *flatten(hx_n)], [torch.cat([first[None], rest]), *flatten(expected)], 1e-10)
    tensors = wanted(cell, x, ())
    found = gradients_of([output, *flatten(hx_n)], tensors)
    assert_close(found, gradients_of([torch.cat([first[None], rest]), *flatten(expected)], tensors), 1e-10)


@pytest.mark.parametrize("name", RECURRENT)
def test_without_biases(name: str):
    """Their biases are then buffers of zeros."""
    torch.manual_seed(0)
    entry, cell_class = ZOO[name], getattr(torchrecurrent, name)
    options = {"bias", "recurrent_bias"} & set(inspect.signature(cell_class).parameters)
    cell = cell_class(*entry.sizes, **dict.fromkeys(options, False)).double()
    assert_is_the_loop(sstkern.fuse(cell, strict=True), *entry.drawn(2, 2), [2, 1], returns=entry.returns)


def test_a_state_may_be_what_a_layer_returned():
    """In two calls what one gives in one."""
    torch.manual_seed(0)
    for name in ("TwoLayers", "SLSTM", "KerasLSTM", "NamedStates"):
        entry = ZOO[name]
        layer, (x, hx) = sstkern.fuse(entry.cell(), strict=True), entry.drawn(5, 3)
        whole, at_end = layer(x, hx)
        first, between = layer(x[:2], hx)
        second, last = layer(x[2:], between)
        assert_close([torch.cat([first, second]), *flatten(last)], [whole, *flatten(at_end)], 1e-12)
        assert type(last) is type(hx)


def test_both_directions():
    torch.manual_seed(0)
    entry = ZOO["NamedStates"]
    cells: list[nn.Module] = [entry.cell(), entry.cell()]
    x, hx = entry.drawn(4, 3)
    both = (hx, mapped(hx, lambda h: h.detach() * 0.5))
    output, hx_n, states = sstkern.fuse(*cells, strict=True)(x, both, lengths=LENGTHS, return_states=True)
    one, other = (loop(cell, x, h, LENGTHS, reverse) for cell, h, reverse in zip(cells, both, (False, True), strict=True))
    expected = [torch.cat([one[0], other[0]], -1), *flatten((one[1], other[1])), *flatten((one[2], other[2]))]
    found = [output, *flatten(hx_n), *flatten(states)]
    assert_close(found, expected, 1e-10)
    tensors = [*wanted(cells[0], x, hx), *cells[1].parameters()]
    assert_close(gradients_of(found, tensors), gradients_of(expected, tensors), 1e-10)
