"""SST-2: movie reviews' phrases, negative (0) or positive (1), as GLUE publishes them."""

import logging
import os
from pathlib import Path

from sstkern.text.demo import demo
from sstkern.text.download import UnavailableError, fetch
from sstkern.text.tsv import Examples, read_tsv

URL = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
SHA256 = "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"
MEMBERS = ("SST-2/train.tsv", "SST-2/dev.tsv")
BY_HAND = "download and unpack it by other means and give the folder with train.tsv and dev.tsv as --data"

DEMO = "generated demo sentences"
"""How the description of the demo begins."""

logger = logging.getLogger(__name__)


def load_examples(data: str | Path | None = None) -> tuple[Examples, Examples, str]:
    """The training examples, the development examples, and a plain description of where they came from.

    Args:
        data: a directory with `train.tsv` and `dev.tsv` (see `read_tsv`), or the word "demo" for generated sentences
            (a directory of that name is "./demo"). None takes SST-2: from the directory `sst2` inside $SSTKERN_DATA
            if that is set, otherwise from the user's cache, downloaded on first use. With no network, or without
            pooch, None gives the demo; the description and a logged warning say so.

    Raises:
        FileNotFoundError: the directory, or one of its two files, is not there.
        ValueError: a file cannot be read, the training examples have one label only, their C labels are neither strings nor 0 to C - 1,
            a development label is none of them, or the download's hash is wrong.
    """
    if data == "demo":
        return *demo(), DEMO
    if data is not None:
        return _read(Path(data))
    if root := os.environ.get("SSTKERN_DATA"):
        return _read(Path(root) / "sst2")
    try:
        return _read(fetch(URL, SHA256, MEMBERS, cache_folder="sst2", by_hand=BY_HAND))
    except UnavailableError as error:
        description = f"{DEMO}, not SST-2: {error}"
        logger.warning("using %s", description)
        return *demo(), description


def _read(directory: Path) -> tuple[Examples, Examples, str]:
    train_file, dev_file = directory / "train.tsv", directory / "dev.tsv"
    for file in (train_file, dev_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; the data is a directory with train.tsv and dev.tsv, or 'demo'")
    train = read_tsv(train_file)
    known = len(set(train.labels))
    if known < 2:
        raise ValueError(f"{train_file}: found one label only, expected two or more")
    for line, label in enumerate(train.labels, start=2):
        if label >= known:
            raise ValueError(f"{train_file}, line {line}: found label {label}, expected 0 to {known - 1}, for the file has {known} labels")
    return train, read_tsv(dev_file, train.names, classes=known), f"{train_file} and {dev_file}"
