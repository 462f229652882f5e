"""The command `sstkern`: train, evaluate, predict, study, gradcheck, doctor, bench, aot-report.

Nothing here imports torch before a command runs: help, and what is wrong with options, are there at once (sstkern_command.py).
"""

import json
from collections.abc import Callable
from enum import Enum
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

try:
    import typer
    from typer.core import TyperCommand, TyperGroup

    from sstkern.text.cli import COMMANDS, check_train, say
except ModuleNotFoundError as error:
    raise SystemExit(f'sstkern: {error.name} is not installed: pip install "sstkern[train]"') from None

from sstkern.bench.shapes import WHOLE, Shape, parse_shape

if TYPE_CHECKING:
    import torch


class Command(TyperCommand):
    """A command that runs once its options are known to be right, one by one and together."""

    before: ClassVar[Callable[[], None]] = staticmethod(lambda: None)
    """Called first, once they are."""

    def invoke(self, ctx: typer.Context) -> Any:
        if check := CHECKS.get(self.name or ""):
            check(ctx)
        Command.before()
        return super().invoke(ctx)


class OneLineErrors(TyperGroup):
    """A group of commands whose expected errors are one line on stderr and exit code 1."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, typer.Exit):
            raise  # typer ends in silence when the reader of a pipe is gone
        except ModuleNotFoundError as error:
            extra = ctx.invoked_subcommand if ctx.invoked_subcommand in ("bench", "study") else "train"
            message = f'{error.name.partition(".")[0]} is not installed: pip install "sstkern[{extra}]"'
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except (ValueError, FloatingPointError) as error:
            message = str(error)
        except (MemoryError, RuntimeError) as error:
            message = _expected(error)
            if message is None:
                raise
        typer.echo(f"sstkern: {message}", err=True)
        raise typer.Exit(1)


def _expected(error: MemoryError | RuntimeError) -> str | None:
    """What to say, or None for an error of ours."""
    from sstkern.engines import BackendError
    from sstkern.text.memory import is_out_of_memory

    if isinstance(error, BackendError):
        return str(error)
    if not is_out_of_memory(error):
        return None
    return str(error) if isinstance(error, MemoryError) and str(error) else f"out of memory ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Engine = Literal["cpu", "triton", "reference"]

# What can be given again; typer takes no list of Literal.
BENCH_CELLS = ("lstm", "gru", "rnn")
LIBRARY_CELLS = (
    *("layer_norm_lstm", "peephole_lstm", "coupled_lstm", "multiplicative_lstm", "zoneout_lstm", "recurrent_dropout_lstm", "slstm"),
    *("min_lstm", "nas", "layer_norm_gru", "cho_gru", "light_gru", "dreamer_gru", "augru", "zoneout_gru", "recurrent_dropout_gru"),
    *("mgu", "min_gru", "indrnn", "recurrent_highway", "cfc"),
)
"""Of sstkern.cells, which torch has to be there for."""
MULTIPLES = {"slstm": 4}
"""Of what the hidden size has to be a multiple, where not every one will do."""
_OF_THE_LIBRARY = f"one of sstkern.cells such as {LIBRARY_CELLS[0]}"
Phase = Enum("Phase", {name: name for name in ("inference", "training")}, type=str)
Peer = Enum("Peer", {name: name for name in ("loop", "compiled_step", "torchscript", "compiled_loop", "scan")}, type=str)
BenchLengths = Enum("BenchLengths", {name: name for name in ("full", "sst2")}, type=str)
Dtype = Enum("Dtype", {name: name for name in ("float32", "bfloat16", "float16")}, type=str)
CheckedDtype = Enum("CheckedDtype", {name: name for name in ("float64", "float32", "bfloat16", "float16")}, type=str)


def _print_version(wanted: bool) -> None:
    if wanted:
        Command.before()
        from sstkern.doctor import version_or_advice

        say(f"sstkern {version_or_advice('sstkern')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Text classifiers on fused recurrent layers."""


for command in COMMANDS:
    app.command()(command)


@app.command()
def gradcheck(
    cell: Annotated[
        str, typer.Option(help=f"Recurrent cell: lstm, gru, rnn_tanh, rnn_relu, {_OF_THE_LIBRARY}, or module:Class for one of your own.")
    ] = "lstm",
    engine: Annotated[Engine, typer.Option(help="Engine whose kernels are checked.")] = "cpu",
    dtype: Annotated[
        list[CheckedDtype] | None, typer.Option(help="Number format; can be given again.", show_default="float64, float32, bfloat16")
    ] = None,
    input_size: Annotated[int, typer.Option(help="Features of the input.", min=1)] = 3,
    hidden_size: Annotated[int, typer.Option(help="Units of a layer.", min=1)] = 4,
    layers: Annotated[int, typer.Option(help="Stacked layers.", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="Time steps.", min=1)] = 5,
    batch: Annotated[int, typer.Option(help="Sequences.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Decides all numbers.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="PNG file for the errors over the time steps.", show_default="none")] = None,
) -> None:
    """Check every gradient of a layer, one direction and both, with and without lengths, against what it should be."""
    import torch

    import sstkern
    from sstkern.cells import CELLS
    from sstkern.engines import interpreting, triton_problem
    from sstkern.testing import Report
    from sstkern.testing import gradcheck as check

    if engine != "cpu" and cell not in CELLS:
        raise typer.BadParameter(f"--engine: of fused cells, as {cell} is one, 'cpu' is checked, got '{engine}'")
    if cell in CELLS:
        name, _, nonlinearity = cell.partition("_")
        options = {"nonlinearity": nonlinearity} if nonlinearity else {}
        made = [partial(getattr(sstkern, name.upper()), bidirectional=bidirectional, **options) for bidirectional in (False, True)]
    else:
        made = [partial(_fused, cell, both) for both in (False, True)]
    dtypes = [getattr(torch, chosen) for chosen in _values(dtype) or ("float64", "float32", "bfloat16")]
    if interpreting() and dtype is None:
        dtypes.remove(torch.bfloat16)  # whose products Triton's interpreter gets wrong
    device = "cuda" if engine == "triton" and triton_problem() is None and not interpreting() else "cpu"
    rows = []
    for make in made:
        torch.manual_seed(seed)
        layer = make(input_size, hidden_size, layers, device=device)
        elements = 4 if interpreting() else 256
        rows += check(
            layer, dtypes=dtypes, engine=engine if cell in CELLS else None, shapes=[(steps, batch)], elements=elements, seed=seed
        ).rows
    report = Report(tuple(rows))
    say(report.table())
    if plot is not None:
        from sstkern.plots import plot_errors_by_step

        plot_errors_by_step(report, plot)
    say(f"{len(report.rows)} comparisons, {len(report.wrong)} wrong")
    if not report.ok:
        raise typer.Exit(1)


def _fused(name: str, both: bool, input_size: int, hidden_size: int, layers: int, device: str) -> "torch.nn.Module":
    """A layer of a cell by its name, with both directions another one for the way back. ValueError for a name that leads to none."""
    import torch

    import sstkern
    from sstkern.named import own_cell

    if layers != 1:
        raise ValueError(f"layers: {name} is checked as 1 layer, got {layers}")
    cells = [own_cell(name, input_size, hidden_size) for _ in range(1 + both)]
    layer = sstkern.fuse(*cells).to(device)
    for cell in cells:
        cell.input_size = input_size  # by which the check makes inputs
        for parameter in cell.parameters():
            if not parameter.any():  # where all weights of a product are 0 nothing could be wrong behind it
                torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return layer


@app.command()
def doctor() -> None:
    """Print what sstkern finds on this machine, what is missing, and how to get it."""
    from sstkern.doctor import report

    for name, finding in report():
        say(f"{name}: {finding}")


@app.command()
def bench(
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Recurrent cell: {', '.join(BENCH_CELLS)}, {_OF_THE_LIBRARY}, or module:Class for one of your own; can be given again.",
            show_default=", ".join(BENCH_CELLS),
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="B,T,H",
            help="Sequences, time steps, hidden size; can be given again.",
            show_default="eleven typical ones, of fused cells four",
        ),
    ] = None,
    phase: Annotated[
        list[Phase] | None,
        typer.Option(help="Forward only, or forward and backward; can be given again.", show_default="both"),
    ] = None,
    lengths: Annotated[
        list[BenchLengths] | None,
        typer.Option(help="All sequences as long as T, or as SST-2's sentences; can be given again.", show_default="both"),
    ] = None,
    dtype: Annotated[
        list[Dtype] | None,
        typer.Option(help="Of input and weights; can be given again.", show_default="float32 and bfloat16, of --memory all"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of every engine.", min=1, show_default="PyTorch's choice")] = None,
    seconds: Annotated[float, typer.Option(help="Time for a case; a case whose calls are slow takes longer.", min=0.001, max=3600)] = 6.0,
    growth: Annotated[
        bool,
        typer.Option(
            "--growth",
            help="Instead: time per token over each size and over threads, and of what runs in plain PyTorch over steps, float32.",
        ),
    ] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Instead: memory of a training step.")] = False,
    skewed: Annotated[
        bool, typer.Option("--skewed", help="Instead: time and memory of packed batches with one long sequence, float32.")
    ] = False,
    resets: Annotated[
        bool,
        typer.Option(
            "--resets",
            help="Instead: an LSTM with 3% of its steps reset, beside sb3-contrib's, CleanRL's and TorchRL's ways, full lengths, float32.",
        ),
    ] = False,
    callers: Annotated[
        bool, typer.Option("--callers", help="Instead: calls a second of one layer from 1, 2, 4 and 8 Python threads at once, float32.")
    ] = False,
    widths: Annotated[
        bool, typer.Option("--widths", help="Instead: our rate over hidden sizes from 64 to 704, or to a --shape's H, float32.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also time torch.compile of torch.nn's layers, short ones.")] = False,
    input_size: Annotated[int | None, typer.Option(help="Features of the input of fused cells.", min=1, show_default="H")] = None,
    peer: Annotated[
        list[Peer] | None, typer.Option(help="What fused cells are timed beside; can be given again.", show_default="all")
    ] = None,
    compile_limit: Annotated[
        float, typer.Option(help="Seconds after which a peer that compiles is given up.", min=0.001, max=86400)
    ] = 120.0,
    output: Annotated[Path, typer.Option(help="Folder for figures and pictures; files of an earlier run are replaced.")] = Path(
        "runs/bench"
    ),
    file: Annotated[
        Path | None, typer.Option("--json", help="File for the figures of fused cells.", show_default="own_cells.json in --output")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="PNG file for the picture of fused cells; that of the fastest peer goes beside it.",
            show_default="own_cells.png in --output",
        ),
    ] = None,
) -> None:
    """Time our layers on the CPU, beside torch.nn, ONNX Runtime and OpenVINO, which are left out where they are not installed.

    Fused cells, those of sstkern.cells and your own, are made as Class(input_size, hidden_size) and timed, in float32 and full lengths,
    beside a loop over their time steps, torch.compile of the cell and of the loop, TorchScript and torch's scan.
    """
    import torch

    from sstkern.bench import cases, own_cases, show, ways
    from sstkern.bench import widths as widening

    if threads is not None:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    phases, shapes = _values(phase) or cases.PHASES, [parse_shape(text) for text in shape or ()]
    if _are_fused(cell or ()):
        wanted = own_cases.grid(cell, shapes or own_cases.SHAPES, phases, input_size)
        files = file or output / "own_cells.json", plot or output / "own_cells.png"
        _end_of_bench(show.own_cells(wanted, threads, seconds, compile_limit, _values(peer) or ways.PEERS, *files), files[0])
        return
    cells = [name.upper() for name in cell or ()] or list(cases.LAYERS)
    kinds, dtypes = _values(lengths) or cases.LENGTHS, _values(dtype) or (cases.DTYPES if memory else cases.TIMED)
    if growth:
        complete = show.growth(cells, phases, kinds, threads, seconds, output)
    elif skewed:
        complete = show.skewed(cells, phases, threads, seconds, output)
    elif resets:
        complete = show.resets(shapes, phases, seconds, output)
    elif callers:
        complete = show.callers(cells, phases, threads, seconds, output)
    elif widths:
        complete = show.widths(cells, phases, shapes[0] if shapes else widening.SHAPE, threads, seconds, output)
    elif memory:
        complete = show.memory(cells, shapes or cases.SHAPES, kinds, dtypes, threads, output)
    else:
        limit = compile_limit if compiled else None
        complete = show.cases(cells, shapes or cases.SHAPES, phases, kinds, dtypes, threads, seconds, limit, output)
    _end_of_bench(complete, output)


def _end_of_bench(complete: bool, output: Path) -> None:
    if not complete:
        say(f"interrupted; what was measured is in {output}")
        raise typer.Exit(130)


def _check_bench(ctx: typer.Context) -> None:
    """BadParameter or ValueError for options that are wrong together."""
    given = ctx.params
    runs = {f"--{name}": given[name] for name in ("growth", "skewed", "resets", "callers", "widths", "memory")}
    shapes = [parse_shape(text) for text in given["shape"] or ()]
    if _are_fused(given["cell"] or ()):
        for cell, (_, _, size) in product(given["cell"], shapes):
            _check_hidden_size("--shape", cell, size)
        others = {"--lengths": given["lengths"], "--dtype": given["dtype"], **runs, "--compile": given["compiled"]}
        _refuse(others, "is not for fused cells: one of sstkern.cells, or module:Class")
        return
    own = {"--input-size": given["input_size"], "--peer": given["peer"], "--json": given["file"], "--plot": given["plot"]}
    _refuse(own, "is for fused cells: one of sstkern.cells, or module:Class")
    _refuse_together({**runs, "--shape": shapes})
    if given["dtype"]:
        _refuse(runs | {"--memory": False}, "is in float32, and not for --dtype")
    if given["lengths"]:
        _refuse(
            {name: runs[name] for name in ("--skewed", "--resets", "--callers", "--widths")},
            "has lengths of its own, and is not for --lengths",
        )
    if given["resets"]:
        _refuse({"--cell": given["cell"], "--compile": given["compiled"]}, "is not for --resets, which times LSTMs")
    if given["widths"]:
        _check_shape_of_widths(shapes)


def _check_gradcheck(ctx: typer.Context) -> None:
    """BadParameter for options that are wrong together."""
    _check_hidden_size("--hidden-size", ctx.params["cell"], ctx.params["hidden_size"])


def _check_hidden_size(option: str, cell: str, size: int) -> None:
    multiple = MULTIPLES.get(cell, 1)
    if size % multiple:
        raise typer.BadParameter(f"{option}: for {cell}, expected a multiple of {multiple} as the hidden size, got {size}")


def _are_fused(names: list[str]) -> bool:
    """Whether these are cells of somebody's own or of the library, rather than torch.nn's."""
    fused = [":" in name or name in LIBRARY_CELLS for name in names]
    unknown = [name for name, is_fused in zip(names, fused, strict=True) if not is_fused and name not in BENCH_CELLS]
    if unknown:
        known = ", ".join([*BENCH_CELLS, *LIBRARY_CELLS])
        raise typer.BadParameter(f"--cell: '{unknown[0]}' is unknown; there are {known}, or module:Class for your own")
    if any(fused) and not all(fused):
        raise typer.BadParameter("--cell: fused cells, of sstkern.cells or your own, are timed without torch.nn's, which have other peers")
    return any(fused)


def _refuse(given: dict[str, Any], why: str) -> None:
    """Options that mean nothing for these cells."""
    for name, value in given.items():
        if value:
            raise typer.BadParameter(f"{name}: {why}")


def _refuse_together(given: dict[str, Any]) -> None:
    """Two options of which one says what shapes there are; --memory is for any, and --widths for one."""
    names = [name for name, value in given.items() if value]
    alone = ("--growth", "--skewed", "--callers")
    if len(names) > 1 and (names[0] in alone or (names[0] in ("--resets", "--widths") and names[1] != "--shape")):
        raise typer.BadParameter(f"{names[0]}: has shapes of its own, and is not for {names[1]}")


def _check_shape_of_widths(shapes: list[Shape]) -> None:
    if len(shapes) > 1:
        raise typer.BadParameter("--shape: with --widths, expected one, of which H is the largest")
    for _, _, size in shapes:
        if size % WHOLE or size < 2 * WHOLE:
            raise typer.BadParameter(f"--shape: with --widths, expected a multiple of 64 from 128 on as H, got {size}")


@app.command()
def aot_report(
    target: Annotated[
        list[str] | None, typer.Option(help="GPU: sm_90, sm_80, sm_100 or gfx942; can be given again.", show_default="all of them")
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            help="Own cells, not the built-in ones: module:Class, or a module for all of its; can be given again.",
            show_default="none",
        ),
    ] = None,
    resets: Annotated[bool, typer.Option("--resets", help="Of calls with resets.", show_default=False)] = False,
    file: Annotated[Path | None, typer.Option("--json", help="File for all figures.", show_default="none")] = None,
) -> None:
    """Compile the kernels of the launch table for GPUs, without one, and print what each needs and which bars it breaks.

    An own cell is made as Class(input_size, hidden_size).
    """
    from rich.console import Console
    from rich.progress import track

    from sstkern.engines.triton import aot

    console, rows = Console(), []
    targets = target or aot.TARGETS
    if cell:
        from sstkern.program import ahead

        own = [one for name in cell for one in ahead.cells(name)]
        tables = {name: aot.own_table(name, own) for name in targets}
    else:
        tables = {name: aot.table(name) for name in targets}
    if resets:
        tables = {name: aot.with_resets(table) for name, table in tables.items()}
    for name, table in tables.items():
        say(f"{name}\n{aot.heading()}")
        bar = {"total": len(table), "description": name, "transient": True, "disable": not console.is_terminal}
        for row in track(aot.rows(table), console=console, **bar):
            say(aot.line(row))
            rows.append(row)
    if file is not None:
        file.write_text(json.dumps(aot.as_json(rows), indent=1) + "\n")
    faults = aot.broken(rows)
    for fault in faults:
        say(fault)
    say(f"{len(rows)} kernels compiled, {len(faults)} bars broken")
    if faults:
        raise typer.Exit(1)


def _values(given: list[Enum] | None) -> list[str]:
    return [choice.value for choice in given or ()]


CHECKS: dict[str, Callable[[typer.Context], None]] = {"train": check_train, "gradcheck": _check_gradcheck, "bench": _check_bench}
"""Of options together, and of what a program may be given too; both without torch."""
for registered in app.registered_commands:
    registered.cls = Command
