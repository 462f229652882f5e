"""Jobs of benchmarks/gpu.py --own-cells: cells as `sstkern.fuse` runs them, checked, and timed beside other ways to run the same cell.

A cell is "module:Class", made as Class(hidden_size, hidden_size). T time steps, B batch, I = H.
"""

import importlib
from collections.abc import Callable

import gpu_jobs
import torch
from gpu_jobs import BOUNDS, DEVICE, DTYPES
from torch import Tensor, nn

import sstkern
from sstkern import first_states
from sstkern.engines import triton_runs
from sstkern.structure import flatten, mapped

HAND_WRITTEN = {"torch.nn:LSTMCell": "LSTM", "torch.nn:GRUCell": "GRU"}
"""Cells that are built-in layers too, and torch.nn's, which is cuDNN's."""


def own_check(cell: str, schedule: str, dtype: str, batch: int, steps: int, sizes: list[int]) -> dict:
    """Relative errors of a schedule's kernels beside those of the cell's own loop in the same dtype, against the loop in float64."""
    _allow_tf32(dtype)
    report = {str(size): _checked(cell, schedule, dtype, batch, steps, size) for size in sizes}
    return report | {"ok": all(of_size["ok"] for of_size in report.values())}


def _checked(cell: str, schedule: str, dtype: str, batch: int, steps: int, size: int) -> dict:
    ours, exact = _cell(cell, dtype, size), _cell(cell, "float64", size)
    exact.load_state_dict({name: value.double() for name, value in ours.state_dict().items()})
    x = torch.randn(steps, batch, size, device=DEVICE.place, dtype=DTYPES[dtype])
    layer = sstkern.fuse(ours, strict=True)
    with gpu_jobs._only(schedule):
        found, again = (_results(lambda x: layer(x)[0], x, ours) for _ in range(2))
    expected = _results(lambda x: _loop(exact, x, _first(exact, x)), x.double(), exact)
    loop = _results(lambda x: _loop(ours, x, _first(ours, x)), x, ours)
    errors = {"ours": gpu_jobs._errors(found, expected), "loop": gpu_jobs._errors(loop, expected)}
    same = all(torch.equal(value, again[name]) for name, value in found.items())
    bounds = {part: max(BOUNDS[dtype], 1.5 * (errors["loop"][part] or 0.0)) for part in ("forward", "backward")}
    sound = same and all(gpu_jobs._within(errors["ours"][part], bound) for part, bound in bounds.items())
    return errors | {"same_bits": same, "ok": sound}


def own_cell(cell: str, dtype: str, batch: int, steps: int, hidden_size: int) -> dict:
    """Milliseconds of a cell over sequences, forward alone and with its backward, by each way that runs here."""
    _allow_tf32(dtype)
    x = torch.randn(steps, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype], requires_grad=True)
    calls: dict[str, dict[str, Callable[[], object]]] = {}
    failed: dict[str, str] = {}
    before = triton_runs()
    for name, make in WAYS.items():
        try:
            found = make(cell, dtype, hidden_size, x)
            if found is not None:
                for call in found.values():  # what compiles does so, and what does not run says so
                    call()
                calls[name] = found
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
    if "ours" not in calls:
        return {"error": failed["ours"], "failed": failed}
    ran = {name: count - before.get(name, 0) for name, count in triton_runs().items()}
    timed = gpu_jobs._alternately(calls)
    for times in timed.values():
        for name in calls:
            ours = "ours_graph" if name.endswith("_graph") and name != "ours_graph" else "ours"
            if ours in calls:
                times[name]["ratio"] = times[name]["ms"] / times[ours]["ms"]
    schedules = sorted(name for name, count in ran.items() if count and name not in ("forward", "backward"))
    return {"times": timed, "failed": failed, "schedules": schedules}


def _allow_tf32(dtype: str) -> None:
    """Allows TF32 in all products, those of the loops beside ours too."""
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"


Phases = dict[str, Callable[[], object]]


def _ours(cell: str, dtype: str, size: int, x: Tensor) -> Phases:
    made = _cell(cell, dtype, size)
    layer = sstkern.fuse(made, strict=True)
    return _phases(lambda x: layer(x)[0], x, made)


def _ours_graph(cell: str, dtype: str, size: int, x: Tensor) -> Phases | None:
    return _captured(_ours(cell, dtype, size, x))


def _eager_loop(cell: str, dtype: str, size: int, x: Tensor) -> Phases:
    made = _cell(cell, dtype, size)
    return _phases(lambda x: _loop(made, x, _first(made, x)), x, made)


def _compiled_step(cell: str, dtype: str, size: int, x: Tensor) -> Phases:
    made = _cell(cell, dtype, size)
    step = DEVICE.compile(made)
    return _phases(lambda x: _loop(step, x, _first(made, x)), x, made)


def _compiled_step_graph(cell: str, dtype: str, size: int, x: Tensor) -> Phases | None:
    return _captured(_compiled_step(cell, dtype, size, x))


def _scan(cell: str, dtype: str, size: int, x: Tensor) -> Phases:
    from torch._higher_order_ops.scan import scan

    made = _cell(cell, dtype, size)

    def step(state, row):
        after = made(row, state)
        return mapped(after, torch.clone), flatten(after)[0].clone()  # it takes no result that another one shares memory with

    call = DEVICE.compile(lambda x, state: scan(step, state, x)[1], fullgraph=True)
    return _phases(lambda x: call(x, _first(made, x)), x, made)


def _hand_written(cell: str, dtype: str, size: int, x: Tensor) -> Phases | None:
    return _layer(sstkern, cell, dtype, size, x)


def _hand_written_graph(cell: str, dtype: str, size: int, x: Tensor) -> Phases | None:
    return _captured(_hand_written(cell, dtype, size, x))


def _cudnn(cell: str, dtype: str, size: int, x: Tensor) -> Phases | None:
    return _layer(nn, cell, dtype, size, x)


def _cudnn_graph(cell: str, dtype: str, size: int, x: Tensor) -> Phases | None:
    return _captured(_cudnn(cell, dtype, size, x))


def _captured(phases: Phases | None) -> Phases | None:
    return phases and {name: DEVICE.captured(call) for name, call in phases.items()}


WAYS = {
    "ours": _ours,
    "hand_written": _hand_written,
    "cudnn": _cudnn,
    "loop": _eager_loop,
    "ours_graph": _ours_graph,
    "hand_written_graph": _hand_written_graph,
    "cudnn_graph": _cudnn_graph,
    "compiled_step": _compiled_step,
    "compiled_step_graph": _compiled_step_graph,
    "scan": _scan,
}
"""The ways in the order in which they are made: what compiles for long comes last."""


def _layer(package, cell: str, dtype: str, size: int, x: Tensor) -> Phases | None:
    if cell not in HAND_WRITTEN:
        return None
    layer = getattr(package, HAND_WRITTEN[cell])(size, size, dtype=DTYPES[dtype], device=DEVICE.place)
    return _phases(lambda x: layer(x)[0], x, layer)


def _cell(name: str, dtype: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    module, _, wanted = name.partition(":")
    return getattr(importlib.import_module(module), wanted)(size, size).to(DEVICE.place, DTYPES[dtype])


def _loop(step: Callable, x: Tensor, state) -> Tensor:
    outputs = []
    for row in x.unbind(0):
        state = step(row, state)
        outputs.append(flatten(state)[0])
    return torch.stack(outputs)


def _first(cell: nn.Module, x: Tensor):
    """The state that a layer of the cell begins with."""
    state = first_states.first_state(cell, None, x.size(1), x)
    if state is not None:
        return state
    with torch.no_grad():  # only the cell knows it: torch.nn's
        return mapped(cell(x[0], None), torch.zeros_like)


def _phases(call: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> Phases:
    return gpu_jobs._phases(gpu_jobs._Variant(call, x, module))


def _results(call: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """The output, and the gradients of a weighting that is the same for the same sizes."""
    variant = gpu_jobs._Variant(call, x.detach().requires_grad_(), module)
    output = call(variant.x)
    names = ("x", *(name for name, _ in module.named_parameters()))
    found = torch.autograd.grad(output, variant.inputs, variant.gradient)
    return {"output": output.detach()} | {f"d{name}": gradient for name, gradient in zip(names, found, strict=True)}
