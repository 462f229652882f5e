"""The extension built apart from the one in use: with another compiler, for another machine, or for a sanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(folder: Path, environ: dict[str, str], python: Path | str = sys.executable) -> Path:
    """Where to import from: the extension in `folder`, and links to all the rest of the package, so that its Python is always today's.

    Ends the program where it cannot be built.
    """
    folder.mkdir(parents=True, exist_ok=True)
    package = folder / "lib" / "sstkern"
    shutil.rmtree(package, ignore_errors=True)
    command = [python, "setup.py", "--quiet", "build_ext", "--force", "--build-lib", package.parent, "--build-temp", folder / "temp"]
    with open(folder / "build.log", "w") as log:
        built = subprocess.run([str(word) for word in command], cwd=ROOT, env=environ, stdout=log, stderr=log)
    if built.returncode:
        raise SystemExit(f"{folder.name}: the build failed; {log.name} has why")
    for source in (ROOT / "sstkern").iterdir():
        if source.suffix != ".so" and not (package / source.name).exists():
            (package / source.name).symlink_to(source)
    (package / "kernels").symlink_to(ROOT / "csrc" / "kernels")
    return package.parent
