from pathlib import Path

import pytest

from sstkern.atomic import write_atomically


def test_writes_into_a_new_folder(tmp_path):
    write_atomically(tmp_path / "new" / "file", b"data")
    assert (tmp_path / "new" / "file").read_bytes() == b"data"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_fault_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def broken(self: Path, target: Path) -> None:
        raise OSError("disk fault")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk fault"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
