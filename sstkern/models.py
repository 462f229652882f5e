"""Deprecated: `sstkern.text.models`."""

from sstkern import renamed
from sstkern.text.models import Classifier, ModelConfig

__all__ = ["Classifier", "ModelConfig"]

renamed.warn("sstkern.models", "sstkern.text.models")
