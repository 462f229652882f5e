"""Gradient checking for recurrent layers and cells: ours, torch.nn's, and anybody's own.

One line in a test checks a layer's every gradient, `assert_gradients(sstkern.LSTM(3, 4))`, or any function's of tensors,
`assert_gradients(my_cell, torch.randn(2, 3), torch.randn(2, 4))`. `gradcheck` returns the same findings as a report.
"""

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sstkern import modules
from sstkern.cells import CELLS, Cell
from sstkern.engines import backend
from sstkern.functional import as_hx
from sstkern.fuse import FusedLayer
from sstkern.structure import Structure, mapped

STEP = 1e-6  # of the central differences; their error in float64 is then about 1e-10
NUMERICAL_BOUND = 1e-6
EXACT_BOUND = 1e-12  # against another float64 computation of the same
SHAKES = 3  # of the numbers' last places, to see what depends on them
SHAPES = ((1, 1), (5, 3))  # time steps and batch
_OURS = (modules.Recurrent, modules.RecurrentCell)


@dataclass(frozen=True)
class Row:
    """What was found of one tensor.

    Attributes:
        case: the inputs, in words.
        dtype: that the checked function ran in.
        tensor: a result's name, or "d" and an input's or parameter's for the gradient with respect to it.
        against: "numerical" (central differences), "reference" (an exact computation), "float64" (the same function in it), or
            "itself" (a second call, or one with other numbers in the padding).
        error: the largest difference over the largest number of the tensor; against float64 the norms of both. Infinite where
            something is no number.
        bound: what it may be.
        where: the place of the largest difference.
        by_step: for tensors with time steps, the largest difference of each, over the largest number of the tensor.
    """

    case: str
    dtype: torch.dtype
    tensor: str
    against: str
    error: float
    bound: float
    where: str
    by_step: tuple[float, ...] = ()

    @property
    def ok(self) -> bool:
        return self.error <= self.bound

    @property
    def excess(self) -> float:
        """The error over its bound."""
        return self.error / self.bound if self.bound else math.inf

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "WRONG"
        name = str(self.dtype).removeprefix("torch.")
        return f"{verdict:5} {self.tensor:22} {self.error:8.1e} {self.bound:8.1e} {self.against:10} {name:9} {self.where}; {self.case}"


@dataclass(frozen=True)
class Report:
    """The rows of every case."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def wrong(self) -> list[Row]:
        """The rows that are not ok, the farthest from its bound first."""
        return sorted((row for row in self.rows if not row.ok), key=lambda row: -row.excess)

    def worst(self) -> list[Row]:
        """For each tensor, dtype and kind of comparison the row that is farthest from its bound."""
        found: dict[tuple, Row] = {}
        for row in self.rows:
            key = row.tensor, row.dtype, row.against
            if key not in found or row.excess > found[key].excess:
                found[key] = row
        return list(found.values())

    def table(self) -> str:
        """`worst`, a line each."""
        header = f"{'':5} {'tensor':22} {'error':>8} {'bound':>8} {'against':10} {'dtype':9} where the largest error sits; inputs"
        return "\n".join([header, *map(str, self.worst())])


def assert_gradients(function: Callable[..., Any], *inputs: Any, **options: Any) -> None:
    """Runs `gradcheck` in a test. Raises AssertionError with the wrong gradients, the worst first, and the table."""
    report = gradcheck(function, *inputs, **options)
    if not report.ok:
        wrong = "\n".join(map(str, report.wrong[:10]))
        raise AssertionError(f"wrong: {', '.join(dict.fromkeys(row.tensor for row in report.wrong))}\n{wrong}\n\n{report.table()}")


def gradcheck(
    function: Callable[..., Any],
    *inputs: Any,
    reference: Callable[..., Any] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float64,),
    engine: str | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    elements: int = 256,
    seed: int = 0,
    **keywords: Any,
) -> Report:
    """Compare the gradients of a function's results, with respect to every input and parameter, with what they should be.

    In float64 each gradient of the results' inner product with random numbers is compared with central differences, element by
    element, and results and gradients with `reference`, if there is one. In other dtypes they are compared with
    the same function in float64: for T time steps they may differ by 4 (1 + sqrt(T)) times eps of the norm, or times what the tensor
    itself moves by when all numbers move by about eps, which is more where they nearly cancel. torch.nn's own layers have at most a
    fourth of that over 25 seeds. Two calls have to give the same bits. Random numbers that the function itself
    draws are the same in every call. Gradients are on within, also where the caller has switched them off.

    Args:
        function: a module, or any callable of tensors, that returns a tensor or nested tuples of tensors.
        inputs: its arguments; floating-point tensors, in tuples too, are varied. Without any, the module has to have an `input_size` and a
            `hidden_size`, and be called as torch.nn's layers (`nn.RNNBase`'s subclasses, or modules with `num_layers`) or cells are, or be
            what `sstkern.fuse` makes of a cell with an `input_size`: it is then checked on several shapes, with and without first states,
            where its forward takes `lengths`, with those, one of them 0, and numbers in the padding that no result may depend on, and
            where it and the reference take `resets`, with those, unless the engine is "triton", which has none.
        reference: computes the same with the same arguments and, if it is a module, parameters of the same names. Ours, by default,
            have the reference engine.
        dtypes: to run in, after float64, with which the others are compared.
        engine: "cpu", "triton" or "reference": the engine to run our layers on.
        shapes: time steps and batch of the inputs that a layer is checked on where none are given.
        elements: of a larger tensor only so many, chosen at random, are compared with central differences.
        seed: decides the random numbers.
        keywords: more arguments of the function, the same in every call.

    Raises:
        TypeError: nothing can be differentiated, or there are no inputs and the function is no such module.
        ValueError: no dtype or no shape, or a `reference` with other results or parameters.
        RuntimeError: the engine cannot run here.
    """
    if not callable(function):
        raise TypeError(f"function: expected a module or another callable, got {type(function).__name__}")
    if not dtypes or not shapes:
        raise ValueError(f"{'shapes' if dtypes else 'dtypes'}: expected at least one, got none")
    rows: list[Row] = []
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
        cases = (
            [_Case("as given", inputs, keywords)]
            if inputs
            else list(_cases(function, shapes, seed, keywords, _with_resets(reference, engine)))
        )
        for dtype in dict.fromkeys([torch.float64, *dtypes]):
            for case in cases:
                rows += _Check(function, case, dtype, engine, elements, seed).rows(reference)
    return Report(tuple(rows))


@dataclass(frozen=True)
class _Case:
    name: str
    inputs: tuple
    keywords: Mapping[str, Any]
    steps: int = 1
    time_dim: int | None = None
    """The dimension of time of the first input and the first result."""
    padding: Tensor | None = None
    """bool, the positions of the first input that no result may depend on."""


def _with_resets(reference: Callable | None, engine: str | None) -> bool:
    """Whether what a layer is compared with takes resets."""
    if reference is None:
        return engine != "triton"
    parameters = inspect.signature(reference.forward if isinstance(reference, nn.Module) else reference).parameters
    return "resets" in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _cases(module: Any, shapes: Sequence[tuple[int, int]], seed: int, keywords: Mapping[str, Any], with_resets: bool) -> Iterator[_Case]:
    """The inputs of a layer or a cell."""
    fused = isinstance(module, FusedLayer)
    sized = module._cells()[0] if fused else module
    if not _has(sized, "input_size", *(() if fused else ("hidden_size",))):
        raise TypeError("inputs: none were given, and the function is no module with an input_size and a hidden_size; give its arguments")
    generator = torch.Generator().manual_seed(seed)
    device = next((parameter.device for parameter in module.parameters()), None)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    if not fused and not isinstance(module, nn.RNNBase) and not hasattr(module, "num_layers"):
        sizes = _state_sizes(module, module.hidden_size)
        states = [random(2, size) for size in sizes]
        yield _Case("B 2", (random(2, module.input_size),), keywords)
        yield _Case("B 2, hx", (random(2, module.input_size), as_hx(states)), keywords)
        return
    taken = inspect.signature(module.forward).parameters.keys() - keywords.keys()
    for steps, batch in shapes:
        x, time_dim = random(steps, batch, sized.input_size), 0
        if getattr(module, "batch_first", False):
            x, time_dim = x.transpose(0, 1).contiguous(), 1
        hx = _like_states_of(module, x, random) if fused else _first_states(module, batch, random)
        yield _Case(f"T {steps}, B {batch}", (x,), keywords, steps, time_dim)
        yield _Case(f"T {steps}, B {batch}, hx", (x, hx), keywords, steps, time_dim)
        if "lengths" in taken and batch > 1:
            lengths = torch.linspace(0, steps, batch).round().long().roll(1)
            padding = torch.arange(steps)[:, None] >= lengths
            padding = padding if time_dim == 0 else padding.T
            given = {**keywords, "lengths": lengths}
            yield _Case(f"T {steps}, B {batch}, hx, lengths {lengths.tolist()}", (x, hx), given, steps, time_dim, padding)
        if "resets" in taken and steps > 1 and with_resets:
            resets = torch.arange(steps)[:, None] % (2 + torch.arange(batch)) == 1
            given = {**keywords, "resets": (resets if time_dim == 0 else resets.T).to(device)}
            yield _Case(f"T {steps}, B {batch}, hx, resets", (x, hx), given, steps, time_dim)


def _has(function: object, *sizes: str) -> bool:
    return isinstance(function, nn.Module) and all(hasattr(function, size) for size in sizes)


def _like_states_of(layer: FusedLayer, x: Tensor, random: Callable[..., Tensor]) -> Structure:
    """Random states in the structure of those that the layer begins with by itself."""
    with torch.no_grad():
        _, hx_n = _in_dtype(layer, torch.float64)(x)
    return mapped(hx_n, lambda state: random(*state.shape))


def _first_states(module: Any, batch: int, random: Callable[..., Tensor]) -> Tensor | tuple[Tensor, ...]:
    rows = module.num_layers * (2 if getattr(module, "bidirectional", False) else 1)
    sizes = _state_sizes(module, getattr(module, "proj_size", 0) or module.hidden_size)
    return as_hx([random(rows, batch, size) for size in sizes])


def _state_sizes(module: Any, output_size: int) -> list[int]:
    """The widths of a layer's or cell's states; one state for somebody's own."""
    cell = _cell_of(module)
    return [output_size] if cell is None else cell.state_sizes(module.hidden_size, output_size)


def _cell_of(function: object) -> Cell | None:
    """What a layer or cell computes, if it is one of ours or of torch.nn's, or has the `mode` of one."""
    if isinstance(function, _OURS):
        return function.cell
    theirs = (cell for cell in CELLS.values() if cell.torch_class)
    return next((cell for cell in theirs if _computes(function, cell)), None)


def _computes(function: object, cell: Cell) -> bool:
    return getattr(function, "mode", None) == cell.torch_mode or isinstance(function, getattr(nn, f"{cell.torch_class}Cell"))


class _Check:
    """One function on one case in one dtype."""

    def __init__(self, function: Callable[..., Any], case: _Case, dtype: torch.dtype, engine: str | None, elements: int, seed: int):
        self.case, self.dtype, self.engine, self.elements, self.seed = case, dtype, engine, elements, seed
        self.function = _in_dtype(function, dtype)
        self.twin = _in_dtype(self.function, torch.float64)  # with the numbers that `dtype` has of the parameters
        self.names = _names(function, len(case.inputs))

    def rows(self, reference: Callable[..., Any] | None) -> list[Row]:
        found, again = (self.computed(self.function, self.dtype, self.chosen) for _ in range(2))
        rows = [self.row(name, value, again[name], "itself", 0.0) for name, value in found.items() if not _same(value, again[name])]
        if self.case.padding is not None:
            other = self.computed(self.function, self.dtype, self.chosen, spoiled=True)
            rows += [self.row(name, found[name], other[name], "itself", 0.0) for name in found if not _same(found[name], other[name])]
        if self.dtype != torch.float64:
            exact = self.computed(self.twin, torch.float64, self.chosen, rounded=self.dtype)
            unsure = self.uncertainty(exact)
            bounds = {name: 4 * size * (1 + math.sqrt(self.case.steps)) for name, size in unsure.items()}
            return rows + [self.row(name, value, exact[name], "float64", bounds[name]) for name, value in found.items()]
        rows += [self.row(f"d {name}", value, right, "numerical", bound) for name, (value, right, bound) in self.numerical(found).items()]
        exact = self.exact(reference)
        both = isinstance(self.function, nn.Module) and (reference is None or isinstance(reference, nn.Module))
        if exact and (others := {name for name in found.keys() ^ exact.keys() if both or name.startswith("result")}):
            raise ValueError(f"reference: expected the function's results and parameters, but only one of the two has {sorted(others)}")
        return rows + [self.row(name, found[name], value, "reference", EXACT_BOUND) for name, value in exact.items() if name in found]

    def chosen(self) -> AbstractContextManager:
        return nullcontext() if self.engine is None else backend(self.engine)

    def exact(self, reference: Callable[..., Any] | None) -> dict[str, Tensor]:
        if reference is not None:
            return self.computed(_in_dtype(reference, torch.float64), torch.float64, nullcontext)
        if isinstance(self.function, _OURS):
            return self.computed(self.function, torch.float64, lambda: backend("reference"))
        return {}

    def uncertainty(self, exact: Mapping[str, Tensor]) -> dict[str, float]:
        """How much of each tensor's norm depends on the last place of the numbers, at least eps: what they add up to may be nearly 0."""
        eps = torch.finfo(self.dtype).eps
        found = dict.fromkeys(exact, eps)
        for draw in range(SHAKES):
            shaken = self.computed(
                _shaken(self.twin, eps, self.seed + draw), torch.float64, self.chosen, rounded=self.dtype, shake=draw + 1
            )
            for name, value in exact.items():
                found[name] = max(found[name], _over((shaken[name] - value).norm().item(), value.norm().item()))
        return found

    def tensors(
        self, function: Callable[..., Any], dtype: torch.dtype, rounded: torch.dtype, spoiled: bool, shake: int = 0
    ) -> tuple[tuple, dict]:
        """The arguments, and all that is differentiated, by name; `shake` moves the arguments, each number of it differently."""
        named: dict[str, Tensor] = {}

        def prepared(name: str, value: Any) -> Any:
            if isinstance(value, tuple | list):
                parts = [prepared(f"{name}[{i}]", part) for i, part in enumerate(value)]
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            value = value.detach().to(rounded).to(dtype).clone()
            if shake:
                value = _moved(value, torch.finfo(self.dtype).eps, hash((self.seed, shake, len(named))))
            if spoiled and name == self.names[0]:
                value[self.case.padding] = math.nan
            named[name] = value.requires_grad_()
            return value

        arguments = tuple(prepared(name, value) for name, value in zip(self.names, self.case.inputs, strict=True))
        if isinstance(function, nn.Module):
            named |= {name: parameter for name, parameter in function.named_parameters() if parameter.requires_grad}
        if not named:
            raise TypeError("inputs: no floating-point tensor and no parameter to differentiate with respect to")
        return arguments, named

    def computed(
        self,
        function: Callable[..., Any],
        dtype: torch.dtype,
        context: Callable[[], AbstractContextManager],
        rounded: torch.dtype | None = None,
        spoiled: bool = False,
        shake: int = 0,
    ) -> dict[str, Tensor]:
        """Results and gradients by name."""
        arguments, named = self.tensors(function, dtype, rounded or dtype, spoiled, shake)
        with context(), self.random():
            results = _flat(function(*arguments, **self.case.keywords))
            cotangents = self.cotangents(results, rounded or dtype)
            if shake:
                cotangents = [
                    _moved(value, torch.finfo(self.dtype).eps, hash((self.seed, -shake, i))) for i, value in enumerate(cotangents)
                ]
            pairs = [(r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad]
            grads = (
                torch.autograd.grad([r for r, _ in pairs], list(named.values()), [c for _, c in pairs], allow_unused=True)
                if pairs
                else [None] * len(named)
            )
        values = {f"result {i}": result.detach() for i, result in enumerate(results)}
        for (name, tensor), grad in zip(named.items(), grads, strict=True):
            values[f"d {name}"] = torch.zeros_like(tensor) if grad is None else grad
        return values

    @contextmanager
    def random(self) -> Iterator[None]:
        """The function's own random numbers are the same in every call."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed)
            yield

    def cotangents(self, results: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        values = [torch.randn(result.shape, generator=generator, dtype=torch.float64) for result in results]
        if not values:
            raise TypeError("function: expected it to return a tensor, got none")
        return [value.to(dtype).to(result.device, result.dtype) for value, result in zip(values, results, strict=True)]

    def numerical(self, found: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, float]]:
        """For each tensor the gradient found, the central differences, NaN in both where it was not varied, and the bound."""
        arguments, named = self.tensors(self.function, self.dtype, self.dtype, spoiled=False)

        def weighted() -> list[Tensor]:
            with torch.no_grad(), self.chosen(), self.random():
                results = _flat(self.function(*arguments, **self.case.keywords))
                pairs = zip(results, self.cotangents(results, self.dtype), strict=True)
                return [result * cotangent for result, cotangent in pairs if result.is_floating_point()]

        # What rounding alone makes of a difference: all of it, where a gradient has nearly vanished.
        noise = 10 * torch.finfo(torch.float64).eps * math.hypot(*(value.norm().item() for value in weighted())) / STEP
        compared = {}
        for name, tensor in named.items():
            differences = torch.full(tensor.shape, math.nan, dtype=torch.float64)
            order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(self.seed))
            for position in order[: self.elements].tolist():
                index = tuple(int(i) for i in torch.unravel_index(torch.tensor(position), tensor.shape))
                with _varied(tensor, index) as vary:
                    changes = zip(vary(STEP, weighted), vary(-STEP, weighted), strict=True)
                    differences[index] = sum((more - less).sum().item() for more, less in changes) / (2 * STEP)
            size = differences.abs().nan_to_num(0).max().item() if differences.numel() else 0.0
            value = torch.where(differences.isnan(), math.nan, found[f"d {name}"].cpu())
            compared[name] = value, differences, NUMERICAL_BOUND + _over(noise, size)
        return compared

    def row(self, name: str, value: Tensor, expected: Tensor, against: str, bound: float) -> Row:
        value, expected = value.double().cpu(), expected.double().cpu()
        if value.shape != expected.shape:
            where = f"of shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
            return Row(self.case.name, self.dtype, name, against, math.inf, bound, where)
        left_out = value.isnan() & expected.isnan() if against == "numerical" else torch.zeros_like(value, dtype=torch.bool)
        difference = torch.where(left_out, 0, (value - expected).abs().nan_to_num(nan=math.inf))
        expected = torch.where(left_out, 0, expected)
        if not difference.numel():
            return Row(self.case.name, self.dtype, name, against, 0.0, bound, "empty")
        if against == "float64":
            error = _over(difference.norm().item(), expected.norm().item())
        else:
            error = _over(difference.max().item(), expected.abs().max().item())
        place = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        if against == "itself":
            error = error or math.inf  # the bits differ, if only those of a NaN
        return Row(
            self.case.name, self.dtype, name, against, error, bound, self.where(name, place), self.by_step(name, difference, expected)
        )

    def has_steps(self, name: str) -> bool:
        return self.case.time_dim is not None and name in ("result 0", f"d {self.names[0]}")

    def by_step(self, name: str, difference: Tensor, expected: Tensor) -> tuple[float, ...]:
        if not self.has_steps(name):
            return ()
        steps = difference.movedim(self.case.time_dim or 0, 0).flatten(1)
        size = expected.abs().max().item()
        return tuple(_over(largest, size) for largest in steps.amax(1).tolist()) if steps.size(1) else ()

    def where(self, name: str, place: tuple[int, ...]) -> str:
        if self.has_steps(name) and len(place) == 3:
            step, sequence = (place[0], place[1]) if self.case.time_dim == 0 else (place[1], place[0])
            return f"step {step}, sequence {sequence}, feature {place[2]}"
        cell, hidden_size = _cell_of(self.function), getattr(self.function, "hidden_size", None)
        rows = None if cell is None else _rows_of(cell, name)
        if cell is not None and rows in ("G*H", "H") and hidden_size and place:
            gate, unit = divmod(place[0], hidden_size)
            first = f"gate {cell.gates[gate]}, unit {unit}" if rows == "G*H" else f"unit {unit}"
            return first + (f", column {place[1]}" if len(place) > 1 else "")
        return f"[{', '.join(map(str, place))}]"


@contextmanager
def _varied(tensor: Tensor, index: tuple[int, ...]) -> Iterator[Callable[[float, Callable[[], list[Tensor]]], list[Tensor]]]:
    """Gives vary(change, product): the products with one element changed. The element is left as it was."""
    with torch.no_grad():
        before = tensor[index].clone()

        def vary(change: float, product: Callable[[], list[Tensor]]) -> list[Tensor]:
            tensor[index] = before + change
            return product()

        try:
            yield vary
        finally:
            tensor[index] = before


def _rows_of(cell: Cell, name: str) -> str | None:
    """What the first dimension is of the weight whose gradient is called `name`, in any layer and direction."""
    rows = {weight.name: weight.shape[0] for weight in cell.weights(True, cell.projects)}
    return rows.get(re.sub(r"_l\d+(_reverse)?$", "", name.removeprefix("d ")))


def _moved(value: Tensor, eps: float, seed: int) -> Tensor:
    """Every number by about `eps` of itself."""
    generator = torch.Generator().manual_seed(seed % 2**32)
    return value * (1 + eps * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device))


def _shaken(function: Callable[..., Any], eps: float, seed: int) -> Callable[..., Any]:
    """A module's copy whose parameters are moved; another callable has none."""
    if not isinstance(function, nn.Module):
        return function
    function = copy.deepcopy(function)
    with torch.no_grad():
        for i, parameter in enumerate(function.parameters()):
            parameter.copy_(_moved(parameter, eps, hash((seed, i))))
    return function


def _in_dtype(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A module's copy in the dtype; another callable has none."""
    return copy.deepcopy(function).to(dtype) if isinstance(function, nn.Module) else function


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """The names of the arguments, as the function calls them."""
    try:
        parameters = list(inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [parameter.name for parameter in parameters if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    return [names[i] if i < len(names) else f"input {i}" for i in range(count)]


def _flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, tuple | list):
        return [tensor for part in results for tensor in _flat(part)]
    raise TypeError(f"function: expected it to return a tensor or nested tuples of tensors, got {type(results).__name__}")


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and not a.isnan().any()


def _over(difference: float, size: float) -> float:
    """Relative; absolute where everything is 0."""
    return difference / size if size > 0 else difference
