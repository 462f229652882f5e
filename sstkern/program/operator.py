"""The operators `sstkern::program` and `sstkern::program_backward`: a layer of any program, one direction, with its derivatives.

A program is its text: nothing else of a cell is in a graph that torch.compile or torch.export makes, and nothing of it is executed.
T time steps, B batch, N rows, as in `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from sstkern import engines, operators, private, transforms
from sstkern.engines.reference import Linear
from sstkern.forked import one_thread
from sstkern.lengths import ALL_ROWS, alone, beginnings
from sstkern.program import engine, run
from sstkern.program.compiler import CannotCompile
from sstkern.program.graph import Program
from sstkern.program.run import Call
from sstkern.program.shapes import Kind, result_kinds
from sstkern.program.windows import NotLowered
from sstkern.second_derivative import second_derivative

Part = TypeVar("Part", Tensor, Tensor | None)

_library = torch.library.Library("sstkern", "FRAGMENT")
_CALL = "str program, int[] sizes, float[] numbers, bool reverse, bool padded, bool recompute"
_TENSORS = "Tensor[] inputs, Tensor[] parameters, Tensor[] hx, Tensor? lengths"
# saved_rows: as of sstkern::layer.
_library.define(f"program({_CALL}, {_TENSORS}, int? saved_rows) -> (Tensor[] outputs, Tensor[] hx_n, Tensor[] saved)")
# needs: which gradients to return, a flag each for inputs, parameters, states; the result holds just those, in that order.
# groups: as of sstkern::layer_backward.
_library.define(
    f"program_backward({_CALL}, {_TENSORS}, Tensor[] saved, Tensor[] grad_outputs, Tensor[] grad_hx, bool[] needs, int? groups) -> Tensor[]"
)
_FIELDS = len(_CALL.split(","))
# The overloads themselves: to find one takes the operator 2 microseconds.
_PROGRAM, _BACKWARD = torch.ops.sstkern.program.default, torch.ops.sstkern.program_backward.default


def layer(
    call: Call, inputs: Sequence[Tensor], parameters: Sequence[Tensor], hx: Sequence[Tensor], lengths: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """`run.layer`, with the derivative of the program where a gradient is wanted. It passes under autocast in the dtype of that."""
    tensors, counts, compiling = [*inputs, *parameters, *hx], (len(inputs), len(parameters), len(hx)), torch.compiler.is_compiling()
    traced = compiling or torch.jit.is_tracing()
    if not traced and operators.autocasting(inputs[0]):
        inputs, parameters, hx = _split(operators.autocast(tensors), counts)
        with private.without_autocast():
            return layer(call, inputs, parameters, hx, lengths)
    if (savable := operators.savable(tensors)) is not tensors:
        inputs, parameters, hx = _split(savable, counts)
        return layer(call, inputs, parameters, hx, lengths)
    if private.transforms_active() or (not compiling and private.in_dual_level() and engines.in_forward_mode(tensors)):
        return _transformed(call, inputs, parameters, hx, lengths)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if traced:
        rows = operators.saved_rows(not call.padded, lengths) if differentiable else None
        return torch.ops.sstkern.program(*_flat(call), inputs, parameters, hx, lengths, rows)[:2]
    if differentiable:
        found = _Program.apply(call, counts, lengths, *tensors)
        return list(found[: len(call.program.outputs)]), list(found[len(call.program.outputs) :])
    return _undifferentiated(call, inputs, parameters, hx, lengths, None)[:2]


def _transformed(call: Call, inputs, parameters, hx, lengths: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """`layer` within transforms, or in forward mode, which comes from plain PyTorch."""
    if operators.autocasting(inputs[0]):  # the operator does this by itself
        with torch.autocast(inputs[0].device.type, enabled=False):
            inputs, parameters, hx = map(operators.autocast, (inputs, parameters, hx))
            return _transformed(call, inputs, parameters, hx, lengths)
    tensors = [*inputs, *parameters, *hx]
    forward_mode = engines.in_forward_mode(tensors)
    if forward_mode:
        engines.check_forward_mode()
    if forward_mode or not (torch.compiler.is_compiling() or engine.runs(call, inputs, parameters, hx)):
        return run.layer(call, inputs, parameters, hx, lengths)
    results = transforms.run(_of_program(call, inputs, parameters, hx), lengths, tensors)
    return list(results[: len(call.program.outputs)]), list(results[len(call.program.outputs) :])


def _undifferentiated(call: Call, inputs, parameters, hx, lengths: Tensor | None, saved_rows: int | None):
    """The operator without its derivative, in an eager call."""
    if private.plain([*inputs, *parameters, *hx]):
        return _run(call, inputs, parameters, hx, lengths, saved_rows)
    with operators.undifferentiated():
        return _PROGRAM(*_flat(call), inputs, parameters, hx, lengths, saved_rows)


@dataclass(frozen=True, kw_only=True)
class _OfProgram(transforms.Call):
    call: Call

    def forward(self, lengths: Tensor | None, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.autocast(tensors[0].device.type, enabled=False):
            outputs, hx_n, _ = _undifferentiated(*self._arguments(tensors), lengths, None)
        return *outputs, *hx_n

    def backward(self, lengths: Tensor | None, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor]:
        arguments, of_outputs, of_states = self._arguments(tensors), grads[: self.outputs], grads[self.outputs :]
        with torch.autocast(tensors[0].device.type, enabled=False):
            saved = _undifferentiated(*arguments, lengths, operators.saved_rows(self.packed, lengths))[2]
            return _undifferentiated_backward(*arguments, lengths, saved, of_outputs, of_states, self.needs, self.groups)

    def plain(self, lengths: Tensor | None, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        outputs, hx_n = run.layer(*self._arguments(tensors), lengths)
        return *outputs, *hx_n

    def _arguments(self, tensors: Sequence[Tensor]) -> tuple[Call, list[Tensor], list[Tensor], list[Tensor]]:
        """The call, inputs, parameters and states."""
        inputs, parameters, hx = _split(tensors, (self.inputs, self.weights, self.states))
        return self.call._replace(padded=not self.packed), inputs, parameters, hx


def _of_program(call: Call, inputs, parameters, hx) -> _OfProgram:
    return _OfProgram(
        inputs=len(inputs),
        weights=len(parameters),
        states=len(hx),
        last=len(call.program.states),
        outputs=len(call.program.outputs),
        of_states=0,
        packed=not call.padded,
        call=call,
    )


class _Program(torch.autograd.Function):
    """The gradient that `sstkern::program` has, for eager calls: through the dispatcher a call takes a millisecond."""

    @staticmethod
    def forward(ctx, call: Call, counts: tuple[int, int, int], lengths: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.counts = call, counts
        ctx.set_materialize_grads(False)
        inputs, parameters, hx = _split(tensors, counts)
        rows = operators.saved_rows(not call.padded, lengths)
        ctx.forced, ctx.layer = engines.forced(), _compiled_layer(call, inputs, parameters, hx, lengths)
        if ctx.layer is not None:
            try:
                with private.below_views():  # a view could not be changed in place by the caller
                    outputs, hx_n, saved = ctx.layer.forward(call, inputs, parameters, hx, lengths, rows)
            except CannotCompile:
                ctx.layer = None  # said where it runs in plain PyTorch
        if ctx.layer is None:
            outputs, hx_n, saved = _undifferentiated(call, inputs, parameters, hx, lengths, rows)
        ctx.kinds = [(result.shape, result.dtype) for result in outputs]
        ctx.save_for_backward(*tensors, lengths, *saved)
        return *outputs, *hx_n

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple:
        inputs, parameters, hx, lengths, saved = _parts(ctx.saved_tensors, ctx.counts)
        wanted = ctx.needs_input_grad[3:]
        count = len(ctx.kinds)
        found = _given_gradients(ctx, inputs, parameters, hx, lengths, saved, gradients[:count], gradients[count:], wanted)
        return None, None, None, *found


def _compiled_layer(call: Call, inputs, parameters, hx, lengths: Tensor | None) -> engine.Layer | None:
    """What runs an eager training step of plain tensors on an engine; None where something else has to.

    Found once a step: to look for it takes the forward 10 microseconds, and the backward twice that.
    """
    given = [*inputs, *parameters, *hx]
    name = engine.wanted(given) if private.plain(given) else None
    if name is None:
        return None
    layer = engine.layer_of(name, call, inputs, parameters, hx)
    return layer if layer.compiles() else None


def _split(tensors: Sequence[Part], counts: Sequence[int]) -> list[list[Part]]:
    """Inputs, parameters and states."""
    first, second = counts[0], counts[0] + counts[1]
    return [list(tensors[:first]), list(tensors[first:second]), list(tensors[second:])]


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
    """The results, by an engine where one can run it, which gives new tensors; else in plain PyTorch."""
    given = [*inputs, *parameters, *hx]
    if name := engine.wanted(given):
        try:
            return engine.layer_of(name, call, inputs, parameters, hx).forward(call, inputs, parameters, hx, lengths, saved_rows)
        except (NotLowered, CannotCompile) as error:
            engine.unable(error, call)
    if saved_rows is None:
        return *_apart(given, *run.layer(call, inputs, parameters, hx, lengths)), []
    outputs, hx_n, saved = run.forward_and_saved(call, inputs, parameters, hx, lengths)
    rows = _all_rows(call, inputs[0]) if saved_rows == ALL_ROWS else saved_rows
    return _apart(given, outputs, hx_n, [_filled(tensor, rows) for tensor in saved])


def _all_rows(call: Call, x: Tensor) -> int:
    return x.size(0) * x.size(1) if call.padded else x.size(0)


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """The tensor with zeros behind it, up to a number of rows."""
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
    *fields, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs, groups = arguments
    return _run_backward(_call(*fields), inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs, groups)


def _run_backward(
    call: Call, inputs, parameters, hx, lengths: Tensor | None, saved, grad_outputs, grad_hx, needs, groups: int | None = None
) -> list[Tensor]:
    with private.below_views():
        if not saved:  # the forward was told that there is no backward
            saved = _results(call, inputs, parameters, hx, lengths, _rows(call, inputs[0], lengths))[2]
        return _gradients_of(call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs, groups)


def _gradients_of(call: Call, inputs, parameters, hx, lengths: Tensor | None, saved, grad_outputs, grad_hx, needs, groups):
    """The gradients, by an engine or in plain PyTorch as `_results`."""
    tensors, given = (inputs, parameters, hx, lengths), [*inputs, *parameters, *hx, *grad_outputs, *grad_hx]
    if name := engine.wanted(given):
        try:
            found = engine.layer_of(name, call, inputs, parameters, hx).backward(
                call, *tensors, saved, grad_outputs, grad_hx, needs, groups
            )
            return [gradient for gradient in found if gradient is not None]
        except (NotLowered, CannotCompile) as error:
            engine.unable(error, call)
    if groups is not None:
        return _of_each_group(call, inputs, parameters, hx, lengths, grad_outputs, grad_hx, needs, groups)
    if beginnings(lengths) is not None:
        with torch.enable_grad(), private.autograd_again():
            return _plain_gradients(call, inputs, parameters, hx, lengths, grad_outputs, grad_hx, needs)
    saved = [tensor[: _rows(call, inputs[0], lengths)] for tensor in saved]
    found = run.backward(call, *tensors, saved, grad_outputs, grad_hx, needs)
    return _apart(given, [gradient for gradient in found if gradient is not None])[0]


def _of_each_group(call: Call, inputs, parameters, hx, lengths: Tensor | None, grad_outputs, grad_hx, needs, groups: int):
    """The gradients in plain PyTorch, a group after the other."""
    plain = replace(_of_program(call, inputs, parameters, hx), needs=tuple(needs), groups=groups)
    if plain.packed:
        raise NotImplementedError("sstkern::program_backward: groups of packed sequences need a fused engine; pad them")
    if groups < 1 or inputs[0].size(1) % groups:
        raise ValueError(f"groups: {groups} do not share {inputs[0].size(1)} sequences equally")
    with torch.enable_grad(), private.autograd_again():
        return list(transforms.plain_gradients(plain, lengths, *inputs, *parameters, *hx, *grad_outputs, *grad_hx))


def _plain_gradients(call: Call, inputs, parameters, hx, lengths: Tensor | None, grad_outputs, grad_hx, needs) -> list[Tensor]:
    """The gradients that are needed, by autograd through plain PyTorch."""
    plain = replace(_of_program(call, inputs, parameters, hx), needs=tuple(needs))
    return list(transforms.plain_gradients(plain, lengths, *inputs, *parameters, *hx, *grad_outputs, *grad_hx))


def _rows(call: Call, x: Tensor, lengths: Tensor | None) -> int:
    return _all_rows(call, x) if lengths is None or not call.padded else int(alone(lengths).sum())


_library.impl("program", _forward, "CompositeExplicitAutograd")
_library.impl("program_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("sstkern::program", lib=_library)
def _fake_forward(*arguments):
    *fields, inputs, parameters, hx, _lengths, saved_rows = arguments
    call, x = _call(*fields), inputs[0]
    leaves = run.leaves(call, inputs, parameters, hx)
    lead = x.shape[: 2 if call.padded else 1]
    outputs = [_like(x, lead, kind) for kind in result_kinds(call.program, leaves)]
    hx_n = [state.new_empty(state.shape) for state in hx[: len(call.program.states)]]
    if saved_rows is None:
        return outputs, hx_n, []
    rows = _all_rows(call, x) if saved_rows == ALL_ROWS else saved_rows
    return outputs, hx_n, [_like(x, (rows,), kind) for kind in run.kept_kinds(call, leaves)]


def _like(x: Tensor, lead: Sequence[int], kind: Kind) -> Tensor:
    return x.new_empty(*lead, *kind.shape, dtype=kind.dtype)


@torch.library.register_fake("sstkern::program_backward", lib=_library)
def _fake_backward(*arguments):
    *_, inputs, parameters, hx, _, _, _, _, needs, groups = arguments
    lead = () if groups is None else (groups,)
    shapes = [*(x.shape for x in inputs), *((*lead, *parameter.shape) for parameter in parameters), *(state.shape for state in hx)]
    tensors = zip((*inputs, *parameters, *hx), shapes, needs, strict=True)
    return [tensor.new_empty(shape) for tensor, shape, need in tensors if need]


def _setup_forward(ctx, inputs, output):
    *fields, given, parameters, hx, lengths, _ = inputs
    ctx.call, ctx.counts = _call(*fields), (len(given), len(parameters), len(hx))
    ctx.kinds, ctx.layer = [(result.shape, result.dtype) for result in output[0]], None
    ctx.forced = engines.forced()
    ctx.save_for_backward(*given, *parameters, *hx, lengths, *output[2])
    ctx.mark_non_differentiable(*output[2])
    ctx.set_materialize_grads(False)


def _forward_gradient(ctx, grad_outputs, grad_hx, _grad_saved):
    inputs, parameters, hx, lengths, saved = _parts(ctx.saved_tensors, ctx.counts)
    wanted = [need for part in ctx.needs_input_grad[_FIELDS : _FIELDS + 3] for need in part]
    found = _given_gradients(ctx, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, wanted)
    return *_nothing(_flat(ctx.call)), *_split(found, ctx.counts), None, None


@one_thread
def _given_gradients(ctx, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, wanted) -> Sequence[Tensor | None]:
    """The gradients of inputs, parameters and states, where some of the results may have no gradient."""
    with engines.forcing(ctx.forced):
        return _gradients_by_engine(ctx, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, wanted)


def _gradients_by_engine(ctx, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, wanted) -> Sequence[Tensor | None]:
    if all(gradient is None for gradient in (*grad_outputs, *grad_hx)):
        return [None] * len(wanted)
    grad_outputs = [
        inputs[0].new_zeros(shape, dtype=dtype) if gradient is None else gradient
        for gradient, (shape, dtype) in zip(grad_outputs, ctx.kinds, strict=True)
    ]
    grad_hx = [torch.zeros_like(state) if gradient is None else gradient for gradient, state in zip(grad_hx, hx, strict=False)]
    tensors = inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx
    if ctx.layer is not None and _runs_backward([*inputs, *parameters, *hx, *grad_outputs, *grad_hx]):
        try:
            with private.below_views():
                return ctx.layer.backward(ctx.call, *tensors, _both(wanted, ctx.layer.reached))
        except (NotLowered, CannotCompile):
            pass  # said where it runs in plain PyTorch
    return _gradients(ctx.call, *tensors, _both(wanted, _reached(ctx.call, inputs, parameters, hx)))


def _both(wanted: Sequence[bool], reached: Sequence[bool]) -> list[bool]:
    anew = [True] * (len(wanted) - len(reached))  # what sequences begin anew with
    return [need and there for need, there in zip(wanted, [*reached, *anew], strict=True)]


def _runs_backward(tensors: Sequence[Tensor]) -> bool:
    """Whether the backward of what `_compiled_layer` found runs by it too: nothing sees it, and it is not to be differentiated."""
    if torch.is_grad_enabled() or engines.transformed(tensors):
        return False
    return private.plain(tensors) and engine.wanted(tensors) is not None


def _reached(call: Call, inputs, parameters, hx) -> list[bool]:
    name = None if torch.compiler.is_compiling() else engine.wanted(inputs)
    if name is None:
        return run.reached(call, inputs, parameters, hx)
    return engine.layer_of(name, call, inputs, parameters, hx).reached


def _gradients(call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs) -> list[Tensor | None]:
    tensors = inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs
    if not torch.compiler.is_compiling() and engines.transformed([*grad_outputs, *grad_hx]):
        return _transformed_gradients(call, *tensors)
    gradients = iter(_undifferentiated_backward(call, *tensors, None))
    return [next(gradients) if need else None for need in needs]


def _transformed_gradients(call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs) -> list[Tensor | None]:
    """As `_transformed`."""
    if not engine.runs(call, inputs, parameters, hx):
        if beginnings(lengths) is not None:
            found = iter(_plain_gradients(call, inputs, parameters, hx, lengths, grad_outputs, grad_hx, needs))
            return [next(found) if need else None for need in needs]
        return run.backward(call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs)
    tensors, grads = [*inputs, *parameters, *hx], [*grad_outputs, *grad_hx]
    return transforms.gradients_of(_of_program(call, inputs, parameters, hx), lengths, tensors, grads, needs)


def _undifferentiated_backward(call, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs, groups) -> list[Tensor]:
    """As `_undifferentiated`, but for a gradient that is to be differentiated."""
    tensors = inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs, groups
    if not torch.is_grad_enabled() and private.plain([*inputs, *parameters, *hx, *grad_outputs, *grad_hx]):
        return _run_backward(call, *tensors)
    with operators.undifferentiated(torch.is_grad_enabled()):
        return _BACKWARD(*_flat(call), *tensors)


def _nothing(fields: Sequence) -> list:
    """The gradients of arguments that are no tensors: torch wants None, and an empty list for a list."""
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
    *fields, given, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs, groups = inputs
    if groups is not None:
        raise NotImplementedError("sstkern::program_backward: gradients of groups have no derivative")
    ctx.call, ctx.needs = fields, needs
    ctx.counts, ctx.others = (len(given), len(parameters), len(hx)), (len(saved), len(grad_outputs))
    ctx.save_for_backward(*given, *parameters, *hx, lengths, *grad_outputs, *grad_hx)
    ctx.set_materialize_grads(False)


def _backward_gradient(ctx, grads):
    """Second derivatives: by autograd through the program itself."""
    inputs, parameters, hx, lengths, gradients = _parts(ctx.saved_tensors, ctx.counts)
    saved, outputs = ctx.others
    call = _call(*ctx.call)

    def forward(tensors: Sequence[Tensor], _product: Linear) -> list[Tensor]:
        inputs, parameters, hx = _split(tensors, ctx.counts)
        results, hx_n = run.layer(call, inputs, parameters, hx, lengths)
        return [*results, *hx_n]

    *tensors, _, _, of_outputs, of_states, _, _ = ctx.needs_input_grad[_FIELDS:]
    wanted = [want for part in (*tensors, of_outputs, of_states) for want in part]
    found = iter(second_derivative(forward, [*inputs, *parameters, *hx], gradients, ctx.needs, grads, wanted))
    of_tensors = [[next(found) for _ in part] for part in tensors]
    of_gradients = list(found)
    return *_nothing(ctx.call), *of_tensors, None, [None] * saved, of_gradients[:outputs], of_gradients[outputs:], None, None


torch.library.register_autograd("sstkern::program_backward", _backward_gradient, setup_context=_setup_backward, lib=_library)


def _batched_backward(*arguments):
    """Where some of the gradients are batches: autograd.grad(is_grads_batched=True), jacobian(vectorize=True)."""
    *fields, inputs, parameters, hx, lengths, saved, grad_outputs, grad_hx, needs, groups = arguments
    if groups is not None:
        raise NotImplementedError("sstkern::program_backward: gradients of groups have no batches")
    call = _call(*fields)

    def gradients(*grads: Tensor) -> list[Tensor]:
        of_outputs, of_states = grads[: len(grad_outputs)], grads[len(grad_outputs) :]
        found = _transformed_gradients(call, inputs, parameters, hx, lengths, saved, of_outputs, of_states, needs)
        return [gradient for gradient in found if gradient is not None]

    return transforms.in_batches(gradients, [*grad_outputs, *grad_hx])


_library.impl("program_backward", _batched_backward, "Batched")


def _autocast(operator, device: str):
    def called(*arguments):
        fields, tensors, rest = arguments[:_FIELDS], arguments[_FIELDS : _FIELDS + 3], arguments[_FIELDS + 3 :]
        cast = list(map(operators.autocast, tensors))
        with torch.autocast(device, enabled=False):
            return operator(*fields, *cast, *rest)

    return called


# A gradient has the dtypes that its forward had.
for _device in ("cpu", "cuda"):
    _key = f"Autocast{_device.upper()}"
    _library.impl("program", _autocast(torch.ops.sstkern.program, _device), _key)
