"""Deprecated: `sstkern.text.checkpoint`."""

from sstkern import renamed
from sstkern.text.checkpoint import TextClassifier, TrainingOptions

__all__ = ["TextClassifier", "TrainingOptions"]

renamed.warn("sstkern.checkpoint", "sstkern.text.checkpoint")
