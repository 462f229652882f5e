"""What sstkern needs of PyTorch that has private names only, all of it, each with what is missing in public.

torch.compile traces these functions as it does torch's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan as _scan
from torch._subclasses import fake_tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

Constant = TypeVar("Constant", bound=Callable)


def constant(function: Constant) -> Constant:
    """torch.compile calls the function once, while it traces. torch.compiler.assume_constant_result does no more than this, and imports the
    compiler to do it: 1.6 of the 1.7 seconds that `import sstkern` then took."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


scan = _scan
"""A loop that torch.export keeps and ONNX has. In public there is torch.while_loop, which ONNX's Scan is not made of."""

is_fake = fake_tensor.is_fake
"""Whether a trace has put a tensor without values in this one's place. torch.compiler.is_compiling() is about all tensors at once, and does
not know of every trace."""

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A guard in which an operator goes straight to its implementation. In torch.no_grad it goes through what autograd has registered for it
first, in Python: 40 microseconds."""

below_views = torch._C._AutoDispatchBelowADInplaceOrView
"""The same guard, in which autograd does not note either what is a view of what. Only for views of tensors that nobody else has."""


def plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing but autograd sees what is called with the tensors: no mode, FlopCounterMode say, and no tensor of a class of its own.
    An operator of ours can then be called as the function that it is: the dispatcher's way there takes 30 microseconds."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return False
    # Not over a generator, which takes twice as long.
    return _PLAIN.issuperset(map(type, tensors)) and not any(map(is_batch_of_gradients, tensors))


_PLAIN = frozenset((Tensor, nn.Parameter))


@contextmanager
def untraced() -> Iterator[None]:
    """A guard in which no trace sees what is called: torch.export writes down every operator, and cannot save one that returns numbers,
    and torch.jit.trace cannot call one."""
    state = torch._C._get_tracing_state()
    if state is not None:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with _python_dispatch._disable_current_modes():
            yield
    finally:
        if state is not None:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


can_hook_saved_tensors = torch._C._autograd._saved_tensors_hooks_is_enabled  # type: ignore[attr-defined]
"""Whether torch.autograd.graph.saved_tensors_hooks can be used: within torch.func's transforms, and what those call, it raises."""


def autograd_again() -> Any:
    """A guard in which an operator's implementation can differentiate: around it the dispatcher excludes autograd.

    torch.func.vjp can do without, but not while hooks for saved tensors are set (torch.autograd.graph.save_on_cpu), and it imports the
    compiler.
    """
    autograd = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded - autograd)


autocast_anywhere = torch._C._is_any_autocast_enabled
"""Whether autocast is enabled for any device. The public question is about one, whose name it reads for a microsecond."""

without_autocast = torch._C._DisableAutocast
"""A guard in which autocast is disabled, for every device. torch.autocast(device, enabled=False) takes 15 microseconds."""

transforms_active = torch._C._are_functorch_transforms_active
"""Whether this runs within any of torch.func's transforms. torch.func does not tell."""

_REVERSE = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Vmap)


@constant
def forward_transform_active() -> bool:
    """Whether a transform is active that is neither grad (as vjp and jacrev are) nor vmap. torch.func does not tell which they are."""
    return any(interpreter.key() not in _REVERSE for interpreter in torch._C._functorch.get_interpreter_stack())


def without_transforms(tensor: Tensor) -> Tensor:
    """What transforms have wrapped: within vmap the tensor of all samples, whose values can be read. torch.func has no way to it."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


is_batch_of_gradients = torch._C._functorch.is_legacy_batchedtensor
"""Whether autograd.grad(is_grads_batched=True), or jacobian(vectorize=True), made the tensor: not torch.func.vmap, but its predecessor."""


def gradients_in_batch(tensor: Tensor) -> Tensor:
    """All gradients in one tensor, the batch as its first dimension."""
    found = torch._remove_batch_dim(tensor, 1, 0, 0)
    if is_batch_of_gradients(found):
        raise NotImplementedError(
            "sstkern's layers have no batches of gradients (is_grads_batched=True) within each other; torch.func.vmap has"
        )
    return found


def as_batch_of_gradients(tensor: Tensor) -> Tensor:
    """The inverse of `gradients_in_batch`."""
    return torch._add_batch_dim(tensor, 0, 1)


def in_dual_level() -> bool:
    """Whether tensors may have tangents. The public way, unpack_dual of each, takes 3.6 microseconds for seven, this 0.1."""
    return forward_ad._current_level >= 0


def takes_tangents() -> bool:
    """Whether a tensor may be given a tangent: in forward mode, if that is the innermost of torch.func's transforms."""
    if not transforms_active():
        return in_dual_level()
    return torch._C._functorch.get_interpreter_stack()[-1].key() == torch._C._functorch.TransformType.Jvp


def changed_places(ctx: Any, count: int) -> Iterator[int]:
    """Which of the first `count` tensors that an autograd function saved were changed in place. In public they can only be asked for
    together, and the error does not tell which it is."""
    for place, saved in enumerate(ctx._raw_saved_tensors[:count]):
        try:
            saved.unpack()
        except RuntimeError:
            yield place


after_backward = torch.autograd.Variable._execution_engine.queue_callback
"""Calls a function when all of a backward is done. In public there is a hook of each gradient only."""


def assert_later(condition: Tensor, message: str) -> None:
    """RuntimeError unless the condition holds, without waiting for the GPU, and in a compiled graph. torch has no public assertion of
    either kind."""
    torch._assert_async(condition, message)


def ragged_dimension(nested: Any) -> int:
    """The dimension in which the parts of a jagged nested tensor differ. In public only the shape tells, in which that size is symbolic; in
    a compiled graph other sizes are symbolic too."""
    return nested._ragged_idx


_MEMBERS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def share_members(module: nn.Module, of: nn.Module) -> None:
    """Gives a module the parameters, buffers and modules of another, and what else a state_dict is made by: not copies, but the same
    dictionaries, so that what is changed through one is changed in both. In public a module has its own."""
    vars(module).update({name: vars(of)[name] for name in _MEMBERS})


def positional(function: Any, arguments: Sequence[Any], options: dict[str, Any]) -> list[Any]:
    """All of an operator's arguments in the order of its schema, the defaults too. An operator's schema has no public name."""
    rest = function._schema.arguments[len(arguments) :]
    return [*arguments, *(options.get(argument.name, argument.default_value) for argument in rest)]


@cache
def changes_arguments(function: Any) -> bool:
    """Whether an operator writes to its arguments."""
    return function._schema.is_mutable


@cache
def functional(function: Any) -> Any:
    """The operator that computes what one in place writes, or None. In public they are told by their names."""
    packet = getattr(torch.ops.aten, function.overloadpacket.__name__.removesuffix("_"), None)
    return getattr(packet, function._overloadname, None)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Names of the hooks of a module. In public hooks are registered, not found."""

COMPILED = "_compiled_call_impl"
"""What module.compile() has set."""

has_global_hooks = nn.modules.module._has_any_global_hook
"""Whether every module has hooks (torch.nn.modules.module.register_module_forward_hook and its like)."""

PARTS = ("_parameters", "_buffers", "_modules")
"""A module's own dicts, with what is None in them. named_parameters() leaves that out, and walks over all modules."""


@contextmanager
def without_transforms_active() -> Iterator[None]:
    """A guard outside torch.func's transforms."""
    if not transforms_active():
        yield
        return
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        yield


class DispatchMode(_python_dispatch.TorchDispatchMode):
    """A dispatch mode that does not import the compiler, 3 seconds, to keep it from compiling the mode."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def ordinary() -> bool:
    """Whether neither torch.func's transforms nor a dispatch mode see what is computed."""
    return not transforms_active() and not torch._C._len_torch_dispatch_stack()


@contextmanager
def made_ordinary() -> Iterator[None]:
    """A guard in which they see nothing, and gradients are recorded. In public no dispatch mode can be left."""
    with without_transforms_active(), _python_dispatch._disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        yield


_TRACING = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)


def traced_by_mode() -> bool:
    """Whether operators are recorded, or run on tensors without numbers. torch.compiler.is_compiling says so of the compiler only."""
    return torch._C._len_torch_dispatch_stack() > 0 and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)


def is_view(tensor: Tensor) -> bool:
    """Whether the tensor shares another one's numbers. Not every such tensor has a _base, and neither is public."""
    return tensor._is_view()


is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether the tensor is one of torch.func's transforms."""
