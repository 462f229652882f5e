import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sstkern.atomic import GrowingFile, write_atomically


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


def test_a_fault_names_the_file_that_was_to_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error:
        write_atomically(tmp_path / "folder", b"data")
    assert str(error.value).endswith(f": '{tmp_path / 'folder'}'")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """A disk on which no file can be larger: what does not fit is an OSError, after a part of it was written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_growing_file_has_whole_pieces_only_and_loses_none(tmp_path):
    file = GrowingFile(tmp_path / "new" / "file")
    with room_for(7):
        file.append(b"one\n")
        for piece in (b"two\n", b"three\n"):
            with pytest.raises(OSError) as error:
                file.append(piece)
            assert error.value.filename == str(file.path)
            assert file.path.read_bytes() == b"one\n"
    assert (file.size, file.waiting) == (4, b"two\nthree\n")
    file.append(b"four\n")
    assert file.path.read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert (file.size, file.waiting) == (19, b"")


@pytest.mark.parametrize(("size", "kept"), [(0, b""), (4, b"one\n"), (99, b"one\ntor")])
def test_a_growing_file_keeps_what_it_is_told_to(tmp_path, size, kept):
    path = tmp_path / "file"
    path.write_bytes(b"one\ntor")
    GrowingFile(path, size).append(b"two\n")
    assert path.read_bytes() == kept + b"two\n"


def test_a_growing_file_that_was_removed_begins_anew(tmp_path):
    file = GrowingFile(tmp_path / "file")
    file.append(b"one\n")
    file.path.unlink()
    file.append(b"two\n")
    assert file.path.read_bytes() == b"two\n"
