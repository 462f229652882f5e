"""The README and the pages of docs/ do what they say: their Python blocks run, in order, and print what stands below them."""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python" in page.read_text()]
NOT_HERE = {"gpu.md"}  # its block forces an engine that needs a GPU
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
"""A block, and a block of text that follows it at once: what it prints, with "..." for what differs between machines."""


@pytest.mark.filterwarnings("default:sstkern runs .* in plain PyTorch")  # which language.md shows
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NOT_HERE], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    same = doctest.OutputChecker().check_output
    for block in BLOCK.finditer(page.read_text()):
        line = page.read_text()[: block.start(1)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block[1], str(page), "exec"), names)
        if block[2] is not None:
            assert same(block[2], printed.getvalue(), doctest.ELLIPSIS), f"line {line}: it printed\n{printed.getvalue()}"
