"""Builds the CPU engine, for every torch since 2.11 and every Python: it calls torch's stable C functions, and nothing of Python's.

Everything static is in pyproject.toml.
"""

import importlib.util
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

OLDEST_TORCH = 2 << 56 | 11 << 48
"""2.11, as torch's headers write it: they then declare nothing that it lacks."""


def has_torch() -> bool:
    """Whether there is a torch, for its headers.

    `pip install .` runs this file in an isolated environment without torch: the environment the package is being installed into is
    then looked at.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        sys.path.append(sysconfig.get_path("purelib"))
        return importlib.util.find_spec("torch") is not None
    return True


def check_names(headers: list[Path]) -> None:
    """Two cells of one name would end every process that loads the extension."""
    found: dict[str, Path] = {}
    for header in headers:
        for name in re.findall(r'cell_kernels<\w+>\("(\w+)"\)', header.read_text()):
            if name in found:
                raise SystemExit(f"sstkern: the cell '{name}' stands in {found[name]} and in {header}; give one of them another name")
            found[name] = header


def write_units(folder: Path) -> list[str]:
    """A compile unit for each cell, and for what all cells share, and each instruction set: a header of each, included.

    So a cell is one header, and another one is no change anywhere else. A file that is there already keeps its time.
    """
    kernels = Path("csrc", "kernels")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    levels = [path.stem for path in sorted((kernels / "levels").glob("*.h")) if path.stem == "baseline" or (x86 and path.stem != "end")]
    cells = sorted((kernels / "cells").glob("*.h"))
    check_names(cells)
    units = {}
    for header in [kernels / "products.h", *cells]:
        for level in levels:
            included = f"levels/{level}.h", header.relative_to(kernels).as_posix(), "levels/end.h"
            units[folder / f"{header.stem}_{level}.cpp"] = "".join(f'#include "{name}"\n' for name in included)
    folder.mkdir(parents=True, exist_ok=True)
    for path in {path for level in levels for path in folder.glob(f"*_{level}.cpp")} - set(units):  # not those of another architecture
        path.unlink()
    for path, text in units.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return [str(path) for path in units]


SANITIZERS = {
    "": [],
    # Of what -fsanitize=undefined checks: a null reference is a fault for AddressSanitizer as well, and the two others double the
    # compiler's time, as -O1 does. Python's own flags may define what a signed overflow gives.
    "address": [
        "-Og",
        "-fsanitize=address,undefined",
        "-fno-sanitize=null,vptr,object-size",
        "-fno-wrapv",
        "-fno-sanitize-recover=all",
        "-DSSTKERN_GAPS",
    ],
    "thread": ["-O1", "-fsanitize=thread"],
}


def sanitizer_flags() -> list[str]:
    """Flags of the compiler for the sanitizers that SSTKERN_SANITIZE names: `make sanitize` builds with each in turn."""
    given = os.environ.get("SSTKERN_SANITIZE", "")
    if given not in SANITIZERS:
        raise SystemExit(f"sstkern: SSTKERN_SANITIZE is '{given}'; allowed are {', '.join(filter(None, SANITIZERS))}, or nothing")
    return [*SANITIZERS[given], "-g1", "-fno-omit-frame-pointer"] if given else []


def has_torchs_openmp() -> bool:
    """Whether the compiler's OpenMP calls the runtime that torch itself brings: GCC's on Linux. Clang's would be a second one, with threads
    of its own. Without OpenMP all threads are torch's parallel_for's. SSTKERN_NO_OPENMP=1 leaves it out."""
    if os.environ.get("SSTKERN_NO_OPENMP") == "1":
        return False
    command = [*shlex.split(os.environ.get("CXX") or "c++"), "-fopenmp", "-dM", "-E", "-x", "c++", os.devnull]
    try:
        told = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return False
    return told.returncode == 0 and "#define _OPENMP " in told.stdout and "#define __clang__ " not in told.stdout


def path_flags() -> list[str]:
    """Have messages name files as from here and from torch's folder: two builds of one commit, in whatever folders, have the same bytes."""
    import torch

    folders = {Path.cwd(): ".", Path(torch.__file__).parent: "torch"}
    return [f"-ffile-prefix-map={folder}={name}" for folder, name in folders.items()]


class Wheel(bdist_wheel):
    """For every Python, and the platform that the extension is for."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def extension_arguments() -> dict:
    from torch.utils.cpp_extension import TORCH_LIB_PATH, BuildExtension

    flags, openmp = sanitizer_flags(), has_torchs_openmp()

    class Build(BuildExtension):
        """Leaves a note of the sanitizers' flags, which a cell that is compiled at run time then has too, and of OpenMP."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, no_python_abi_suffix=True)

        def run(self):
            if flags and self.inplace:
                raise SystemExit(
                    "sstkern: with SSTKERN_SANITIZE the extension in use is not replaced; give --build-lib instead of --inplace"
                )
            super().run()
            package = Path(__file__).parent / "sstkern" if self.inplace else Path(self.build_lib) / "sstkern"
            (package / "_build_info.json").write_text(json.dumps({"flags": flags, "openmp": openmp}) + "\n")

    extension = Extension(
        "sstkern._cpu",
        [*sorted(glob("csrc/*.cpp")), *write_units(Path("build", "units"))],
        include_dirs=[str(Path("csrc", "kernels").resolve()), str(Path(TORCH_LIB_PATH).parent / "include")],
        define_macros=[("TORCH_TARGET_VERSION", hex(OLDEST_TORCH))],
        library_dirs=[TORCH_LIB_PATH],
        libraries=["torch_cpu"],
        language="c++",
        depends=glob("csrc/**/*.h", recursive=True),
        # Compiled with OpenMP but not linked with it: it then meets the runtime torch itself brings, and one pool of threads obeys
        # torch.set_num_threads.
        extra_compile_args=[
            "-std=c++20",
            "-O3",
            "-ffp-contract=off",
            "-g0",
            "-Wall",
            *path_flags(),
            *(["-fopenmp"] if openmp else []),
            *flags,
        ],
        extra_link_args=[flag for flag in flags if flag.startswith("-fsanitize=")],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build, "bdist_wheel": Wheel}}


def arguments() -> dict:
    if os.environ.get("SSTKERN_NO_EXTENSION") == "1":
        return {}
    if platform.system() not in ("Linux", "Darwin"):
        print(f"sstkern: not built on {platform.system()} yet: the reference engine runs, in plain PyTorch", file=sys.stderr)
        return {}
    if not has_torch():
        print(
            "sstkern: torch is not installed here, so the CPU engine is not built; install torch, then sstkern again",
            file=sys.stderr,
        )
        return {}
    return extension_arguments()


train = [
    "accelerate>=1.0",
    "huggingface_hub>=0.25",
    "matplotlib>=3.8",
    "pooch>=1.8",
    "rich>=13",
    "safetensors>=0.4",
    "tensorboard>=2.14",
    "tokenizers>=0.20",
    "tqdm>=4.60",
    "typer>=0.12",
]
bench = ["matplotlib>=3.8", "onnx>=1.16", "onnxruntime>=1.18", "openvino>=2024.0", "pytest-benchmark>=4", "rich>=13", "typer>=0.12"]
docs = ["mkdocs-material>=9", "mkdocstrings[python]>=1"]
onnx = ["onnx>=1.16", "onnxscript>=0.5"]
study = [*train, "jinja2>=3", "latex2mathml>=3.77", "markdown-it-py>=3", "mdit-py-plugins>=0.4"]
peers = ["flashrnn>=1.0.8", "minGRU-pytorch>=0.2", "ncps>=1.0", "torchrecurrent>=0.2.5", "xlstm>=2.0"]  # whose cells ours are compared with
dev = ["clang-format", "hypothesis>=6.100", "mypy", "ninja", "pytest>=8", "pytest-xdist>=3.5", "ruff", *peers]

setup(
    # The kernels' headers, which a cell of the user's is compiled with, are a folder of the installed package: sstkern/kernels.
    packages=[*find_packages(include=["sstkern", "sstkern.*"]), "sstkern.kernels"],
    py_modules=["sstkern_command"],
    package_dir={"sstkern.kernels": "csrc/kernels"},
    package_data={"sstkern": ["_build_info.json", "py.typed", "text/study/report.md.jinja"], "sstkern.kernels": ["**/*.h"]},
    install_requires=["torch>=2.11", "numpy>=1.26", "triton>=3.6; platform_system == 'Linux'"],
    extras_require={
        "train": train,
        "study": study,
        "bench": bench,
        "onnx": onnx,
        "docs": docs,
        "dev": sorted({*study, *bench, *onnx, *docs, *dev}),
    },
    entry_points={"console_scripts": ["sstkern = sstkern_command:main"]},
    **arguments(),
)
