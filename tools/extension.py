"""Puts the compiled extension into the source tree: `make build`.

One that was compiled on this machine from the same sources with the same compiler is taken from the user's cache: a fresh clone then need
not wait minutes. It is for every PyTorch and Python. Ninja compiles what has changed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTE = "_build_info.json"
KEPT = 8
"""Builds, the latest: each has 2 MB."""
COMPILERS = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "CPLUS_INCLUDE_PATH")
VARIABLES = (*COMPILERS, "SSTKERN_NO_OPENMP", "SSTKERN_SANITIZE")


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sstkern" / "extensions"


def key() -> str:
    """A hash of all that the extension is made from."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    compiler = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    given = [f"{name}={os.environ.get(name)}" for name in VARIABLES]
    parts = [compiler, platform.machine(), *given]
    for path in sorted([ROOT / "setup.py", *ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.h")]):
        parts += [str(path.relative_to(ROOT)), path.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def build() -> Path:
    subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--force", "--inplace"], cwd=ROOT, check=True)
    return ROOT / "sstkern" / "_cpu.so"


def copy(source: Path, target: Path) -> None:
    """In one step: a process may have the old one open."""
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy2(source, beside)
    beside.replace(target)


def keep(extension: Path, folder: Path) -> None:
    """For other clones. The folder's note is its last file."""
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    for path in (extension, extension.with_name(NOTE)):
        copy(path, folder / path.name)
    oldest = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]
    for path in oldest:
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    folder = cache() / key()
    if (folder / NOTE).exists():
        print(f"the extension is that of {folder}, made from the same sources")
        for path in folder.iterdir():
            copy(path, ROOT / "sstkern" / path.name)
    else:
        keep(build(), folder)


if __name__ == "__main__":
    main()
