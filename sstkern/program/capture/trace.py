"""A step, run on example tensors and written down operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from sstkern import private
from sstkern.program.capture import pointwise, products, random_numbers, reductions, rows
from sstkern.program.capture.memory import Memory
from sstkern.program.capture.prelude import Ref
from sstkern.program.capture.reasons import Unfused, refuse, refuse_mixing
from sstkern.program.capture.recording import Operand, Recording
from sstkern.program.values import Value
from sstkern.structure import mapped

aten = torch.ops.aten
OPERATORS = rows.OPERATORS | products.OPERATORS | pointwise.OPERATORS | reductions.OPERATORS | random_numbers.OPERATORS

MERGED = {*pointwise.OPERATORS, *reductions.OPERATORS} - {"glu", "native_group_norm"}
MERGED |= {"mm", "addmm", "view", "_unsafe_view", "clone", "_to_copy"}
"""Operators on tensors whose sequences are merged with other dimensions: F.linear does that to a row of more than one dimension."""
_READS = {"_local_scalar_dense", "is_nonzero", "equal", "allclose"}
_MEMORY = {"as_strided", "set_", "resize_", "as_strided_scatter"}
_UNKNOWN = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class Trace(private.DispatchMode):
    """Writes every operator into `record`. What memory holds tells what its tensors are."""

    def __init__(self, batch: int, device: torch.device) -> None:
        super().__init__()
        self.record = Recording(batch, device)
        self.memory = Memory()
        self.examples: dict[Value, Tensor] = {}

    # Examples.

    def rows(self, example: Tensor, kind: str, place: int) -> Tensor:
        """An example of an input ("x") or a state ("h"). The step gets a copy: autograd forbids changes in place of the example itself."""
        copy = example.clone()
        self._example(example, Value(kind, place), copy, "its input" if kind == "x" else "its state")
        return copy

    def leaf(self, example: Tensor, place: int, name: str) -> None:
        """An example of a tensor that the cell has."""
        self._example(example, self.record.entry(self.record.prelude.leaf(place), example.shape), example, name)

    def _example(self, example: Tensor, value: Value, given: Tensor, name: str) -> None:
        self.examples[value] = example
        self.memory.bind(given, value)
        self.memory.protect(given, name)
        if example.requires_grad:
            self.record.gradients.add(value)

    # Tensors.

    def operand(self, tensor: Tensor) -> Operand:
        """What a tensor is to an operator that uses its values."""
        held = self.memory.find(tensor)
        if held is None:
            refuse("a tensor that comes from outside the step", "make it a parameter, a buffer or an attribute of the cell, or an input")
        if held.value is None:
            refuse(held.stale, "use what the change in place gave, or calculate without changes in place")
        gradient = held.value in self.record.gradients
        operand = Operand(held.value, held.shape, tensor.dtype, gradient, merged=len(held.shape) - tensor.dim())
        if tensor.requires_grad and not gradient and tensor.is_leaf:
            refuse("the step makes a tensor that requires_grad", "make it a parameter of the cell, before the step")
        return self.record.detached(operand) if gradient and not tensor.requires_grad else operand

    def result(self, tensor: Any) -> Value:
        """The value of a tensor that the step returns, (B, ...)."""
        operand = self.operand(tensor)
        if not operand.rows or operand.merged or self.record.batch_dim(operand.shape) != 0:
            raise Unfused(
                f"the step returns a tensor {tuple(tensor.shape)} that has no row for each sequence: its first dimension must be theirs"
            )
        return operand.value

    def sources(self, values: Sequence[Value]) -> set[Value]:
        """The examples that get gradients from the values."""
        waiting, found = list(values), set()
        while waiting:
            value = waiting.pop()
            if value not in found and self.record.passes(value):
                found.add(value)
                waiting += self.record.before(value)
        return {value for value in found if value in self.examples}

    # Operators.

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = function.overloadpacket.__name__
        if function is aten.detach.default:
            return function(*args)
        if torch.Tag.nondeterministic_seeded in function.tags:
            random_numbers.check(name, (*args, *(kwargs or {}).values()))
        if name in _MEMORY or torch.Tag.inplace_view in function.tags or any(isinstance(part, Tensor) for part in (kwargs or {}).values()):
            refuse(f"{name} cannot be seen through", "write it with what docs/language.md lists")
        if name == "_is_all_true":
            refuse("the step asks whether all of a tensor is true, as torch.distributions does", "give a distribution validate_args=False")
        if name in _READS:
            refuse(
                "the step reads the value of a tensor, as bool(), int(), float() and .item() do", "use torch.where, or a number of the cell"
            )
        if private.changes_arguments(function):
            return self._in_place(function, name, args, kwargs or {})
        result = self._run(function, args, kwargs or {})
        if function is aten.lift_fresh.default:
            self.memory.bind(result, self.record.entry(self.record.prelude.constant(result.clone()), result.shape))
        elif name in _UNKNOWN:
            self.memory.bind(result, None, stale="memory that nothing was written to")
        else:
            self._computed(function, args, kwargs or {}, result)
        return result

    def _run(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The operator itself, or what stands for random numbers."""
        if torch.Tag.nondeterministic_seeded in function.tags:
            return random_numbers.example(function.overloadpacket.__name__, args, kwargs)
        return function(*args, **kwargs)

    def _computed(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        if result is None and not self._of_rows(list(map(self._argument, args)), ()):
            return  # a check of parameters, such as torch.linalg's
        results = [result] if isinstance(result, Tensor) else list(result)
        if function.is_view and self._seen(args[0], results):
            return
        operands = self._written_down(function, args, kwargs, result)
        for tensor, operand in zip(results, operands, strict=True):
            if operand is not None:
                self._bind(tensor, operand)

    def _seen(self, source: Tensor, views: Sequence[Tensor]) -> bool:
        """Whether what these views of a tensor hold is known."""
        if all(self.memory.find(view) is not None for view in views):
            return True
        held = self.memory.find(source)
        if held is None or held.value is not None:
            return False
        for view in views:
            self.memory.bind(view, None, stale=held.stale)
        return True

    def _bind(self, tensor: Tensor, operand: Operand, written: str = "") -> None:
        """The tensor is what the operand says; where `written` names an operator, it wrote that over something else."""
        if operand.shape != tensor.shape and not (operand.rows and self.record.merges(operand.shape, tensor.shape)):
            refuse_mixing()
        self.record.noted(operand)
        if written:
            self.memory.write(tensor, operand.value, operand.shape, f"a tensor whose memory was changed by {written} on another")
        else:
            self.memory.bind(tensor, operand.value, operand.shape)

    def _written_down(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Sequence[Operand | None]:
        """The results of an operator as the language, or the prelude, has them."""
        given = [self._argument(argument) for argument in args]
        results = [result] if isinstance(result, Tensor) else list(result)
        if not self._of_rows(given, results):
            return self._of_parameters(function, given, kwargs, result)
        name = function.overloadpacket.__name__
        if name not in OPERATORS:
            self._not_in_language(name, results)
        if name not in MERGED and any(isinstance(part, Operand) and part.merged for part in given):
            refuse_mixing()
        self.record.result = results[0]
        found = OPERATORS[name](self.record, *private.positional(function, given, kwargs))
        return found if isinstance(found, tuple) else (found,)

    def _of_rows(self, given: Sequence[Any], results: Sequence[Any]) -> bool:
        parts = [part for argument in given for part in (argument if isinstance(argument, tuple) else (argument,))]
        if any(isinstance(part, Operand) and part.rows for part in parts):
            return True
        return any(isinstance(result, Tensor) and self.record.has_rows(result.shape) for result in results)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.operand(argument)
        if isinstance(argument, list | tuple):
            return tuple(map(self._argument, argument))
        if isinstance(argument, complex):
            refuse("complex numbers", "use real ones")
        return argument

    def _of_parameters(self, function: Any, given: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Sequence[Operand | None]:
        if torch.Tag.nondeterministic_seeded in function.tags:
            random_numbers.refuse_shape(function.overloadpacket.__name__)
        parts = [part for argument in given for part in (argument if isinstance(argument, tuple) else (argument,))]
        masks = (part for part in parts if isinstance(part, Operand) and part.dtype in (torch.bool, torch.uint8))
        name = function.overloadpacket.__name__
        if torch.Tag.dynamic_output_shape in function.tags or (name.startswith("index") and next(masks, None) is not None):
            refuse(f"{name} gives a tensor whose size depends on values", "choose with torch.where")
        gradient = any(isinstance(part, Operand) and part.gradient for part in parts)
        prelude = self.record.prelude
        at = prelude.call(function, *mapped(tuple(given), _reference), **kwargs)
        if isinstance(result, Tensor):
            return [self._entry(at, result, gradient)]
        if gradient:
            self.record.gradients.add(Value("p", at))
        return [self._entry(prelude.pick(at, index), tensor, gradient) for index, tensor in enumerate(result)]

    def _entry(self, at: int, tensor: Tensor, gradient: bool) -> Operand:
        return Operand(self.record.entry(at, tensor.shape), tuple(tensor.shape), tensor.dtype, gradient and tensor.is_floating_point())

    def _not_in_language(self, name: str, results: Sequence[Tensor]) -> NoReturn:
        plain = name.strip("_")
        lost = not any(self.record.batch in result.shape for result in results if isinstance(result, Tensor))
        if lost or "batch_norm" in name:
            refuse_mixing(f"{plain} mixes sequences")
        refuse(f"{plain} is not in the language of a fused step", "write it with what docs/language.md lists")

    # In place.

    def _in_place(self, function: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if not name.endswith("_") or not isinstance(args[0], Tensor):
            refuse(f"{name} writes into a tensor that it is given", "use what it returns")
        target = args[0]
        example = self.memory.protected(target)
        if example:
            refuse(f"the step changes {example} in place, with {name}", "calculate a new tensor")
        held = self.memory.find(target)
        if held is not None and held.value in self.record.gradients and not (target.requires_grad and torch.is_grad_enabled()):
            refuse(f"{name} changes in place what autograd has recorded", "calculate a new tensor")
        operand = self._overwritten(function, name, args, kwargs)
        result = self._run(function, args, kwargs)
        self._bind(target, self.record.cast(operand, target.dtype), written=name)
        return result

    def _overwritten(self, function: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Operand:
        """What an operator in place writes."""
        target = self.record.result = args[0]
        if name in ("fill_", "zero_", "copy_"):
            return rows.written(self.record, self._argument(args[1]) if len(args) > 1 else 0)
        if name in random_numbers.IN_PLACE:
            given = private.positional(function, [target, *map(self._argument, args[1:])], kwargs)
            return random_numbers.IN_PLACE[name](self.record, *given[1:])
        functional = private.functional(function)
        if functional is None:
            refuse(f"{name} in place", "use an operator that is not in place")
        (operand,) = self._written_down(functional, args, kwargs, target)
        assert operand is not None
        return operand


def _reference(part: Any) -> Any:
    return Ref(part.value.place) if isinstance(part, Operand) else part
