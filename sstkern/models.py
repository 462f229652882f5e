"""The classifiers under the name they had first; they are in `sstkern.text.models`."""

from sstkern.text.models import Classifier, ModelConfig

__all__ = ["Classifier", "ModelConfig"]
