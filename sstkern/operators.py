"""The operators `sstkern::layer` and `sstkern::layer_backward`: schemas, fake shapes, autograd and autocast.

One operator runs one recurrent layer, all its directions; `reference.layer` says what its arguments and results are. The schemas live
here, and an engine only adds implementations: the C++ extension does so for CPU tensors, Triton kernels for a GPU's. Everything else, and a
machine without the extension, has the reference engine's.
"""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from sstkern.cells import CELLS
from sstkern.engines import FUSED_CELLS, FUSED_DTYPES, extension_problem, interpreting, reference, transformed, triton_problem
from sstkern.weights import by_direction

_library = torch.library.Library("sstkern", "DEF")
_LAYER = "str cell, Tensor x, Tensor[] weights, Tensor[] hx, Tensor? lengths, bool has_bias, bool bidirectional"
# save_for_backward: without it `saved` is empty and there is no backward.
_library.define(f"layer({_LAYER}, bool save_for_backward) -> (Tensor output, Tensor[] hx_n, Tensor[] saved)")
# needs: which gradients to return, a flag each for x, every weight, every state; the result holds just those, in that order.
# groups: equal shares of the batch, each with weight gradients of its own, (groups, ...); None for one sum over the batch.
_GRADIENTS = "Tensor output, Tensor[] saved, Tensor? grad_output, Tensor[] grad_hx, bool[] needs, int? groups"
_library.define(f"layer_backward({_LAYER}, {_GRADIENTS}) -> Tensor[]")
_library.define("cpu_capability() -> str")
_library.define("cpu_runs() -> int[]")
# What no kernel can exceed with this many threads: float32 multiply-adds, in GFLOP/s, and reading `bytes` again and again, in GB/s.
_library.define("cpu_peak() -> float")
_library.define("cpu_bandwidth(int bytes) -> float")


def _reference_layer(cell, x, weights, hx, lengths, has_bias, bidirectional, save_for_backward):
    output, hx_n = reference.layer(CELLS[cell], x, weights, hx, lengths, has_bias, bidirectional)
    return output, hx_n, []


def _reference_backward(cell, x, weights, hx, lengths, has_bias, bidirectional, output, saved, grad_output, grad_hx, needs, groups):
    if groups is not None:
        raise NotImplementedError("sstkern::layer_backward: the reference engine has no groups; torch.func.vmap does the same there")
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *weights, *hx)]
    with torch.enable_grad(), _autograd_again():
        results = flat_reference(cell, inputs, len(weights), lengths, has_bias, bidirectional)
    grads = [torch.zeros_like(output) if grad_output is None else grad_output, *grad_hx]
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
    return list(torch.autograd.grad(results, wanted, grads, materialize_grads=True))


def _autograd_again():
    """The dispatcher excludes autograd while an operator's implementation runs; this one differentiates inside."""
    autograd = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded - autograd)


def flat_reference(cell, inputs: Sequence[Tensor], weights: int, lengths, has_bias, bidirectional) -> list[Tensor]:
    x, *rest = inputs
    output, hx_n = reference.layer(CELLS[cell], x, rest[:weights], rest[weights:], lengths, has_bias, bidirectional)
    return [output, *hx_n]


def _triton_layer(*arguments):
    from sstkern.engines.triton import layer  # here: importing triton takes a while, and only a GPU needs it

    return layer.forward(*arguments)


def _triton_backward(*arguments):
    from sstkern.engines.triton import layer

    return layer.backward(*arguments)


_library.impl("layer", _reference_layer, "CompositeExplicitAutograd")
_library.impl("layer_backward", _reference_backward, "CompositeExplicitAutograd")
for _key in ("CUDA", "CPU") if interpreting() else ("CUDA",):
    _library.impl("layer", _triton_layer, _key)
    _library.impl("layer_backward", _triton_backward, _key)


@torch.library.register_fake("sstkern::layer", lib=_library)
def _fake_layer(cell, x, weights, hx, lengths, has_bias, bidirectional, save_for_backward):
    _check_devices(x, weights, hx)
    layers = by_direction(CELLS[cell], weights, has_bias, bidirectional)
    output = x.new_empty(x.size(0), x.size(1), len(layers) * layers[0].output_size)
    saved = _fake_saved(cell, x, weights, has_bias, bidirectional, output) if save_for_backward else []
    return output, [state.new_empty(state.shape) for state in hx], saved


def _check_devices(x: Tensor, *groups: Sequence[Tensor]) -> None:
    for tensor in (tensor for group in groups for tensor in group):
        if tensor.device != x.device:
            raise RuntimeError(f"expected all tensors on {x.device} like x, got one on {tensor.device}")


def _fake_saved(cell, x, weights, has_bias, bidirectional, output) -> list[Tensor]:
    if cell not in FUSED_CELLS or x.dtype not in FUSED_DTYPES:
        return []
    if (x.device.type == "cuda" or interpreting()) and triton_problem() is None:
        from sstkern.engines.triton import layer

        return [x.new_empty(shape) for shape in layer.saved_shapes(cell, x, weights, has_bias, bidirectional)]
    if x.device.type == "cpu" and extension_problem() is None:
        return _fake_cpu_saved(cell, x, by_direction(CELLS[cell], weights, has_bias, bidirectional), output)
    return []


_CPU_SAVES = {"lstm": 1, "gru": 1, "rnn_tanh": 0, "rnn_relu": 0}
"""How many (B, H) of a time step the C++ engine keeps beside the gates."""


def _fake_cpu_saved(cell, x, layers, output) -> list[Tensor]:
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    saved = []
    for layer in layers:
        rows, gates = x.size(0) * x.size(1), layer.weight_hh.size(0)
        hidden_size = gates // len(CELLS[cell].gates)
        widths = [gates, _CPU_SAVES[cell] * hidden_size] + [hidden_size] * (layer.weight_hr is not None)
        saved += [x.new_empty(rows, width, dtype=dtype) for width in widths]
    return saved if dtype == x.dtype else [*saved, output.new_empty(output.shape, dtype=dtype)]


@torch.library.register_fake("sstkern::layer_backward", lib=_library)
def _fake_backward(cell, x, weights, hx, lengths, has_bias, bidirectional, output, saved, grad_output, grad_hx, needs, groups):
    _check_devices(x, weights, hx, [output], saved, grad_hx)
    lead = () if groups is None else (groups,)
    shapes = [x.shape, *((*lead, *weight.shape) for weight in weights), *(state.shape for state in hx)]
    return [x.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]


def _setup_layer(ctx, inputs, output):
    cell, x, weights, hx, lengths, has_bias, bidirectional, _ = inputs
    result, _, saved = output
    ctx.call = cell, has_bias, bidirectional
    ctx.counts = len(weights), len(hx)
    ctx.save_for_backward(x, *weights, *hx, lengths, result, *saved)
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)


def _layer_gradient(ctx, grad_output, grad_hx, _grad_saved):
    dx, dweights, dhx = _gradients(ctx, grad_output, grad_hx, [ctx.needs_input_grad[1], *ctx.needs_input_grad[2], *ctx.needs_input_grad[3]])
    return None, dx, dweights, dhx, None, None, None, None


def _gradients(ctx, grad_output, grad_hx, needs: list[bool]) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    (cell, has_bias, bidirectional), (weights, states) = ctx.call, ctx.counts
    if grad_output is None and all(grad is None for grad in grad_hx):
        # A second derivative comes by here, through `output`, an input of layer_backward; there is nothing to run.
        return None, [None] * weights, [None] * states
    x, *rest = ctx.saved_tensors
    weights, hx, (lengths, output, *saved) = rest[:weights], rest[weights : weights + states], rest[weights + states :]
    grad_hx = [torch.zeros_like(state) if grad is None else grad for state, grad in zip(hx, grad_hx, strict=True)]
    if not torch.compiler.is_compiling() and transformed(grad_hx if grad_output is None else [grad_output, *grad_hx]):
        from sstkern import transforms  # here: it is written in terms of this module

        grads = [torch.zeros_like(output) if grad_output is None else grad_output, *grad_hx]
        found = transforms.gradients(cell, x, weights, hx, lengths, has_bias, bidirectional, grads, needs)
        return found[0], found[1 : 1 + len(weights)], found[1 + len(weights) :]
    with undifferentiated(torch.is_grad_enabled()):
        grads = iter(
            torch.ops.sstkern.layer_backward(
                cell, x, weights, hx, lengths, has_bias, bidirectional, output, saved, grad_output, grad_hx, needs, None
            )
        )
    dx, *drest = [next(grads) if need else None for need in needs]
    return dx, drest[: len(weights)], drest[len(weights) :]


torch.library.register_autograd("sstkern::layer", _layer_gradient, setup_context=_setup_layer, lib=_library)


def undifferentiated(differentiable: bool = False):
    """Inside, an operator goes straight to its implementation: the dispatcher's way through autograd takes 40 microseconds."""
    return nullcontext() if differentiable or torch.compiler.is_compiling() else torch._C._AutoDispatchBelowAutograd()


class _Layer(torch.autograd.Function):
    """The gradient that `sstkern::layer` registers, for eager calls: through the dispatcher it takes four times as long."""

    @staticmethod
    def forward(ctx, call, weights: int, lengths, x, *tensors):
        ctx.call, ctx.counts = call, (weights, len(tensors) - weights)
        ctx.set_materialize_grads(False)
        cell, *options = call
        with undifferentiated():
            output, hx_n, saved = torch.ops.sstkern.layer(cell, x, tensors[:weights], tensors[weights:], lengths, *options, True)
        ctx.save_for_backward(x, *tensors, lengths, output, *saved)
        return output, *hx_n

    @staticmethod
    def backward(ctx, grad_output, *grad_hx):
        dx, dweights, dhx = _gradients(ctx, grad_output, grad_hx, list(ctx.needs_input_grad[3:]))
        return None, None, None, dx, *dweights, *dhx


def layer(
    cell: str,
    x: Tensor,
    weights: Sequence[Tensor],
    hx: Sequence[Tensor],
    lengths: Tensor | None,
    has_bias: bool,
    bidirectional: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The operator `sstkern::layer` as the modules call it, differentiable: output and final states.

    torch.compile, torch.export and torch.jit.trace see the operator itself, as does autocast; torch.func's transforms see what is in
    `transforms`.
    """
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights, *hx))
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled(x.device.type):
        return torch.ops.sstkern.layer(cell, x, weights, hx, lengths, has_bias, bidirectional, differentiable)[:2]
    if differentiable:
        output, *hx_n = _Layer.apply((cell, has_bias, bidirectional), len(weights), lengths, x, *weights, *hx)
        return output, hx_n
    with undifferentiated():
        return torch.ops.sstkern.layer(cell, x, weights, hx, lengths, has_bias, bidirectional, False)[:2]


def _setup_backward(ctx, inputs, output):
    cell, x, weights, hx, lengths, has_bias, bidirectional, result, saved, grad_output, grad_hx, needs, groups = inputs
    if groups is not None:
        raise NotImplementedError("sstkern::layer_backward: gradients of groups have no derivative")
    ctx.call = cell, lengths, has_bias, bidirectional, needs, len(saved)
    ctx.counts = len(weights), len(hx)
    ctx.save_for_backward(result, grad_output, x, *weights, *hx, *grad_hx)


def _backward_gradient(ctx, grads):
    """Second derivatives, of any order: the reference engine's first derivative, differentiated."""
    (cell, lengths, has_bias, bidirectional, needs, saved), (weights, states) = ctx.call, ctx.counts
    output, given_grad_output, *tensors = ctx.saved_tensors
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(output.device.type, enabled=False):
        # The caller's own tensors: what is recorded here may itself be differentiated.
        aliases = [tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in tensors]
        inputs, grad_hx = aliases[: 1 + weights + states], aliases[1 + weights + states :]
        grad_output = torch.zeros_like(output) if given_grad_output is None else given_grad_output
        grad_output = grad_output.view_as(grad_output) if grad_output.requires_grad else grad_output.detach().requires_grad_()
        results = flat_reference(cell, inputs, weights, lengths, has_bias, bidirectional)
        wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
        first = torch.autograd.grad(results, wanted, [grad_output, *grad_hx], create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(first, [grad_output, *aliases], grads, create_graph=differentiable, allow_unused=True)
    dgrad_output, dx, *rest = second
    dweights, dhx, dgrad_hx = rest[:weights], rest[weights : weights + states], rest[weights + states :]
    return (
        None,
        dx,
        dweights,
        dhx,
        None,
        None,
        None,
        None,
        [None] * saved,
        None if given_grad_output is None else dgrad_output,
        dgrad_hx,
        None,
        None,
    )


torch.library.register_autograd("sstkern::layer_backward", _backward_gradient, setup_context=_setup_backward, lib=_library)


def _without_autocast(device: str):
    """Inside, the matrix products of an implementation keep its tensors' dtype."""
    guard = ExitStack()
    guard.enter_context(torch.autocast(device, enabled=False))
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")
    guard.enter_context(torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)))
    return guard


def autocasting(device: str) -> bool:
    """Not every device has autocast: torch's own question raises for "meta"."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast(tensor: Tensor) -> Tensor:
    """float32, bfloat16 and float16 in the dtype that autocast asks for; float64 stays, as in torch's own operators."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _autocast_layer(device: str):
    def layer(cell, x, weights, hx, *options):
        x, *tensors = (autocast(tensor) for tensor in (x, *weights, *hx))
        with _without_autocast(device):
            return torch.ops.sstkern.layer(cell, x, tensors[: len(weights)], tensors[len(weights) :], *options)

    return layer


def _autocast_backward(device: str):
    def layer_backward(*arguments):
        with _without_autocast(device):
            return torch.ops.sstkern.layer_backward(*arguments)

    return layer_backward


def _refuse_batches(*_arguments):
    raise NotImplementedError(
        "sstkern's layers have no batched gradients of this kind (torch.autograd.grad(is_grads_batched=True), "
        "torch.autograd.functional.jacobian(vectorize=True)); torch.func.jacrev, or vmap of torch.func.vjp, does the same"
    )


_library.impl("layer_backward", _refuse_batches, "Batched")
for _device in ("cpu", "cuda"):
    _library.impl("layer", _autocast_layer(_device), f"Autocast{_device.upper()}")
    _library.impl("layer_backward", _autocast_backward(_device), f"Autocast{_device.upper()}")


extension_problem()  # loads the C++ implementations, now that their operators exist
