import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sstkern.text import Examples, load_examples


@pytest.fixture(scope="session")
def sst2() -> tuple[Examples, Examples]:
    """SST-2's training and development examples, where SSTKERN_DATA says where they are."""
    if not os.environ.get("SSTKERN_DATA"):
        pytest.skip("SSTKERN_DATA does not say where SST-2 is")
    train, dev, _ = load_examples()
    return train, dev


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def note(figure: Figure, target: Path, **options: float) -> None:
        save(figure, target, **options)
        assert target.read_bytes().startswith(b"\x89PNG")
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", note)
    return saved
