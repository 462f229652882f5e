"""Loading the C++ extension, or why it cannot be loaded and how to get it."""

import importlib.util
import json
from functools import cache
from pathlib import Path

import torch


@cache
def load() -> str | None:
    """None once the extension has added its implementations to the operators, or why there is none."""
    spec = importlib.util.find_spec("sstkern._cpu")
    if spec is None or spec.origin is None:
        return _not_built()
    built_for = _built_for()
    if built_for != torch.__version__:
        return (
            f"its C++ extension was built for torch {built_for}, and this is torch {torch.__version__}; "
            "build it again with 'pip install --no-build-isolation --force-reinstall --no-deps sstkern'"
        )
    torch.ops.load_library(spec.origin)
    return None


def _not_built() -> str:
    source = Path(__file__).parents[2]
    if (source / "setup.py").exists():
        return (
            f"its C++ extension is not built; build it with 'pip install --no-build-isolation --no-deps -e .' in {source}, "
            "or, if sstkern is installed, start Python elsewhere"
        )
    return "its C++ extension is not built; build it with 'pip install --no-build-isolation sstkern' where torch is installed"


def _built_for() -> str:
    note = Path(__file__).parents[1] / "_build_info.json"
    return json.loads(note.read_text())["torch"] if note.exists() else "of an unknown version"
