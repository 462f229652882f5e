"""The C++ engine under sanitizers: `make sanitize`.

Builds the extension twice, for AddressSanitizer with UndefinedBehaviorSanitizer and for ThreadSanitizer, each into a folder of its own
under build/sanitize, and runs with each numerical tests at this machine's best instruction set, and random calls at every one. Own cells
are compiled with the same sanitizers. One line for each build tells the outcome; what a sanitizer reported is in its folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import apart
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "sanitize"
LEVELS = [*["avx512"] * torch.cpu._is_avx512_supported(), *["avx2"] * torch.cpu._is_avx2_supported(), "baseline"]
PRELOADED = {"address": "libasan.so", "thread": "libtsan.so"}
"""Python is not built with a sanitizer, whose library has to be the process's first."""
SETTINGS = {
    # Python ends with memory that it has not freed.
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    # PyTorch's own libraries tell the sanitizer nothing of how their threads meet.
    "thread": {
        "TSAN_OPTIONS": f"die_after_fork=0:ignore_noninstrumented_modules=1:suppressions={ROOT / 'tests' / 'suppressions.txt'}",
    },
}
TESTS = {
    "address": [
        "engines/test_engines.py",
        "engines/test_team.py",
        "program/capture/test_random_numbers.py",
        "program/test_along_rows.py",
        "program/test_on_cpu.py",
        "test_functional.py",
        "test_lengths.py",
        "test_modules.py",
        "test_operators.py",
        "test_random_cells.py",
        "test_recompute.py",
        "test_transforms.py",
        # Bounds of rounding are for products and sums that the compiler has made one operation, which -Og leaves two. Inductor does not
        # know the compiler's name, `env -u LD_PRELOAD c++`.
        *("-k", "not errors_are_no_larger and not without_the_extension and not inductor"),
    ],
    # Where calls have several threads, or several callers. It knows no threads in a forked child, as a DataLoader's worker starts them.
    "thread": [
        "engines/test_engines.py",
        "engines/test_sharing_threads.py",
        "engines/test_team.py",
        "program/test_on_cpu.py",
        *("-k", "not data_loader"),
    ],
}


def build(sanitizer: str) -> Path:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja's
    return apart.build(FOLDER / sanitizer, os.environ | {"SSTKERN_SANITIZE": sanitizer, "PATH": path})


def environment(sanitizer: str, reports: Path) -> dict[str, str]:
    """Of a process that can load code compiled for the sanitizer, and writes what it finds into the folder `reports`."""
    names = [PRELOADED[sanitizer], "libstdc++.so"]  # the second, so that its exceptions are known in time
    if missing := [name for name in names if not library(name)]:
        raise SystemExit(f"sanitize: the compiler has no {missing[0]}, which GCC brings: 'apt-get install g++'")
    settings = {name: f"{value}:log_path={reports / 'report'}" for name, value in SETTINGS[sanitizer].items()}
    without = "env -u LD_PRELOAD " + os.environ.get("CXX", "c++")  # the compiler itself need not be watched
    return settings | {"LD_PRELOAD": " ".join(map(library, names)), "CXX": without, "OMP_NUM_THREADS": "1"}


def library(name: str) -> str:
    """The path of the compiler's shared library; empty where it has none."""
    told = subprocess.run([os.environ.get("CXX", "c++"), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(told.stdout.strip())  # the name alone where there is none
    return str(path.resolve()) if path.is_absolute() else ""


class Run(NamedTuple):
    """arguments: Python's."""

    name: str
    arguments: list[str]
    environment: dict[str, str]


def runs(sanitizer: str, package: Path, seconds: float) -> Iterator[Run]:
    """The tests, and random calls at every level. package: where sstkern is imported from."""
    environ = {"PYTHONPATH": str(package), "SSTKERN_CACHE": str(FOLDER / "cells")}
    workers = ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
    tests = [f"{ROOT}/tests/{word}" if word.endswith(".py") else word for word in TESTS[sanitizer]]
    yield Run("tests", ["-m", "pytest", "-p", "no:cacheprovider", *workers, *tests], environ)
    for seed, level in enumerate(LEVELS):
        arguments = [f"{ROOT}/tests/fuzz.py", "--seconds", str(seconds), "--seed", str(seed)]
        yield Run(f"random calls at {level}", arguments, environ | {"SSTKERN_CPU_CAPABILITY": level})


def found_in(sanitizer: str, folder: Path, all_runs: Iterable[Run]) -> list[str]:
    """Runs them, and returns which failed and what the sanitizer reported: the files of `folder`/reports. ThreadSanitizer ends no test."""
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    environ, failed = os.environ | environment(sanitizer, reports), []
    for run in all_runs:
        print(f"{sanitizer}: {run.name}", flush=True)
        if subprocess.run([sys.executable, *run.arguments], cwd=folder, env=environ | run.environment).returncode:
            failed.append(f"{run.name} failed")
    return [*failed, *(f"reported in {path}" for path in sorted(reports.iterdir()))]


def check(sanitizer: str, seconds: float) -> bool:
    """Builds and runs all; prints the line that tells the outcome, and returns whether nothing was found."""
    began = time.monotonic()
    found = found_in(sanitizer, FOLDER / sanitizer, runs(sanitizer, build(sanitizer), seconds))
    print(f"{sanitizer}: {'; '.join(found) or 'clean'} ({time.monotonic() - began:.0f} s)", flush=True)
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitizer", choices=PRELOADED, action="append", help="can be given again; both")
    parser.add_argument("--seconds", type=float, default=30, help="of random calls at each instruction set")
    options = parser.parse_args()
    red = [sanitizer for sanitizer in options.sanitizer or PRELOADED if not check(sanitizer, options.seconds)]
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
