"""What the kernels become on a GPU, told without one: Triton compiles them for it, and their machine code is read.

A row is a kernel as a layer launches it: the layer itself is called, on meta tensors, with lengths, biases and everything saved. `broken`
says which rows are not what a fast and correct kernel has to be. On a GPU nobody has, this is all that can be known of a kernel.
"""

import importlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, create_function_from_signature

from sstkern.cells import CELLS
from sstkern.engines import interpreting
from sstkern.engines.triton import device, launch, layer
from sstkern.engines.triton.launch import Card
from sstkern.lengths import with_beginnings

BATCHES = (1, 64, 128, 256)
OWN_SIZES, OWN_BATCH = (64, 256, 1024), 64
"""Of own cells, in `OWN_NUMBERS`."""
HIDDEN_SIZES = (64, 128, 256, 512, 1024, 2048)
NUMBERS = (("bfloat16", False), ("float16", False), ("float32", True), ("float32", False), ("float64", False))
"""dtype, and whether TF32 is allowed."""

OWN_NUMBERS = NUMBERS[0], NUMBERS[2]
PROJECTED = "_projected"

PROCESSES = 2


class Assembly(NamedTuple):
    """How to read a target's machine code: regular expressions, that of an instruction with it as the group."""

    instruction: str
    registers: str
    stack: str
    tensor_cores: str
    local: str
    """An instruction that uses the stack."""
    memory: dict[str, str]
    """Instructions on global memory by kind, of which the first that fits counts."""
    widths: dict[str, int]
    """Bytes of a load, a thread; the first that fits."""


SASS = Assembly(
    instruction=r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);",
    registers=r"REG:(\d+)",
    stack=r"STACK:(\d+)",
    tensor_cores=r"HGMMA|HMMA|DMMA|UTC\w*MMA",
    local=r"LDL|STL",
    memory={
        "fence": r"MEMBAR\.\w+\.GPU",
        "invalidate": r"CCTL\.IVALL",
        "add": r"(?:RED|ATOM)G?\.\S*STRONG\.GPU",
        "load past L1": r"LDG\S*\.STRONG\.GPU|LDGSTS\S*\.BYPASS",
        "copy through L1": r"LDGSTS",
        "other": r"LDG?\.|STG?\.|ATOMG?\.|REDG?\.",
    },
    widths={r"\.128": 16, r"\.64": 8, r"\.[US]16": 2, r"\.[US]8": 1, r"": 4},
)
GCN = Assembly(
    instruction=r"^\s+([a-z]\w+\b.*)",
    registers=r"\.vgpr_count:\s+(\d+)",
    stack=r"\.private_segment_fixed_size:\s+(\d+)",
    tensor_cores=r"v_s?mfma",
    local=r"scratch_",
    memory={
        "fence": r"buffer_wbl2 sc1",
        "invalidate": r"buffer_inv sc1",
        "poll": r"global_atomic_\w+ .*\bsc0\b",
        "add": r"global_atomic_",
        "load past L1": r"(?:global|buffer)_load_.*\bnt\b",
        "other": r"(?:global|buffer)_(?:load|store)_",
    },
    widths={r"dwordx4": 16, r"dwordx3": 12, r"dwordx2": 8, r"dword": 4, r"short": 2, r"byte": 1},
)


@dataclass(frozen=True)
class Target:
    """A GPU to compile for."""

    gpu: GPUTarget
    card: Card
    assembly: Assembly
    product: str
    """The instructions that a product of 16-bit numbers should be made of."""
    warps: int
    """That a quarter of a multiprocessor has room for."""
    reserved: int
    """Bytes of shared memory that each program costs besides its own."""
    may_spill: bool = True
    """Whether a stack breaks no bar: the launch table's tiles are chosen for Hopper."""


def _card(multiprocessors: int, shared_memory: int, wgmma: bool = False) -> Card:
    return Card(multiprocessors, shared_memory, wgmma, float64_backward=device.float64_backward())


TARGETS = {
    "sm_90": Target(GPUTarget("cuda", 90, 32), _card(132, 232448, wgmma=True), SASS, "HGMMA", 16, 1024, may_spill=False),
    "sm_80": Target(GPUTarget("cuda", 80, 32), _card(108, 166912), SASS, "HMMA", 16, 1024),
    "sm_100": Target(GPUTarget("cuda", 100, 32), _card(148, 232448, wgmma=True), SASS, "UTCHMMA|HMMA", 16, 1024),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), _card(304, 65536), GCN, "v_mfma", 8, 0),
}


@dataclass(frozen=True)
class Configuration:
    """A kernel, and a layer that launches it."""

    target: str
    kernel: str
    """ "forward" or "backward"."""
    cell: str
    """The name of a registered one, with `PROJECTED` behind it for a layer with a projection, or "module:Class" of an own one."""
    dtype: str
    tf32: bool
    schedule: str
    """"" for the one that the table picks."""
    batch: int
    hidden_size: int
    picked: bool
    """Whether the launch table picks this schedule for this layer, and not just allows it."""
    resets: bool = False
    """Whether sequences begin anew at some of their steps."""

    @property
    def own(self) -> bool:
        return ":" in self.cell

    @property
    def generated(self) -> bool:
        """Whether the kernel is generated of a program."""
        return self.own or self.cell.endswith(PROJECTED)

    def __str__(self) -> str:
        numbers = self.dtype + " TF32" * self.tf32
        sizes = f"B={self.batch} H={self.hidden_size}" + " resets" * self.resets
        return f"{self.target} {self.kernel} {self.cell} {numbers} {self.schedule} {sizes}"


@dataclass(frozen=True)
class Code:
    """What a compiler made of a kernel."""

    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread: what did not fit in its registers."""
    local: int
    """Instructions that use the stack."""
    shared: int
    """Bytes of shared memory of a program."""
    tensor_memory: int
    """Columns of a program (sm_100)."""
    tensor_cores: dict[str, int]
    """Instructions for tensor cores."""
    acquires: int
    """Reads of a counter after which the L1 cache is invalidated."""
    releases: int
    """Additions to a counter after a fence."""
    unfenced: int
    """Additions to a counter without."""
    past_l1: int
    """Bytes that a program's loads past L1 bring, each instruction counted once."""
    through_l1: int
    """Asynchronous copies through L1."""


@dataclass(frozen=True)
class Row:
    """What became of a configuration."""

    configuration: Configuration
    sizes: dict[str, Any]
    """The kernel's compile-time arguments and its options."""
    seconds: float
    """Of a processor, to compile and read it; few where Triton's cache has it."""
    code: Code | None = None
    error: str | None = None
    """Why there is no code."""
    programs: int = 0
    """That a multiprocessor has room for at once."""


class _Launched(NamedTuple):
    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def sizes(self) -> dict[str, Any]:
        constants = {p.name: self.arguments[p.name] for p in self.kernel.params if p.is_constexpr}
        return {name: value for name, value in constants.items() if not isinstance(value, JITFunction)} | self.options

    def schedule(self) -> str:
        """Of an own cell's loop."""
        if self.arguments["STAGE"] >= 0:
            return "stepwise"
        if not self.arguments["KEEP"]:
            return "streamed"
        return "grid" if self.arguments["programs"] > 1 else "resident"


def with_kernels() -> list[str]:
    """The cells that the GPU engine has."""
    return [name for name, cell in CELLS.items() if cell.triton]


def table(name: str) -> list[Configuration]:
    """The distinct kernels of the launch table on the target `name`: every schedule for every layer that it can run.

    Raises ValueError for an unknown target, and where kernels are interpreted.
    """
    _check_target(name)
    found: dict[str, Configuration] = {}
    for kernel, cell, numbers, hidden_size in product(("forward", "backward"), with_kernels(), NUMBERS, HIDDEN_SIZES):
        for schedule, batch, picked in _schedules(TARGETS[name], kernel, cell, *numbers, hidden_size):
            configuration = Configuration(name, kernel, cell, *numbers, schedule, batch, hidden_size, picked)
            key = _specialization(configuration)
            if key not in found or (picked and not found[key].picked):
                found[key] = configuration
    projected = [cell + PROJECTED for cell in with_kernels() if CELLS[cell].projects]
    return [*found.values(), *_generated(name, projected, NUMBERS, HIDDEN_SIZES)]


def own_table(name: str, cells: Iterable[str]) -> list[Configuration]:
    """The kernels of the loop over time steps that the launch table picks for own cells, each as "module:Class".

    Raises ValueError as `table`.
    """
    _check_target(name)
    return _generated(name, cells, OWN_NUMBERS, OWN_SIZES)


def _generated(name: str, cells: Iterable[str], of_numbers: Iterable[tuple[str, bool]], sizes: Iterable[int]) -> list[Configuration]:
    found: dict[str, Configuration] = {}
    for cell, kernel, numbers, size in product(cells, ("forward", "backward"), of_numbers, sizes):
        configuration = Configuration(name, kernel, cell, *numbers, "", OWN_BATCH, size, True)
        schedule = _launched(configuration).schedule()
        found.setdefault(_specialization(configuration), replace(configuration, schedule=schedule))
    return list(found.values())


def with_resets(configurations: Iterable[Configuration]) -> list[Configuration]:
    """The same layers, of sequences that begin anew at some of their steps."""
    return [replace(configuration, resets=True) for configuration in configurations]


def _check_target(name: str) -> None:
    if name not in TARGETS:
        raise ValueError(f"target: '{name}' is unknown; there are {', '.join(TARGETS)}")
    if interpreting():
        raise ValueError("TRITON_INTERPRET is set: kernels are interpreted and cannot be compiled; unset it")


def _schedules(target: Target, kernel: str, cell: str, dtype: str, tf32: bool, hidden_size: int) -> list[tuple[str, int, bool]]:
    """(schedule, batch, picked) of the distinct launches."""
    numbers = getattr(torch, dtype)
    precision = _device(target, tf32).precision(numbers)
    launches: dict[tuple[launch.Launch, bool], tuple[str, int]] = {}
    for batch in BATCHES:
        asked = launch.Layer(numbers, precision, len(CELLS[cell].gates), batch, hidden_size)
        pick = launch.choose(target.card, asked, kernel == "backward")
        for schedule in launch.SCHEDULES:
            try:
                plan = launch.choose(target.card, asked, kernel == "backward", schedule)
            except ValueError:
                continue  # it cannot run this layer
            launches.setdefault((plan, plan == pick), (schedule, batch))
    return [(schedule, batch, picked) for (_, picked), (schedule, batch) in launches.items()]


def _specialization(configuration: Configuration) -> str:
    """What Triton compiles the kernel anew for."""
    launched = _launched(configuration)
    backend = make_backend(TARGETS[configuration.target].gpu)
    bind = create_function_from_signature(launched.kernel.signature, launched.kernel.params, backend)
    _, specialization, options = bind(**launched.arguments, **launched.options)
    return f"{launched.kernel.__module__} {launched.kernel.__name__} {specialization} {options}"


def _launched(configuration: Configuration, stack: Callable[..., int] | None = None) -> _Launched:
    """The first launch of the layer's forward or backward, of one time step; of an own cell's that of its loop. stack: as of Device."""
    launches: list[_Launched] = []
    with _recorded(configuration, lambda *launched: launches.append(_Launched(*launched)), stack):
        if configuration.own:
            _run_own(configuration)
        else:
            _run(configuration)
    return next(launched for launched in launches if launched.kernel.__name__ == "core") if configuration.generated else launches[0]


def _run_own(c: Configuration) -> None:
    from sstkern.program import ahead  # which imports much more than the engines

    ahead.run(c.cell, c.hidden_size, getattr(torch, c.dtype), c.batch, c.kernel == "backward", c.resets)


def _run(c: Configuration) -> None:
    """A layer of a registered cell, whose projection is to half of its units."""
    name, dtype = c.cell.removesuffix(PROJECTED), getattr(torch, c.dtype)
    cell, projected = CELLS[name], name != c.cell
    of_layer = importlib.import_module("sstkern.program.projected") if projected else layer
    width = c.hidden_size // 2 if projected else c.hidden_size

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(1, c.batch, c.hidden_size)
    shapes = cell.shapes(True, projected, input_size=c.hidden_size, hidden_size=c.hidden_size, output_size=width)
    weights = [empty(*shape) for shape in shapes.values()]
    states, lengths = cell.state_sizes(c.hidden_size, width), torch.ones(c.batch, dtype=torch.int64)
    hx = [empty(1, c.batch, size) for size in states]
    anew = hx if c.resets else []
    if c.resets:
        lengths = with_beginnings(lengths, torch.ones(1, c.batch, dtype=torch.bool))
    arguments = (name, x, weights, [*hx, *anew], lengths, True, False)
    if c.kernel == "forward":
        of_layer.forward(*arguments, c.batch)
        return
    saved, output = of_layer.saved_like(name, x, weights, True, False, c.batch), empty(1, c.batch, width)
    # All gradients that a program has; of the others the loop is the same.
    needs = [c.generated] * (1 + len(weights) + len(hx) + len(anew))
    of_layer.backward(*arguments, output, saved, output, hx, needs)


@contextmanager
def _recorded(configuration: Configuration, run: Callable, stack: Callable[..., int] | None = None) -> Iterator[None]:
    """Layers on meta tensors hand their launches to `run`."""
    outer = launch.force(configuration.schedule or None)
    device.compile_for(_device(TARGETS[configuration.target], configuration.tf32, run, stack))
    try:
        yield
    finally:
        device.compile_for(None)
        launch.force(outer)


def _device(target: Target, tf32: bool, run: Callable | None = None, stack: Callable[..., int] | None = None) -> device.Device:
    return device.Device(target.card, target.gpu.backend, run, lambda: tf32, products_allow_tf32=lambda: tf32, stack=stack)


def _stack(target: Target, kernel: JITFunction, grid: tuple[int, ...], arguments: dict, options: dict) -> int:
    return _code(kernel.warmup(grid=grid, **arguments, **options), target).stack


def rows(configurations: Iterable[Configuration]) -> Iterator[Row]:
    """What each becomes, in their order, as processes of their own compile them."""
    # Not forked: PyTorch's threads would not survive it.
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        yield from pool.map(compiled, configurations)


def compiled(configuration: Configuration) -> Row:
    """Makes the target this process's GPU, as far as Triton knows."""
    start = _cpu_seconds()
    target = TARGETS[configuration.target]
    driver.set_active(_Driver(target.gpu))
    launched = _launched(configuration, partial(_stack, target))
    try:
        kernel = launched.kernel.warmup(grid=launched.grid, **launched.arguments, **launched.options)
    except Exception as error:  # whichever of the compiler's stages fails, the other rows are worth having
        return Row(configuration, launched.sizes(), _cpu_seconds() - start, error=_innermost(error))
    code = _code(kernel, target)
    programs = programs_at_once(code, kernel.metadata.num_warps, target)
    return Row(configuration, launched.sizes(), _cpu_seconds() - start, code, programs=programs)


def _cpu_seconds() -> float:
    """Of this process and those it ran."""
    return sum(os.times()[:4])


class _Driver(NamedTuple):
    """As much of a Triton driver as compiling asks for."""

    gpu: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.gpu

    def get_current_device(self) -> str:
        return str(self.gpu)  # what Triton keeps its compiled kernels by

    def get_current_stream(self, _: str) -> None:
        return None


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _code(kernel: triton.compiler.CompiledKernel, target: Target) -> Code:
    metadata = kernel.metadata
    text = kernel.asm["amdgcn"] if target.assembly is GCN else _disassembled(kernel.asm["cubin"])
    tensor_memory = getattr(metadata, "tmem_size", None) or 0
    return read(text, target.assembly, metadata.num_warps * target.gpu.warp_size, metadata.shared, tensor_memory)


def _disassembled(cubin: bytes) -> str:
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(text: str, assembly: Assembly, threads: int, shared: int, tensor_memory: int = 0) -> Code:
    """A kernel's code from its disassembly with the resources it says it uses; `threads` of a program."""
    instructions = [match[1] for match in re.finditer(assembly.instruction, text, re.MULTILINE)]
    memory = [(kind, instruction) for instruction in instructions if (kind := _kind(instruction, assembly))]
    # Before each comes nothing else that touches global memory.
    pairs = Counter((before, kind) for (before, _), (kind, _) in pairwise(memory))
    loads = [load for (kind, load), (after, _) in pairwise([*memory, (None, "")]) if kind == "load past L1" and after != "invalidate"]
    kinds = Counter(kind for kind, _ in memory)
    return Code(
        registers=_number(assembly.registers, text),
        stack=_number(assembly.stack, text),
        local=sum(bool(re.match(assembly.local, instruction)) for instruction in instructions),
        shared=shared,
        tensor_memory=tensor_memory,
        tensor_cores=dict(Counter(match[0] for i in instructions if (match := re.match(assembly.tensor_cores, i)))),
        acquires=pairs["load past L1", "invalidate"] + pairs["poll", "invalidate"],
        releases=pairs["fence", "add"],
        unfenced=kinds["add"] - pairs["fence", "add"],
        past_l1=threads * sum(_width(load, assembly) for load in loads),
        through_l1=kinds["copy through L1"],
    )


def _kind(instruction: str, assembly: Assembly) -> str | None:
    return next((kind for kind, expression in assembly.memory.items() if re.match(expression, instruction)), None)


def _width(load: str, assembly: Assembly) -> int:
    return next(width for expression, width in assembly.widths.items() if re.search(expression, load.split()[0]))


def _number(expression: str, text: str) -> int:
    match = re.search(expression, text)
    if match is None:
        raise ValueError(f"no '{expression}' in what should be a disassembly: {text[:200]!r}")
    return int(match[1])


def programs_at_once(code: Code, num_warps: int, target: Target) -> int:
    """That one multiprocessor has room for: each of its quarters has 512 registers a lane, given out by eights, on every target."""
    warps = 4 * min(target.warps, 512 // (-(-code.registers // 8) * 8))
    room = [warps // num_warps]
    if code.shared + target.reserved:
        room.append((target.card.shared_memory + target.reserved) // (code.shared + target.reserved))
    if code.tensor_memory:
        room.append(512 // code.tensor_memory)
    return min(room)


def broken(rows: Iterable[Row]) -> list[str]:
    """The bars that rows break, a line each."""
    found = []
    for row in rows:
        faults = [f"does not compile: {row.error}"] if row.code is None else [bar(row) for bar in BARS]
        found += [f"{row.configuration}: {fault}" for fault in faults if fault]
    return found


def spills(row: Row) -> str | None:
    code = row.code
    # Two registers, four times: what the backward of a streamed LSTM in float64 does.
    if TARGETS[row.configuration.target].may_spill or (code.stack <= 8 and code.local <= 4):
        return None
    return f"spills: {code.stack} bytes of stack, {code.local} instructions that use it"


def does_not_fit(row: Row) -> str | None:
    code, allowed = row.code, TARGETS[row.configuration.target].card.shared_memory
    if row.programs:
        return None
    return f"does not fit a multiprocessor: {code.registers} registers, {code.shared} bytes of shared memory of {allowed}"


def lacks_tensor_cores(row: Row) -> str | None:
    c, wanted = row.configuration, TARGETS[row.configuration.target].product
    if c.generated:  # of whose products a program may have fewer rows than those instructions take
        products = any(name.startswith("CHUNKS") for name in row.sizes)
        return "has no tensor-core instructions" if products and not row.code.tensor_cores else None
    if c.dtype not in ("bfloat16", "float16") or c.schedule == "stepwise":
        return None
    if any(re.fullmatch(wanted, name) for name in row.code.tensor_cores):
        return None
    return f"has no {wanted} among its tensor-core instructions {row.code.tensor_cores}"


def exchanges_unsafely(row: Row) -> str | None:
    """Programs that wait for each other need an acquire before they read and a release after they write."""
    c, code = row.configuration, row.code
    if c.schedule not in ("grid", "streamed") or not row.sizes.get("EXCHANGES", True):
        return None
    if not code.acquires:
        return "never acquires: no read of a counter is followed by an invalidation of L1"
    if not code.releases or code.unfenced:
        return f"does not release: {code.unfenced} additions to a counter have no fence before them, {code.releases} have"
    if c.kernel == "forward" and code.through_l1:
        return f"copies through L1: {code.through_l1} instructions"
    if code.past_l1 < (expected := _exchanged(row)):
        return f"loads past L1 only {code.past_l1} bytes of the {expected} that other programs wrote"
    return None


def _exchanged(row: Row) -> int:
    """Bytes that a program's code has to load past L1: each load in it once, however often the loop runs it."""
    c, s = row.configuration, row.sizes
    if c.generated:  # one tile of an operand at least
        blocks = [size for name, size in s.items() if name.startswith("BLOCK_K")]
        return s["BLOCK_B"] * min(blocks, default=0) * getattr(torch, c.dtype).itemsize
    if c.kernel == "forward":
        return s["BLOCK_B"] * s["BLOCK_K"] * (s["CHUNKS"] if c.schedule == "grid" else 1) * getattr(torch, c.dtype).itemsize
    # Inside the loop, and after it.
    return 2 * s["BLOCK_U"] * s["BLOCK_H"] * s["BLOCK_B"] * layer.part_dtype(getattr(torch, c.dtype)).itemsize


BARS = (spills, does_not_fit, lacks_tensor_cores, exchanges_unsafely)

_COLUMNS = (
    ("kernel", 8),
    ("cell", 8),
    ("dtype", 8),
    ("product", 7),
    ("schedule", 8),
    ("picked", 6),
    ("B", 3),
    ("H", 4),
    ("tile", 13),
    ("warps", 5),
    ("stages", 6),
    ("registers", 9),
    ("stack", 5),
    ("local", 5),
    ("shared", 6),
    ("programs", 8),
    ("seconds", 7),
    ("tensor cores", 12),
)


def heading() -> str:
    return _line(name for name, _ in _COLUMNS)


def line(row: Row) -> str:
    c, s, code = row.configuration, row.sizes, row.code
    tile = _tile(s)
    layer = (c.kernel, c.cell.rpartition(":")[2], c.dtype, s["PRECISION"], c.schedule, "yes" if c.picked else "no", c.batch, c.hidden_size)
    made = ("-",) * 5 if code is None else (code.registers, code.stack, code.local, code.shared, row.programs)
    cores = "none" if code is None else ", ".join(f"{name} {count}" for name, count in code.tensor_cores.items())
    return _line((*layer, tile, s["num_warps"], s["num_stages"], *made, f"{row.seconds:.1f}", cores or "none"))


def _tile(sizes: dict[str, Any]) -> str:
    """Of an own cell: its most units, rows of the batch, and the columns of its deepest product."""
    if "BLOCK_H" in sizes:
        return "x".join(str(sizes[size]) for size in ("BLOCK_H", "BLOCK_B", "BLOCK_K", "CHUNKS"))
    units = max((size for name, size in sizes.items() if name[:5] == "BLOCK" and name[5:].isdigit()), default=0)
    depths = [(sizes[f"BLOCK_K{name[6:]}"], chunks) for name, chunks in sizes.items() if name[:6] == "CHUNKS"]
    size, chunks = max(depths, key=lambda depth: depth[0] * depth[1], default=(0, 0))
    return f"{units}x{sizes['BLOCK_B']}x{size}x{chunks}"


def _line(values: Iterable[Any]) -> str:
    return "  ".join(str(value).ljust(width) for value, (_, width) in zip(values, _COLUMNS, strict=True)).rstrip()


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
