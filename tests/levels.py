"""Runs the numerical tests with a lower instruction set forced on everything: `make test-levels`.

For each level: PyTorch's own kernels, MKL, oneDNN and the C++ engine are held to it, in a process of its own. A bound that was set on one
machine is so tried on what other machines have. Levels that this machine lacks, and its own best one, are those of other runs.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LEVELS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "SSTKERN_CPU_CAPABILITY": "avx2",
    },
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        # On AMD MKL does not heed the line above: it still fused products and sums, which the C++ engine's baseline cannot, and a GRU's
        # float32 gradients had up to 1.11 times torch.nn's error. With this line they have 1.08 times, as on AVX2 (1.07).
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "SSTKERN_CPU_CAPABILITY": "baseline",
    },
}
# Those whose outcome rests on rounding. engines/test_capability.py forces the levels itself.
FILES = [
    "engines/test_engines.py",
    "engines/test_reference.py",
    "test_cells.py",
    "test_compile.py",
    "test_conversion.py",
    "test_export.py",
    "test_functional.py",
    "test_fused_cells.py",
    "test_fused_edges.py",
    "test_fused_transforms.py",
    "test_lengths.py",
    "test_modules.py",
    "test_onnx.py",
    "test_operators.py",
    "test_random_cells.py",
    "test_recompute.py",
    "test_testing.py",
    "test_transforms.py",
    "text/test_models.py",
]
WORKERS = ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal"]  # as `make test` has them
QUICK = ["test_functional.py", "test_modules.py", "test_recompute.py", "-k", "functions or (no_larger and dtype0) or keep_their_bits"]


def run(level: str, tests: list[str]) -> int:
    print(f"level {level}", flush=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *WORKERS, *tests]
    return subprocess.run(command, cwd=ROOT / "tests", env=os.environ | LEVELS[level] | {"OMP_NUM_THREADS": "1"}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part, of at most a minute")
    parser.add_argument("--level", choices=LEVELS, action="append", help="can be given again; all that this machine has")
    options, of_pytest = parser.parse_known_args()
    levels = options.level or [level for level in LEVELS if level == "baseline" or torch.cpu._is_avx2_supported()]
    return max([run(level, [*(QUICK if options.quick else FILES), *of_pytest]) for level in levels])


if __name__ == "__main__":
    sys.exit(main())
