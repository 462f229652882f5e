"""The operators `sstkern::layer` and `sstkern::layer_backward`: schemas, fake shapes and autocast; `autograd` has their derivatives.

One operator runs one recurrent layer, all its directions; `reference.layer` says what its arguments and results are. The schemas live
here, and an engine only adds implementations: the C++ extension does so for CPU tensors, Triton kernels for a GPU's. Everything else, and a
machine without the extension, has the reference engine's.
"""

import importlib
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from sstkern import flops, private
from sstkern.autocast import autocast
from sstkern.cells import CELLS
from sstkern.engines import FUSED_DTYPES, cpu, extension_problem, interpreting, lacks_cell, lacks_projection, reference, triton_problem
from sstkern.lengths import ALL_ROWS, all_rows, alone
from sstkern.weights import Weights, by_direction, projected

_library = torch.library.Library("sstkern", "DEF")
_LAYER = "str cell, Tensor x, Tensor[] weights, Tensor[] hx, Tensor? lengths, bool has_bias, bool bidirectional"
# saved_rows: how many rows each of what the backward needs gets, at least one for each valid time step, -1 for as many as x has; None saves
# nothing.
# every: whether hx_n has the states beside h after every step too, behind the last ones.
_library.define(f"layer({_LAYER}, int? saved_rows, bool every=False) -> (Tensor output, Tensor[] hx_n, Tensor[] saved)")
# needs: which gradients to return, a flag each for x, every weight, every state; the result holds just those, in that order.
# grad_hx: of the last states, or of all that the forward's hx_n has.
# groups: equal shares of the batch, each with weight gradients of its own, (groups, ...); None for one sum over the batch.
_GRADIENTS = "Tensor output, Tensor[] saved, Tensor? grad_output, Tensor[] grad_hx, bool[] needs, int? groups"
_library.define(f"layer_backward({_LAYER}, {_GRADIENTS}) -> Tensor[]")
_library.define("cpu_capability() -> str")
_library.define("cpu_level_for(ScalarType dtype, int units, int inputs) -> str")
_library.define("cpu_runs() -> int[]")
# How long a thread waits for another that shares its time steps before it goes on alone; returns what it was before.
_library.define("cpu_patience(int microseconds) -> int")
# What `engines.cpu.Kernels` says of a cell; nothing where there are no kernels of it that this machine can run.
_library.define("cpu_cell(str cell) -> int[]")
_library.define("cpu_cell_levels(str cell) -> str[]")
_library.define("load_cpu_cells(str path) -> str[]")
_library.define("load_program_library(str path) -> int")
_library.define("make_program(int library, int[] description) -> int")
_library.define("forget_program(int program) -> ()")
# See csrc/program_call.h.
_library.define(
    "run_program(int program, Tensor[] inputs, Tensor[] weights, Tensor[] vectors, Tensor[] states, Tensor? lengths, float[] numbers, "
    "bool reverse, bool padded, int? saved_rows, int? groups, bool backward) -> (Tensor[] outputs, Tensor[] last, Tensor[] sums)"
)
# What no kernel can exceed with this many threads: float32 multiply-adds, in GFLOP/s, and reading `bytes` again and again, in GB/s.
_library.define("cpu_peak() -> float")
_library.define("cpu_bandwidth(int bytes) -> float")


def _reference_layer(cell, x, weights, hx, lengths, has_bias, bidirectional, saved_rows, every=False):
    output, hx_n = reference.layer(CELLS[cell], x, weights, hx, lengths, has_bias, bidirectional, every=every)
    return output, hx_n, []


def _reference_backward(cell, x, weights, hx, lengths, has_bias, bidirectional, output, saved, grad_output, grad_hx, needs, groups):
    if groups is not None:
        raise NotImplementedError("sstkern::layer_backward: the reference engine has no groups; torch.func.vmap does the same there")
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *weights, *hx)]
    with torch.enable_grad(), private.autograd_again():
        every = len(grad_hx) > len(CELLS[cell].states)
        results = flat_reference(cell, inputs, len(weights), lengths, has_bias, bidirectional, every=every)
    grads = [torch.zeros_like(output) if grad_output is None else grad_output, *grad_hx]
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need]
    return list(torch.autograd.grad(results, wanted, grads, materialize_grads=True))


def flat_reference(cell, inputs: Sequence[Tensor], weights: int, lengths, has_bias, bidirectional, **options) -> list[Tensor]:
    x, *rest = inputs
    output, hx_n = reference.layer(CELLS[cell], x, rest[:weights], rest[weights:], lengths, has_bias, bidirectional, **options)
    return [output, *hx_n]


def _triton(cell: str, weights: Sequence[Tensor], has_bias: bool, bidirectional: bool):
    """The module that runs such a layer on the Triton engine."""
    # Here, and by its name: importing triton takes a while, and only a GPU needs it; and programs are built on the operators.
    has_projection = projected(CELLS[cell], weights, has_bias, bidirectional)
    return importlib.import_module("sstkern.program.projected" if has_projection else "sstkern.engines.triton.layer")


def _triton_layer(cell, x, weights, hx, lengths, has_bias, bidirectional, *options):
    of_layer = _triton(cell, weights, has_bias, bidirectional)
    return of_layer.forward(cell, x, weights, hx, lengths, has_bias, bidirectional, *options)


def _triton_backward(cell, x, weights, hx, lengths, has_bias, bidirectional, *options):
    of_layer = _triton(cell, weights, has_bias, bidirectional)
    return of_layer.backward(cell, x, weights, hx, lengths, has_bias, bidirectional, *options)


_library.impl("layer", _reference_layer, "CompositeExplicitAutograd")
_library.impl("layer_backward", _reference_backward, "CompositeExplicitAutograd")
for _key in ("CUDA", "CPU") if interpreting() else ("CUDA",):
    _library.impl("layer", _triton_layer, _key)
    _library.impl("layer_backward", _triton_backward, _key)


@torch.library.register_fake("sstkern::layer", lib=_library)
def _fake_layer(cell, x, weights, hx, lengths, has_bias, bidirectional, saved_rows, every=False):
    _check_devices(x, weights, hx)
    layers = by_direction(CELLS[cell], weights, has_bias, bidirectional)
    output = x.new_empty(*x.shape[:-1], len(layers) * layers[0].output_size)
    rows = all_rows(x) if saved_rows == ALL_ROWS else saved_rows
    saved = [] if rows is None else _fake_saved(cell, x, weights, has_bias, bidirectional, rows)
    last = hx[: len(CELLS[cell].states)]
    others = [x.new_empty(*x.shape[:-1], len(layers) * state.size(-1)) for state in last[1:]] if every else []
    return output, [*(state.new_empty(state.shape) for state in last), *others], saved


def _check_devices(x: Tensor, *others: Sequence[Tensor]) -> None:
    for tensor in (tensor for tensors in others for tensor in tensors):
        if tensor.device != x.device:
            raise RuntimeError(f"expected all tensors on {x.device} like x, got one on {tensor.device}")


def _fake_saved(cell, x, weights, has_bias, bidirectional, rows) -> list[Tensor]:
    if x.dtype not in FUSED_DTYPES:
        return []
    if (x.device.type == "cuda" or interpreting()) and triton_problem() is None and lacks_cell("triton", cell) is None:
        if projected(CELLS[cell], weights, has_bias, bidirectional) and lacks_projection(cell) is not None:
            return []
        return _triton(cell, weights, has_bias, bidirectional).saved_like(cell, x, weights, has_bias, bidirectional, rows)
    if x.device.type == "cpu" and extension_problem() is None and (kernels := cpu.kernels(cell)):
        return _fake_cpu_saved(kernels, x, by_direction(CELLS[cell], weights, has_bias, bidirectional), rows)
    return []


def _fake_cpu_saved(kernels: cpu.Kernels, x: Tensor, layers: Sequence[Weights], rows: int) -> list[Tensor]:
    saved = []
    for layer in layers:
        hidden_size = layer.weight_hh.size(0) // kernels.gates
        widths = [kernels.saves * hidden_size, kernels.states * hidden_size] + [hidden_size] * (layer.weight_hr is not None)
        saved += [x.new_empty(rows, width) for width in widths]
    return saved


def saved_rows(packed: bool, lengths: Tensor | None) -> int:
    """How many rows to save of a layer: its valid time steps, or all where a look at the lengths has to wait, as in a trace."""
    unseen = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if lengths is None or packed or unseen or not lengths.is_cpu or private.is_fake(lengths):
        return ALL_ROWS
    return int(alone(lengths).sum())


@torch.library.register_fake("sstkern::layer_backward", lib=_library)
def _fake_backward(cell, x, weights, hx, lengths, has_bias, bidirectional, output, saved, grad_output, grad_hx, needs, groups):
    _check_devices(x, weights, hx, [output], saved, grad_hx)
    lead = () if groups is None else (groups,)
    shapes = [x.shape, *((*lead, *weight.shape) for weight in weights), *(state.shape for state in hx)]
    return [x.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]


def undifferentiated(differentiable: bool = False):
    """Inside, an operator goes straight to its implementation: the dispatcher's way through autograd takes 40 microseconds."""
    return nullcontext() if differentiable or torch.compiler.is_compiling() else private.below_autograd()


def savable(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """What autograd can save for a backward: copies of those that were made under torch.inference_mode, if there is to be one."""
    if torch.compiler.is_compiling() or not any(map(Tensor.is_inference, tensors)):
        return tensors
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return tensors
    return [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]


def autocasting(tensor: Tensor) -> bool:
    """Whether autocast is enabled for the tensor's device."""
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")  # to ask for device.type takes 4 microseconds
    device = tensor.device.type
    # Not every device has autocast: torch's own question raises for "meta".
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def computed_dtype(x: Tensor) -> torch.dtype:
    """What a layer computes x in, so that zeros need no cast; of a graph the compiler leaves such casts out."""
    if not private.autocast_anywhere() or torch.compiler.is_compiling() or torch.jit.is_tracing() or not autocasting(x):
        return x.dtype
    stays = x.dtype == torch.float64 or not x.is_floating_point()
    return x.dtype if stays else torch.get_autocast_dtype("cpu" if x.is_cpu else x.device.type)


# torch.library.register_autocast casts to one dtype, named once and for all; here it is the one that autocast has at the call. Where
# autocast is disabled its implementations are not called, and the matrix products of ours keep their tensors' dtype.
def _autocast_layer(device: str):
    def layer(cell, x, weights, hx, *options):
        x, *tensors = autocast([x, *weights, *hx])
        with torch.autocast(device, enabled=False):
            return torch.ops.sstkern.layer(cell, x, tensors[: len(weights)], tensors[len(weights) :], *options)

    return layer


def _autocast_backward(device: str):
    def layer_backward(*arguments):
        with torch.autocast(device, enabled=False):
            return torch.ops.sstkern.layer_backward(*arguments)

    return layer_backward


for _device in ("cpu", "cuda"):
    _library.impl("layer", _autocast_layer(_device), f"Autocast{_device.upper()}")
    _library.impl("layer_backward", _autocast_backward(_device), f"Autocast{_device.upper()}")


extension_problem()  # loads the C++ implementations, now that their operators exist
flops.register()
