"""One step of a cell, run on example tensors and written down as a program."""

from sstkern.program.capture.captured import Captured, NoDefault, Spec, Unfused, capture
from sstkern.program.capture.reasons import Mixed

__all__ = ["Captured", "Mixed", "NoDefault", "Spec", "Unfused", "capture"]
