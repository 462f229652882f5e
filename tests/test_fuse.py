import copy
import io
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
from plain_cells import MGU, Learned, Memory, Named, Pair, loop
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import sstkern
from sstkern.fuse import Direction, NotFused
from sstkern.structure import flatten, mapped

LENGTHS = [2, 4, 0, 4, 1]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_same(found, expected, inputs: list[torch.Tensor]) -> None:
    """All tensors, and their gradients."""
    found, expected = flatten(found), flatten(expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(value) for value in found]
    options = {"materialize_grads": True, "retain_graph": True}
    gradients = [torch.autograd.grad(values, inputs, weights, **options) for values in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


# The forms of input. Each gives the layer's arguments, and brings what the layer returns to (T, B, ...).


def as_padded(x, lengths):
    return x, {"lengths": lengths}, lambda output: output


def as_packed(x, lengths):
    """Without the sequence of length 0, which a PackedSequence cannot have."""
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), {}, lambda output: _unpacked(output, x.size(0))


def as_nested(x, lengths):
    parts = [x[:length, b] for b, length in enumerate(lengths)]
    nested = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    return nested, {}, lambda output: _padded(output.unbind(), x.size(0))


def _unpacked(output: PackedSequence, steps: int) -> torch.Tensor:
    return nn.utils.rnn.pad_packed_sequence(output, total_length=steps)[0]


def _padded(sequences, steps: int) -> torch.Tensor:
    zeros = [sequence.new_zeros(steps - len(sequence), *sequence.shape[1:]) for sequence in sequences]
    return torch.stack([torch.cat(parts) for parts in zip(sequences, zeros, strict=True)], 1)


FORMS = {"padded": as_padded, "packed": as_packed, "nested": as_nested}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input(form, reverse):
    cell, lengths = MGU().double(), [2, 4, 1, 4, 1] if form == "packed" else LENGTHS
    x, h = randn(4, 5, 3), randn(5, 4)
    input, options, back = FORMS[form](x, lengths)
    output, h_n, states = sstkern.fuse(cell, reverse=reverse)(input, h, return_states=True, **options)
    assert type(output) is type(states) is type(input)
    expected = loop(cell, x, h, lengths, reverse)
    assert_same((back(output), h_n, back(states)), expected, [x, h, *cell.parameters()])


@pytest.mark.parametrize("form", FORMS)
def test_a_tuple_of_inputs_of_every_form(form):
    cell, lengths = Memory().double(), [2, 4, 1, 4, 1]
    x, score, hx = randn(4, 5, 3), randn(4, 5, 1), (randn(5, 4), [randn(5, 4, 3)])
    (a, options, back), (b, _, _) = (FORMS[form](part, lengths) for part in (x, score))

    class OfColumns(nn.Module):
        """With a score (B, 1), as nested tensors have it."""

        def __init__(self):
            super().__init__()
            self.step = cell

        def forward(self, input, state):
            return self.step((input[0], input[1].squeeze(1)), state)

    output, hx_n, states = sstkern.fuse(OfColumns())((a, b), hx, return_states=True, **options)
    expected = loop(cell, (x, score.squeeze(2)), hx, lengths, pair=True)
    assert_same((back(output), hx_n, mapped(states, back) if form != "packed" else _each(states, back)), expected, [x, score, *flatten(hx)])
    assert type(hx_n[1]) is list


def _each(states, back):
    """Of packed states, which are tuples themselves."""
    h, [memory] = states
    return back(h), [back(memory)]


def test_batch_first_and_unbatched():
    cell = Memory().double()
    x, score, hx = randn(4, 5, 3), randn(4, 5), (randn(5, 4), [randn(5, 4, 3)])
    output, hx_n, states = loop(cell, (x, score), hx, [4] * 5, pair=True)
    found = sstkern.fuse(cell, batch_first=True)((x.transpose(0, 1), score.T), hx, return_states=True)
    inputs = [x, score, *flatten(hx)]
    assert_same(found, (output.transpose(0, 1), hx_n, states), inputs)  # states are (T, B, ...) whatever batch_first
    one = mapped(hx, lambda leaf: leaf[1])
    found = sstkern.fuse(cell, batch_first=True)((x[:, 1], score[:, 1]), one, return_states=True)
    expected = output[:, 1], mapped(hx_n, lambda leaf: leaf[1]), mapped(states, lambda leaf: leaf[:, 1])
    assert_same(found, expected, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_both_ways(form):
    cells, lengths = (MGU().double(), MGU(3, 2).double()), [2, 4, 1, 4, 1]
    x, hx = randn(4, 5, 3), (randn(5, 4), randn(5, 2))
    input, options, back = FORMS[form](x, lengths)
    output, hx_n, states = sstkern.fuse(*cells)(input, hx, return_states=True, **options)
    ahead, behind = (loop(cell, x, h, lengths, reverse) for cell, h, reverse in zip(cells, hx, (False, True), strict=True))
    expected = torch.cat([ahead[0], behind[0]], -1), (ahead[1], behind[1]), (ahead[2], behind[2])
    assert type(hx_n) is tuple
    found = back(output), hx_n, tuple(map(back, states))
    assert_same(found, expected, [x, *hx, *cells[0].parameters(), *cells[1].parameters()])


def test_length_0_has_hx_itself():
    h = randn(3, 4)
    output, h_n = sstkern.fuse(MGU().double())(randn(4, 3, 3), h, lengths=[0, 2, 0])
    assert torch.equal(h_n[::2], h[::2])
    assert not output[:, ::2].any()


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (0, 0, 3), (1, 1, 3), (0, 3)])
@pytest.mark.parametrize("both", [False, True])
def test_no_steps_and_no_sequences(shape, both):
    layer = sstkern.fuse(MGU(), MGU() if both else None)
    output, h_n, states = layer(torch.zeros(shape), return_states=True)
    assert output.shape == (*shape[:-1], 8 if both else 4)
    for h, every in zip(*(value if both else (value,) for value in (h_n, states)), strict=True):
        assert h.shape == (*shape[1:-1], 4)
        assert every.shape == (*shape[:-1], 4)


@pytest.mark.parametrize("change", ["transposed", "expanded", "one tensor"])
def test_inputs_and_states_in_any_memory(change):
    cell = nn.LSTMCell(3, 3).double()
    x, h = torch.randn(4, 3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    if change == "transposed":
        x, hx = x.transpose(1, 2), (h.T, h)
    elif change == "expanded":
        x, hx = x[:1, :, :1].expand(4, 3, 3), (h[:1].expand(3, 3), h)
    else:
        x, hx = h.expand(2, 3, 3), (h,) * 2
    copies = [leaf.clone() for leaf in (x, *hx)]
    found = sstkern.fuse(cell)(x, hx)
    expected = sstkern.fuse(cell)(copies[0].contiguous(), tuple(leaf.contiguous() for leaf in copies[1:]))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip((x, *hx), copies, strict=True))


class OwnDefault(nn.Module):
    """Its state is left out, and is ones then."""

    hidden_size = 1

    def forward(self, x, h=None):
        return x + (torch.ones_like(x) if h is None else h)


class Keras(nn.Module):
    """As Keras's cells say what they begin with."""

    hidden_size = 1

    def get_initial_state(self, batch_size=None):
        return [torch.full((batch_size, 1), 2.0)]

    def forward(self, x, state):
        return x + state[0], [x + state[0]]


class KerasWithDtype(Keras):
    def get_initial_state(self, inputs=None, batch_size=None, dtype=None):
        assert inputs is None
        return [torch.full((batch_size, 1), 3, dtype=dtype)]


class Sized(nn.Module):
    hidden_size = 1

    def forward(self, x, h):
        return x + h


@pytest.mark.parametrize(
    ("cell", "options", "expected"),
    [
        (OwnDefault(), {}, 1),
        (Keras(), {}, 2),
        (KerasWithDtype(), {}, 3),
        (Sized(), {}, 0),
        (OwnDefault(), {"initial_state": 1}, 0),
        (OwnDefault(), {"initial_state": lambda batch_size, like: like.new_full((batch_size, 1), 4)}, 4),
        (Keras(), {"initial_state": [1]}, 0),
    ],
)
def test_what_a_call_without_hx_begins_with(cell, options, expected):
    layer = sstkern.fuse(cell, **options)
    output, state = layer(torch.zeros(3, 2, 1))
    assert output.flatten().tolist() == [expected] * 6
    assert [leaf.tolist() for leaf in flatten(state)] == [[[expected]] * 2]
    assert layer(torch.zeros(3, 1))[0].flatten().tolist() == [expected] * 3


def test_torch_s_cells_begin_with_zeros_whatever_the_lengths():
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell, sstkern.LSTMCell):
        layer = sstkern.fuse(kind(3, 4), kind(3, 4))
        _, hx_n = layer(torch.randn(4, 3, 3), lengths=[0, 4, 2])
        assert not any(leaf[0].any() for leaf in flatten(hx_n))
        assert all(leaf[1:].all() for leaf in flatten(hx_n))


def test_a_subclass_of_torch_s_cells_has_a_default_of_its_own():
    class Own(nn.GRUCell):
        def forward(self, x, h=None):
            return super().forward(x, torch.ones(x.size(0), 5, dtype=x.dtype) if h is None else h)

    x = torch.randn(4, 2, 3)
    cell = Own(3, 5)
    expected = loop(cell, x, torch.ones(2, 5), [4, 4])
    torch.testing.assert_close(sstkern.fuse(cell)(x, return_states=True), expected)


def test_a_subclass_of_lstm_cell_has_two_states():
    class Own(nn.LSTMCell):
        def forward(self, x, state):
            return super().forward(x, state)

    x = torch.randn(4, 2, 3)
    cell = Own(3, 5)
    expected = loop(cell, x, (torch.zeros(2, 5),) * 2, [4, 4])
    torch.testing.assert_close(sstkern.fuse(cell)(x, return_states=True), expected)


def test_zeros_have_the_input_s_dtype_under_autocast_too():
    seen = []

    class Seeing(MGU):
        def forward(self, x, h):
            seen.append(h.dtype)
            return super().forward(x, h).to(h.dtype)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        sstkern.fuse(Seeing())(torch.zeros(2, 2, 3))
    sstkern.fuse(Seeing().double())(torch.zeros(2, 2, 3, dtype=torch.float64))
    assert seen == [torch.float32] * 2 + [torch.float64] * 2


def test_tokens_as_input_have_states_of_the_parameters_dtype():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.step, self.hidden_size = nn.Embedding(7, 3), MGU(), 4

        def forward(self, token, h):
            return self.step(self.embedding(token.squeeze(-1)), h)

    cell = Reading().double()
    tokens = torch.randint(7, (4, 2, 1))
    expected = loop(cell, tokens, torch.zeros(2, 4, dtype=torch.float64), [4, 4])
    torch.testing.assert_close(sstkern.fuse(cell)(tokens, return_states=True), expected)


class Silent(nn.Module):
    def forward(self, x, h):
        return h


def wrong(error, message, call, *names):
    return pytest.param(error, message, call, id=message[:60] + "".join(names))


X, H = torch.zeros(4, 2, 3), torch.zeros(2, 4)
fused = sstkern.fuse(MGU())
both = sstkern.fuse(MGU(), MGU())
widths = sstkern.fuse(Memory(), initial_state=(4, [12]))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        wrong(TypeError, r"cell: expected a torch.nn.Module that does one time step, got function", lambda: sstkern.fuse(lambda x, h: h)),
        wrong(TypeError, r"cell: .*, got the class MGU; make an instance", lambda: sstkern.fuse(MGU)),
        wrong(TypeError, r"cell: LSTM is a layer", lambda: sstkern.fuse(nn.LSTM(3, 4))),
        wrong(TypeError, r"cell: Fused is a layer", lambda: sstkern.fuse(sstkern.fuse(MGU()))),
        wrong(TypeError, r"backward_cell: expected a torch.nn.Module", lambda: sstkern.fuse(MGU(), 3)),
        wrong(ValueError, r"reverse: with a backward_cell both directions run", lambda: sstkern.fuse(MGU(), MGU(), reverse=True)),
        wrong(
            ValueError, r"returns: expected one of 'auto', 'state', 'output_and_state', got 'h'", lambda: sstkern.fuse(MGU(), returns="h")
        ),
        wrong(TypeError, r"batch_first: expected True or False, got 1", lambda: sstkern.fuse(MGU(), batch_first=1)),
        wrong(TypeError, r"strict: expected True or False, got 'yes'", lambda: sstkern.fuse(MGU(), strict="yes")),
        wrong(TypeError, r"initial_state: expected an int, .*, got \(int, str\)", lambda: sstkern.fuse(MGU(), initial_state=(4, "4"))),
        wrong(TypeError, r"initial_state: expected an int, .*, got bool", lambda: sstkern.fuse(MGU(), initial_state=True)),
        wrong(TypeError, r"initial_state: expected an int, .*, got Linear", lambda: sstkern.fuse(MGU(), initial_state=nn.Linear(2, 2))),
        wrong(ValueError, r"initial_state: expected at least one width", lambda: sstkern.fuse(MGU(), initial_state=())),
        wrong(ValueError, r"initial_state: expected .* none below 0, got -1", lambda: sstkern.fuse(MGU(), initial_state=-1)),
        wrong(ValueError, r"hx: nothing says what Silent begins with; give hx, or initial_state", lambda: sstkern.fuse(Silent())(X)),
        wrong(
            ValueError,
            r"initial_state: expected shape \(2, \.\.\.\), a state for each sequence, got \(4,\)",
            lambda: sstkern.fuse(Silent(), initial_state=lambda batch_size, like: like.new_zeros(4))(X),
        ),
        wrong(
            TypeError,
            r"initial_state\[0\]: expected a Tensor, got int",
            lambda: sstkern.fuse(Silent(), initial_state=lambda batch_size, like: (4,))(X),
        ),
        wrong(
            ValueError, r"hx: expected shape \(2, \.\.\.\), a state for each sequence, got \(3, 4\)", lambda: fused(X, torch.zeros(3, 4))
        ),
        wrong(ValueError, r"hx: expected shape \(2, \.\.\.\), .*, got \(\)", lambda: fused(X, torch.zeros(()))),
        wrong(TypeError, r"hx\[1\]: expected a Tensor, got NoneType", lambda: fused(X, (H, None))),
        wrong(TypeError, r"hx: expected a Tensor, got dict", lambda: fused(X, {"h": H})),
        wrong(ValueError, r"hx: expected at least one Tensor, got \(\)", lambda: fused(X, ())),
        wrong(ValueError, r"hx: is on meta, but the input is on cpu", lambda: fused(X, H.to("meta"))),
        wrong(TypeError, r"hx: expected a pair, the state of each direction, got Tensor", lambda: both(X, H)),
        wrong(TypeError, r"hx: expected \(Tensor, \[Tensor\]\), got \(Tensor, Tensor\)", lambda: widths((X, X[..., 0]), (H, H))),
        wrong(ValueError, r"hx\[1\]\[0\]: expected shape \(2, 12\), got \(2, 4\)", lambda: widths((X, X[..., 0]), (H, [H]))),
        wrong(TypeError, r"hx: expected \(Tensor, Tensor\), got Tensor", lambda: sstkern.fuse(nn.LSTMCell(3, 4))(X, H)),
        wrong(TypeError, r"input: expected a Tensor or a PackedSequence, got list", lambda: fused([X, X])),
        wrong(ValueError, r"input: expected 2-D \(unbatched\) or 3-D or more \(batched\), got 1-D", lambda: fused(X[0, 0])),
        wrong(ValueError, r"input\[1\]: expected shape \(4, 2, \.\.\.\) like input\[0\]", lambda: widths((X, X[:3, :, 0]))),
        wrong(ValueError, r"lengths\[1\] is 5; allowed are 0 to 4", lambda: fused(X, lengths=[1, 5])),
        wrong(ValueError, r"lengths: a PackedSequence has its own", lambda: fused(pack_sequence([X[:, 0]]), lengths=[4])),
        wrong(ValueError, r"lengths: expected one for each of 2 sequences", lambda: fused(X, lengths=[1])),
        wrong(
            ValueError,
            r"input: expected dtype torch.float32 like the cell's parameters, got torch.float64 \(MGU's step raised",
            lambda: fused(X.double()),
        ),
        wrong(
            ValueError,
            r"backward_cell: outputs stand side by side in their last dimension",
            lambda: sstkern.fuse(Silent(), Silent())(X, (H[:, 0], H[:, 0])),
        ),
    ],
)
def test_wrong_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()


class OfTwo(nn.Module):
    """No more is known of it than what its step does. It may have a first state."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x, state):
        h, c = state
        c = c + torch.tanh(self.x(x) + self.h(h))
        return torch.tanh(c), c


class OfTwoWithZeros(OfTwo):
    def get_initial_state(self, batch_size):
        return torch.zeros(batch_size, 4), torch.zeros(batch_size, 4)


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.hidden_size = 3, 4
        self.x, self.h = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x, h):
        return torch.tanh(self.x(x) + self.h(h))


class Scored(Sized):
    def forward(self, inputs, h):
        x, score = inputs
        return score * super().forward(x, h)


C = torch.zeros(2, 5)
WIDTH = r"input: expected 3 features \(input_size\), got 2"
MISFITS = {
    "width of the input": (Sized, X[..., :2], H, ValueError, WIDTH),
    "width of the input of torch's cell": (lambda: nn.GRUCell(3, 4), X[..., :2], None, ValueError, WIDTH),
    "width of the state": (Sized, X, C, ValueError, r"hx: expected shape \(B, 4\) \(hidden_size\), got \(B, 5\)"),
    "width of a state": (OfTwoWithZeros, X, (H, C), ValueError, r"hx\[1\]: expected shape \(B, 4\) \(get_initial_state\), got \(B, 5\)"),
    "tensor for tuple": (OfTwoWithZeros, X, H, TypeError, r"hx: expected \(Tensor, Tensor\) \(get_initial_state\), got Tensor"),
    "one state too many": (OfTwoWithZeros, X, (H, H, H), TypeError, r"hx: expected \(Tensor, Tensor\) .*, got \(Tensor, Tensor, Tensor\)"),
    "width of a state that is not known": (
        *(OfTwo, X, (H, C), ValueError),
        r"input, hx: OfTwo's step raised RuntimeError: .*, given input \(B, 3\) and hx \(\(B, 4\), \(B, 5\)\)$",
    ),
    "states that are not known": (
        *(OfTwo, X, (H,), ValueError),
        r"OfTwo's step raised ValueError: not enough values to unpack.*test_fuse\.py:\d+\), given .* hx \(\(B, 4\),\)$",
    ),
    "tuple for tensor": (
        *(Sized, X, (H, H), TypeError),
        r"input, hx: Sized's step raised TypeError: .*, given input \(B, 3\) and hx \(\(B, 4\), \(B, 4\)\)$",
    ),
    "one input too few": (
        *(Scored, (X,), H, ValueError),
        r"Scored's step raised ValueError: not enough values to unpack.*, given input \(\(B, 3\),\) and hx \(B, 4\)$",
    ),
    "one input too many": (
        *(Scored, (X, X, X), None, ValueError),
        r"input: Scored's step .* too many values to unpack.* \(no hx was given; see initial_state\)$",
    ),
    "list for tuple": (
        *(OfTwo, X, [H, H], TypeError),
        r"expected it to return the new state \[Tensor, Tensor\], as it was given, .*, got \(Tensor, Tensor\)",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_the_step_is_named(name: str):
    make, x, hx, error, message = MISFITS[name]
    layer = sstkern.fuse(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # the second time it is known that the step is no program
            with pytest.raises(error, match=message) as raised:
                layer(x, hx)
            assert type(raised.value) is error
            assert "\n" not in str(raised.value)


def test_a_tensor_that_is_unpacked_is_warned_of():
    """Some steps go through their sequences one by one: right, and no program. To take one Tensor for several states looks the same."""

    class OneByOne(Sized):
        def forward(self, x, h):
            return torch.stack([super(OneByOne, self).forward(row, state) for state, row in zip(h, x, strict=True)])

    layer, x = sstkern.fuse(OneByOne()), torch.randn(4, 2, 3)
    with pytest.warns(
        UserWarning, match=r"steps OneByOne in Python.*taking one out of a state, as unpacking one Tensor does \(.*give the state"
    ):
        output, _ = layer(x, H)
    torch.testing.assert_close(output[0], Sized.forward(layer.cell, x[0], H))
    with pytest.warns(UserWarning, match=r"steps OfTwo in Python.*, as unpacking one Tensor does"):
        sstkern.fuse(OfTwo())(x, H)


def test_what_does_not_fit_is_named_where_a_program_is_asked_for():
    layer = sstkern.fuse(Sized(), strict=True)
    with pytest.raises(ValueError, match=r"^input: expected 3 features \(input_size\), got 2$"):
        layer(X[..., :2])
    with pytest.raises(ValueError, match=r"^hx: expected shape \(B, 4\) \(hidden_size\), got \(B, 5\)$"):
        layer(X, C)
    assert layer(X)[0].shape == (4, 2, 4)


def test_an_error_of_the_cells_own_is_not_touched():
    class Own(RuntimeError):
        pass

    class Raising(Sized):
        def forward(self, x, h):
            raise Own("mine")

    with pytest.raises(Own, match=r"^mine$"):
        sstkern.fuse(Raising())(X)


# Dtypes of states


class Independent(nn.Module):
    """IndRNN: nothing in it minds a state of another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.x, self.u = 4, nn.Linear(3, 4), nn.Parameter(torch.ones(4))

    def forward(self, x, h):
        return torch.relu(self.x(x) + self.u * h)


class IndependentByDefault(Independent):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x, h=None):
        h = torch.zeros(x.size(0), 4, dtype=self.dtype) if h is None else h
        return super().forward(x, h).to(h.dtype)


class Wide(Independent):
    def get_initial_state(self, batch_size):
        return torch.zeros(batch_size, 4, dtype=torch.float64)


def wide_zeros(batch_size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(batch_size, 4, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [Independent, lambda: IndependentByDefault(torch.float32), lambda: nn.GRUCell(3, 4)])
def test_a_state_of_another_dtype_than_the_cell_is_refused(make, dtype: torch.dtype):
    with pytest.raises(ValueError, match=rf"^hx: expected dtype torch.float32 like the input and the cell's parameters, got {dtype}; "):
        sstkern.fuse(make())(X, H.to(dtype))


@pytest.mark.parametrize(
    ("make", "options"),
    [(Wide, {}), (Independent, {"initial_state": wide_zeros}), (lambda: IndependentByDefault(torch.float64), {})],
    ids=["get_initial_state", "initial_state", "default"],
)
def test_a_state_may_have_the_dtype_that_the_cell_begins_with(make, options):
    layer = sstkern.fuse(make(), **options)
    with sstkern.backend("reference"):
        output, h_n = layer(X)
        assert h_n.dtype == torch.float64
        torch.testing.assert_close(layer(X, torch.zeros_like(h_n)), (output, h_n))


def test_the_states_that_a_stepped_layer_gave_can_go_on():
    class Widening(nn.Module):
        """h in float32 and a running sum in float64; it mixes sequences, so that it is no program."""

        def forward(self, x, state=None):
            h, total = (x[:, :2], x[:, :2].double()) if state is None else state
            h = torch.tanh(h + x[:, :2].mean(0))
            return h, total + h

    layer = sstkern.fuse(Widening(), returns="state")
    with pytest.warns(UserWarning, match="steps Widening"):
        _, whole = layer(X)
    assert [leaf.dtype for leaf in whole] == [torch.float32, torch.float64]
    _, half = layer(X[:2])
    for one in (layer, sstkern.fuse(Widening(), returns="state")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the new one's, that it is stepped
            torch.testing.assert_close(one(X[2:], half)[1], whole)


def test_a_state_with_a_dimension_too_many_is_refused():
    """As torch.nn's layers have it; the step would give an output with one too many."""

    class Beginning(Independent):
        def get_initial_state(self, batch_size):
            return torch.zeros(batch_size, 4)

    layer = sstkern.fuse(Beginning())
    for x, h in ((X[:, :1], torch.zeros(1, 1, 4)), (X[:, 0], torch.zeros(1, 4))):
        with pytest.raises(ValueError, match=r"^hx: expected shape \(B, 4\) \(get_initial_state\), got \(B, 1, 4\)$"):
            layer(x, h)


def test_get_initial_state_may_be_an_object_that_has_no_hash():
    @dataclass
    class Ones:
        width: int

        def __call__(self, batch_size, dtype):
            return torch.ones(batch_size, self.width, dtype=dtype)

    cell = MGU()
    cell.get_initial_state = Ones(4)
    output, _ = sstkern.fuse(cell)(X)
    expected, _ = sstkern.fuse(cell)(X, torch.ones(2, 4))
    assert torch.equal(output, expected)


def test_states_of_integers_and_bools_are_the_cells_own_affair():
    class Counting(Independent):
        def forward(self, x, state):
            h, steps, seen = state
            return super().forward(x, h), steps + 1, seen | (steps > 1).squeeze(-1)

    layer = sstkern.fuse(Counting())
    with pytest.warns(UserWarning, match="states must be floating point"):
        _, (_, steps, seen) = layer(X, (H, torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)))
    assert steps.tolist() == [[4], [4]]
    assert seen.tolist() == [True, True]


def test_under_autocast_a_state_may_have_its_dtype():
    layer = sstkern.fuse(Independent())
    with sstkern.backend("reference"), torch.autocast("cpu", torch.bfloat16):
        _, h_n = layer(X)
        assert h_n.dtype == torch.bfloat16
        assert torch.equal(layer(X, torch.zeros_like(h_n))[1], h_n)


def test_why_a_cell_is_stepped(capsys):
    layer = sstkern.fuse(MGU())
    assert (layer.fused, layer.reason) == (False, None)
    layer.explain()
    assert capsys.readouterr().out == "MGU: has not been called yet\n"
    layer(X)
    assert (layer.fused, layer.reason) == (True, None)
    layer.cell.register_forward_hook(print)
    with pytest.warns(UserWarning, match="MGU has hooks"):
        layer(X)
    assert not layer.fused
    assert "MGU has hooks" in layer.reason
    capsys.readouterr()
    layer.explain()
    assert capsys.readouterr().out == f"MGU: stepped in Python: {layer.reason}\n"


@pytest.fixture
def unfused(monkeypatch):
    """No program holds a cell, for a reason that has to be told."""

    def as_program(self, cell, *arguments):
        self.unfused(cell, "aten.sort in cells.py:3: sort before the loop")

    monkeypatch.setattr(Direction, "_as_program", as_program)


@pytest.mark.usefixtures("unfused")
def test_a_stepped_cell_is_told_once_a_layer():
    layer = sstkern.fuse(MGU())
    with pytest.warns(UserWarning, match=r"steps MGU in Python.*aten\.sort in cells\.py:3"):
        expected = layer(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = layer(X)
    torch.testing.assert_close(found, expected)
    assert layer.reason == "aten.sort in cells.py:3: sort before the loop"


def test_a_call_that_fails_is_told_by_its_error_alone():
    layer = sstkern.fuse(MGU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="input: expected dtype"):
            layer(X.double())
        with pytest.raises(ValueError, match="mat1 and mat2 shapes cannot be multiplied"):
            layer(X, torch.zeros(2, 7))
    layer.cell.register_forward_hook(lambda *arguments: None)
    with pytest.warns(UserWarning, match="steps MGU in Python.*hooks"):
        layer(X)


@pytest.mark.usefixtures("unfused")
def test_strict_raises_instead():
    for layer in (sstkern.fuse(MGU(), strict=True), sstkern.fuse(MGU(), MGU(), strict=True)):
        with pytest.raises(NotFused, match=r"aten\.sort in cells\.py:3"):
            layer(X)
    assert issubclass(NotFused, RuntimeError)


# The layer and its cell are one.


class Everything(nn.Module):
    """Parameters of its own and of a module, buffers that are saved and not, an extra state, a form of its own in a state_dict."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 3
        self.weight, self.linear = nn.Parameter(torch.randn(3, 3)), nn.Linear(3, 3)
        self.register_buffer("scale", torch.full((3,), 0.5))
        self.register_buffer("temporary", torch.ones(3), persistent=False)
        self.note = "first"

    def get_extra_state(self):
        return {"note": self.note}

    def set_extra_state(self, state):
        self.note = state["note"]

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "own"] = destination.pop(prefix + "weight")

    def _load_from_state_dict(self, state_dict, prefix, metadata, *arguments):
        assert metadata["version"] == 3
        state_dict[prefix + "weight"] = state_dict.pop(prefix + "own")
        super()._load_from_state_dict(state_dict, prefix, metadata, *arguments)

    def forward(self, x, h):
        if self.training:
            x = x + 1
        return torch.tanh(self.linear(x) * self.scale * self.temporary + h @ self.weight)


def test_the_state_dict_is_the_cell_s():
    cell = Everything()
    layer = sstkern.fuse(cell)
    assert list(layer.state_dict()) == list(cell.state_dict())
    assert "own" in layer.state_dict()
    assert layer.state_dict()._metadata == cell.state_dict()._metadata
    assert [name for name, _ in layer.named_parameters()] == [name for name, _ in cell.named_parameters()]
    assert all(a is b for a, b in zip(layer.buffers(), cell.buffers(), strict=True))
    other, inner = Everything(), sstkern.fuse(Everything())
    other.note = "second"
    inner.load_state_dict(other.state_dict())
    assert inner.cell.note == "second"
    layer.cell.load_state_dict(inner.state_dict())
    for a, b in zip(other.parameters(), layer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_dict_of_a_model_around_it():
    model = nn.Sequential(sstkern.fuse(MGU(), MGU()), nn.ModuleList([sstkern.fuse(Everything())]))
    names = [name for name, _ in MGU().named_parameters()]
    expected = [f"0.{side}_cell.{name}" for side in ("forward", "backward") for name in names]
    assert list(model.state_dict()) == expected + [f"1.0.{name}" for name in Everything().state_dict()]
    other = nn.Sequential(sstkern.fuse(MGU(), MGU()), nn.ModuleList([sstkern.fuse(Everything())]))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[0](X)[0], model[0](X)[0])
    assert torch.equal(other[1][0](X)[0], model[1][0](X)[0])


def test_hooks_of_the_cell_s_state_dict():
    cell, seen = MGU(), []
    cell.register_state_dict_pre_hook(lambda *arguments: seen.append("before saving"))
    cell.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.update(added=torch.ones(1)))
    cell.register_load_state_dict_pre_hook(lambda module, state, *rest: seen.append(module) or state.pop("added"))
    cell.register_load_state_dict_post_hook(lambda *arguments: seen.append("after loading"))
    layer = sstkern.fuse(cell)
    layer.load_state_dict(layer.state_dict())
    assert seen == ["before saving", cell, "after loading"]


def test_what_changes_the_one_changes_the_other():
    layer = sstkern.fuse(Everything())
    cell = layer.cell
    layer.to(torch.float64)
    assert {tensor.dtype for tensor in (*cell.parameters(), *cell.buffers())} == {torch.float64}
    layer.eval()
    assert not any(module.training for module in (layer, cell, cell.linear))
    cell.train()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    training = layer(x)[0]
    assert not torch.equal(training, layer.eval()(x)[0])
    assert torch.equal(training, layer.train()(x)[0])
    seen = []
    layer.apply(seen.append)
    assert seen == [cell.linear, cell, layer]
    cell.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    assert layer.weight is cell.weight
    layer.register_buffer("later", torch.zeros(1), persistent=False)
    assert cell.later is layer.later
    assert "later" not in cell.state_dict()
    layer.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in cell.parameters())


def test_a_cell_s_own_way_to_move():
    class Moving(MGU):
        moved = 0

        def _apply(self, fn, recurse=True):
            self.moved += 1
            return super()._apply(fn, recurse)

    layer = sstkern.fuse(Moving())
    assert layer.double() is layer
    assert layer.cell.moved == 1


def test_the_cell_stays():
    layer = sstkern.fuse(MGU())
    with pytest.raises(AttributeError, match="cell: a layer keeps its cell; make a new layer"):
        layer.cell = MGU()
    with pytest.raises(AttributeError, match=r"x_f: it is the cell's; change \(parametrize, prune\) layer.cell"):
        del layer.x_f
    with pytest.raises(AttributeError, match=r"weight_hh: it is the cell's"):
        parametrizations.weight_norm(sstkern.fuse(nn.GRUCell(3, 4)), "weight_hh")

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.fused = MGU()

    with pytest.raises(ValueError, match="cell: its module 'fused' has a name that the layer has for something else"):
        sstkern.fuse(Around())


def test_a_module_called_cell_in_the_cell():
    """The layer's own name for the cell hides it from those who ask the layer for it."""
    layer, x, hx = sstkern.fuse(Named().double()), randn(4, 5, 3), Pair(randn(5, 4), randn(5, 4))
    expected = loop(layer.cell, x, hx, LENGTHS)
    assert_same(layer(x, hx, lengths=LENGTHS, return_states=True), expected, [x, *hx, *layer.parameters()])
    named = {name: torch.zeros_like(parameter) for name, parameter in layer.named_parameters()}
    assert list(named) == ["cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"]
    with pytest.raises(RuntimeError, match=r"weight_ih: torch\.func\.functional_call does not reach the cell's module 'cell'"):
        torch.func.functional_call(layer, named, (x, hx))
    assert torch.equal(layer(x, hx, lengths=LENGTHS)[0], layer(x, hx, lengths=LENGTHS)[0])
    layer.load_state_dict(named)
    assert not layer(x, Pair(*[torch.zeros_like(state) for state in hx]))[0].any()


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_layers_of_their_own(way, both):
    layer = sstkern.fuse(MGU(), MGU() if both else None, batch_first=True).double()
    x = randn(2, 4, 3)
    expected = layer(x)[0]
    if way == "deepcopy":
        other = copy.deepcopy(layer)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert torch.equal(other(x)[0], expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not other(x)[0].any()  # its cell's parameters are those that it shows
    assert torch.equal(layer(x)[0], expected)
    assert list(other.state_dict()) == list(layer.state_dict())


def test_a_copy_of_a_cell_that_copies_itself():
    class Copying(MGU):
        def __deepcopy__(self, memo):
            other = Copying()
            other.load_state_dict(self.state_dict())
            return other

    layer = sstkern.fuse(Copying())
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.x_f.weight.zero_()
    assert not other.cell.x_f.weight.any()
    assert layer.cell.x_f.weight.any()


def test_a_copy_of_a_model_that_holds_the_cell_too():
    cell = MGU()
    model = nn.ModuleList([cell, sstkern.fuse(cell)])
    other = copy.deepcopy(model)
    assert other[1].cell is other[0]
    assert other[0] is not cell
    assert len(list(other.parameters())) == len(list(cell.parameters()))


@pytest.mark.parametrize("both", [False, True])
def test_functional_call(both):
    layer = sstkern.fuse(MGU(), MGU() if both else None).double()
    x = randn(4, 2, 3)
    named = {name: torch.randn_like(parameter) for name, parameter in layer.named_parameters()}
    other = copy.deepcopy(layer)
    other.load_state_dict(named)

    def loss(named):
        return torch.func.functional_call(layer, named, (x,), {"lengths": [4, 2]})[0].square().sum()

    expected = other(x, lengths=[4, 2])[0].square().sum()
    torch.testing.assert_close(loss(named), expected)
    gradients = torch.func.grad(loss)(named)
    torch.testing.assert_close(list(gradients.values()), list(torch.autograd.grad(expected, list(other.parameters()))))


def test_training_goes_down_and_hooks_are_called():
    layer = sstkern.fuse(MGU())
    x, target, seen = torch.randn(4, 8, 3), torch.randn(8, 4), []
    layer.register_forward_pre_hook(lambda *arguments: seen.append("before"))
    layer.register_forward_hook(lambda *arguments: seen.append("after"))
    layer.cell.register_forward_hook(lambda *arguments: seen.append("step"))
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    losses = []
    for _ in range(30):
        loss = (layer(x)[1] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert seen[:6] == ["before", *["step"] * 4, "after"]


@pytest.mark.parametrize("form", ["weight norm", "spectral norm"])
def test_a_parametrized_cell(form):
    layer = sstkern.fuse(nn.GRUCell(3, 4).double()).eval()
    {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}[form](layer.cell, "weight_hh")
    assert "parametrizations.weight_hh.original" in "".join(layer.state_dict())
    x, h = randn(4, 5, 3), randn(5, 4)
    expected = loop(layer.cell, x, h, LENGTHS)
    assert_same(layer(x, h, lengths=LENGTHS, return_states=True), expected, [x, h, *layer.parameters()])
    other = copy.deepcopy(layer)
    assert torch.equal(other(x, h)[0], layer(x, h)[0])


def test_one_cell_for_both_ways():
    cell, x = MGU().double(), randn(4, 5, 3)
    layer = sstkern.fuse(cell, cell)
    assert len(list(layer.parameters())) == 8
    zeros = torch.zeros(5, 4, dtype=torch.float64)
    ahead, behind = (loop(cell, x, zeros, LENGTHS, reverse) for reverse in (False, True))
    assert_same(layer(x, lengths=LENGTHS)[0], torch.cat([ahead[0], behind[0]], -1), [x, *cell.parameters()])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_first_state_of_the_cell_s_own_is_learned(reverse):
    layer, x, lengths = sstkern.fuse(Learned().double(), reverse=reverse), randn(4, 5, 3), [2, 4, 1, 4, 1]
    expected = loop(layer.cell, x, None, lengths, reverse)
    assert_same(layer(x, lengths=lengths, return_states=True), expected, [x, *layer.parameters()])
    assert torch.equal(layer(x, lengths=LENGTHS)[1][2], layer.cell.h0)


def test_a_default_that_the_cell_cannot_do_without_is_asked_for():
    class Needy(MGU):
        def forward(self, x, h=None):
            return super().forward(x, h)

    layer = sstkern.fuse(Needy())
    with pytest.raises(ValueError, match=r"hx: Needy's state has a default, but .*; give hx, or initial_state to fuse"):
        layer(X)
    assert torch.equal(layer(X, H)[0], sstkern.fuse(layer.cell, initial_state=4)(X)[0])


def test_a_layer_is_printed_with_its_cell():
    assert repr(sstkern.fuse(nn.GRUCell(3, 4))) == "FusedGRUCell(3, 4)"


def test_a_state_that_is_guessed_wrong_is_told():
    """With two sequences `h, c = state` unpacks a tensor of them."""

    class OfTwo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size, self.x = 4, nn.Linear(3, 4)

        def forward(self, x, state):
            h, c = state
            h = torch.tanh(self.x(x) + h)
            return h, c + h

    layer = sstkern.fuse(OfTwo())
    for batch in (2, 3):
        with pytest.raises(ValueError, match=r"give hx, or initial_state to fuse|see initial_state"):
            layer(torch.randn(5, batch, 3))
    assert sstkern.fuse(OfTwo(), initial_state=(4, 4))(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_a_cell_with_a_hidden_size_that_mixes_sequences_is_stepped():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size, self.x = 4, nn.Linear(3, 4)

        def forward(self, x, h):
            v = self.x(x) + h
            return torch.tanh(v - v.mean(0))

    layer, x = sstkern.fuse(Centred()), torch.randn(4, 5, 3)
    with pytest.warns(UserWarning, match="sstkern steps Centred in Python, which is slow: mean mixes sequences"):
        output, h_n = layer(x)
    h = torch.zeros(5, 4)
    for t in range(4):
        h = layer.cell(x[t], h)
        torch.testing.assert_close(output[t], h)
    assert torch.equal(h_n, output[-1])
