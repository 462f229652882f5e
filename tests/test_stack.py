import copy

import pytest
import torch
from plain_cells import MGU, Memory
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import sstkern
from sstkern.cells import MGUCell

X = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LENGTHS = [2, 4, 1]


def make(*, torchs: bool = False, **options) -> nn.Module:
    """Layers of each kind, each with the width that the one before it has."""
    torch.manual_seed(0)
    lstm = (nn if torchs else sstkern).LSTM(4, 6, 2, bidirectional=True)
    return sstkern.stack([sstkern.fuse(MGU(3, 4)), lstm, sstkern.fuse(MGU(12, 2), MGU(12, 5))], **options).double()


@pytest.mark.parametrize("given", [False, True])
def test_each_is_given_the_output_of_the_one_before(given):
    layer = make()
    first, second, third = layer.children()
    hx = [torch.randn(3, 4).double(), None, (torch.randn(3, 2).double(), torch.randn(3, 5).double())] if given else None
    output, hx_n = layer(X, hx, lengths=LENGTHS)
    a, h_a = first(X, hx and hx[0], lengths=LENGTHS)
    b, h_b = second(a, lengths=LENGTHS)
    c, h_c = third(b, hx and hx[2], lengths=LENGTHS)
    assert torch.equal(output, c)
    assert type(hx_n) is list
    torch.testing.assert_close(hx_n, [h_a, h_b, h_c], rtol=0, atol=0)


@pytest.mark.parametrize("form", ["packed", "nested", "batch_first", "torch's layer"])
def test_forms_of_input(form):
    layer, given = make(torchs=form == "torch's layer"), X
    lengths = None if form == "batch_first" else LENGTHS
    expected = make()(X, lengths=lengths)[0]
    if form == "batch_first":
        for part in layer.children():
            part.batch_first = True
        layer, given = sstkern.stack(list(layer.children())), X.transpose(0, 1)
        assert layer.batch_first
    elif form == "nested":
        given = torch.nested.nested_tensor([X[:length, b] for b, length in enumerate(LENGTHS)], layout=torch.jagged)
    else:
        given = nn.utils.rnn.pack_padded_sequence(X, torch.tensor(LENGTHS), enforce_sorted=False)
    output, _ = layer(given)
    if isinstance(output, PackedSequence):
        output = pad_packed_sequence(output)[0]
    elif form == "nested":
        output = torch.nested.to_padded_tensor(output, 0.0, (3, 4, 7)).transpose(0, 1)
    else:
        output = output.transpose(0, 1)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_states_are_a_list():
    torch.manual_seed(0)
    layer = sstkern.stack(
        [sstkern.fuse(Memory(), initial_state=lambda batch, like: (like.new_zeros(batch, 4), [like.new_zeros(batch, 4, 3)]))]
    )
    layer.add_module("1", sstkern.fuse(MGU(2, 5)))
    output, _, (of_memory, of_mgu) = layer((X.float(), X[..., 0].float()), lengths=LENGTHS, return_states=True)
    assert torch.equal(of_mgu, output)
    assert of_memory[1][0].shape == (4, 3, 4, 3)
    with pytest.raises(TypeError, match="return_states: layer 1, a LSTM, takes none"):
        make(torchs=True)(X, return_states=True)


def test_every_layer_begins_anew():
    layer = make()
    resets = torch.zeros(4, 3, dtype=torch.bool)
    resets[2] = True
    whole, alone = layer(X, resets=resets), layer(X[2:])
    torch.testing.assert_close(whole[0][2:], alone[0])
    torch.testing.assert_close(whole[1][0], alone[1][0])
    first = torch.randn(4, 1, 6, dtype=torch.float64)
    first[1::2] = 0  # the other direction comes from the end, with zeros
    rest = (None, (first, 2 * first), None)
    expected = layer(X[2:], [None, (first.repeat(1, 3, 1), 2 * first.repeat(1, 3, 1)), None])
    torch.testing.assert_close(layer(X, resets=resets, reset_to=rest)[0][2:], expected[0])
    with pytest.raises(ValueError, match="reset_to: expected one of each of 3 layers, got 1"):
        layer(X, resets=resets, reset_to=[None])


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_dropout_is_between_layers_in_training(form):
    layer = sstkern.stack([sstkern.fuse(MGU(3, 3)) for _ in range(2)], dropout=0.5).double()
    given = X if form == "padded" else nn.utils.rnn.pack_padded_sequence(X, torch.tensor([4, 4, 4]))
    first, second = layer.children()

    def output(layer, given):
        found = layer(given)[0]
        return found if form == "padded" else pad_packed_sequence(found)[0]

    middle = output(first, given)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(middle.flatten(0, 1), 0.5).unflatten(0, (4, 3))
    assert (dropped == 0).any()
    after = torch.get_rng_state()
    torch.manual_seed(1)
    torch.testing.assert_close(output(layer, given), second(dropped)[0])
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(output(layer.eval(), given), second(middle)[0])
    assert repr(layer).startswith("Stack(\n  dropout=0.5\n  (0): FusedMGU(")


def test_names_and_copies():
    layer = make()
    expected = ["0.x_f.weight", "1.weight_ih_l0", "2.forward_cell.x_f.weight", "2.backward_cell.x_f.weight"]
    assert set(expected) <= set(layer.state_dict())
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.get_submodule("0").x_f.weight.zero_()
    assert not torch.equal(other(X)[0], layer(X)[0])
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X)[0], layer(X)[0])


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "layers: expected a list of modules, got 3", lambda: sstkern.stack(3)),
        (TypeError, "layers: expected a list of modules", lambda: sstkern.stack([make(), None])),
        (ValueError, "layers: expected at least one, got none", lambda: sstkern.stack([])),
        (TypeError, r"layers\[1\]: GRUCell is a cell.*give sstkern.fuse", lambda: sstkern.stack([make(), torch.nn.GRUCell(4, 4)])),
        (TypeError, r"layers\[0\]: MGUCell is a cell", lambda: sstkern.stack([MGUCell(3, 4)])),
        (TypeError, "dropout: expected a number, got '0'", lambda: sstkern.stack([make()], dropout="0")),
        (ValueError, "dropout: expected a probability from 0 to 1, got 1.5", lambda: sstkern.stack([make()], 1.5)),
        (
            ValueError,
            "layers: expected batch_first of all of them or of none",
            lambda: sstkern.stack([sstkern.LSTM(3, 4, batch_first=True), sstkern.LSTM(4, 4)]),
        ),
        (TypeError, "hx: expected a list of each layer's, got Tensor", lambda: make()(X, X)),
        (ValueError, "hx: expected one of each of 3 layers, got 2", lambda: make()(X, [None, None])),
        (TypeError, "lengths: layer 1, a LSTM, takes none", lambda: make(torchs=True)(X, lengths=LENGTHS)),
    ],
)
def test_wrong_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()
