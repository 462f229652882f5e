"""The instruction sets of the CPU engine: every one this machine has computes what the reference engine says, and none leaks."""

import platform
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from layers import KINDS, flat

import sstkern
from sstkern import functional
from sstkern.cells import CELLS

BUILT_IN = [name for name, cell in CELLS.items() if cell.torch_mode]
LEVELS = [
    *["avx512_bf16"] * torch.cpu._is_avx512_bf16_supported(),
    *["avx512"] * torch.cpu._is_avx512_supported(),
    *["avx2"] * torch.cpu._is_avx2_supported(),
    "baseline",
]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
HIDDEN_SIZES = [1, 3, 17, 33, 100]  # not one is a multiple of a vector's width; the last has several panels at every level
Arrays = dict[str, np.ndarray]


def layer(cell: str, hidden_size: int, dtype: torch.dtype) -> Arrays:
    """Output, final states and gradients of both directions of a layer, by name, for sequences of different lengths."""
    generator = torch.Generator().manual_seed(hidden_size)
    make, _, options = KINDS[cell]
    module = make(5, hidden_size, bidirectional=True, dtype=torch.float64, **options)
    with torch.no_grad():
        for weight in module.parameters():
            weight.uniform_(-1, 1, generator=generator).mul_(min(0.4, 14 / hidden_size))  # larger ones make many units' sums chaotic
            weight.copy_(weight.bfloat16())  # the same numbers in every dtype
    x = torch.randn(9, 7, 5, generator=generator, dtype=torch.float64).bfloat16().to(dtype).requires_grad_()
    output, hx = module.to(dtype)(x, lengths=[9, 0, 4, 1, 9, 2, 7])
    results = {"output": output} | dict(zip(module.cell.states, flat(hx), strict=True))
    weighted = [(result * torch.linspace(-1, 1, result.numel(), dtype=dtype).view_as(result)).sum() for result in results.values()]
    inputs = {"x": x} | dict(module.named_parameters())
    gradients = torch.autograd.grad(sum(weighted), list(inputs.values()))
    tensors = results | {f"d {name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}
    # numpy has no bfloat16
    return {name: tensor.detach().to(torch.float32 if dtype == torch.bfloat16 else dtype).numpy() for name, tensor in tensors.items()}


def points(dtype: torch.dtype) -> torch.Tensor:
    """Where to look at tanh and sigmoid: both tails, all magnitudes down to the smallest, and what is no number."""
    magnitudes = torch.cat(
        [
            torch.linspace(0, 12, 4001, dtype=dtype),
            torch.linspace(12, 100, 501, dtype=dtype),
            torch.logspace(-40, 4, 999, dtype=dtype),
            torch.tensor([1e-8, 88.0, 1e4, torch.finfo(dtype).max, torch.inf], dtype=dtype),
        ]
    )
    return torch.cat([magnitudes, -magnitudes, torch.tensor([torch.nan], dtype=dtype)])


def through_bias(gates: int, at: int, function: Callable[..., tuple], values: torch.Tensor, h_0: float) -> np.ndarray:
    """One step of a layer all of whose weights are zero, with `values` as gate `at`'s bias; a few hundred units at once."""
    results = []
    for chunk in values.split(512):
        n = len(chunk)
        biases = torch.zeros(gates, n, dtype=values.dtype)
        biases[at] = chunk
        zeros = [biases.new_zeros(gates * n, 1), biases.new_zeros(gates * n, n)]
        weights = [*zeros, biases.flatten(), biases.new_zeros(gates * n)]
        _, h_n = function(biases.new_zeros(1, 1, 1), weights, biases.new_full((1, 1, n), h_0))
        results.append(h_n.flatten())
    return torch.cat(results).numpy()


def nonlinearities(dtype: torch.dtype) -> dict[str, np.ndarray]:
    """tanh as a simple recurrent network computes it, sigmoid as a GRU's z gate does: n + z * (h - n) with n = 0 and h = 1."""
    return {
        "tanh": through_bias(1, 0, functional.rnn_tanh, points(dtype), 0.0),
        "sigmoid": through_bias(3, 1, functional.gru, points(dtype), 1.0),
        "relu": through_bias(1, 0, functional.rnn_relu, points(dtype), 0.0),
    }


NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FACTORS = [1, 1.5, 1 + 2**-7, 2**-3, 3 * 2**-9, 2**5]


def all_numbers(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def products(dtype: torch.dtype, factor: float) -> np.ndarray:
    """All numbers of a 16-bit dtype times a factor, as two relus, of a number and its opposite, read and round them."""
    weight, values = torch.full((1, 1), factor, dtype=dtype), all_numbers(dtype).view(1, -1, 1)
    above, below = (functional.rnn_relu(values, [sign * weight, 0 * weight], bias=False)[0] for sign in (1, -1))
    return (above.double() - below.double()).flatten().numpy()


def everything() -> tuple[str, dict[tuple, Arrays], dict[str, dict[str, np.ndarray]], dict[tuple, np.ndarray], float]:
    torch.set_num_threads(1)
    with sstkern.backend("cpu"):
        dtypes = DTYPES | {"bfloat16": torch.bfloat16}
        rounded = {(name, factor): products(dtype, factor) for name, dtype in NARROW.items() for factor in FACTORS}
        layers = {
            (cell, size, name): layer(cell, size, dtype) for cell in BUILT_IN for size in HIDDEN_SIZES for name, dtype in dtypes.items()
        }
        functions = {name: nonlinearities(dtype) for name, dtype in DTYPES.items()}
        return torch.ops.sstkern.cpu_capability(), layers, functions, rounded, torch.ops.sstkern.cpu_peak()


def refusals() -> list[str]:
    torch.set_num_threads(2)
    return [refusal(call) for call in (tiny_layer, torch.ops.sstkern.cpu_peak)]


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def tiny_layer() -> None:
    functional.rnn_tanh(torch.zeros(1, 1, 1), [torch.zeros(1, 1)] * 2, bias=False)


def in_process(level: str, function: Callable[[], object]) -> object:
    """What `function` returns in a process of its own, since a process chooses its instruction set once."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        patch.setenv("SSTKERN_CPU_CAPABILITY", level)
        return pool.submit(function).result()


@pytest.fixture(scope="module")
def computed() -> Callable[[str], tuple]:
    return cache(lambda level: in_process(level, everything))


@pytest.mark.parametrize("level", LEVELS)
def test_a_forced_level_is_the_one_that_runs(level: str, computed):
    assert computed(level)[0] == level


def test_the_best_level_runs_unasked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SSTKERN_CPU_CAPABILITY", raising=False)
    assert torch.ops.sstkern.cpu_capability() == LEVELS[0]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("factor", FACTORS)
def test_16_bit_numbers_are_read_and_rounded_as_torch_does(level: str, dtype: str, factor: float, computed):
    """All 65,536, and products of them that lie between two numbers, halfway, below the smallest and above the largest."""
    every = all_numbers(NARROW[dtype])
    expected = (every.float() * factor).to(NARROW[dtype])
    found = torch.from_numpy(computed(level)[3][dtype, factor])
    if (level, dtype) == ("avx512_bf16", "bfloat16"):  # its products take and give zero for what is no normal number
        normal = torch.minimum(every.float().abs(), (every.float() * factor).abs()) >= torch.finfo(NARROW[dtype]).smallest_normal
        expected, found = expected.where(normal, 0), found.where(normal, 0)
    assert torch.equal(
        found.nan_to_num(nan=1.25, posinf=torch.inf, neginf=-torch.inf),
        expected.double().nan_to_num(nan=1.25, posinf=torch.inf, neginf=-torch.inf),
    )


def test_an_unknown_level_is_refused():
    for told in in_process("sse9", refusals):
        assert f"SSTKERN_CPU_CAPABILITY is 'sse9'; this machine has: {', '.join(LEVELS)}" in told


def test_the_narrowest_level_has_the_lowest_peak(computed):
    peaks = [computed(level)[4] for level in LEVELS]
    assert peaks[-1] == min(peaks)
    assert peaks[-1] > 1  # GFLOP/s


def test_reading_a_cache_is_faster_than_reading_memory():
    assert torch.ops.sstkern.cpu_bandwidth(1 << 15) > torch.ops.sstkern.cpu_bandwidth(1 << 28) > 0
    with pytest.raises(ValueError, match="bytes: expected at least 4096, got 4095"):
        torch.ops.sstkern.cpu_bandwidth(4095)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 3e-6)])
def test_layers_equal_the_reference_engine(level: str, cell: str, hidden_size: int, dtype: str, tolerance: float, computed):
    with sstkern.backend("reference"):
        expected = layer(cell, hidden_size, torch.float64)
    got = computed(level)[1][cell, hidden_size, dtype]
    assert {name: array.dtype for name, array in got.items()} == dict.fromkeys(expected, dtype)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * max(1, np.abs(array).max()), err_msg=name)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
def test_bfloat16_layers_are_near_the_reference_engine(level: str, cell: str, hidden_size: int, computed):
    with sstkern.backend("reference"):
        expected = layer(cell, hidden_size, torch.float64)
    got = computed(level)[1][cell, hidden_size, "bfloat16"]
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert np.linalg.norm(got[name] - array) <= 0.02 * max(np.linalg.norm(array), 0.1 * array.size**0.5), name


@pytest.mark.skipif("avx512" not in LEVELS, reason="this machine has no AVX-512")
@pytest.mark.parametrize("dtype", DTYPES)
def test_avx2_and_avx512_have_the_same_bits(dtype: str, computed):
    """So kernels of either may run a call."""
    narrow, wide = computed("avx2"), computed("avx512")
    for cell in BUILT_IN:
        for size in HIDDEN_SIZES:
            expected, got = narrow[1][cell, size, dtype], wide[1][cell, size, dtype]
            assert list(expected) == list(got)
            differing = [name for name in expected if expected[name].tobytes() != got[name].tobytes()]
            assert not differing, (cell, size)
    assert all(narrow[2][dtype][name].tobytes() == array.tobytes() for name, array in wide[2][dtype].items())


SMALL = list(product((4, 5, 8, 9), (0, 12, 13, 24, 25)))
"""Units and inputs."""


def small_layers() -> dict[str, object]:
    torch.set_num_threads(1)
    levels = {(name, size): torch.ops.sstkern.cpu_level_for(DTYPES[name], *size) for name, size in product(DTYPES, SMALL)}
    with sstkern.backend("cpu"):
        layers = {(cell, size, name): layer(cell, size, DTYPES[name]) for cell, size, name in product(BUILT_IN, (4, 8), DTYPES)}
    return levels | layers


@pytest.mark.skipif("avx512" not in LEVELS, reason="this machine has no AVX-512")
def test_small_layers_take_avx2_unless_avx512_is_asked_for_and_have_the_same_bits():
    chosen, forced = in_process("", small_layers), in_process("avx512", small_layers)
    for name, size in product(DTYPES, SMALL):
        few = size[0] <= (8 if name == "float32" else 4) and size[1] <= (24 if name == "float32" else 12)
        assert (chosen[name, size] == "avx2", forced[name, size]) == (few, "avx512")
    for case, arrays in forced.items():
        if isinstance(arrays, dict):
            assert [name for name, array in arrays.items() if chosen[case][name].tobytes() != array.tobytes()] == [], case


def in_ulp(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of `got`'s dtype; none where it is as small as the smallest normal numbers."""
    error = np.abs(got.astype(np.longdouble) - expected)
    with np.errstate(over="ignore"):  # of the largest number
        unit = np.spacing(np.abs(expected.astype(got.dtype)))
    return np.where(error <= 2 * np.finfo(got.dtype).tiny, 0, error / unit)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "function", "most"),
    [("tanh", np.tanh, 3), ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 3), ("relu", lambda x: np.maximum(x, 0), 0)],
    ids=["tanh", "sigmoid", "relu"],
)
def test_nonlinearities_are_accurate(level: str, dtype: str, name: str, function: Callable, most: float, computed):
    x, got = points(DTYPES[dtype]).numpy(), computed(level)[2][dtype][name]
    number = np.isfinite(x)
    with np.errstate(over="ignore"):
        expected = function(x.astype(np.longdouble))
    assert in_ulp(got[number], expected[number]).max() <= most
    infinite = np.isinf(x)
    np.testing.assert_allclose(got[infinite], expected[infinite].astype(got.dtype), rtol=0, atol=2 * np.finfo(got.dtype).tiny)
    assert np.isnan(got[np.isnan(x)]).all()


def extension() -> Path:
    (binary,) = Path(sstkern.__file__).parent.glob("_cpu.*so")
    return binary


def listing(*command: str) -> str:
    return subprocess.run([*command, str(extension())], capture_output=True, text=True, check=True).stdout


def namespaces_using(register: str, disassembly: str) -> set[str]:
    """The namespaces (or, outside sstkern's, whole names) of the functions that use registers called `register` and a number."""
    found = set()
    for function in re.split(r"\n\n(?=[0-9a-f]+ <)", disassembly):
        if re.search(rf"\b{register}[0-9]", function):
            name = re.match(r"[0-9a-f]+ <(.*)>:", function)[1]
            # A template's name follows its result type: "void sstkern::avx2::pack_plain<float>(...)".
            in_sstkern = re.match(r"(?:[\w:]+ )?sstkern::(\w+)::", name)
            found.add(in_sstkern[1] if in_sstkern else name)
    return found


def test_no_wide_code_outside_its_level():
    disassembly = listing("objdump", "-d", "-C", "--no-show-raw-insn")
    x86 = platform.machine() == "x86_64"
    assert namespaces_using("zmm", disassembly) == ({"avx512_bf16", "avx512"} if x86 else set())
    assert namespaces_using("ymm", disassembly) == ({"avx512_bf16", "avx512", "avx2"} if x86 else set())


def test_the_binary_brings_no_threads_of_its_own():
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listing("readelf", "-d"))
    assert any(name.startswith("libtorch_cpu") for name in needed)
    assert not [name for name in needed if "omp" in name]
