"""The operators `sstkern::program` and `sstkern::program_backward`: a layer of any program, one direction, with its derivatives.

A program is its text: nothing else of a cell is in a graph that torch.compile or torch.export makes, and nothing of it is executed.
T time steps, B batch, N rows, as in `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.func import vmap

from sstkern import engines, operators, private
from sstkern.lengths import ALL_ROWS
from sstkern.program import on_cpu, run
from sstkern.program.compiler import CannotCompile
from sstkern.program.graph import Program
from sstkern.program.run import Call
from sstkern.program.shapes import Kind, result_kinds
from sstkern.program.windows import NotLowered
from sstkern.second_derivative import second_derivative

_library = torch.library.Library("sstkern", "FRAGMENT")
_CALL = "str program, int[] sizes, float[] numbers, bool reverse, bool padded, bool recompute"
_TENSORS = "Tensor[] inputs, Tensor[] parameters, Tensor[] hx, Tensor? lengths"
# saved_rows: as of sstkern::layer.
_library.define(f"program({_CALL}, {_TENSORS}, int? saved_rows) -> (Tensor[] outputs, Tensor[] hx_n, Tensor[] saved)")
# needs: which gradients to return, a flag each for inputs, parameters, states; the result holds just those, in that order.
_library.define(f"program_backward({_CALL}, {_TENSORS}, Tensor[] saved, Tensor[] grad_outputs, Tensor[] grad_hx, bool[] needs) -> Tensor[]")
_FIELDS = len(_CALL.split(","))
# The overloads themselves: to find one takes the operator 2 microseconds.
_PROGRAM, _BACKWARD = torch.ops.sstkern.program.default, torch.ops.sstkern.program_backward.default


def layer(
    call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """`run.layer`, with the derivative of the program where a gradient is wanted. It passes under autocast in the dtype of that."""
    tensors = [*inputs, *parameters, *hx]
    if not torch.compiler.is_compiling() and engines.transformed(tensors):
        return run.layer(call, inputs, parameters, hx, lengths)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or operators.autocasting(inputs[0]):
        rows = operators.saved_rows(not call.padded, lengths) if differentiable else None
        return torch.ops.sstkern.program(*_flat(call), inputs, parameters, hx, lengths, rows)[:2]
    if differentiable:
        counts = len(inputs), len(parameters), len(hx)
        found = _Program.apply(call, counts, lengths, *tensors)
        return list(found[: len(call.program.outputs)]), list(found[len(call.program.outputs) :])
    return _undifferentiated(call, inputs, parameters, hx, lengths, None)[:2]


def _undifferentiated(call: Call, inputs, parameters, hx, lengths: Tensor | None, saved_rows: int | None):
    """The operator without its derivative, in an eager call."""
    if private.plain([*inputs, *parameters, *hx]):
        return _run(call, inputs, parameters, hx, lengths, saved_rows)
    with operators.undifferentiated():
        return _PROGRAM(*_flat(call), inputs, parameters, hx, lengths, saved_rows)


class _Program(torch.autograd.Function):
    """The gradient that `sstkern::program` has, for eager calls: through the dispatcher a call takes a millisecond."""

    @staticmethod
    def forward(ctx, call: Call, counts: tuple[int, int, int], lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.counts = call, counts
        ctx.set_materialize_grads(False)
        inputs, parameters, hx = _split(tensors, counts)
        rows = operators.saved_rows(not call.padded, lengths)
        outputs, hx_n, saved = _undifferentiated(call, inputs, parameters, hx, lengths, rows)
        ctx.kinds = [(result.shape, result.dtype, result.device) for result in outputs]
        ctx.save_for_backward(*tensors, lengths, *saved)
        return *outputs, *hx_n

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple:
        inputs, parameters, hx, lengths, saved = _parts(ctx.saved_tensors, ctx.counts)
        wanted = list(ctx.needs_input_grad[3:])
        count = len(ctx.kinds)
        found = _given_gradients(ctx, inputs, parameters, hx, lengths, saved, gradients[:count], gradients[count:], wanted)
        return None, None, None, *chain.from_iterable(found)


def _split(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    """Inputs, parameters and states."""
    rest = iter(tensors)
    return [[next(rest) for _ in range(count)] for count in counts]


def _flat(call: Call) -> tuple:
    return call.program.text, call.sizes, call.numbers, call.reverse, call.padded, call.recompute


def _call(program: str, sizes: Sequence[int], numbers: Sequence[float], *flags: bool) -> Call:
    reverse, padded, recompute = flags
    return Call(Program.parse(program), tuple(sizes), tuple(numbers), reverse, padded, recompute)


def _forward(*arguments):
    *fields, inputs, parameters, hx, lengths, saved_rows = arguments
    return _run(_call(*fields), inputs, parameters, hx, lengths, saved_rows)


def _run(call: Call, inputs, parameters, hx, lengths: Tensor | None, saved_rows: int | None):
    with private.below_views():  # a view could not be changed in place by the caller
        return _results(call, inputs, parameters, hx, lengths, saved_rows)


def _results(call: Call, inputs, parameters, hx, lengths: Tensor | None, saved_rows: int | None):
    """By the CPU engine where it can, which gives new tensors, else in plain PyTorch."""
    given = [*inputs, *parameters, *hx]
    if on_cpu.wanted(given):
        try:
            return on_cpu.layer_of(call, inputs, parameters, hx).forward(call, inputs, parameters, hx, lengths, saved_rows)
        except (NotLowered, CannotCompile) as error:
            on_cpu.unable(error)
    if saved_rows is None:
        return *_apart(given, *run.layer(call, inputs, parameters, hx, lengths)), []
    outputs, hx_n, saved = run.forward_and_saved(call, inputs, parameters, hx, lengths)
    rows = _all_rows(call, inputs[0]) if saved_rows == ALL_ROWS else saved_rows
    return _apart(given, outputs, hx_n, [_filled(tensor, rows) for tensor in saved])


def _all_rows(call: Call, x: Tensor) -> int:
    return x.size(0) * x.size(1) if call.padded else x.size(0)


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """With zeros up to a number of rows."""
    return torch.cat([tensor, tensor.new_zeros(rows - tensor.size(0), *tensor.shape[1:])]) if tensor.size(0) < rows else tensor


def _apart(given: Sequence[Tensor], *results: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    """Results that share no memory with what was given, nor with each other: an operator's may not."""
    taken = {_memory(tensor) for tensor in given}

    def own(tensor: Tensor) -> Tensor:
        if _memory(tensor) in taken or 0 in tensor.stride():
            return tensor.clone(memory_format=torch.contiguous_format)
        taken.add(_memory(tensor))
        return tensor

    return tuple([own(tensor) for tensor in tensors] for tensors in results)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _backward(*arguments):
    *fields, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs = arguments
    return _run_backward(_call(*fields), inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs)


def _run_backward(call: Call, inputs, parameters, hx, lengths: Tensor | None, saved, grad_outputs, grad_hx, needs) -> list[Tensor]:
    with private.below_views():
        if not saved:  # the forward was told that there is no backward
            saved = _results(call, inputs, parameters, hx, lengths, _rows(call, inputs[0], lengths))[2]
        return _gradients_of(call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs)


def _gradients_of(call: Call, inputs, parameters, hx, lengths: Tensor | None, saved, grad_outputs, grad_hx, needs):
    """As `_results`."""
    tensors, given = (inputs, parameters, hx, lengths), [*inputs, *parameters, *hx, *grad_outputs, *grad_hx]
    if on_cpu.wanted(given):
        try:
            found = on_cpu.layer_of(call, inputs, parameters, hx).backward(call, *tensors, saved, grad_outputs, grad_hx, needs)
            return [gradient for gradient in found if gradient is not None]
        except (NotLowered, CannotCompile) as error:
            on_cpu.unable(error)
    saved = [tensor[: _rows(call, inputs[0], lengths)] for tensor in saved]
    found = run.backward(call, *tensors, saved, grad_outputs, grad_hx, needs)
    return _apart(given, [gradient for gradient in found if gradient is not None])[0]


def _rows(call: Call, x: Tensor, lengths: Tensor | None) -> int:
    return _all_rows(call, x) if lengths is None or not call.padded else int(lengths.sum())


_library.impl("program", _forward, "CompositeExplicitAutograd")
_library.impl("program_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("sstkern::program", lib=_library)
def _fake_forward(*arguments):
    *fields, inputs, parameters, hx, _lengths, saved_rows = arguments
    call, x = _call(*fields), inputs[0]
    leaves = run.leaves(call, inputs, parameters, hx)
    lead = x.shape[: 2 if call.padded else 1]
    outputs = [_like(x, lead, kind) for kind in result_kinds(call.program, leaves)]
    hx_n = [state.new_empty(state.shape) for state in hx]
    if saved_rows is None:
        return outputs, hx_n, []
    rows = _all_rows(call, x) if saved_rows == ALL_ROWS else saved_rows
    return outputs, hx_n, [_like(x, (rows,), kind) for kind in run.kept_kinds(call, leaves)]


def _like(x: Tensor, lead: Sequence[int], kind: Kind) -> Tensor:
    return x.new_empty(*lead, *kind.shape, dtype=kind.dtype)


@torch.library.register_fake("sstkern::program_backward", lib=_library)
def _fake_backward(*arguments):
    *_, inputs, parameters, hx, _, _, _, _, needs = arguments
    return [tensor.new_empty(tensor.shape) for tensor, need in zip((*inputs, *parameters, *hx), needs, strict=True) if need]


def _setup_forward(ctx, inputs, output):
    *fields, given, parameters, hx, lengths, _ = inputs
    ctx.call, ctx.counts = _call(*fields), (len(given), len(parameters), len(hx))
    ctx.kinds = [(result.shape, result.dtype, result.device) for result in output[0]]
    ctx.save_for_backward(*given, *parameters, *hx, lengths, *output[2])
    ctx.mark_non_differentiable(*output[2])
    ctx.set_materialize_grads(False)


def _forward_gradient(ctx, grad_outputs, grad_hx, _grad_saved):
    inputs, parameters, hx, lengths, saved = _parts(ctx.saved_tensors, ctx.counts)
    wanted = [need for part in ctx.needs_input_grad[_FIELDS : _FIELDS + 3] for need in part]
    found = _given_gradients(ctx, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, wanted)
    return *_nothing(_flat(ctx.call)), *found, None, None


def _given_gradients(ctx, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, wanted) -> Sequence[Sequence[Tensor | None]]:
    """Of inputs, parameters and states, where some of the results may have no gradient."""
    if all(gradient is None for gradient in (*grad_outputs, *grad_hx)):
        return [[None] * len(part) for part in (inputs, parameters, hx)]
    reached = _reached(ctx.call, inputs, parameters, hx)
    needs = [need and there for need, there in zip(wanted, reached, strict=True)]
    grad_outputs = [
        torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
        for gradient, (shape, dtype, device) in zip(grad_outputs, ctx.kinds, strict=True)
    ]
    grad_hx = [torch.zeros_like(state) if gradient is None else gradient for gradient, state in zip(grad_hx, hx, strict=True)]
    return _gradients(ctx.call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs)


def _reached(call: Call, inputs, parameters, hx) -> list[bool]:
    if torch.compiler.is_compiling() or not on_cpu.wanted(inputs):
        return run.reached(call, inputs, parameters, hx)
    return on_cpu.layer_of(call, inputs, parameters, hx).reached


def _gradients(call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs) -> list[list[Tensor | None]]:
    tensors = inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs
    if not torch.compiler.is_compiling() and engines.transformed([*grad_outputs, *grad_hx]):
        found = iter(run.backward(call, *tensors))
        return [[next(found) for _ in part] for part in (inputs, parameters, hx)]
    if not torch.is_grad_enabled() and private.plain([*inputs, *parameters, *hx, *grad_outputs, *grad_hx]):
        gradients = _run_backward(call, *tensors)
    else:
        with operators.undifferentiated(torch.is_grad_enabled()):
            gradients = _BACKWARD(*_flat(call), *tensors)
    found, wanted = iter(gradients), iter(needs)
    return [[next(found) if next(wanted) else None for _ in part] for part in (inputs, parameters, hx)]


def _nothing(fields: Sequence) -> list:
    """As gradients of what is no tensor: torch wants None, and an empty list for one."""
    return [[] if isinstance(field, list | tuple) and not field else None for field in fields]


def _parts(tensors: Sequence, counts: Sequence[int]) -> tuple:
    """Inputs, parameters and states, then the lengths, then the others."""
    found = []
    for count in counts:
        found.append(list(tensors[:count]))
        tensors = tensors[count:]
    return *found, tensors[0], list(tensors[1:])


torch.library.register_autograd("sstkern::program", _forward_gradient, setup_context=_setup_forward, lib=_library)


def _setup_backward(ctx, inputs, output):
    *fields, given, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs = inputs
    ctx.call, ctx.needs = fields, needs
    ctx.counts, ctx.others = (len(given), len(parameters), len(hx)), (len(saved), len(grad_outputs))
    ctx.save_for_backward(*given, *parameters, *hx, lengths, *grad_outputs, *grad_hx)


def _backward_gradient(ctx, grads):
    """Second derivatives: by autograd through the program itself."""
    inputs, parameters, hx, lengths, gradients = _parts(ctx.saved_tensors, ctx.counts)
    saved, outputs = ctx.others
    call = _call(*ctx.call)

    def forward(tensors: Sequence[Tensor]) -> list[Tensor]:
        inputs, parameters, hx = _split(tensors, ctx.counts)
        results, hx_n = run.layer(call, inputs, parameters, hx, lengths)
        return [*results, *hx_n]

    of_gradients, of_tensors = second_derivative(forward, [*inputs, *parameters, *hx], gradients, ctx.needs, grads)
    rest = iter(of_tensors)
    found = [[next(rest) for _ in part] for part in (inputs, parameters, hx)]
    return *_nothing(ctx.call), *found, None, [None] * saved, of_gradients[:outputs], of_gradients[outputs:], None


torch.library.register_autograd("sstkern::program_backward", _backward_gradient, setup_context=_setup_backward, lib=_library)


def _batched_backward(*arguments):
    """Where some of the gradients are batches: autograd.grad(is_grads_batched=True), jacobian(vectorize=True)."""
    *fields, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs = arguments
    tensors = [*grad_outputs, *grad_hx]
    dims = tuple(0 if private.is_batch_of_gradients(tensor) else None for tensor in tensors)
    given = [tensor if dim is None else private.gradients_in_batch(tensor) for tensor, dim in zip(tensors, dims, strict=True)]

    def gradients(*tensors: Tensor) -> list[Tensor]:
        of_outputs, of_states = tensors[: len(grad_outputs)], tensors[len(grad_outputs) :]
        found = run.backward(_call(*fields), inputs, parameters, hx, lengths, saved, of_outputs, of_states, needs)
        return [gradient for gradient in found if gradient is not None]

    return [private.as_batch_of_gradients(gradient) for gradient in vmap(gradients, dims)(*given)]


_library.impl("program_backward", _batched_backward, "Batched")


def _autocast(operator, device: str):
    def cast(part):
        if isinstance(part, list):
            return [operators.autocast(tensor) if tensor.is_floating_point() else tensor for tensor in part]
        return part

    def called(*arguments):
        fields, tensors, rest = arguments[:_FIELDS], arguments[_FIELDS : _FIELDS + 3], arguments[_FIELDS + 3 :]
        with torch.autocast(device, enabled=False):
            return operator(*fields, *map(cast, tensors), *rest)

    return called


# A gradient has the dtypes that its forward had.
for _device in ("cpu", "cuda"):
    _key = f"Autocast{_device.upper()}"
    _library.impl("program", _autocast(torch.ops.sstkern.program, _device), _key)
