"""Fetching files from the web into the user's cache, once; what was cut off goes on in the next call."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sstkern.atomic import write_atomically

if TYPE_CHECKING:
    import requests

TIMEOUT = 20  # seconds without an answer
CHUNK = 1 << 16  # bytes; a broken connection loses less than this


class UnavailableError(OSError):
    """Nothing could be downloaded; the message says why, and how to do without."""


def fetch_file(url: str, sha256: str, cache_folder: str, by_hand: str) -> Path:
    """The file at `url` in the user's cache, downloaded unless it is there.

    A download shows its progress on a terminal. Until its hash is known to be right it has another name, with ".part" at
    the end, and one that was cut off goes on from there in the next call. Processes that want the same file wait for one.

    Args:
        url: address of the file, http or https.
        sha256: the file's SHA-256, in hex.
        cache_folder: name of the folder inside this library's part of the user's cache.
        by_hand: ends the message of an UnavailableError: what a user without network can do.

    Raises:
        UnavailableError: a package for downloading is not installed, or the file could not be downloaded.
        ValueError: what was downloaded has another hash; it is deleted.
    """
    target = _folder(url, cache_folder, by_hand) / PurePosixPath(url).name
    _make_once(target.parent, [target], lambda: _download(url, sha256, target, by_hand))
    return target


def fetch(url: str, sha256: str, members: Sequence[str], cache_folder: str, by_hand: str) -> Path:
    """The folder that holds the named members of the zip archive at `url`, each under the last part of its name.

    Downloads the archive, as `fetch_file` does, unless every member is there; only the members are kept.

    Args:
        url: address of the archive, http or https.
        sha256: the archive's SHA-256, in hex.
        members: names inside the archive, such as "SST-2/train.tsv".
        cache_folder: name of the folder inside this library's part of the user's cache.
        by_hand: ends the message of an UnavailableError: what a user without network can do.

    Raises:
        UnavailableError: a package for downloading is not installed, or the archive could not be downloaded.
        ValueError: what was downloaded has another hash; it is deleted.
    """
    folder = _folder(url, cache_folder, by_hand)
    targets = {member: folder / PurePosixPath(member).name for member in members}

    def download_and_unpack() -> None:
        archive_file = folder / PurePosixPath(url).name
        _download(url, sha256, archive_file, by_hand)
        # Only the members asked for are read, each into a file of our naming: no name in the archive leads elsewhere.
        with zipfile.ZipFile(archive_file) as archive:
            for member, target in targets.items():
                write_atomically(target, archive.read(member))
        archive_file.unlink()

    _make_once(folder, targets.values(), download_and_unpack)
    return folder


def _folder(url: str, cache_folder: str, by_hand: str) -> Path:
    try:
        pooch, *_ = map(import_module, ("pooch", "requests", "tqdm"))
    except ImportError as error:
        raise UnavailableError(f"{url} was not downloaded: {error.name} is not installed; {by_hand}") from error
    return Path(pooch.os_cache("sstkern")) / cache_folder


def _make_once(folder: Path, targets: Collection[Path], make: Callable[[], None]) -> None:
    """Call `make` unless all of its targets are there, in one process at a time: two would write into one partial file."""
    from filelock import FileLock  # torch needs it too

    def made() -> bool:
        return all(target.is_file() for target in targets)

    # Without the lock first: a complete cache may be one that cannot be written to.
    if made():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not made():
            make()


def _download(url: str, sha256: str, target: Path, by_hand: str) -> None:
    import pooch
    import requests

    # Only once the hash is right does pooch move what came to the target's name.
    resume = partial(_resume, target.with_name(f"{target.name}.part"))
    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=target.name, path=target.parent, downloader=resume)
    except requests.RequestException as error:
        raise UnavailableError(f"{url} could not be downloaded: {error}; {by_hand}") from error


def _resume(part: Path, url: str, output_file: str, _: object) -> None:
    """Download for pooch by way of `part`, from where that ends.

    It may end wrongly, or belong to an older file on the server: pooch takes the hash of the whole, and that decides.
    """
    import requests

    done = part.stat().st_size if part.exists() else 0
    # Without "identity" the server may compress, and the range is then one of other bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        nothing_left = done and response.status_code == requests.codes.requested_range_not_satisfiable
        if not nothing_left:
            response.raise_for_status()
            _write(response, part, done if response.status_code == requests.codes.partial_content else 0)
    part.replace(output_file)


def _write(response: requests.Response, part: Path, done: int) -> None:
    """Write what comes to `part`, behind its first `done` bytes; 0 starts anew."""
    from tqdm import tqdm

    length = response.headers.get("Content-Length")
    bar = tqdm(
        desc=part.stem,
        initial=done,
        total=None if length is None else done + int(length),
        unit="B",
        unit_scale=True,
        disable=None,  # where stderr is no terminal
    )
    with bar, part.open("ab" if done else "wb") as file:
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
