"""The Triton text of a program: what it is made of, and that it is the same whatever the sizes. tests/engines/triton checks its numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import captured
from zoo import ZOO

from sstkern.engines.triton import sources
from sstkern.program.derive import derive
from sstkern.program.engine import leaves_of_backward
from sstkern.program.gpu import Code, code
from sstkern.program.lower import lowered
from sstkern.program.spread import spread

FUSED = [name for name, entry in ZOO.items() if entry.unfused is None]


def codes(name: str, input_size: int, hidden_size: int, dtype: torch.dtype = torch.float64) -> tuple[Code, Code]:
    """Of the step and its derivative."""
    program, leaves = captured(name, input_size, hidden_size, dtype)
    derivative = derive(program, leaves)
    both = (program, leaves), (derivative.backward, leaves_of_backward(program, leaves, derivative))
    forward, backward = (code(lowered(found, kinds, found.outputs)) for (found, _), (_, kinds) in ((spread(*of), of) for of in both))
    return forward, backward


@pytest.mark.parametrize("name", ["LSTMCell", "ChoGRU", "LayerNormLSTM", "Heads"])
def test_the_text_has_no_sizes(name: str):
    assert [found.text for found in codes(name, 3, 4)] == [found.text for found in codes(name, 6, 8)]


def test_a_step_has_one_loop_and_a_barrier_for_each_stage():
    forward, _ = codes("ChoGRU", 3, 5)
    assert forward.core is not None
    assert forward.text.count("for s in range(first_step, tl.minimum(last_step, steps)):") == 1
    assert forward.core.stages == 2
    assert forward.text.count("begin(counter") == forward.text.count("finish(counter") == 2
    assert len(forward.works) == 2


def test_what_no_program_stores_is_loaded_before_they_meet():
    forward, _ = codes("LSTMCell", 3, 5)
    early, late = forward.text.split("begin(counter", 1)[0].split("STAGE == 0:")[1], forward.text.split("begin(counter", 1)[1]
    assert len(re.findall(r"load\(sums0", early)) == 4
    assert "sums0" not in late
    assert "state0" not in early


def test_a_product_ahead_of_the_loop_is_not_computed_in_it():
    forward, _ = codes("LSTMCell", 3, 5)
    assert [part.product.depth for part in forward.ahead] == [3]
    assert [product.depth for product in forward.products] == [5]


def test_elementwise_units_do_not_meet():
    forward, backward = codes("IndRNN", 3, 5)
    assert forward.core is not None
    assert backward.core is not None
    assert not forward.core.meets
    assert not backward.core.meets


def parts(text: str) -> list[str]:
    """Of a module's kernels: between two of them all programs have met."""
    return re.split(r"if STAGE[^:]*:\n|\ndef ", text)


ROWS = r"((?:slot|state)\d+), (row|local|before|after)\b"
MADE = ("picked(", "product(", "summed(", "largest(", "cumulated(")


def read_and_stored(part: str) -> set[tuple[str, ...]]:
    """Rows that the part reads, and stores too: anywhere in them where a product, a move or a reduction does, whose units are others, in
    the same window where a loop does."""
    lines = part.split("\n")
    read = {found for line in lines for found in re.findall(rf"(?<!store\(){ROWS}", line)}
    windows = {found for line in lines for found in re.findall(rf"\bload\({ROWS}, width\d+, (\w+)", line)}
    found = set()
    for line in lines:
        stored = re.search(rf"store\({ROWS}, width\d+, (\w+)", line)
        if stored and any(made in line for made in MADE):
            found |= {stored.groups()[:2]} & read
        elif stored:
            found |= {stored.groups()} & windows
    return found


@pytest.mark.parametrize("name", FUSED)
def test_nothing_is_read_before_all_that_stores_it_have_met(name: str):
    for found in codes(name, *ZOO[name].sizes):
        assert not any(map(read_and_stored, parts(found.text)))


def test_what_is_read_too_early_is_seen():
    _, backward = codes("BlockDiagonal", *ZOO["BlockDiagonal"].sizes)
    joined = re.sub(r"        if STAGE[^:]*:\n", "", backward.text)
    assert any(map(read_and_stored, parts(joined)))


TEXT = "import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef core(x):\n    tl.store(x, 1)\n"


def test_a_copy_of_the_text_lies_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SSTKERN_CACHE", str(tmp_path / "cache"))
    sources.module.cache_clear()
    found = sources.module(TEXT)
    assert Path(found.__file__).read_text() == TEXT
    assert Path(found.__file__).is_relative_to(tmp_path)
    sources.module.cache_clear()


def test_what_runs_is_the_text_and_not_the_file(tmp_path):
    """Whoever can write to the cache's files runs nothing."""
    script = f"""
import os
from pathlib import Path
from sstkern.engines.triton import sources
text = {TEXT!r}
first = Path(sources.module(text).__file__)
first.write_text("raise SystemExit('the file ran')")
sources.module.cache_clear()
import inspect
found = sources.module(text)
assert inspect.getsource(found.core.fn) == text[text.index("@triton.jit"):], inspect.getsource(found.core.fn)
print("the text ran")
"""
    environment = os.environ | {"SSTKERN_CACHE": str(tmp_path / "cache"), "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert ran.stdout == "the text ran\n", ran.stderr


def test_a_traceback_shows_the_texts_lines(tmp_path):
    script = f"""
import torch
from sstkern.engines.triton import sources
text = {TEXT.replace("tl.store(x, 1)", "tl.static_assert(False)")!r}
try:
    sources.module(text).core[(1,)](torch.zeros(1))
except BaseException:
    import traceback
    print(traceback.format_exc())
"""
    environment = os.environ | {"SSTKERN_CACHE": str(tmp_path / "cache"), "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert "tl.static_assert(False)" in ran.stdout, ran.stdout + ran.stderr
    assert f"{tmp_path}/cache/sstkern_program_" in ran.stdout


def test_products_of_one_operand_are_one_of_their_matrices_stacked():
    forward, _ = codes("FourLinears", 3, 4)
    assert [work.gates for work in forward.works] == [4]
    assert [product.depth for product in forward.products] == [4]
    first, *others = re.findall(r"w0 = \w+\((?:w0, )?(weight\d+)(?:, r0, (\d) \* units0)?", forward.text)
    assert len({first[0], *(weight for weight, _ in others)}) == 4
    assert [before for _, before in others] == ["1", "2", "3"]
    assert re.search(r"p0aa, p0ab = halves\(p0a\)", forward.text)
