"""What this installation has, what it lacks, and how to get it."""

import importlib
import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from sstkern.engines import extension_problem, interpreting, triton_problem
from sstkern.program import cache, compiler

TRAIN = ("accelerate", "huggingface_hub", "matplotlib", "pooch", "rich", "safetensors", "tensorboard", "tokenizers", "tqdm", "typer")
STUDY = (*TRAIN, "jinja2", "latex2mathml", "markdown_it", "mdit_py_plugins")
BENCH = ("matplotlib", "onnx", "onnxruntime", "openvino", "pytest_benchmark", "rich", "typer")


def report() -> list[tuple[str, str]]:
    """Headings, each with what was found."""
    problem = extension_problem()
    return [
        ("sstkern", version_or_advice("sstkern")),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("triton", version_or_advice("triton")),
        ("C++ extension", "built" if problem is None else problem),
        ("instruction set", _instruction_set() if problem is None else "none: needs the C++ extension"),
        ("fused cells", _fused_cells() if problem is None else "plain PyTorch: the CPU kernels need the C++ extension"),
        ("threads", f"{torch.get_num_threads()} (torch.set_num_threads changes it)"),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"),
        ("GPU engine", triton_problem() or "ready"),
        *_schedules(),
        ("training", _extra("train", TRAIN, "sstkern.text.trainer")),
        ("study", _extra("study", STUDY, "sstkern.text.study.study")),
        ("benchmarks", _extra("bench", BENCH, "sstkern.bench.show")),
    ]


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def version_or_advice(package: str) -> str:
    return installed_version(package) or f"not installed; get it with 'pip install {package}'"


def _schedules() -> list[tuple[str, str]]:
    """What the launch table picks on this GPU, for typical layers; `sstkern.backend("triton", schedule=...)` forces another."""
    if triton_problem():
        return []
    from sstkern.engines.triton import device, launch

    card = device.of(torch.device("cpu" if interpreting() else "cuda")).card
    sizes = (64, 128, 256, 512, 1024, 2048)
    layers = [launch.Layer(torch.bfloat16, "ieee", gates=4, batch=64, hidden_size=size) for size in sizes]
    picked = [f"{layer.hidden_size} {launch.choose(card, layer, backward=False).schedule}" for layer in layers]
    return [("GPU schedules", f"LSTM, bfloat16, 64 sequences, by hidden_size: {', '.join(picked)}")]


def _instruction_set() -> str:
    try:
        best, of_few = torch.ops.sstkern.cpu_capability(), torch.ops.sstkern.cpu_level_for(torch.float32, 8, 0)
        return best if best.startswith(of_few) else f"{best}, and {of_few} for float32 layers of 8 units and fewer, which it is faster for"
    except ValueError as error:  # SSTKERN_CPU_CAPABILITY names one this machine lacks
        return f"none: {error}"


def _fused_cells() -> str:
    """What `sstkern.fuse` can make of a cell on the CPU."""
    try:
        cache.check_wanted()
        return f"compiled with {compiler.describe(compiler.find())}, kept in {cache.place()}"
    except compiler.CannotCompile as error:
        return f"plain PyTorch: {error}"


def _extra(name: str, packages: tuple[str, ...], module: str) -> str:
    """Whether the extra's packages are there, and `module`, which uses them, can be imported: a package may be there and broken."""
    remedy = f"get them with 'pip install \"sstkern[{name}]\"'"
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"lacks {', '.join(missing)}; {remedy}"
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken package raises anything
        return f"cannot be imported: {type(error).__name__}: {error}; {remedy}"
    return "ready"
