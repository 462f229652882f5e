import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sstkern.engines import extension_problem, interpreting
from sstkern.program import cache, compiler, engine

if extension_problem() is None:
    torch.ops.sstkern.cpu_patience(10**9)  # however busy the machine, tests have the threads that they ask for

# Kept between runs, apart from the user's own. -O0 takes two thirds of -Og's time and a fifth of -O3's, on average: `optimised` asks for
# -O3 where it matters, and so does a run of many random cells.
os.environ["SSTKERN_CACHE"] = str(Path(__file__).parents[1] / "build" / "cells")
_FLAGS = compiler.FLAGS
if "SSTKERN_RANDOM_CELLS" not in os.environ:
    compiler.FLAGS = cache.FLAGS = (*_FLAGS, "-O0")

if interpreting():
    from interpreter import patch_language_once

    patch_language_once()

# torch.compile's cache on disk tells neither the instruction sets apart nor what our operators save: code that was compiled for another
# state of either is loaded, and fails.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="sstkern-tests-")
atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs are compiled as users have them."""
    for module in (compiler, cache):
        monkeypatch.setattr(module, "FLAGS", _FLAGS)
    monkeypatch.setattr(cache, "_known", {})
    engine.forget()
    yield
    engine.forget()
