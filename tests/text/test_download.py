import hashlib
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pooch
import pytest

from sstkern.text.download import UnavailableError, fetch

MEMBERS = ("SST-2/train.tsv", "SST-2/dev.tsv")


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in (*MEMBERS, "SST-2/test.tsv", "../outside.tsv"):
            file.writestr(name, f"content of {name}")
    return buffer.getvalue()


ARCHIVE = archive()
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves the archive at /whole.zip and half of it, under the length of the whole, at /torn.zip."""

    def do_GET(self) -> None:
        if self.path not in ("/whole.zip", "/torn.zip"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(ARCHIVE)))
        self.end_headers()
        self.wfile.write(ARCHIVE if self.path == "/whole.zip" else ARCHIVE[: len(ARCHIVE) // 2])

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    return tmp_path / "sstkern"


def test_takes_the_members_asked_for_and_nothing_else(site, cache):
    assert fetch(f"{site}/whole.zip", SHA256, MEMBERS, "sst2") == cache / "sst2"
    found = {path.relative_to(cache).as_posix(): path.read_text() for path in cache.rglob("*") if path.is_file()}
    assert found == {f"sst2/{name.rpartition('/')[2]}": f"content of {name}" for name in MEMBERS}
    assert list(cache.parent.iterdir()) == [cache]


def test_downloads_once(site):
    folder = fetch(f"{site}/whole.zip", SHA256, MEMBERS, "sst2")
    assert fetch(f"{site}/gone.zip", SHA256, MEMBERS, "sst2") == folder


def test_completes_a_cache_that_lacks_a_file(site):
    folder = fetch(f"{site}/whole.zip", SHA256, MEMBERS, "sst2")
    (folder / "dev.tsv").unlink()
    fetch(f"{site}/whole.zip", SHA256, MEMBERS, "sst2")
    assert (folder / "dev.tsv").read_text() == "content of SST-2/dev.tsv"


def test_a_wrong_hash_is_an_error(site, cache):
    with pytest.raises(ValueError, match="does not match the known hash"):
        fetch(f"{site}/whole.zip", "0" * 64, MEMBERS, "sst2")
    assert not cache.exists()


@pytest.mark.parametrize("name", ["torn.zip", "gone.zip"])
def test_a_torn_or_refused_download_is_unavailable(site, cache, name):
    with pytest.raises(UnavailableError, match=rf"{site}/{name} could not be downloaded"):
        fetch(f"{site}/{name}", SHA256, MEMBERS, "sst2")
    assert not cache.exists()


def test_without_network_it_is_unavailable(cache):
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1/whole\.zip could not be downloaded"):
        fetch("http://127.0.0.1:1/whole.zip", SHA256, MEMBERS, "sst2")
    assert not cache.exists()


def test_without_pooch_it_is_unavailable(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UnavailableError, match="pooch is not installed"):
        fetch("http://127.0.0.1:1/whole.zip", SHA256, MEMBERS, "sst2")
