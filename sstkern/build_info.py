"""What setup.py noted when it built the extension."""

import json
from pathlib import Path
from typing import Any

NOTE = Path(__file__).parent / "_build_info.json"


def build_info() -> dict[str, Any]:
    """flags: the compiler's for the sanitizers, if any. openmp: whether it was compiled with OpenMP. Empty where nothing was built."""
    return json.loads(NOTE.read_text()) if NOTE.exists() else {}
