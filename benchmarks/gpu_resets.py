"""Jobs of benchmarks/gpu.py about sequences that begin anew: layers and own cells checked, and timed beside the same call without resets.

A cell is the name of a built-in one, or "module:Class" as in `gpu_own_cells`. T time steps, B batch, I = H.
"""

import gpu_jobs
import gpu_own_cells
import torch
from gpu_jobs import BOUNDS, DEVICE, DTYPES
from torch import Tensor, nn

import sstkern
from sstkern.engines import triton_runs
from sstkern.structure import flatten, mapped

SHARE = 0.03
"""Of the steps that a timed call begins anew with."""


def resets_check(cell: str, schedule: str, dtype: str, batch: int, steps: int, hidden_size: int) -> dict:
    """Relative errors of a schedule's kernels with resets, lengths and learned first states against the reference engine in float64."""
    gpu_own_cells._allow_tf32(dtype)
    layer, exact = _made(cell, dtype, hidden_size)
    x = torch.randn(steps, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype])
    options = {"lengths": torch.randint(0, steps + 1, (batch,)), "resets": torch.rand(steps, batch, device=DEVICE.place) < 0.3}
    with gpu_jobs._only(schedule):
        twice = [_results(layer, x, options) for _ in range(2)]
    with sstkern.backend("reference"):
        errors = gpu_jobs._errors(twice[0], _results(exact, x.double(), options))
    same_bits = all(torch.equal(value, twice[1][name]) for name, value in twice[0].items())
    sound = all(gpu_jobs._within(error, BOUNDS[dtype]) for error in errors.values())
    return {"errors": errors, "same_bits": same_bits, "ok": same_bits and sound}


def resets(cell: str, dtype: str, batch: int, steps: int, hidden_size: int) -> dict:
    """Milliseconds of a call that begins anew at 3% of the steps, and of the same without, forward alone and with its backward."""
    gpu_own_cells._allow_tf32(dtype)
    layer, _ = _made(cell, dtype, hidden_size)
    x = torch.randn(steps, batch, hidden_size, device=DEVICE.place, dtype=DTYPES[dtype], requires_grad=True)
    marks, before = torch.rand(steps, batch, device=DEVICE.place) < SHARE, triton_runs()
    calls = {"ours": lambda x: layer(x, resets=marks)[0], "without": lambda x: layer(x)[0]}
    timed = gpu_jobs._alternately({name: gpu_own_cells._phases(call, x, layer) for name, call in calls.items()})
    for times in timed.values():
        times["without"]["ratio"] = times["without"]["ms"] / times["ours"]["ms"]
    schedules = sorted(name for name, count in triton_runs().items() if count > before.get(name, 0) and name not in ("forward", "backward"))
    return {"times": timed, "schedules": schedules}


def _made(cell: str, dtype: str, size: int) -> tuple[nn.Module, nn.Module]:
    """A layer, and the same in float64."""
    if ":" not in cell:
        ours, _, exact = gpu_jobs._layers(cell, dtype, size, size)
        return ours, exact
    own, exact = gpu_own_cells._cell(cell, dtype, size), gpu_own_cells._cell(cell, "float64", size)
    exact.load_state_dict({name: value.double() for name, value in own.state_dict().items()})
    return sstkern.fuse(own, strict=True), sstkern.fuse(exact, strict=True)


def _results(layer: nn.Module, x: Tensor, options: dict) -> dict[str, Tensor]:
    """Output, states and gradients of the same weighting, with the same first states, for the same sizes."""
    generator = torch.Generator().manual_seed(0)

    def random_like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)

    with torch.no_grad():
        anew = mapped(layer(x)[1], lambda state: random_like(state).requires_grad_())
    x = x.detach().requires_grad_()
    output, hx_n, states = layer(x, reset_to=anew, return_states=True, **options)
    results = [output, *flatten(hx_n), *flatten(states)]
    inputs = {"x": x, **dict(layer.named_parameters()), **{f"anew_{place}": state for place, state in enumerate(flatten(anew))}}
    found = torch.autograd.grad(results, list(inputs.values()), list(map(random_like, results)))
    named = {f"result_{place}": result.detach() for place, result in enumerate(results)}
    return named | {f"d{name}": gradient for name, gradient in zip(inputs, found, strict=True)}
