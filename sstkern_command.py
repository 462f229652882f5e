"""The entry of the command `sstkern`, outside the package: help and wrong options do not wait for torch.

To import any part of the package runs its `__init__.py`, which imports torch, 2 to 3 seconds. So the packages that the command line is made
of are put in place here without being run, and run before a command is.
"""

import importlib.util
import sys
from types import ModuleType


def main() -> None:
    packages = [_put("sstkern"), _put("sstkern.text")]
    from sstkern import cli

    def run() -> None:
        while packages:
            package = packages.pop(0)
            package.__spec__.loader.exec_module(package)

    cli.Command.before = staticmethod(run)
    cli.app()


def _put(name: str) -> ModuleType:
    """A package whose parts can be imported, and whose `__init__.py` has not run."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    return package
