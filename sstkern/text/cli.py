"""The commands of the SST-2 application: train, evaluate, predict, study. `sstkern.cli` makes them commands of `sstkern`.

Nothing here imports torch before a command runs.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sstkern.text.lines import decode_line, lines_as_they_come
from sstkern.text.options import GLOVE as NAME
from sstkern.text.options import HUB, Cell, ModelConfig, Pooling, TrainingOptions
from sstkern.text.study import PROBLEMS

T = TypeVar("T")

NOT_FOR_AVERAGE = ("layers", "hidden_size", "bidirectional", "pooling")

PLACES = ("data", "valid")
COMPARISON = 0.1  # of the training's time
FILES = {"best": "best (the model)", "last": "last (to resume)"} | {name: name for name in ("metrics.jsonl", "training.png", "tensorboard")}
"""What a run leaves in its folder, and how it is told."""

# What can be given again; typer takes no list of Literal.
Problem = Enum("Problem", {number: number for number in PROBLEMS}, type=str)


def say(line: str) -> None:
    """Prints a line. An OSError names stdout: writing to an open file tells no name."""
    try:
        typer.echo(line)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error


Model = Annotated[Path, typer.Option(help="Folder of a run, whose best model is taken, or of one checkpoint.")]


def train(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder with train.tsv and dev.tsv; 'demo' generates sentences. With --resume, where it lies now.", show_default="SST-2"
        ),
    ] = None,
    valid: Annotated[
        str | None,
        typer.Option(help="TSV file to validate on; 'none' keeps the last epoch's model.", show_default="the data's own dev.tsv"),
    ] = None,
    cell: Annotated[Cell, typer.Option(help="Recurrent cell; 'average' is the mean of the word vectors.")] = ModelConfig.cell,
    layers: Annotated[int, typer.Option(help="Stacked recurrent layers.")] = ModelConfig.layers,
    hidden_size: Annotated[int, typer.Option(help="Units of a layer, in each direction.")] = ModelConfig.hidden_size,
    embedding_size: Annotated[
        int | None, typer.Option(help="Numbers in a word vector.", show_default="the vectors' own, or 128")
    ] = ModelConfig.embedding_size,
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Also read from the end.")] = False,
    dropout: Annotated[float, typer.Option(help="Share of numbers set to 0 in training.")] = ModelConfig.dropout,
    pooling: Annotated[
        Pooling, typer.Option(help="How the steps become one sentence vector; 'last' is the final state.")
    ] = ModelConfig.pooling,
    vectors: Annotated[
        str | None,
        typer.Option(
            help="Pretrained word vectors: glove.6B, a zip or text file as GloVe's, or a transformer's: hf:NAME or a folder.",
            show_default="random ones",
        ),
    ] = TrainingOptions.vectors,
    frozen: Annotated[bool, typer.Option("--frozen", help="Do not train the pretrained word vectors.")] = False,
    affixes: Annotated[
        bool | None,
        typer.Option(
            "--affixes/--no-affixes",
            help="Also learn vectors of the words' beginnings and endings.",
            show_default="yes, but for a transformer's vectors",
        ),
    ] = None,
    min_count: Annotated[int, typer.Option(help="Words that are rarer in the training data are unknown.")] = TrainingOptions.min_count,
    epochs: Annotated[int, typer.Option(help="The most passes over the training data.")] = TrainingOptions.epochs,
    batch_size: Annotated[int, typer.Option(help="Sentences per step and process.")] = TrainingOptions.batch_size,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate at first; it falls to 0.")] = TrainingOptions.lr,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = TrainingOptions.weight_decay,
    clip: Annotated[float, typer.Option(help="The largest norm of the gradient.")] = TrainingOptions.clip,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of the target that is spread over all labels.")
    ] = TrainingOptions.label_smoothing,
    patience: Annotated[int, typer.Option(help="Epochs without a better accuracy before training stops.")] = TrainingOptions.patience,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, order of batches and dropout.")] = TrainingOptions.seed,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of a process.", show_default="PyTorch's choice")
    ] = TrainingOptions.threads,
    compare: Annotated[
        bool,
        typer.Option("--compare/--no-compare", help="At the end time torch.nn's layers beside ours, for a tenth of the training at most."),
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run, new or empty.", show_default="runs/CELL, or CELL-2, CELL-3, ..."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, or else the one of the cell with the highest number.")
    ] = False,
) -> None:
    """Train a classifier, on one process or, under torchrun or `accelerate launch`, on several."""
    from sstkern.text import folders
    from sstkern.text.trainer import Run

    # The function is long by its options, which typer reads from its signature.
    values = _values(ctx)
    if resume:
        given, folder = _given(ctx, values), output or folders.newest(cell)
        _check_given(folder, given)
        run = Run.resume(folder, given.get("data"), given.get("valid"))
    else:
        run = Run.start(_fill(ModelConfig, values), _fill(TrainingOptions, values), output)
    _train(run, compare and cell != "average")


def check_train(ctx: typer.Context) -> None:
    """BadParameter or ValueError for options of `train` that are wrong; with --resume they need not fit until the run is found."""
    values = _values(ctx)
    given = _given(ctx, values)
    if values["cell"] == "average" and (useless := _flags(name for name in NOT_FOR_AVERAGE if name in given)):
        raise typer.BadParameter(f"{useless}: the cell 'average' has no recurrent layer")
    if not values["resume"]:
        _fill(ModelConfig, values)
        _fill(TrainingOptions, values)


def _values(ctx: typer.Context) -> dict[str, Any]:
    """The options, which have the names of the fields they set."""
    names = {"data": "demo", "valid": "none", "vectors": NAME}
    return ctx.params | {option: _absolute(ctx.params[option], name) for option, name in names.items()}


def _given(ctx: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """The values that the command line gives."""
    return {name: value for name, value in values.items() if ctx.get_parameter_source(name).name == "COMMANDLINE"}


def _train(run: Any, compare: bool) -> None:
    from sstkern.text.checkpoint import exists
    from sstkern.text.memory import is_out_of_memory
    from sstkern.text.progress import losing_lines
    from sstkern.text.trainer import end_training

    def tell(line: str) -> None:
        with losing_lines():
            run.accelerator.print(line)  # on the main process only

    parameters = sum(parameter.numel() for parameter in run.classifier.model.parameters())
    tell(f"data: {_briefly(run.data.description)}")
    tell(
        f"{len(run.data.train):,} sentences to train on, {len(run.data.valid):,} to validate on, "
        f"{len(run.classifier.vocabulary):,} tokens, {parameters:,} parameters on {run.accelerator.device}"
    )
    if not run.train():
        end_training(run.accelerator)
        if exists(run.output / "last"):
            what = "and saved" if run.saved else "but not saved: an earlier checkpoint is kept"
            tell(f"interrupted at step {run.state.step} {what}; to go on:")
            tell(f"  sstkern train --resume --output {shlex.quote(str(run.output))}")
        else:
            tell(f"interrupted at step {run.state.step}; no model was saved")
        raise typer.Exit(128 + (run.stopped_by or signal.SIGINT))
    if run.state.epoch < run.options.epochs:
        patience = run.options.patience
        tell(f"stopped after {run.state.epoch} of {run.options.epochs} epochs: no better accuracy in the last {patience} (--patience)")
    if not exists(run.output / "best"):
        tell("the best model was not saved, only last is there" if exists(run.output / "last") else "no model was saved")
    elif run.data.valid:
        tell(f"validation accuracy {run.state.best_accuracy:.4f}, the best of {run.state.epoch} epochs")
    else:
        tell(f"the model of the last of {run.state.epoch} epochs is kept")
    tell(f"{run.output}: {', '.join(what for name, what in FILES.items() if _is_there(run.output / name)) or 'empty'}")
    speed = None
    if compare and run.tokens_per_second is not None:  # a finished run that is resumed has no training to take a tenth of
        longest = COMPARISON * run.seconds
        tell(f"timing torch.nn's layers beside ours, at most {longest:.1f} s (--no-compare leaves it out)")
        try:
            speed = run.throughput(longest)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            tell("there is no memory for that: three models are trained side by side")
    if speed is not None and speed.torch is not None:
        tell(
            f"sstkern {speed.sstkern:,.0f} tokens/s, torch.nn {speed.torch:,.0f} tokens/s "
            f"(x {speed.sstkern / speed.torch:.2f}), measured in this run"
        )
    elif run.tokens_per_second is not None:
        tell(f"{run.tokens_per_second:,.0f} tokens/s, measured in this run")
    end_training(run.accelerator)
    if not run.saved:
        raise typer.Exit(1)


def _briefly(description: str) -> str:
    """The description without why there is no SST-2, which a warning has told."""
    from sstkern.text.sst2 import DEMO

    return description.partition(": ")[0] if description.startswith(DEMO) else description


def _is_there(path: Path) -> bool:
    from sstkern.text.checkpoint import exists

    return path.exists() or exists(path)  # as the previous one, where a save broke off


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option(help="TSV file with the columns 'sentence' and 'label'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a model's accuracy and loss on labelled sentences."""
    from sstkern.text import read_tsv
    from sstkern.text.checkpoint import load_model
    from sstkern.text.trainer import evaluate

    classifier = load_model(model, _device())
    faults: list[ValueError] = []
    examples = read_tsv(data, classifier.names, faults.append, classifier.classes)
    for fault in faults:
        typer.echo(f"sstkern: {fault}", err=True)
    encoded = [classifier.vocabulary.encode(sentence) for sentence in examples.sentences]
    result = evaluate(classifier.model, encoded, examples.labels)
    if as_json:
        say(json.dumps(asdict(result)))
    else:
        say(f"accuracy {result.accuracy:.4f}, loss {result.loss:.4f} on {result.examples:,} sentences")
    if faults:
        raise typer.Exit(1)


def predict(
    model: Model,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts, one an argument.", show_default="the lines of stdin")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Below, for each token, by how much the label's log-odds fall without it.")
    ] = False,
) -> None:
    """Print, for each text, the most probable label, a tab, and its probability; '?' and nan for a text that is not UTF-8."""
    from sstkern.text.checkpoint import load_model

    classifier = load_model(model, _device())
    faults = 0
    for group in _groups(_texts(texts), several=_device() == "cpu"):
        known = [text for text in group if not isinstance(text, ValueError)]
        found = iter(classifier.predict(known))
        for text in group:
            if isinstance(text, ValueError):
                faults += 1
                typer.echo(f"sstkern: {text}", err=True)
                say("?\tnan")  # the answers keep the number of the lines
                continue
            label, probability = next(found)
            say(f"{label}\t{probability:.4f}")
            for token, contribution in classifier.explain(text) if explain else ():
                say(f"  {contribution:+.2f}\t{token}")
    if faults:
        raise typer.Exit(1)


Text = str | ValueError
"""A text; in the place of one that is not UTF-8 what is wrong with it."""


def _groups(arrived: Iterable[list[Text]], several: bool) -> Iterator[list[Text]]:
    """What to answer together, in order: of the texts that are there at once some hundreds; each alone where its answer could depend on
    its company, on a GPU."""
    size = 256 if several else 1
    return (texts[cut : cut + size] for texts in arrived for cut in range(0, len(texts), size))


def _texts(arguments: list[str] | None) -> Iterator[list[Text]]:
    """The texts of the command line, or else the lines of standard input, those together that are there at once."""
    if arguments:
        arrived, source = iter([list(map(os.fsencode, arguments))]), "the arguments"
    elif sys.stdin is None:
        raise ValueError("texts: found none, and standard input is closed; expected texts as arguments, or lines there")
    else:
        arrived, source = lines_as_they_come(sys.stdin.buffer), "standard input"
    number = count(1)
    return ([_decoded(line, next(number), source) for line in lines] for lines in arrived)


def _decoded(line: bytes, number: int, source: str) -> Text:
    try:
        return decode_line(line, number, source)
    except ValueError as error:
        return error


def study(
    problem: Annotated[
        list[Problem] | None, typer.Option(help="Number of a problem; can be given again.", show_default="all of them")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two minutes: one seed, one epoch, a part of the data.")] = False,
    data: Annotated[str | None, typer.Option(help="Folder with train.tsv and dev.tsv.", show_default="SST-2")] = None,
    glove: Annotated[str, typer.Option(help="GloVe's vectors: glove.6B, a zip or a text file.")] = NAME,
    transformer: Annotated[str, typer.Option(help="A transformer: hf:NAME, or a folder.")] = f"{HUB}bert-base-uncased",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the study; one that is there goes on.", show_default="study, or study-quick")
    ] = None,
) -> None:
    """Answer the thirteen problems of the course assignment from runs of its own, and write report.md and report.html."""
    from sstkern.text import of_transformer
    from sstkern.text.study import study as studies
    from sstkern.text.study.runs import InterruptedStudyError

    folder = output or Path("study-quick" if quick else "study")
    chosen = [number for number in PROBLEMS if not problem or number in problem]
    # Before an hour is spent on the other problems.
    if "5.1" in chosen and glove != NAME and not Path(glove).is_file():
        raise typer.BadParameter(f"--glove: there is no file {glove}, expected {NAME}, a zip or a text file")
    if "5.2" in chosen and not of_transformer(transformer):
        raise typer.BadParameter(f"--transformer: there is no folder {transformer}, expected {HUB}NAME or a folder")
    prepared = studies.Study.prepare(folder, _absolute(data, "demo"), _absolute(glove, NAME), _absolute(transformer), quick)
    say(
        f"data: {prepared.source}; held out {len(prepared.runs.data.held_out):,} sentences, "
        f"{len(prepared.runs.data.side):,} phrases are left to choose with"
    )
    try:
        failed = studies.run(prepared, chosen, say)
    except (InterruptedStudyError, KeyboardInterrupt) as interruption:
        what = f"{interruption}; " if str(interruption) else ""
        say(f"interrupted; {what}the same command goes on from there")
        raise typer.Exit(130) from None
    say(f"{folder / 'report.md'}, report.html and results.json are written")
    if failed:
        typer.echo("not answered:\n  " + "\n  ".join(failed), err=True)
        raise typer.Exit(1)


def _check_given(folder: Path, given: dict[str, Any]) -> None:
    """Raise ValueError if an option contradicts what the run in ``folder`` was started with.

    Not one that tells where its data lies now: whether that is the same is seen when it is read.
    """
    from sstkern.text.checkpoint import find, read_config

    config = read_config(find(folder / "last"))
    started = asdict(config["model"]) | asdict(config["training"])
    wrong = [name for name in given if name in started and name not in PLACES and given[name] != started[name]]
    if wrong:
        was = ", ".join(f"{name} {started[name]}" for name in wrong)
        raise ValueError(f"{_flags(wrong)}: the run in {folder} was started with {was} and goes on with that only")


def _fill(kind: type[T], values: dict[str, Any]) -> T:
    """Make a dataclass from the values that have the names of its fields."""
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _absolute(path: str | None, name: str | None = None) -> str | None:
    """A path, such that a run can be resumed from another working directory; `name` and the hub's names are no paths."""
    return path if path in (None, name) or path.startswith(HUB) else str(Path(path).resolve())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


COMMANDS = (train, evaluate, predict, study)
"""The commands, in the order in which `sstkern --help` lists them."""
