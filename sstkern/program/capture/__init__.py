"""One step of a cell, run on example tensors and written down as a program."""

from sstkern.program.capture.captured import Captured, NoDefault, Spec, Unfused, capture

__all__ = ["Captured", "NoDefault", "Spec", "Unfused", "capture"]
