"""A program over sequences gives what its step gives, one sequence after the other, and so does its derivative."""

import pytest
import torch
from programs import EXAMPLES, Example
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sstkern.program import operator, run
from sstkern.program.run import Call

STEPS, BATCH = 5, 4
LENGTHS = {"whole": None, "lengths": [3, 0, 5, 1]}


def loop(
    example: Example, inputs: list[Tensor], hx: list[Tensor], parameters: list[Tensor], lengths: list[int], reverse: bool
) -> list[Tensor]:
    """Outputs and last states, each sequence stepped alone."""
    steps = inputs[0].size(0)
    outputs, finals = [], []
    for b, length in enumerate(lengths):
        states = [state[b : b + 1] for state in hx]
        found = [torch.zeros(())] * steps
        for t in reversed(range(length)) if reverse else range(length):
            (found[t],), states = example.step([tensor[t, b : b + 1] for tensor in inputs], states, parameters)
        width = example.step([tensor[0, b : b + 1] for tensor in inputs], states, parameters)[0][0].shape
        outputs.append(torch.cat([part if part.dim() else torch.zeros(width, dtype=hx[0].dtype) for part in found]))
        finals.append(states)
    return [torch.stack(outputs, 1), *(torch.cat(parts) for parts in zip(*finals, strict=True))]


@pytest.fixture(params=EXAMPLES)
def example(request) -> Example:
    torch.manual_seed(0)
    return EXAMPLES[request.param]()


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_results_and_gradients_are_the_loops(example: Example, lengths: str, reverse: bool, recompute: bool, packed: bool):
    inputs, hx = example.tensors(example.inputs, STEPS, BATCH), example.tensors(example.states, BATCH)
    parameters = example.tensors(example.parameters)
    each = LENGTHS[lengths] or [STEPS] * BATCH
    given, order = torch.tensor(each), torch.arange(BATCH)
    if packed:
        given, order = torch.sort(given, descending=True, stable=True)
        each = given.tolist()
    sorted_inputs, sorted_hx = [tensor[:, order] for tensor in inputs], [state[order] for state in hx]
    expected = loop(example, sorted_inputs, sorted_hx, parameters, each, reverse)
    if packed:
        sizes = [sum(length > t for length in each) for t in range(STEPS)]
        rows = [torch.cat([tensor[t, :size] for t, size in enumerate(sizes)]) for tensor in sorted_inputs]
        expected[0] = torch.cat([expected[0][t, :size] for t, size in enumerate(sizes)])
    call = Call(example.program, (), (), reverse, not packed, recompute)
    outputs, hx_n = operator.layer(
        call, rows if packed else inputs, parameters, sorted_hx, None if lengths == "whole" and not packed else given
    )
    found = [*outputs, *hx_n]
    tensors = [*inputs, *hx, *parameters]
    weights = [torch.randn_like(result) for result in expected]
    for result, right in zip(found, expected, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-14)
    mine, its = (torch.autograd.grad(results, tensors, weights, retain_graph=True) for results in (found, expected))
    for gradient, right in zip(mine, its, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-11, atol=1e-13)


def test_padding_is_never_read(example: Example):
    inputs, hx = example.tensors(example.inputs, STEPS, BATCH), example.tensors(example.states, BATCH)
    parameters, lengths = example.tensors(example.parameters), torch.tensor([3, 0, 5, 1])
    padding = torch.arange(STEPS)[:, None] >= lengths
    spoiled = [tensor.detach().masked_fill(padding[..., None], torch.nan).requires_grad_() for tensor in inputs]
    results = []
    for given in (inputs, spoiled):
        outputs, hx_n = operator.layer(Call(example.program, (), (), True, True), given, parameters, hx, lengths)
        assert (outputs[0][padding] == 0).all()
        gradients = torch.autograd.grad(sum(result.square().sum() for result in (*outputs, *hx_n)), [*given, *hx, *parameters])
        assert all((gradient[padding] == 0).all() for gradient in gradients[: len(given)])
        results.append([*outputs, *hx_n, *gradients])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0)])
def test_no_steps_and_no_sequences(example: Example, steps: int, batch: int):
    inputs, hx = example.tensors(example.inputs, steps, batch), example.tensors(example.states, batch)
    parameters = example.tensors(example.parameters)
    (output,), hx_n = operator.layer(Call(example.program, (), (), False, True), inputs, parameters, hx, torch.zeros(batch).long())
    width = example.step(*(example.tensors(shapes, 1) for shapes in (example.inputs, example.states)), parameters)[0][0].size(-1)
    assert output.shape == (steps, batch, width)
    assert all(map(torch.equal, hx_n, hx))
    gradients = torch.autograd.grad(output.sum() + sum(state.sum() for state in hx_n), [*inputs, *hx, *parameters])
    assert all((gradient == 1).all() for gradient in gradients[len(inputs) : len(inputs) + len(hx)])
    assert all((gradient == 0).all() for gradient in gradients[len(inputs) + len(hx) :])


def test_the_rows_that_are_saved_are_those_of_valid_steps(example: Example):
    inputs, hx = example.tensors(example.inputs, STEPS, BATCH), example.tensors(example.states, BATCH)
    parameters, lengths = example.tensors(example.parameters), torch.tensor([3, 0, 5, 1])
    for recompute, count in ((False, None), (True, len(hx))):
        call = Call(example.program, (), (), False, True, recompute)
        _, _, saved = run.forward_and_saved(call, inputs, parameters, hx, lengths)
        assert {tensor.size(0) for tensor in saved} == {9}
        assert len(saved) == count if count else len(saved) > len(hx)


def test_the_same_call_gives_the_same_bits(example: Example):
    inputs, hx = example.tensors(example.inputs, STEPS, BATCH), example.tensors(example.states, BATCH)
    parameters = example.tensors(example.parameters)

    def once() -> list[Tensor]:
        outputs, hx_n = operator.layer(Call(example.program, (), (), False, True), inputs, parameters, hx, None)
        return [*outputs, *hx_n, *torch.autograd.grad(outputs[0].sum(), [*inputs, *hx, *parameters])]

    assert all(map(torch.equal, once(), once()))


def test_lengths_that_vmap_hides(example: Example):
    """Each sequence is one of vmap's, and so is its length."""
    inputs, hx = example.tensors(example.inputs, STEPS, BATCH), example.tensors(example.states, BATCH)
    parameters, lengths = example.tensors(example.parameters), torch.tensor([3, 0, 5, 1])
    call = Call(example.program, (), (), False, True)

    def of_one(length: Tensor, inputs: list[Tensor], hx: list[Tensor]) -> tuple[Tensor, ...]:
        outputs, hx_n = operator.layer(
            call, [tensor[:, None] for tensor in inputs], parameters, [state[None] for state in hx], length[None]
        )
        return *outputs, *hx_n

    found = torch.func.vmap(of_one, (0, 1, 0))(lengths, inputs, hx)
    outputs, hx_n = operator.layer(call, inputs, parameters, hx, lengths)
    torch.testing.assert_close(found[0][:, :, 0].transpose(0, 1), outputs[0], rtol=1e-12, atol=1e-14)
    for state, right in zip(found[1:], hx_n, strict=True):
        torch.testing.assert_close(state[:, 0], right, rtol=1e-12, atol=1e-14)


def test_torchs_packing_is_ours():
    packed = pack_padded_sequence(torch.arange(20.0).view(STEPS, BATCH, 1), torch.tensor([5, 3, 1, 1]))
    assert packed.batch_sizes.tolist() == [4, 2, 2, 1, 1]
    assert pad_packed_sequence(packed)[1].tolist() == [5, 3, 1, 1]
