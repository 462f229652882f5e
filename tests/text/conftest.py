import os
from typing import NamedTuple

import pytest

from sstkern.text import Examples, load_examples


class Corpus(NamedTuple):
    name: str
    train: Examples
    dev: Examples


@pytest.fixture(scope="session", params=["demo", "sst2"] if os.environ.get("SSTKERN_DATA") else ["demo"])
def corpus(request: pytest.FixtureRequest) -> Corpus:
    """The demo and, where SSTKERN_DATA says where it is, SST-2."""
    train, dev, _ = load_examples("demo" if request.param == "demo" else None)
    return Corpus(request.param, train, dev)
