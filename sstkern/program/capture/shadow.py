"""A copy of a cell to run its step on: the same code over example tensors, which notes what it reads and refuses to be changed.

The user's modules are not touched, nor their tensors, nor anything that they hold in lists, tuples, dicts and sets.
"""

from __future__ import annotations

import inspect
import types
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sstkern import private
from sstkern.program.capture.numbers import Formula, Numbers
from sstkern.program.capture.reasons import Unfused, refuse, users

FRAMEWORK = frozenset(vars(nn.Module()))
"""Attributes that every module has. What they say is compared apart from what a step reads."""

UNCHANGED = "a step may not change the cell; keep what changes in the state"


@dataclass(frozen=True)
class Source:
    """Where a tensor of the cell is read at each call: an attribute of a module, or what its containers hold. path: of the module."""

    path: str
    owner: nn.Module
    name: str
    steps: tuple[Any, ...] = ()

    def read(self) -> Tensor:
        found = getattr(self.owner, self.name)
        for step in self.steps:
            found = found[step]
        return found

    def __str__(self) -> str:
        return f"{self.path}{self.name}" + "".join(f"[{step!r}]" for step in self.steps)


@dataclass
class Watch:
    """What a module's step has read: attributes that were there, and such that were not. open: whether it may set attributes."""

    module: nn.Module
    open: bool
    read: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)


class _Recorded:
    """The first base of a shadow's class."""

    _watch: Watch

    def __init_subclass__(cls, **_: Any) -> None:
        """Does not call the user's own hook: a shadow is nothing to register."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "__dict__" and _of_the_users(inspect.currentframe()):
            refuse("the step reads self.__dict__, as vars(self) does", "read an attribute by its name")
        if name not in FRAMEWORK and not name.startswith("__"):
            type(self)._watch.read.add(name)
        return value

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            type(self)._watch.absent.add(name)
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        if not type(self)._watch.open:
            refuse(f"the step sets self.{name}", UNCHANGED)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        refuse(f"the step deletes self.{name}", UNCHANGED)


def _of_the_users(frame: types.FrameType | None) -> bool:
    """Whether it is called by the user's own code. functools writes what it caches, which is found otherwise."""
    caller = None if frame is None else frame.f_back
    return caller is not None and users(caller) and caller.f_globals.get("__name__") != "functools"


class Shadow:
    """The shadow of a cell and of every module in it.

    open: whether the step may set attributes of the shadow. numbers: of attributes that are tracked. root: to be called. sources, examples:
    of each tensor in it. watches: of each module. ties: pairs of places that hold one tensor.
    """

    def __init__(self, cell: nn.Module, open: bool = False, numbers: Numbers | None = None) -> None:
        self.open = open
        self.numbers = numbers or Numbers()
        self.sources: list[Source] = []
        self.examples: list[Tensor] = []
        self.watches: list[Watch] = []
        self.ties: list[tuple[Source, Source]] = []
        self._random = torch.Generator().manual_seed(0)
        self._known: dict[int, Any] = {}
        self._tensors: dict[int, int] = {}
        if private.has_global_hooks():
            raise Unfused("there are hooks of all modules (register_module_forward_hook and its like): a program would not call them")
        self.root = self._module(cell, "")

    def modules(self) -> list[nn.Module]:
        """The shadows, in the order of `watches`."""
        return [self._known[id(watch.module)] for watch in self.watches]

    def _module(self, module: nn.Module, path: str) -> nn.Module:
        if id(module) in self._known:
            return self._known[id(module)]
        _check(module)
        kind, watch = type(module), Watch(module, self.open)
        names = {"_watch": watch, "__module__": kind.__module__, "__class__": property(partial(_constant, kind))}
        recorded = types.new_class(kind.__name__, (_Recorded, kind), {}, lambda body: body.update(names))
        shadow: nn.Module = object.__new__(recorded)
        self._known[id(module)] = shadow
        self.watches.append(watch)
        attributes = vars(shadow)
        for name, value in vars(module).items():
            attributes[name] = value if name in FRAMEWORK else self._copied(value, Source(path, module, name))
        for _, name in (place for place in self.numbers.places if place[0] is module):
            attributes[name] = self.numbers.tracked(Formula(getattr, (module, name)))
        for part in private.PARTS:
            attributes[part] = {name: self._copied(value, Source(path, module, name)) for name, value in vars(module)[part].items()}
        for name, value in class_attributes(kind):
            setattr(recorded, name, self._copied(value, Source(path, module, name)))
        if parametrize.is_parametrized(module):
            self._parametrized(module, path, recorded)
        return shadow

    def _parametrized(self, module: nn.Module, path: str, recorded: type) -> None:
        """Parametrized tensors are read from the module; here they are examples of what the parametrization gives."""
        for name, parametrization in vars(module)[private.PARTS[2]]["parametrizations"].items():
            with torch.random.fork_rng():
                value = Shadow(parametrization, open=True).root()
            example = self._example(value.detach().requires_grad_(value.requires_grad), Source(path, module, name))
            setattr(recorded, name, property(partial(_constant, example)))

    def _copied(self, value: Any, source: Source) -> Any:
        """A value of an attribute: containers copied, tensors as examples, modules as shadows."""
        if isinstance(value, nn.Module):
            return self._module(value, f"{source}.")
        if isinstance(value, Tensor):
            return self._shared(value, source)
        if isinstance(value, torch.jit.ScriptFunction):
            raise Unfused(f"self.{source} is a ScriptFunction, whose operators cannot be seen: use the function that it was made from")
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._copied(value.__self__, source))
        if isinstance(value, types.FunctionType) and value.__closure__:
            return self._function(value, source)
        if type(value) is partial:
            options = {name: self._copied(part, source) for name, part in value.keywords.items()}
            return partial(self._copied(value.func, source), *(self._copied(part, source) for part in value.args), **options)
        return self._container(value, source)

    def _container(self, value: Any, source: Source) -> Any:
        def within(step: Any, part: Any) -> Any:
            return self._copied(part, replace(source, steps=(*source.steps, step)))

        if id(value) in self._known:
            return self._known[id(value)]
        if type(value) in (dict, OrderedDict):
            made = self._known[id(value)] = type(value)()
            made.update((key, within(key, part)) for key, part in value.items())
            return made
        if type(value) is list:
            self._known[id(value)] = parts = []
            parts += [within(at, part) for at, part in enumerate(value)]
            return parts
        if type(value) is set:
            return set(value)
        if isinstance(value, tuple) and (type(value) is tuple or hasattr(value, "_fields")):
            parts = [within(at, part) for at, part in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    def _function(self, function: types.FunctionType, source: Source) -> types.FunctionType:
        """A function that sees shadows where it had modules from around it."""
        cells = []
        for cell in function.__closure__ or ():
            content = cell.cell_contents
            cells.append(types.CellType(self._module(content, f"{source}.")) if isinstance(content, nn.Module) else cell)
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells))
        made.__kwdefaults__ = function.__kwdefaults__
        return made

    def _shared(self, tensor: Tensor, source: Source) -> Tensor:
        """The example of a tensor, one for all places where it is."""
        if id(tensor) in self._tensors:
            at = self._tensors[id(tensor)]
            self.ties.append((self.sources[at], source))
            return self.examples[at]
        self._tensors[id(tensor)] = len(self.examples)
        return self._example(tensor, source)

    def _example(self, tensor: Tensor, source: Source) -> Tensor:
        example = example_of(tensor, source, self._random)
        self.sources.append(source)
        self.examples.append(example)
        return example


def _constant(value: Any, _: Any) -> Any:
    return value


def _check(module: nn.Module) -> None:
    """Raises Unfused for modules whose code cannot be seen, or that do more than their forward says."""
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise Unfused(f"{name} is a ScriptModule, whose step cannot be seen: fuse the module that it was made from")
    if hasattr(module, "_orig_mod") or vars(module).get(private.COMPILED) is not None:
        raise Unfused(f"{name} is compiled: fuse its original module, and compile the layer")
    for hooks in private.HOOKS:
        if vars(module)[hooks]:
            if any(map(nn.parameter.is_lazy, vars(module)[private.PARTS[0]].values())):
                raise Unfused(f"{name} is not initialized yet: call the cell once before fusing it")
            raise Unfused(
                f"{name} has hooks ({hooks.strip('_')}): put them on the layer, or remove them; "
                "torch.nn.utils.parametrizations has weight_norm and spectral_norm without"
            )


def class_attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """Tensors, modules and containers that a class and its bases hold for all their modules."""
    seen = set()
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for name, value in vars(base).items():
            if name not in seen and not name.startswith("__") and isinstance(value, Tensor | nn.Module | list | dict | set | tuple):
                yield name, value
            seen.add(name)


def example_of(tensor: Tensor, source: Any, random: torch.Generator) -> Tensor:
    """A fresh tensor of the same shape, dtype, device and wish for a gradient."""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) and not private.is_fake(tensor):
        raise Unfused(f"{source} is a {type(tensor).__name__}: parameters must be plain tensors")
    if tensor.layout != torch.strided or tensor.is_complex():
        raise Unfused(f"{source} is {tensor.dtype}, {tensor.layout}: parameters must be real and dense")
    made = example(tuple(tensor.shape), tensor.dtype, tensor.device, random)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def example(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, random: torch.Generator) -> Tensor:
    """Numbers between 0.1 and 0.9; zeros where they must be integers or bools."""
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    values = torch.rand(shape, generator=random, dtype=torch.float32, device="cpu")
    return (values * 0.8 + 0.1).to(device=device, dtype=dtype, copy=True)
