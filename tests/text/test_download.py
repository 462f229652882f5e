import hashlib
import io
import random
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pooch
import pytest
import tqdm

from sstkern.text import download
from sstkern.text.download import UnavailableError, fetch, fetch_file

MEMBERS = ("SST-2/train.tsv", "SST-2/dev.tsv")


def archive() -> bytes:
    """Several chunks long, so that a torn download has some of them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in (*MEMBERS, "SST-2/test.tsv", "../outside.tsv"):
            file.writestr(name, f"content of {name}")
        file.writestr("SST-2/original", random.Random(0).randbytes(5 * download.CHUNK))
    return buffer.getvalue()


ARCHIVE = archive()
HALF = len(ARCHIVE) // 2
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves the archive, and from where a range begins; /torn ends in the middle, /deaf knows no ranges."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Range"]))
        folder = self.path.removesuffix("/x.zip")
        if folder not in ("/whole", "/torn", "/deaf"):
            self.send_error(404)
            return
        wanted = self.headers["Range"] if folder != "/deaf" else None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(ARCHIVE):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(ARCHIVE) - start))
        self.end_headers()
        self.wfile.write(ARCHIVE[start : HALF if folder == "/torn" else None])

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def requests(server) -> list[tuple[str, str | None]]:
    """The paths asked for and the ranges, in order."""
    server.requests = []
    return server.requests


@pytest.fixture
def site(server, requests) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    return tmp_path / "sstkern"


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file in the folder and below, but for the lock's."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def get(url: str, sha256: str = SHA256) -> Path:
    return fetch_file(url, sha256, "folder", "get it by hand")


def get_members(url: str, sha256: str = SHA256) -> Path:
    return fetch(url, sha256, MEMBERS, "sst2", "get it by hand")


def test_takes_the_members_asked_for_and_nothing_else(site, cache):
    assert get_members(f"{site}/whole/x.zip") == cache / "sst2"
    assert files(cache.parent) == {f"sstkern/sst2/{name.rpartition('/')[2]}": f"content of {name}".encode() for name in MEMBERS}


def test_downloads_members_once(site, requests):
    folder = get_members(f"{site}/whole/x.zip")
    assert get_members(f"{site}/gone/x.zip") == folder
    assert requests == [("/whole/x.zip", None)]


def test_completes_a_cache_that_lacks_a_file(site):
    folder = get_members(f"{site}/whole/x.zip")
    (folder / "dev.tsv").unlink()
    get_members(f"{site}/whole/x.zip")
    assert (folder / "dev.tsv").read_text() == "content of SST-2/dev.tsv"


def test_downloads_a_file_once(site, cache, requests):
    assert get(f"{site}/whole/x.zip") == cache / "folder" / "x.zip"
    assert get(f"{site}/gone/x.zip") == cache / "folder" / "x.zip"
    assert files(cache) == {"folder/x.zip": ARCHIVE}
    assert requests == [("/whole/x.zip", None)]


@pytest.mark.parametrize("download_it", [get, get_members])
def test_a_wrong_hash_is_an_error_and_leaves_nothing(site, cache, download_it):
    with pytest.raises(ValueError, match=rf"x\.zip.* does not match the known hash: expected sha256:{'0' * 64} but got {SHA256}"):
        download_it(f"{site}/whole/x.zip", "0" * 64)
    assert files(cache) == {}


@pytest.mark.parametrize("download_it", [get, get_members])
def test_a_torn_download_is_unavailable_and_goes_on_in_the_next_call(site, cache, requests, download_it):
    with pytest.raises(UnavailableError, match=rf"{site}/torn/x\.zip could not be downloaded: .*; get it by hand"):
        download_it(f"{site}/torn/x.zip")
    ((name, part),) = files(cache).items()
    assert name.endswith("/x.zip.part")
    assert HALF - download.CHUNK <= len(part) <= HALF
    assert part == ARCHIVE[: len(part)]
    path = download_it(f"{site}/whole/x.zip")
    assert requests == [("/torn/x.zip", None), ("/whole/x.zip", f"bytes={len(part)}-")]
    assert files(cache) == (
        {"folder/x.zip": ARCHIVE} if download_it is get else {f"sst2/{n}": (path / n).read_bytes() for n in ("train.tsv", "dev.tsv")}
    )


def test_an_interrupted_download_goes_on(site, cache, requests, monkeypatch):
    def interrupt(bar: tqdm.tqdm, size: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tqdm.tqdm, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get(f"{site}/whole/x.zip")
    assert files(cache) == {"folder/x.zip.part": ARCHIVE[: download.CHUNK]}
    assert get(f"{site}/whole/x.zip").read_bytes() == ARCHIVE
    assert requests[1] == ("/whole/x.zip", f"bytes={download.CHUNK}-")


@pytest.mark.parametrize(
    ("path", "part"),
    [("deaf", ARCHIVE[:HALF]), ("deaf", ARCHIVE + b"more"), ("whole", ARCHIVE), ("whole", b"")],
    ids=["ignored-range", "ignored-range-beyond", "all-there", "nothing-there"],
)
def test_takes_what_fits_of_a_partial_file(site, cache, path, part):
    (cache / "folder").mkdir(parents=True)
    (cache / "folder" / "x.zip.part").write_bytes(part)
    get(f"{site}/{path}/x.zip")
    assert files(cache) == {"folder/x.zip": ARCHIVE}


@pytest.mark.parametrize("part", [b"other", ARCHIVE + b"more"])
def test_a_partial_file_that_does_not_fit_fails_once(site, cache, part):
    (cache / "folder").mkdir(parents=True)
    (cache / "folder" / "x.zip.part").write_bytes(part)
    with pytest.raises(ValueError, match="does not match the known hash"):
        get(f"{site}/whole/x.zip")
    assert files(cache) == {}
    assert get(f"{site}/whole/x.zip").read_bytes() == ARCHIVE


@pytest.mark.parametrize("download_it", [get, get_members])
def test_one_of_several_downloads_and_the_others_wait(site, cache, requests, download_it):
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(download_it, f"{site}/whole/x.zip") for _ in range(4)]}
    assert len(paths) == 1
    assert requests == [("/whole/x.zip", None)]


@pytest.mark.parametrize("terminal", [True, False])
def test_shows_progress_on_a_terminal_only(site, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    get(f"{site}/whole/x.zip")
    assert ("x.zip: 100%" in capsys.readouterr().err) == terminal


@pytest.mark.parametrize("download_it", [get, get_members])
def test_a_refused_download_is_unavailable(site, cache, download_it):
    with pytest.raises(UnavailableError, match=rf"{site}/gone/x\.zip could not be downloaded: 404 .*; get it by hand"):
        download_it(f"{site}/gone/x.zip")
    assert files(cache) == {}


@pytest.mark.parametrize("download_it", [get, get_members])
def test_without_network_it_is_unavailable(cache, download_it):
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1/x\.zip could not be downloaded: .*; get it by hand"):
        download_it("http://127.0.0.1:1/x.zip")
    assert files(cache) == {}


@pytest.mark.parametrize("package", ["pooch", "requests", "tqdm"])
def test_without_a_package_it_is_unavailable(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match=f"{package} is not installed; get it by hand"):
        get("http://127.0.0.1:1/x.zip")
