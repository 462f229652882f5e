"""Rows of figures: their files, their table, and what they come to."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sstkern.atomic import write_atomically
from sstkern.bench.cases import Case
from sstkern.bench.peers import OURS, TORCH
from sstkern.bench.timing import TOLERANCE, Timing

Row = dict[str, Any]
Ratio = Callable[[Row], float | None]
COMPUTE_BOUND = 0.7
"""A best peer above this share of the multiply-add peak leaves little to gain."""
_CASE = ("cell", "batch", "steps", "size", "phase", "lengths", "dtype")
_FIGURES = (
    *("tokens", "gflop", "best_peer", "ratio", "spread", "gflops", "peak_share", "peer_peak_share", "rate_share"),
    *("bandwidth_share", "float32_ratio", "discarded"),
)


def figures(timing: Timing, difference: float, notes: Mapping[str, Any]) -> Row:
    """An engine's part of a row."""
    return {
        "ms": timing.median * 1e3,
        "alone_ms": timing.alone * 1e3,
        "disturbed": timing.disturbed,
        "spread": timing.spread,
        "calls": timing.calls,
        "difference": difference,
        **notes,
    }


def row(case: Case, engines: Mapping[str, dict], left_out: Mapping[str, str], bandwidth: float | None, rate: float) -> Row:
    """A row but for the shares of the peak, which `add` knows.

    bandwidth: GB/s at which weights can be read, if that matters. rate: GFLOP/s of a large product of matrices.
    """
    times = {name: found["ms"] for name, found in engines.items()}
    ours = times.get(OURS)
    gflops = case.flops / ours / 1e6 if ours and case.flops else None
    best = min(times.keys() - {OURS}, key=times.__getitem__, default=None)
    return {
        **case.as_row(),
        "gflop": None if case.flops is None else case.flops / 1e9,
        "engines": dict(engines),
        "left_out": dict(left_out),
        "best_peer": best,
        "ratio": times[best] / ours if ours and best else None,
        "spread": max(engines[name]["spread"] for name in (OURS, best)) if ours and best else None,
        "gflops": gflops,
        "rate_gflops": rate,
        "rate_share": gflops / rate if gflops else None,
        "bandwidth_share": case.streamed_bytes / ours / 1e6 / bandwidth if ours and bandwidth else None,
        "discarded": disturbed(_deciding(engines, times[best] if best else math.inf)),
    }


def _deciding(engines: Mapping[str, dict], best: float) -> dict[str, dict]:
    """The engines that decide the ratio: ours, and what is or may be the best peer."""
    return {name: found for name, found in engines.items() if name == OURS or min(found["ms"], found["alone_ms"]) <= best * (1 + TOLERANCE)}


def disturbed(engines: Mapping[str, dict]) -> str | None:
    """Why ratios of these engines' times mean nothing: which of them were disturbed."""
    apart = {name: found for name, found in engines.items() if found["disturbed"]}
    told = [f"{name} {found['alone_ms']:.4g} ms alone, {found['ms']:.4g} ms among the others" for name, found in apart.items()]
    return "; ".join(told) or None


def start(environment: dict, cases: int) -> dict:
    return {"environment": environment, "cases": cases, "complete": False, "rows": [], "summary": []}


def add(report: dict, row: Row, summarize: Callable[[Iterable[Row]], list[dict]]) -> None:
    """Put a row into the report and sum up anew."""
    peak = report["environment"]["peak_gflops"]
    row["peak_share"] = row["gflops"] / peak if peak and row["gflops"] else None
    row["peer_peak_share"] = row["peak_share"] / row["ratio"] if row["peak_share"] and row["ratio"] else None
    row["float32_ratio"] = _float32_ratio(report["rows"], row) if row["dtype"] != "float32" else None
    report["rows"].append(row)
    report["summary"] = summarize(report["rows"])


def _float32_ratio(rows: Iterable[Row], row: Row) -> float | None:
    """Our time for the same case in float32 / ours, if that row is there and neither was disturbed."""
    same = {name: row[name] for name in _CASE} | {"dtype": "float32"}
    pair = [*(other for other in rows if _is(other, **same)), row]
    ours = [one["engines"].get(OURS) for one in pair]
    if len(ours) != 2 or not all(figures and not figures["disturbed"] for figures in ours):
        return None
    return ours[0]["ms"] / ours[1]["ms"]


def write_json(report: dict, file: Path) -> None:
    write_atomically(file, (json.dumps(report, indent=1) + "\n").encode())


def write(report: dict, folder: Path) -> None:
    write_json(report, folder / "bench.json")
    write_atomically(folder / "bench.csv", as_csv(report["rows"]).encode())


def as_csv(rows: Iterable[Row]) -> str:
    """A line for each case: milliseconds of every engine, then the figures."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in [*row["engines"], *row["left_out"]]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_CASE, *(f"{name}_ms" for name in names), *_FIGURES, "left_out"])
    for row in rows:
        times = [row["engines"].get(name, {}).get("ms") for name in names]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in row["left_out"].items())
        writer.writerow([*(row[name] for name in _CASE), *times, *(row[name] for name in _FIGURES), reasons])
    return file.getvalue()


def summary(rows: Iterable[Row], groups: Mapping[str, Ratio] | None = None) -> list[dict]:
    """Geometric means of peer / ours for each cell, and how many points are below 1; discarded rows are left out.

    groups: a row's ratio in each, None where it does not belong; by default those of torch.nn's cells, the best peer's.
    """
    kept = [row for row in rows if row["discarded"] is None and row["ratio"] is not None]
    groups = [
        _group(name, cell, kept, ratio)
        for name, ratio in (groups or _GROUPS).items()
        for cell in dict.fromkeys(row["cell"] for row in kept)
    ]
    return [group for group in groups if group["points"]]


def _group(name: str, cell: str, rows: Iterable[Row], ratio: Ratio) -> dict:
    ratios = [value for row in rows if row["cell"] == cell and (value := ratio(row)) is not None]
    return {
        "group": name,
        "cell": cell,
        "points": len(ratios),
        "geometric_mean": geometric_mean(ratios) if ratios else None,
        "smallest": min(ratios, default=None),
        "below_1": sum(value < 1 for value in ratios),
    }


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _is(row: Row, **wanted: Any) -> bool:
    return all(row[name] == value for name, value in wanted.items())


def against(row: Row, names: Iterable[str]) -> float | None:
    """The best of some engines / ours."""
    times = [row["engines"][name]["ms"] for name in names if name in row["engines"]]
    return min(times) / row["engines"][OURS]["ms"] if times else None


def _inference(row: Row, bound: Callable[[float | None], bool]) -> float | None:
    wanted = _is(row, phase="inference", lengths="full", dtype="float32") and bound(row["peer_peak_share"])
    return row["ratio"] if wanted else None


_GROUPS: dict[str, Ratio] = {
    f"inference full float32, best peer below {COMPUTE_BOUND:.0%} of peak": lambda row: _inference(
        row, lambda share: share is not None and share < COMPUTE_BOUND
    ),
    f"inference full float32, best peer at or above {COMPUTE_BOUND:.0%} of peak": lambda row: _inference(
        row, lambda share: share is not None and share >= COMPUTE_BOUND
    ),
    "inference full float32, peak unknown": lambda row: _inference(row, lambda share: share is None),
    "inference float32 (1,200,256)": lambda row: (
        row["ratio"] if _is(row, phase="inference", lengths="full", dtype="float32", batch=1, steps=200, size=256) else None
    ),
    "training full float32 / best of torch": lambda row: (
        against(row, TORCH) if _is(row, phase="training", lengths="full", dtype="float32") else None
    ),
    "training sst2 float32 / better of torch padded, packed": lambda row: (
        against(row, ("torch", "torch_packed")) if _is(row, phase="training", lengths="sst2", dtype="float32") else None
    ),
    "bfloat16 / our float32, B >= 32": lambda row: row["float32_ratio"] if row["batch"] >= 32 and row["dtype"] == "bfloat16" else None,
    "all points": lambda row: row["ratio"],
}


def tables(report: dict) -> list[Any]:
    """What rich prints: a line for each case, then the summary."""
    summed = [_summary_table(report["summary"])] if report["summary"] else []
    return [_cases_table(report["rows"]), *_compile_table(report["rows"]), *summed, *reasons(report["rows"])]


def _cases_table(rows: list[Row]) -> Any:
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row["engines"]))
    table = Table(
        title="milliseconds of one call; spread of the ratio's two figures; ours: GFLOP/s, % of peak, of a large torch.mm, of bandwidth",
        title_justify="left",
    )
    for name in ("cell", "B,T,H", "phase", "lengths", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in (*names, "peer / ours", "% spread", "GFLOP/s", "% peak", "% mm", "% bandwidth"):
        table.add_column(name.replace("torch_", "torch\n").replace("compiled_", "compiled\n").replace(" ", "\n"), justify="right")
    for row in rows:
        times = [_number(row["engines"].get(name, {}).get("ms"), ".3f") for name in names]
        ratio = _number(row["ratio"], ".2f") + ("*" if row["discarded"] else "")
        shares = [_number(row[name], ".0%") for name in ("peak_share", "rate_share", "bandwidth_share")]
        table.add_row(
            class_name(row),
            shape(row),
            row["phase"],
            row["lengths"],
            row["dtype"],
            *times,
            ratio,
            _number(row["spread"], ".0%"),
            _number(row["gflops"], ".1f"),
            *shares,
        )
    return table


def _compile_table(rows: list[Row]) -> list[Any]:
    """The table of how long engines took to compile; empty where none did."""
    from rich.table import Table

    def seconds(row: Row) -> dict[str, float]:
        return {name: found["compile_seconds"] for name, found in row["engines"].items() if "compile_seconds" in found}

    compiled = [row for row in rows if seconds(row)]
    if not compiled:
        return []
    names = list(dict.fromkeys(name for row in compiled for name in seconds(row)))
    table = Table(title="seconds to compile and call once", title_justify="left")
    for name in ("cell", "B,T,H", "phase", "lengths", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for row in compiled:
        times = [_number(seconds(row).get(name), ".1f") for name in names]
        table.add_row(class_name(row), shape(row), row["phase"], row["lengths"], row["dtype"], *times)
    return [table]


def _summary_table(summary: list[dict]) -> Any:
    from rich.table import Table

    table = Table(title="peer / ours, without discarded cases", title_justify="left")
    table.add_column("points of")
    for name in ("cell", "points", "geometric mean", "smallest", "below 1"):
        table.add_column(name, justify="right")
    for group in summary:
        means = [_number(group["geometric_mean"], ".2f"), _number(group["smallest"], ".2f")]
        table.add_row(group["group"], group["cell"], str(group["points"]), *means, str(group["below_1"]))
    return table


def reasons(rows: list[Row]) -> list[str]:
    """Everything that is not in the table, and why."""
    discarded = [f"* discarded: {label(row)}: {row['discarded']}" for row in rows if row["discarded"]]
    notes = ((row["cell"], row["engines"].get(OURS, {})) for row in rows)
    slow = {f"{cell} {how}: {ours[note]}": None for cell, ours in notes for note, how in _SLOW.items() if note in ours}
    return [*discarded, *slow, *left_out(rows)]


def left_out(rows: list[Row]) -> list[str]:
    """Which engines did not run, and why."""
    counted = Counter(f"{name}: {reason}" for row in rows for name, reason in row["left_out"].items())
    return [f"left out of {count} cases: {reason}" for reason, count in counted.items()]


_SLOW = {"stepped": "was stepped in Python", "plain": "ran in plain PyTorch"}
"""Notes of ours, with the reason, and what they say."""


def shape(row: Row) -> str:
    return f"{row['batch']},{row['steps']},{row['size']}"


def class_name(row: Row) -> str:
    """A cell's name without its module, for which a table has no room."""
    return row["cell"].rpartition(":")[2]


def label(row: Row) -> str:
    return f"{row['cell']} {shape(row)} {row['phase']} {row['lengths']} {row['dtype']}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
