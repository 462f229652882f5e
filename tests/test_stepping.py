import copy

import pytest
import torch
from plain_cells import MGU, InPlace, Learned, Memory, Named, Pair, loop
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sstkern import stepping
from sstkern.structure import flatten

LENGTHS = [2, 4, 0, 4, 1]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


CASES = {
    "mgu": (MGU, lambda: randn(4, 5, 3), lambda: randn(5, 4), False),
    "lstm": (lambda: nn.LSTMCell(3, 4), lambda: randn(4, 5, 3), lambda: (randn(5, 4), randn(5, 4)), False),
    "memory": (Memory, lambda: (randn(4, 5, 3), randn(4, 5)), lambda: (randn(5, 4), [randn(5, 4, 3)]), True),
    "named": (Named, lambda: randn(4, 5, 3), lambda: Pair(randn(5, 4), randn(5, 4)), False),
    "in place": (InPlace, lambda: randn(4, 5, 3), lambda: randn(5, 4), False),
    "default": (Learned, lambda: randn(4, 5, 3), lambda: randn(5, 4), False),
}


def stepped(cell: nn.Module, input, hx, lengths=None, reverse: bool = False, **options) -> stepping.Result:
    given = torch.tensor(lengths) if isinstance(lengths, list) else lengths
    options = {"padded": True, "returns": "auto", "every": True, **options}
    return stepping.layer(cell, input, hx, given, reverse=reverse, **options)


def assert_same(found: tuple, expected: tuple, inputs: list[torch.Tensor], others: list[torch.Tensor] | None = None) -> None:
    """Output, last and all states, and their gradients. others: the inputs of what is expected, where they are not the same tensors."""
    found, expected = ([leaf for part in parts for leaf in flatten(part)] for parts in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(value) for value in found]
    pairs = (found, inputs), (expected, others or inputs)
    gradients = [torch.autograd.grad(values, of, weights, materialize_grads=True) for values, of in pairs]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("case", CASES)
def test_equals_a_plain_loop(case, lengths, reverse):
    make, make_input, make_hx, pair = CASES[case]
    cell, input, hx = make().double(), make_input(), make_hx()
    found = stepped(cell, input, hx, lengths, reverse)
    expected = loop(cell, input, hx, lengths or [4] * 5, reverse, pair)
    assert type(found.hx_n) is type(expected[1]) is type(hx)
    assert_same(found, expected, [*flatten(input), *flatten(hx), *cell.parameters()])


def test_all_states_are_returned_where_they_are_asked_for_only():
    assert stepped(MGU().double(), randn(4, 5, 3), randn(5, 4), every=False).states is None


@pytest.mark.parametrize("no", ["steps", "sequences"])
def test_nothing_to_step(no):
    cell, hx = MGU().double(), (randn(0 if no == "sequences" else 5, 4))
    x = randn(0, 5, 3) if no == "steps" else randn(4, 0, 3)
    output, hx_n, states = stepped(cell, x, hx)
    assert output.shape == states.shape == (*x.shape[:2], 4)
    assert torch.equal(hx_n, hx)
    gradients = torch.autograd.grad(output.sum() + hx_n.sum(), [x, hx, *cell.parameters()], materialize_grads=True)
    assert torch.equal(gradients[1], torch.ones_like(hx))


def test_the_caller_s_tensors_stay_as_they_are():
    x, h = torch.randn(4, 5, 3), torch.zeros(1, 4).expand(5, 4)
    before = x.clone(), h.clone()
    with torch.no_grad():
        output, _, states = stepped(InPlace(), x, h)
    assert torch.equal(x, before[0])
    assert torch.equal(h, before[1])
    assert torch.equal(output, states)
    assert (output[0] != output[1]).all()  # not the one tensor that the cell has worked on


def test_one_tensor_as_two_states_is_two_states():
    class Grows(nn.Module):
        def forward(self, x, state):
            h, c = state
            return h.add_(1), c + h

    zeros = torch.zeros(5, 1)
    output, (h, c), _ = stepped(Grows(), torch.zeros(2, 5, 1), (zeros,) * 2)
    assert output.flatten().tolist() == [1] * 5 + [2] * 5
    assert (h == 2).all()
    assert (c == 3).all()
    assert not zeros.any()


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_reaches_nothing(reverse):
    cell, h = MGU().double(), randn(5, 4)
    x, valid = randn(4, 5, 3), torch.arange(4)[:, None] < torch.tensor(LENGTHS)
    expected = stepped(cell, x, h, LENGTHS, reverse)
    spoiled = torch.where(valid[..., None], x, torch.nan).detach().requires_grad_()
    found = stepped(cell, spoiled, h, LENGTHS, reverse)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    loss = sum(part.square().sum() for part in found)
    gradients = torch.autograd.grad(loss, [spoiled, h, *cell.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][~valid].any()


@pytest.mark.parametrize("form", ["weight norm", "spectral norm", "weight drop"])
def test_parametrizations_run_once_a_call(form):
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return nn.functional.dropout(weight, 0.5)

    cell = nn.GRUCell(3, 4).double()
    if form == "weight drop":
        parametrize.register_parametrization(cell, "weight_hh", Counted())
    else:
        {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}[form](cell, "weight_hh")
    twin, x, h = copy.deepcopy(cell), randn(4, 5, 3), randn(5, 4)  # which has its own power iteration
    torch.manual_seed(1)
    found = stepped(cell, x, h, LENGTHS)
    torch.manual_seed(1)
    with parametrize.cached():
        expected = loop(twin, x, h, LENGTHS)
    assert_same(found, expected, [x, h, *cell.parameters()], [x, h, *twin.parameters()])
    if form == "weight drop":
        assert cell.parametrizations.weight_hh[0].calls == twin.parametrizations.weight_hh[0].calls == 2  # once when it was registered


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_cell_s_own_first_state(steps, reverse):
    cell, x = Learned().double(), randn(steps, 5, 3)
    expected = loop(cell, x, None, [steps] * 5, reverse)
    assert_same(stepped(cell, x, None, reverse=reverse), expected, [x, *cell.parameters()])


def test_the_cell_s_own_first_state_with_lengths():
    """Forward, where all begin at once."""
    cell, x, lengths = Learned().double(), randn(4, 5, 3), [2, 4, 1, 4, 1]
    assert_same(stepped(cell, x, None, lengths), loop(cell, x, None, lengths), [x, *cell.parameters()])
    for wrong in ({"lengths": LENGTHS}, {"lengths": lengths, "reverse": True}):
        with pytest.raises(ValueError, match="hx: while the cell is stepped in Python"):
            stepped(cell, x, None, **wrong)
    with pytest.raises(ValueError, match="hx: while the cell is stepped in Python"):
        stepped(cell, x[:0], None)


class Returning(nn.Module):
    """Whatever the test says."""

    def __init__(self, result) -> None:
        super().__init__()
        self.result = result

    def forward(self, x, state=None):
        return self.result(x, state)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda x, h: None, ValueError, r"cell: expected it to return state of shape \(5, 4\), as it was given, got NoneType"),
        (lambda x, h: (h, h, h), TypeError, r"cell: expected it to return .*, got \(Tensor, Tensor, Tensor\)"),
        (lambda x, h: [h], TypeError, r"cell: expected it to return .*, got \[Tensor\]"),
        (lambda x, h: 1.0, ValueError, r"cell: expected it to return state of shape \(5, 4\), as it was given, got float"),
        (lambda x, h: h[:, :1], ValueError, r"cell: expected it to return state of shape \(5, 4\), as it was given, got shape \(5, 1\)"),
        (lambda x, h: h[:1], ValueError, r"cell: expected it to return state of shape \(5, 4\), as it was given, got shape \(1, 4\)"),
        (lambda x, h: (h.sum(), h), ValueError, r"cell: expected an output of 5 rows, one for each sequence, got shape \(\)"),
        (lambda x, h: (h[:2], h), ValueError, r"cell: expected an output of 5 rows, one for each sequence, got shape \(2, 4\)"),
    ],
)
def test_a_cell_that_returns_no_state(result, error, message):
    with pytest.raises(error, match=message):
        stepped(Returning(result), torch.zeros(3, 5, 2), torch.zeros(5, 4))


@pytest.mark.parametrize("returns", ["state", "output_and_state"])
def test_what_returns_says_holds(returns):
    """Where both readings fit: a first state of the cell's own, and a result of two tensors."""
    cell = Returning(lambda x, state: (x + 1, (x + 2) if state is None else (state if returns != "state" else state[1])))
    output, hx_n, _ = stepped(cell, torch.zeros(2, 5, 1), None, returns=returns)
    assert output.flatten().tolist() == [1] * 10
    assert [leaf.flatten().tolist() for leaf in flatten(hx_n)] == ([[1] * 5, [2] * 5] if returns == "state" else [[2] * 5])
    with pytest.raises(ValueError, match=r"returns: the cell's result \(Tensor, Tensor\) may be a new state, or an output and a state"):
        stepped(cell, torch.zeros(2, 5, 1), None)


def test_a_cell_s_own_error_stays_its_own():
    def failing(x, h):
        raise RuntimeError("own words")

    with pytest.raises(RuntimeError, match=r"^own words$"):
        stepped(Returning(failing), torch.zeros(3, 5, 3), torch.zeros(5, 4))


def test_every_derivative_exists():
    class Stepped(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = MGU(1, 2).double()

        def forward(self, x, h):
            return stepped(self.step, x, h, [2, 0])[:2]

    module, x, h = Stepped(), randn(2, 2, 1), randn(2, 2)

    def layer(x, h, *weights):
        return torch.func.functional_call(module, dict(zip(dict(module.named_parameters()), weights, strict=True)), (x, h))

    weights = tuple(module.parameters())
    assert torch.autograd.gradcheck(layer, (x, h, *weights))
    assert torch.autograd.gradgradcheck(layer, (x, h, *weights))


def test_a_batch_of_lengths_in_vmap():
    cell, x, h = MGU().double(), randn(4, 5, 3), randn(5, 4)
    lengths = torch.tensor([LENGTHS, [4, 3, 2, 1, 0]])
    found = torch.func.vmap(lambda given: stepped(cell, x, h, given)[:2], randomness="error")(lengths)
    for place, given in enumerate(lengths.tolist()):
        expected = stepped(cell, x, h, given)
        torch.testing.assert_close(found[0][place], expected.output)
        torch.testing.assert_close(found[1][place], expected.hx_n)
