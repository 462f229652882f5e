"""One step of a cell, run on example tensors and written down as a program."""

from sstkern.program.capture.captured import Captured, NoDefault, Spec, Unfused, capture
from sstkern.program.capture.reasons import Unpacked
from sstkern.program.capture.runs import Failed

__all__ = ["Captured", "Failed", "NoDefault", "Spec", "Unfused", "Unpacked", "capture"]
