"""The C++ engine compiled with clang, without OpenMP, as on macOS: `make test-clang`.

Compiles the kernels for macOS and Windows, which shows what those compilers lack, and all sources with libc++, macOS's standard library.
Then builds the extension with clang, and runs numerical tests, those of threads and random calls with it. PyTorch's own library is for
libstdc++, so that is the extension's too. Clang and libc++ are Debian's: `apt-get install clang libc++-dev`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apart
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "clang"
KERNELS = {
    "arm64-apple-macos11": ("baseline",),
    "x86_64-apple-macos11": ("baseline", "avx2", "avx512"),
    "aarch64-pc-windows-msvc": ("baseline",),
    "x86_64-pc-windows-msvc": ("baseline",),  # with clang 14, whose own headers lack intrinsics there
}
FREESTANDING = ("-O2", "-ffreestanding", "-nostdinc++", "-c", "-o", os.devnull)
TESTS = (
    "engines/test_engines.py",
    "engines/test_capability.py",
    "engines/test_cell_library.py",
    "engines/test_cpu_functions.py",
    "engines/test_sharing_threads.py",
    "engines/test_team.py",
    "program/test_on_cpu.py",
    "test_forked.py",
    "test_functional.py",
    "test_lengths.py",
    "test_random_cells.py",
)


def compiled(compiler: str, unit: Path, *options: str) -> bool:
    command = [compiler, "-ffp-contract=off", "-Wall", "-Werror", f"-I{ROOT}/csrc/kernels", *options, str(unit)]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def kernels(compiler: str) -> Iterator[str]:
    """What does not compile for another system. Kernels need no header of it."""
    for target, levels in KERNELS.items():
        for level in levels:
            for unit in sorted((ROOT / "build" / "units").glob(f"*_{level}.cpp")):
                if not compiled(compiler, unit, "-std=c++17", *FREESTANDING, f"--target={target}"):
                    yield f"{unit.name} for {target}"


def sources(compiler: str) -> Iterator[str]:
    """What does not compile with libc++."""
    folders = [word for folder in include_paths() for word in ("-isystem", folder)]
    for source in sorted((ROOT / "csrc").glob("*.cpp")):
        if not compiled(compiler, source, "-std=c++20", "-stdlib=libc++", "-fsyntax-only", *folders):
            yield f"{source.name} with libc++"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="clang++")
    parser.add_argument("--seconds", type=float, default=60, help="of random calls")
    options, of_pytest = parser.parse_known_args()
    if not shutil.which(options.compiler):
        raise SystemExit(f"clang: there is no {options.compiler}: 'apt-get install clang libc++-dev'")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja's
    environ = os.environ | {"CXX": options.compiler, "CC": options.compiler.replace("clang++", "clang"), "PATH": path}
    print("clang: compiling the extension", flush=True)
    package = apart.build(FOLDER, environ)
    print("clang: compiling the kernels for other systems, and all with libc++", flush=True)
    if failed := [*kernels(options.compiler), *sources(options.compiler)]:
        raise SystemExit(f"clang: these do not compile: {', '.join(failed)}")
    environ |= {"PYTHONPATH": str(package), "SSTKERN_CACHE": str(FOLDER / "cells"), "OMP_NUM_THREADS": "1"}
    tests = [f"{ROOT}/tests/{name}" for name in TESTS]
    red = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests, *of_pytest], cwd=FOLDER, env=environ).returncode
    fuzz = [sys.executable, f"{ROOT}/tests/fuzz.py", "--seconds", str(options.seconds)]
    return red or subprocess.run(fuzz, cwd=FOLDER, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
