"""The GPU suite: is every kernel right, and how fast is it beside cuDNN? One command, on a machine with CUDA, torch, triton and numpy.

python benchmarks/gpu.py [--own-cells] [--minutes 8] [--output DIR] [--resume] [--dry-run]

It looks at the machine; checks every kernel against the float64 reference engine, with cuDNN's error beside ours, the derivatives by
gradcheck, CUDA graphs, streams, and what surrounds a layer in PyTorch; compiles the kernels to be timed; then times layers against
cuDNN, the most telling points first, until the time is up. DIR/<device>/gpu.json is written anew after every result, DIR/<device>/gpu.png
at the end where matplotlib is installed. It goes on when a kernel fails, and says so at the end: the exit status is 1. --resume does what
that report lacks. --own-cells is about the cells that `sstkern.fuse` runs alone, beside the other ways to run them, in 3 minutes.
"""

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout need not be installed

from gpu_workers import Workers

from sstkern.cells import CELLS

SCHEDULES = ("resident", "grid", "streamed", "stepwise")
EXCHANGING = ("grid", "streamed")
TIMED = {name: CELLS[name].torch_class for name in ("lstm", "gru", "rnn_tanh")}
PHASES = ("forward", "forward_backward")
SECTIONS = ("checks", "points", "flashrnn", "own_cells")
_SHOWN = 20  # failures, before the table; the report has all
_SAME_MACHINE = ("device", "torch", "triton", "cudnn")


@dataclass(frozen=True)
class Plan:
    """Jobs (see gpu_jobs), in the order they are given out."""

    environment: dict
    checks: list[dict]
    compiles: list[dict]
    points: list[dict]
    flashrnn: list[dict]
    processes: int
    """That check and compile at once; only one measures time."""
    own_cells: list[dict] = field(default_factory=list)


def full_plan() -> Plan:
    def check(cell: str, schedule: str, dtype: str) -> dict:
        # Two tiles of rows; without lengths sizes that vector loads like, with them sizes that nothing divides.
        width = 192 if schedule in EXCHANGING else 16 if dtype == "float64" else 64
        sizes = {"sizes": [32, width], "odd_sizes": [13, width - 5]}
        return _job("check", cell=cell, schedule=schedule, dtype=dtype, batch=70, steps=20, **sizes)

    cells = [name for name, cell in CELLS.items() if cell.torch_class]
    layers = [(cell, schedule) for cell in cells for schedule in SCHEDULES]
    layers += [(f"{cell}_projected", schedule) for cell in cells if CELLS[cell].projects for schedule in SCHEDULES]
    checks = [check(*layer, "bfloat16") for layer in layers]
    for schedule in SCHEDULES:
        for cell in cells:
            # In float64 few weights can be kept; where programs exchange there are two.
            size = 12 if schedule not in EXCHANGING else 70 if cell.startswith("rnn") else 20
            checks.append(_job("gradients", cell=cell, schedule=schedule, steps=5, hidden_size=size))
        checks.append(_job("graph", cell="lstm", schedule=schedule, dtype="bfloat16", batch=70, steps=20, hidden_size=64))
        size = 1024 if schedule in EXCHANGING else 64  # nearly all multiprocessors for each stream
        checks.append(_job("streams", cell="lstm", schedule=schedule, dtype="bfloat16", batch=70, steps=200, hidden_size=size))
    checks += [_job("in_pytorch", cell=cell, batch=20, steps=50, hidden_size=48) for cell in TIMED]
    checks += [check(*layer, dtype) for dtype in ("float32", "float64", "tf32", "float16") for layer in layers]
    points = _by_rank(
        cell=list(TIMED),
        dtype=["bfloat16", "tf32", "float16"],
        batch=[64, 16, 256, 1],
        hidden_size=[256, 1024, 512, 128, 2048, 64],
        steps=[64, 512],
    )
    flashrnn = _by_rank(cell=["lstm", "rnn_tanh", "gru"], dtype=["bfloat16"], batch=[16, 64], hidden_size=[512, 256, 1024], steps=[512])
    return Plan(
        environment=_job("environment", copy_bytes=2**30, matrix=8192),
        checks=checks,
        compiles=_compiles(points),
        points=[_job("point", **point) for point in points],
        flashrnn=[_job("flashrnn", **point) for point in flashrnn],
        processes=_processes(),
    )


def _processes() -> int:
    return max(1, min(12, (os.cpu_count() or 2) - 2))


OWN_CELLS = (
    "torch.nn:LSTMCell",
    "sstkern.cells:LayerNormLSTMCell",
    "sstkern.cells:ChoGRUCell",
    "torch.nn:GRUCell",
    "sstkern.cells:SLSTMCell",
)


def own_cells_plan() -> Plan:
    """Each schedule of each cell checked, and then all ways to run them timed, the most telling sizes first."""
    checks = [
        _job("own_check", cell=cell, schedule=schedule, dtype=dtype, batch=40, steps=12, sizes=[192] if schedule in EXCHANGING else [32])
        for cell in OWN_CELLS
        for schedule in SCHEDULES
        for dtype in ("bfloat16", "tf32")
    ]
    sizes = [(64, 512, 256), (16, 512, 256), (64, 128, 1024), (256, 128, 128)]
    points = [
        _job("own_cell", cell=cell, dtype=dtype, batch=batch, steps=steps, hidden_size=hidden_size)
        for batch, steps, hidden_size in sizes
        for dtype in ("bfloat16", "tf32")
        for cell in OWN_CELLS
    ]
    environment = _job("environment", copy_bytes=2**30, matrix=8192)
    return Plan(environment, checks, [], [], [], _processes(), points)


def dry_plan() -> Plan:
    """Every kind of job at sizes for an interpreter, which has no bfloat16 product and whose programs cannot wait for each other."""

    def check(cell: str, schedule: str, dtype: str) -> dict:
        return _job("check", cell=cell, schedule=schedule, dtype=dtype, batch=2, steps=2, sizes=[2, 4], odd_sizes=[3, 5])

    points = [{"cell": "lstm", "dtype": "float16", "batch": 2, "hidden_size": 4, "steps": 2}]
    return Plan(
        environment=_job("environment", copy_bytes=2**20, matrix=64),
        checks=[
            check("lstm", "grid", "float32"),
            check("lstm_projected", "resident", "float64"),
            check("rnn_relu", "resident", "tf32"),
            _job("gradients", cell="rnn_tanh", schedule="grid", steps=2, hidden_size=2),
            _job("graph", cell="gru", schedule="streamed", dtype="float16", batch=2, steps=2, hidden_size=4),
            _job("streams", cell="rnn_tanh", schedule="resident", dtype="float16", batch=2, steps=2, hidden_size=4),
            _job("in_pytorch", cell="gru", batch=2, steps=2, hidden_size=2),
        ],
        compiles=_compiles(points),
        points=[_job("point", **point) for point in points],
        flashrnn=[_job("flashrnn", **point) for point in points],
        processes=1,
    )


def own_cells_dry_plan() -> Plan:
    """As `dry_plan`."""
    cells = ("torch.nn:LSTMCell", "sstkern.cells:LayerNormLSTMCell")
    checks = [
        _job("own_check", cell=cells[0], schedule="resident", dtype="float32", batch=2, steps=2, sizes=[4]),
        _job("own_check", cell=cells[1], schedule="stepwise", dtype="float64", batch=2, steps=2, sizes=[4]),
    ]
    points = [_job("own_cell", cell=cell, dtype="tf32", batch=2, steps=2, hidden_size=4) for cell in cells]
    return Plan(_job("environment", copy_bytes=2**20, matrix=64), checks, [], [], [], 1, points)


def _job(name: str, **arguments) -> dict:
    shared = [arguments[key] for key in ("cell", "schedule", "dtype") if key in arguments]
    size = [f"H={arguments['hidden_size']}"] if name in ("compile_kernels", "point") else []
    return {"job": name, **arguments, "family": " ".join(shared + size)}


def _by_rank(**axes: list) -> list[dict]:
    """Every combination. Each axis lists its most telling values first; points with the smallest sum of places come first."""
    points = [({}, 0)]
    for name, values in axes.items():
        points = [(point | {name: value}, rank + place) for point, rank in points for place, value in enumerate(values)]
    return [point for point, _ in sorted(points, key=lambda ranked: ranked[1])]


def _point(job: dict) -> dict:
    return {name: job[name] for name in ("cell", "dtype", "batch", "hidden_size", "steps")}


def _compiles(points: list[dict]) -> list[dict]:
    """One job for the points that differ in their time steps only."""
    kernels = [_job("compile_kernels", **{name: value for name, value in point.items() if name != "steps"}) for point in points]
    return list({_label(job): job for job in kernels}.values())


class Suite:
    """Runs a plan, and keeps the report on disk."""

    def __init__(self, plan: Plan, output: Path, seconds: float, jobs: str = "gpu_jobs", resume: bool = False, file: str = "gpu.json"):
        self.plan, self.output, self.resume, self.file = plan, output, resume, file
        self.start, self.seconds = time.monotonic(), seconds
        self.workers = Workers(jobs)
        self.report: dict = {
            "complete": False,
            "environment": {},
            "checks": [],
            "points": [],
            "flashrnn": [],
            "own_cells": [],
            "left_out": [],
        }
        self.folder = output

    def run(self) -> dict:
        try:
            for _, answer in self.workers.run([self.plan.environment], 1, self.at(0.25), 120):
                self.report["environment"] = answer
            if "device" not in self.report["environment"]:
                raise RuntimeError(f"the machine does not answer: {self.report['environment'].get('error', 'out of time')}")
            self.folder = self.output / re.sub(r"[^a-z0-9]+", "-", self.report["environment"]["device"].lower())
            if self.resume:
                self.take_up(json.loads((self.folder / self.file).read_text()))
            self.phase("checks", self.plan.checks, self.plan.processes, self.at(0.4), 90)
            self.phase(None, self.plan.compiles, self.plan.processes, self.at(0.65), 90)
            flashrnn = self.plan.flashrnn if self.report["environment"]["flashrnn"] == "importable" else []
            self.phase("points", self.plan.points, 1, self.at(0.8 if flashrnn else 0.98), 60)
            self.phase("flashrnn", flashrnn, 1, self.at(0.98), 120)  # it compiles C++ first
            self.phase("own_cells", self.plan.own_cells, 1, self.at(0.98), 60)
        finally:
            self.workers.close()
        self.report["complete"] = True
        self.save()
        return self.report

    def take_up(self, earlier: dict) -> None:
        """Keep an earlier report's results, and plan only what it lacks. Raises RuntimeError if it is another machine's."""
        for name in _SAME_MACHINE:
            then, now = earlier["environment"].get(name), self.report["environment"].get(name)
            if then != now:
                raise RuntimeError(f"--resume: the report has {name} {then}, this machine {now}")
        sections = SECTIONS
        self.report |= {section: earlier.get(section, []) for section in sections}
        self.report["earlier"] = [*earlier.get("earlier", []), earlier["environment"]]
        done = {_label(job) for section in sections for job in self.report[section]}
        left = {section: [job for job in getattr(self.plan, section) if _label(job) not in done] for section in sections}
        self.plan = replace(self.plan, **left, compiles=_compiles([_point(job) for job in left["points"]]))

    def at(self, share: float) -> float:
        """When that share of the time is used."""
        return self.start + share * self.seconds

    def phase(self, section: str | None, jobs: list[dict], processes: int, until: float, job_seconds: float) -> None:
        left = {_label(job): job for job in jobs}
        for job, result in self.workers.run(jobs, processes, until, job_seconds):
            del left[_label(job)]
            if section is not None:
                self.report[section].append(
                    {name: value for name, value in job.items() if name not in ("job", "family")} | {"job": job["job"]} | result
                )
            if section is not None or "error" in result:
                print(f"[{time.monotonic() - self.start:4.0f} s] {_label(job)}: {_outcome(result)}", flush=True)
            self.save()
        self.report["left_out"] += [label for label, job in left.items() if job["job"] != "compile_kernels"]

    def save(self) -> None:
        self.report["seconds"] = round(time.monotonic() - self.start, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / f"{self.file}.part"
        scratch.write_text(json.dumps(self.report, indent=1) + "\n")
        scratch.replace(self.folder / self.file)


def _label(job: dict) -> str:
    names = {"batch": "B=", "steps": "T=", "hidden_size": "H="}
    parts = [f"{names.get(key, '')}{job[key]}" for key in ("cell", "schedule", "dtype", *names) if key in job]
    return " ".join([job["job"], *parts])


def _outcome(result: dict) -> str:
    if "error" in result:
        return f"FAILED: {result['error']}"
    if "left_out" in result:
        return f"left out: {result['left_out']}"
    if "times" in result:
        return "; ".join(f"{phase.replace('_', ' + ')}: {_others(times)}" for phase, times in result["times"].items())
    ratios = {name: result[name] for name in ("padded", "lengths") if "forward_backward" in result.get(name, {})}
    shown = [
        f"{name} {times['forward']['ratio']:.2f}x, {times['forward_backward']['ratio']:.2f}x with backward"
        for name, times in ratios.items()
    ]
    return "; ".join([*shown, *_worst_errors(result), "ok" if result.get("ok", True) else "WRONG"])


def _others(times: dict[str, dict]) -> str:
    """The time of each other way over ours, and the smallest."""
    return ", ".join(f"{name} {of_name['ratio']:.2f}" for name, of_name in times.items() if name != "ours")


def _worst_errors(result: dict) -> list[str]:
    variants = [variant for variant in result.values() if isinstance(variant, dict) and "same_bits" in variant]
    if not variants:
        return []
    other = "cudnn" if "cudnn" in variants[0] else "loop"
    errors = {name: [error for variant in variants for error in variant[name].values()] for name in ("ours", other)}
    worst = {name: math.nan if None in values else max(values) for name, values in errors.items()}
    return [f"error {worst['ours']:.1e}, {'cuDNN' if other == 'cudnn' else 'the loop'}'s {worst[other]:.1e}"]


def table(report: dict) -> str:
    """Ratios are cuDNN's time over ours: geometric mean, smallest and largest, and how many points are at least 1 and below 0.7."""
    columns = f"{'mean':>6} {'min':>6} {'max':>6} {'>= 1':>5} {'< 0.7':>5}"
    lines = [
        f"{'cuDNN / ours':32}{'forward':^34}{'forward + backward':^34}",
        f"{'':24} points {columns}    {columns}",
    ]
    timed = [point for point in report["points"] if "padded" in point]
    if not timed:
        lines = []
    for cell, dtype in dict.fromkeys((point["cell"], point["dtype"]) for point in timed):
        for variant in ("padded", "lengths"):
            chosen = [point[variant] for point in timed if (point["cell"], point["dtype"]) == (cell, dtype)]
            spreads = [_spread([times[phase]["ratio"] for times in chosen]) for phase in PHASES]
            lines.append(f"{TIMED[cell] + ' ' + dtype:16}{variant:8}{len(chosen):7} {'    '.join(spreads)}")
    for point in (point for point in report["flashrnn"] if "padded" in point):
        ratios = ", ".join(f"{point['padded'][phase]['ratio']:.2f}" for phase in PHASES)
        lines.append(f"{_label(point)}: FlashRNN / ours {ratios} (forward, forward + backward)")
    for point in (point for point in report.get("own_cells", []) if "times" in point):
        lines.append(f"{_label(point)} ({', '.join(point['schedules'])}): time / ours: {_outcome(point)}")
    counts = [
        f"{_counted(report[section])} {section}" for section in ("checks", *(["own_cells"] if report.get("own_cells") else ["points"]))
    ]
    return "\n".join([*lines, "; ".join([*counts, f"{len(report['left_out'])} left out for lack of time"])])


def _spread(ratios: list[float]) -> str:
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    wins, losses = sum(ratio >= 1 for ratio in ratios), sum(ratio < 0.7 for ratio in ratios)
    return f"{mean:6.2f} {min(ratios):6.2f} {max(ratios):6.2f} {wins:5} {losses:5}"


def _counted(results: list[dict]) -> str:
    refused = sum("left_out" in result for result in results)
    failed = sum(_failed(result) for result in results)
    return f"{len(results) - refused - failed} ok, {failed} failed, {refused} refused by the launch table, of {len(results)}"


def failures(report: dict) -> dict[str, str]:
    """What is wrong with each job that failed or gave wrong results."""
    results = [result for section in SECTIONS for result in report.get(section, [])]
    return {_label(result): _outcome(result) for result in results if _failed(result)}


def _failed(result: dict) -> bool:
    return "error" in result or not result.get("ok", True)


def plot(report: dict, path: Path) -> str:
    """Every ratio, one panel for each cell, padded and with lengths. Returns what to say of it."""
    timed = [point for point in report["points"] if "padded" in point]
    if not timed:
        return "no picture: nothing was timed"
    try:
        import matplotlib
    except ImportError:
        return "no picture: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, panels = pyplot.subplots(2, len(TIMED), figsize=(15, 8.5), sharex=True, sharey=True, squeeze=False, layout="constrained")
    dtypes = list(dict.fromkeys(point["dtype"] for point in timed))
    for row, variant in zip(panels, ("padded", "lengths"), strict=True):
        for panel, (cell, name) in zip(row, TIMED.items(), strict=True):
            panel.set_title(f"{name}, {variant}")
            for scale, axis in ((panel.set_xscale, panel.xaxis), (panel.set_yscale, panel.yaxis)):
                scale("log", base=2)
                axis.set_major_formatter(ScalarFormatter())
            panel.axhline(1, color="grey", linewidth=1)
            for (place, dtype), (phase, marker) in ((d, m) for d in enumerate(dtypes) for m in zip(PHASES, "ox", strict=True)):
                chosen = [point for point in timed if (point["cell"], point["dtype"]) == (cell, dtype)]
                sizes = [point["hidden_size"] * 1.08 ** (place - 1) for point in chosen]
                ratios = [point[variant][phase]["ratio"] for point in chosen]
                panel.scatter(sizes, ratios, marker=marker, color=f"C{place}", s=18, label=f"{dtype}, {phase.replace('_', ' + ')}")
    for panel in panels[:, 0]:
        panel.set_ylabel("cuDNN's time / ours")
    for panel in panels[-1]:
        panel.set_xlabel("hidden_size")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(f"{report['environment']['device']}: one point for each batch and number of time steps")
    figure.savefig(path, dpi=120)
    return f"picture: {path}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own-cells", action="store_true", help="cells that sstkern.fuse runs, beside the other ways to run them")
    parser.add_argument("--minutes", type=float, help="all of it together (default: 8, with --own-cells 3)")
    parser.add_argument(
        "--output", type=Path, help="where the device's folder goes (default: benchmarks/results; a dry run's: a new folder)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, under Triton's interpreter, at tiny sizes: does this script work?"
    )
    parser.add_argument("--resume", action="store_true", help="keep the results in --output that this machine has, and do what they lack")
    options = parser.parse_args(arguments)
    if options.dry_run:
        os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    plans = (own_cells_plan, own_cells_dry_plan) if options.own_cells else (full_plan, dry_plan)
    minutes = options.minutes or (3.0 if options.own_cells else 8.0)
    output = options.output or _default_output(options.dry_run)
    file = "own-cells.json" if options.own_cells else "gpu.json"
    suite = Suite(plans[options.dry_run](), output, minutes * 60, resume=options.resume, file=file)
    try:
        suite.run()
    except KeyboardInterrupt:
        print("interrupted; what there is so far:")
    except RuntimeError as error:
        print(f"stopped: {error}")
    if not (suite.folder / file).exists():
        print("nothing was measured: this needs a GPU that torch can use; --dry-run shows without one that the script works")
        return 1
    if not options.own_cells:
        print(plot(suite.report, suite.folder / "gpu.png"))
    failed = [f"{label}: {outcome}" for label, outcome in failures(suite.report).items()]
    print(*failed[:_SHOWN], *([f"and {len(failed) - _SHOWN} more failures"] if len(failed) > _SHOWN else []), sep="\n")
    print(f"report: {suite.folder / file}\n{table(suite.report)}")
    return 0 if suite.report["complete"] and not failed else 1


def _default_output(dry_run: bool) -> Path:
    return Path(tempfile.mkdtemp(prefix="sstkern-gpu-")) if dry_run else Path(__file__).parent / "results"


if __name__ == "__main__":
    sys.exit(main())
