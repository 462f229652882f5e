"""Checkpoints under the name they had first; they are in `sstkern.text.checkpoint`."""

from sstkern.text.checkpoint import TextClassifier, TrainingOptions

__all__ = ["TextClassifier", "TrainingOptions"]
