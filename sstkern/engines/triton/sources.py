"""Kernels of generated text, by the text. A copy of each lies in the cache's folder (`sstkern.program.cache`), so that tracebacks and
profilers find its lines; what runs is the text itself, never what the file has."""

from __future__ import annotations

import hashlib
import linecache
import os
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from sstkern.program import cache
from sstkern.program.compiler import CannotCompile


@lru_cache(maxsize=256)
def module(text: str) -> ModuleType:
    """The module of a text. Its functions are compiled by Triton at their first launches, which keeps what it compiles."""
    name = f"sstkern_program_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    file = _written(f"{name}.py", text)
    found = ModuleType(name)
    found.__file__, found.__dict__["TEXT"] = file, text
    # Without a time of change: the lines stay those of the text, whatever becomes of the file.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    sys.modules[name] = found
    exec(compile(text, file, "exec"), found.__dict__)
    return found


def _written(name: str, text: str) -> str:
    """The path of the copy; one in angle brackets where the folder cannot be used."""
    with suppress(CannotCompile, OSError):
        path = Path(cache.place()) / name
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(text)
            part.replace(path)
        return str(path)
    return f"<{name}>"
