"""Ways to run somebody's own cell over sequences: ours, a Python loop, and what PyTorch makes of that loop."""

import time
import warnings
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor, nn

import sstkern
from sstkern.bench import compiled
from sstkern.bench.compiled import Child
from sstkern.bench.loops import Loop, Read, read_pair, unrolled
from sstkern.bench.own_cases import OwnCase, OwnProblem
from sstkern.bench.peers import OURS, Engine, Prepared, Unavailable, in_one_line
from sstkern.program.layer import cpu_problem
from sstkern.structure import Structure, mapped

LOOP = "loop"
_SCRIPT = """
def forward(self, x: Tensor, state: {kind}) -> Tensor:
    outputs: List[Tensor] = []
    for row in x.unbind(0):
        {results} = self.cell(row, state)
        outputs.append({output})
    return torch.stack(outputs)
"""


def ours(problem: OwnProblem) -> Prepared:
    loop = problem.loop()
    layer = sstkern.fuse(loop.cell)
    prepared = problem.prepared(loop.cell, lambda x: layer(x)[0])
    start = time.perf_counter()
    with warnings.catch_warnings(), prepared.mode():
        warnings.simplefilter("ignore")  # of a cell that is stepped or not compiled, which the report says
        prepared.run()
    prepared.notes["compile_seconds"] = time.perf_counter() - start
    captured = layer._direction.programs.last
    if layer.reason is not None:
        prepared.notes["stepped"] = layer.reason
    elif captured is not None and (problem := cpu_problem(captured)) is not None:
        prepared.notes["plain"] = problem
    return prepared


def compiled_step(problem: OwnProblem) -> Prepared:
    """torch.compile of the cell, in the Python loop."""
    loop = problem.loop()
    step = torch.compile(loop.cell)
    return problem.prepared(loop.cell, lambda x: unrolled(step, loop.read, x, loop.first()))


def compiled_loop(problem: OwnProblem) -> Prepared:
    """torch.compile of the whole loop, which unrolls its time steps."""
    loop = problem.loop()
    call = torch.compile(lambda x, state: unrolled(loop.cell, loop.read, x, state))
    return problem.prepared(loop.cell, lambda x: call(x, loop.first()))


def scan(problem: OwnProblem) -> Prepared:
    """torch.compile of PyTorch's own loop."""
    from torch._higher_order_ops.scan import scan as scanned

    loop = problem.loop()
    _check_first(loop)

    def step(state: Structure, row: Tensor) -> tuple[Structure, Tensor]:
        output, after = loop.read(loop.cell(row, state))
        return mapped(after, torch.clone), output.clone()  # it takes no result that another one shares memory with

    call = torch.compile(lambda x, state: scanned(step, state, x)[1], fullgraph=True)  # without it scan does not compile
    return problem.prepared(loop.cell, lambda x: call(x, loop.first()))


def torchscript(problem: OwnProblem) -> Prepared:
    """The loop in TorchScript's language, else a trace of it."""
    loop = problem.loop()
    _check_first(loop)
    try:
        prepared = _scripted(problem, loop, _script(loop))
    except Exception as refused:
        try:
            prepared = _scripted(problem, loop, torch.jit.trace(_Unrolled(loop), (problem.x, loop.first()), check_trace=False))
        except Exception as error:
            raise Unavailable(f"failed: script: {in_one_line(refused)}; trace: {in_one_line(error)}") from error
        prepared.notes["traced"] = in_one_line(refused)
    return prepared


def _scripted(problem: OwnProblem, loop: Loop, module: nn.Module) -> Prepared:
    prepared = problem.prepared(loop.cell, lambda x: module(x, loop.first()), module)
    for _ in range(2):  # which it watches, and then compiles what it saw
        prepared.results()
    return prepared


def _script(loop: Loop) -> nn.Module:
    holder = type("Script", (nn.Module,), {})()  # a class of its own: TorchScript gives a class one forward for all its instances
    holder.cell = loop.cell
    module = torch.jit.script(holder)
    state = loop.first()
    results, output = ("output, state", "output") if loop.read is read_pair else ("state", f"state{_place(state)}")
    module.define(_SCRIPT.format(kind=_kind(state), results=results, output=output))
    return module


def _kind(state: Structure) -> str:
    """A state's type, in TorchScript's words."""
    if isinstance(state, list):
        return f"List[{_kind(state[0])}]"
    return f"Tuple[{', '.join(map(_kind, state))}]" if isinstance(state, tuple) else "Tensor"


def _place(state: Structure) -> str:
    """Where a state has its first tensor: "", "[0]", "[0][0]"."""
    return f"[0]{_place(state[0])}" if isinstance(state, tuple | list) else ""


class _Unrolled(nn.Module):
    """The loop as a module, to be traced."""

    def __init__(self, loop: Loop):
        super().__init__()
        self.cell = loop.cell
        self.read: Read = loop.read

    def forward(self, x: Tensor, state: Structure) -> Tensor:
        return unrolled(self.cell, self.read, x, state)


def _check_first(loop: Loop) -> None:
    if loop.first() is None:
        raise Unavailable("needs the state before the first step, which only the cell knows")


COMPILED: dict[str, Callable[[OwnProblem], Prepared]] = {
    "compiled_step": compiled_step,
    "torchscript": torchscript,
    "compiled_loop": compiled_loop,
    "scan": scan,
}
"""What may compile for long."""


PEERS = (LOOP, *COMPILED)


def engines(limit: float = compiled.LIMIT, peers: Collection[str] = PEERS) -> list[Engine]:
    """Ours and the peers. limit: seconds for each that compiles to do so and run once."""
    others = [Engine(LOOP, OwnProblem.eager), *(Engine(name, partial(_in_a_process, name, limit=limit)) for name in COMPILED)]
    return [Engine(OURS, ours), *(engine for engine in others if engine.name in peers)]


def _in_a_process(name: str, problem: OwnProblem, limit: float) -> Prepared:
    return Child(partial(_made, name, problem.case, problem.threads), problem, limit)


def _made(name: str, case: OwnCase, threads: int) -> Prepared:
    return COMPILED[name](OwnProblem.of(case, threads))
