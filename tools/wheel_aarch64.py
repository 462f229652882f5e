"""Makes the wheel for aarch64 on an x86-64 machine: `make wheel-aarch64`.

From the last commit's files, with the cross compiler and in the emulated root that `make test-aarch64` runs tests in. auditwheel names the
oldest glibc that it runs with. Then it is installed into a folder, and a layer and an own cell run from there under qemu.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from reproduce import commit_time, git
from wheel import PYTORCHS, ROOT, run

sys.path.insert(0, str(ROOT / "tests"))

import aarch64
from test_wheel import HAS_ALL, OWN_CELL

TOOLS = ("auditwheel", "patchelf")


def make(python: Path, folder: Path) -> Path:
    """The wheel as setuptools makes it."""
    environ = aarch64.environment(python) | {"SOURCE_DATE_EPOCH": commit_time()}
    subprocess.run(["tar", "--extract"], cwd=folder, input=git("archive", "HEAD"), check=True)
    run(python, "setup.py", "--quiet", "bdist_wheel", cwd=folder, env=environ, stdout=subprocess.DEVNULL)
    (made,) = folder.glob("dist/sstkern-*_aarch64.whl")
    return made


def repair(made: Path, folder: Path) -> Path:
    """With the tag of its oldest glibc, in dist/."""
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *TOOLS)
    for old in (ROOT / "dist").glob("sstkern-*_aarch64.whl"):
        old.unlink()
    exclude = [word for name in PYTORCHS for word in ("--exclude", name)]
    environ = os.environ | {"SOURCE_DATE_EPOCH": commit_time(), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    # Not --strip: this machine's program knows no aarch64. setup.py leaves no debugging information anyway.
    run(folder / "bin" / "python", "-m", "auditwheel", "repair", *exclude, "--wheel-dir", ROOT / "dist", made, env=environ)
    (wheel,) = (ROOT / "dist").glob("sstkern-*_aarch64.whl")
    return wheel


def check(python: Path, wheel: Path, folder: Path) -> None:
    """Runs it from a folder that has nothing else of this package."""
    place = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", place]
    tags = ["--platform", wheel.stem.rpartition("-")[2].partition(".")[0], "--only-binary=:all:", "--python-version", "3.11"]
    run(*command, *tags, wheel)
    environ = aarch64.environment(python) | {"PYTHONPATH": str(place), "SSTKERN_CACHE": str(folder / "cells")}
    for program in (HAS_ALL.format(place=str(place)), OWN_CELL):
        run(python, "-c", program, cwd=folder, env=environ)


def main() -> None:
    aarch64.check_programs()
    python = aarch64.prepared(aarch64.cache())
    with tempfile.TemporaryDirectory(prefix="sstkern-wheel-") as temporary:
        folder = Path(temporary)
        (folder / "source").mkdir()
        wheel = repair(make(python, folder / "source"), folder / "venv")
        check(python, wheel, folder)
    print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
