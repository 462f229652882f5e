"""Names that were changed: the old one still leads to the same, and says what it is called now."""

import subprocess
import sys
from pathlib import Path

import pytest

import sstkern
from sstkern import text


def test_the_loader_of_examples():
    with pytest.warns(DeprecationWarning, match=r"sstkern\.text\.load is deprecated.* it is sstkern\.text\.load_examples now"):
        old = text.load  # type: ignore[attr-defined]
    assert old is text.load_examples


def test_the_loader_of_a_classifier(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text, "load_classifier", lambda path: f"the classifier in {path}")
    with pytest.warns(DeprecationWarning, match=r"sstkern\.load is deprecated.* it is sstkern\.text\.load_classifier now") as told:
        assert sstkern.load("runs/mine") == "the classifier in runs/mine"
    assert Path(told[0].filename) == Path(__file__)  # the caller's line


@pytest.mark.parametrize(("module", "name"), [("checkpoint", "TextClassifier"), ("models", "Classifier")])
def test_modules_of_the_application(module: str, name: str):
    program = f"from sstkern.text import {module} as new\nfrom sstkern.{module} import {name}\nassert {name} is new.{name}"
    ran = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert f"sstkern.{module} is deprecated, and will be removed: it is sstkern.text.{module} now" in ran.stderr
