"""Each way to run an own cell has the loop's results, or says why it has none."""

import pytest
import torch

from sstkern.bench import peers, ways
from sstkern.bench.own_cases import OwnCase, OwnProblem
from sstkern.bench.peers import Unavailable
from sstkern.cli import Peer
from sstkern.program import engine

NAME = "own_cells_to_time:"


def problem(cell: str, training: bool) -> OwnProblem:
    return OwnProblem.of(OwnCase(NAME + cell, batch=2, steps=3, size=4, training=training, input_size=5), threads=1)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch):
    """torch.compile with its trace alone, without the C++ compiler, which takes half a minute."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, **{"backend": "eager"} | options))
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", ["Leaky", "Learned", "Default"])
@pytest.mark.parametrize("name", ["sstkern", *ways.COMPILED])
@pytest.mark.usefixtures("uncompiled")
def test_every_way_agrees_with_the_loop(name: str, cell: str, training: bool):
    one = problem(cell, training)
    made = (ways.COMPILED | {"sstkern": ways.ours})[name](one)
    assert peers.difference(one, made.results(), one.expected()) < 1e-5
    assert made.notes.keys() <= {"compile_seconds"}
    assert min(made.block(0.001)) > 0


def test_ours_says_why_it_is_not_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "problem", lambda name, program, kinds: "no C++ compiler")
    assert ways.ours(problem("Leaky", True)).notes["plain"] == "no C++ compiler"


def test_ours_says_how_long_its_first_call_took_and_what_was_stepped():
    assert ways.ours(problem("Leaky", True)).notes.keys() == {"compile_seconds"}
    one = problem("Stepped", True)
    made = ways.ours(one)
    assert "own_cells_to_time.py" in made.notes["stepped"]
    assert peers.difference(one, made.results(), one.expected()) < 1e-6


@pytest.mark.usefixtures("uncompiled")
def test_a_state_that_only_the_cell_knows_is_none_to_begin_a_scan_with():
    for name in ("scan", "torchscript"):
        with pytest.raises(Unavailable, match="needs the state before the first step, which only the cell knows"):
            ways.COMPILED[name](problem("Stepped", False))
    one = problem("Stepped", True)
    for name in ("compiled_step", "compiled_loop"):
        assert peers.difference(one, ways.COMPILED[name](one).results(), one.expected()) < 1e-6


def test_what_cannot_be_scripted_is_traced(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments, **options):
        raise RuntimeError("not in this language\n  here")

    one = problem("Learned", True)
    monkeypatch.setattr(torch.jit, "script", refuse)
    made = ways.torchscript(one)
    assert made.notes == {"traced": "RuntimeError: not in this language"}
    assert peers.difference(one, made.results(), one.expected()) < 1e-6
    monkeypatch.setattr(torch.jit, "trace", refuse)
    with pytest.raises(Unavailable) as told:
        ways.torchscript(one)
    assert str(told.value) == "failed: script: RuntimeError: not in this language; trace: RuntimeError: not in this language"


@pytest.mark.parametrize(
    ("state", "kind", "place"),
    [
        (torch.ones(1), "Tensor", ""),
        ((torch.ones(1), torch.ones(1)), "Tuple[Tensor, Tensor]", "[0]"),
        (((torch.ones(1),), [torch.ones(1)]), "Tuple[Tuple[Tensor], List[Tensor]]", "[0][0]"),
    ],
)
def test_a_state_s_type_in_torchscript(state, kind: str, place: str):
    assert (ways._kind(state), ways._place(state)) == (kind, place)


def test_the_ways_that_compile_run_in_processes_that_are_given_up():
    names = [engine.name for engine in ways.engines()]
    assert names == ["sstkern", *ways.PEERS] == ["sstkern", *Peer.__members__]
    assert [engine.name for engine in ways.engines(peers=("scan", "loop"))] == ["sstkern", "loop", "scan"]
    late = {engine.name: engine for engine in ways.engines(limit=0.01)}["scan"]
    with pytest.raises(Unavailable, match=r"compiling took more than 0\.01 s"):
        late.prepare(problem("Leaky", False))


def test_a_way_in_a_process_has_the_same_numbers_there():
    """TorchScript's, which is soonest compiled; `test_compiled.py` has one that takes longer."""
    one = problem("Learned", True)
    (engine,) = (engine for engine in ways.engines() if engine.name == "torchscript")
    made = engine.prepare(one)
    try:
        assert list(made.notes) == ["compile_seconds"]
        assert peers.difference(one, made.results(), one.expected()) < 1e-5
        assert min(made.block(0.001)) > 0
    finally:
        made.close()
