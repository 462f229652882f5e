"""Why a cell's step is not a program: the exception, and the line of the user's code that it names."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

_OURS = (os.path.dirname(torch.__file__) + os.sep, str(Path(__file__).parents[2]) + os.sep)


class Unfused(Exception):
    """A cell's step that is not a program. Its text is the reason: what stands in the way, where, and what to change."""


class Mixed(Unfused):
    """The sequences seem to be mixed. Another number of sequences shows whether a width was taken for it."""


class Unpacked(Mixed):
    """A sequence is picked out of a state: what becomes of `h, c = state` where the state is one tensor."""


class NoDefault(Exception):
    """A cell that has no first state of its own, or none that can be told from what it computes."""


def place() -> str:
    """`file:line` of the innermost code that is neither PyTorch's nor this package's; empty where there is none."""
    return place_of(inspect.currentframe())


def place_of(frame: FrameType | None) -> str:
    """As `place`, from a frame outwards."""
    while frame is not None:
        if users(frame):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def users(frame: FrameType) -> bool:
    """Whether a frame is of code that is neither PyTorch's nor this package's."""
    file = frame.f_code.co_filename
    return not file.startswith(_OURS) and not file.startswith("<")


def refuse(what: str, advice: str, error: type[Unfused] = Unfused) -> NoReturn:
    """Raises Unfused: `what` stands in the way, at the user's line that is running."""
    raise error(reason(what, advice, place()))


def refuse_mixing(what: str = "the step mixes sequences") -> NoReturn:
    """Raises Mixed."""
    refuse(what, "a step works on each sequence by itself; reshape, join or reduce within a row only", Mixed)


def reason(what: str, advice: str, line: str) -> str:
    return f"{what}{f' ({line})' if line else ''}: {advice}"
