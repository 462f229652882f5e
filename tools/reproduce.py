"""Builds the wheel of the last commit twice, in two folders, and compares bytes; then once more in one: `make reproduce`.

The wheels have to be the same, and the third build may compile nothing. Compiler, PyTorch and Python are this environment's.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "setup.py", "--quiet", "bdist_wheel")


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


def commit_time() -> str:
    """Of the last commit, for SOURCE_DATE_EPOCH: files in a wheel have it as their time."""
    return git("log", "-1", "--format=%ct").decode().strip()


def wheel(folder: Path) -> Path:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja's
    subprocess.run(COMMAND, cwd=folder, env=os.environ | {"SOURCE_DATE_EPOCH": commit_time(), "PATH": path}, check=True)
    (made,) = folder.glob("dist/*.whl")
    return made


def hashes(wheel: Path) -> dict[str, str]:
    """Of each file in it."""
    with zipfile.ZipFile(wheel) as opened:
        return {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}


def objects(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("build/temp*/**/*.o")}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sstkern-") as temporary:
        folders = [Path(temporary) / "one", Path(temporary) / "another folder"]
        for folder in folders:
            folder.mkdir()
            subprocess.run(["tar", "--extract"], cwd=folder, input=git("archive", "HEAD"), check=True)
        first, second = [wheel(folder) for folder in folders]
        found, others = hashes(first), hashes(second)
        if differing := sorted(name for name in found.keys() | others.keys() if found.get(name) != others.get(name)):
            raise SystemExit(f"reproduce: two builds differ in {', '.join(differing)}")
        if first.read_bytes() != second.read_bytes():
            raise SystemExit("reproduce: two builds have the same files, but the wheels differ")
        compiled = objects(folders[0])
        if wheel(folders[0]).read_bytes() != second.read_bytes() or objects(folders[0]) != compiled or not compiled:
            raise SystemExit("reproduce: a third build compiled again, or has other bytes")
        print(f"{first.name}: {len(found)} files, the same bytes in two folders; a third build compiled nothing")


if __name__ == "__main__":
    sys.exit(main())
