"""Calls of the command `sstkern`, within the process of a test and in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

import sstkern
from sstkern.cli import app


def call(*arguments: str | Path, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def told(result: Result) -> str:
    """The one line of stderr of a command that failed as expected."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line


def start(
    *arguments: str | Path, code: str = "import runpy; runpy.run_module('sstkern', run_name='__main__')", **pipes
) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sstkern.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
    return subprocess.Popen(command, env=environment, text=True, **pipes)
