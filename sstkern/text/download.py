"""Fetching files from a zip archive on the web into the user's cache, once."""

import importlib.util
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sstkern.text.atomic import write_atomically

TIMEOUT = 20  # seconds without an answer


class UnavailableError(Exception):
    """Nothing could be downloaded; the message says why."""


def fetch(url: str, sha256: str, members: Sequence[str], cache_folder: str) -> Path:
    """The folder that holds the named members of the zip archive at `url`, each under the last part of its name.

    Downloads the archive unless every member is there. Nothing is written before its hash is known to be right.

    Args:
        url: address of the archive, http or https.
        sha256: the archive's SHA-256, in hex.
        members: names inside the archive, such as "SST-2/train.tsv".
        cache_folder: name of the folder inside this library's part of the user's cache.

    Raises:
        UnavailableError: pooch is not installed, or the archive could not be downloaded.
        ValueError: what was downloaded has another hash.
    """
    try:
        import pooch
        import requests  # what pooch downloads with
    except ImportError as error:
        raise UnavailableError(f"{url} was not downloaded: {error.name} is not installed") from error
    folder = Path(pooch.os_cache("sstkern")) / cache_folder
    targets = {member: folder / PurePosixPath(member).name for member in members}
    if all(target.is_file() for target in targets.values()):
        return folder
    has_tqdm = importlib.util.find_spec("tqdm") is not None
    downloader = pooch.HTTPDownloader(progressbar=has_tqdm, timeout=TIMEOUT)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            file = pooch.retrieve(url, f"sha256:{sha256}", path=scratch, downloader=downloader)
        except requests.RequestException as error:
            raise UnavailableError(f"{url} could not be downloaded: {error}") from error
        # Only the members asked for are read, each into a file of our naming: no name in the archive leads elsewhere.
        with zipfile.ZipFile(file) as archive:
            for member, target in targets.items():
                write_atomically(target, archive.read(member))
    return folder
