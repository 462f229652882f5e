"""Rows, files, tables and geometric means, of figures made up."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sstkern.bench import report
from sstkern.bench.cases import Case
from sstkern.bench.timing import Timing

RATE = 50.0
"""GFLOP/s of a large torch.mm."""


def taken(ms: float, alone: float | None = None) -> dict:
    return report.figures(Timing(ms / 1e3, (alone or ms) / 1e3, (ms / 1e3, ms / 1e3), calls=7), 1e-7, {})


def row(case: Case, bandwidth: float | None = None, left_out: dict | None = None, **ms: float) -> dict:
    return report.row(case, {name: taken(time) for name, time in ms.items()}, left_out or {}, bandwidth, RATE)


def reported(*rows: dict, peak: float | None = None) -> dict:
    found = report.start({"peak_gflops": peak}, len(rows))
    for one in rows:
        report.add(found, one, report.summary)
    return found


def test_the_figures_of_an_engine():
    timing = Timing(median=0.002, alone=0.003, halves=(0.002, 0.0025), calls=9)
    assert report.figures(timing, 1e-6, {"compile_seconds": 3.0}) == {
        "ms": 2.0,
        "alone_ms": 3.0,
        "disturbed": True,
        "spread": pytest.approx(0.25),
        "calls": 9,
        "difference": 1e-6,
        "compile_seconds": 3.0,
    }


def test_a_row_counts_the_best_peer_the_flops_and_the_shares():
    case = Case("LSTM", batch=1, steps=9, size=100)
    (one,) = reported(row(case, 50.0, sstkern=2.0, torch=8.0, onnxruntime=3.0), peak=10.0)["rows"]
    assert (one["best_peer"], one["ratio"], one["tokens"]) == ("onnxruntime", 1.5, 9)
    assert one["gflop"] == pytest.approx(9 * 2 * 4 * 100 * 200 / 1e9)
    assert one["gflops"] == pytest.approx(one["gflop"] / 0.002)
    assert one["peak_share"] == pytest.approx(one["gflops"] / 10)
    assert (one["rate_gflops"], one["rate_share"]) == (RATE, pytest.approx(one["gflops"] / RATE))
    assert one["peer_peak_share"] == pytest.approx(one["peak_share"] / 1.5)
    assert one["bandwidth_share"] == pytest.approx(4 * 4 * 100 * 100 * 10 / 0.002 / 50e9)
    assert one["discarded"] is None
    assert {name: one[name] for name in ("cell", "batch", "steps", "size", "phase", "lengths", "dtype")} == {
        "cell": "LSTM",
        "batch": 1,
        "steps": 9,
        "size": 100,
        "phase": "inference",
        "lengths": "full",
        "dtype": "float32",
    }


def test_the_spread_is_the_larger_one_of_the_ratio_s_figures():
    spread = {name: taken(ms) | {"spread": spread} for name, ms, spread in (("sstkern", 1, 0.02), ("torch", 2, 0.03), ("openvino", 3, 0.5))}
    assert report.row(Case("GRU", 2, 3, 4), spread, {}, None, RATE)["spread"] == 0.03


def test_what_is_not_known_is_none():
    case = Case("GRU", 2, 3, 4)
    alone, absent = reported(row(case, sstkern=2.0), row(case, torch=2.0))["rows"]
    assert (alone["best_peer"], alone["ratio"], alone["peak_share"], alone["bandwidth_share"]) == (None,) * 4
    assert [absent[name] for name in ("ratio", "gflops", "peak_share", "rate_share")] == [None] * 4


def test_a_disturbed_engine_discards_the_case_with_its_numbers():
    case = Case("GRU", 2, 3, 4)
    one = report.row(case, {"sstkern": taken(2.0, 2.1), "torch": taken(4.0, 5.0)}, {}, None, RATE)
    assert one["discarded"] == "torch 5 ms alone, 4 ms among the others"
    assert reported(one)["summary"] == []


@pytest.mark.parametrize(("ms", "alone", "discards"), [(9.0, 12.0, False), (9.0, 4.3, True), (4.3, 9.0, True)])
def test_a_disturbed_engine_that_cannot_be_the_best_peer_discards_nothing(ms: float, alone: float, discards: bool):
    one = report.row(Case("GRU", 2, 3, 4), {"sstkern": taken(2.0), "torch": taken(4.0), "openvino": taken(ms, alone)}, {}, None, RATE)
    assert (one["discarded"] is not None) == discards


def test_bfloat16_is_set_beside_our_float32():
    cases = [Case("GRU", 32, 3, 4), Case("GRU", 32, 3, 4, dtype="bfloat16"), Case("GRU", 32, 5, 4, dtype="bfloat16")]
    found = reported(*(row(case, sstkern=ms, torch=9.0) for case, ms in zip(cases, (6.0, 4.0, 1.0), strict=True)))
    assert [one["float32_ratio"] for one in found["rows"]] == [None, 1.5, None]
    assert [(group["points"], group["geometric_mean"]) for group in found["summary"] if "our float32" in group["group"]] == [(1, 1.5)]


def test_bfloat16_is_not_set_beside_a_disturbed_float32():
    case = Case("GRU", 32, 3, 4)
    disturbed = report.row(case, {"sstkern": taken(6.0, 9.0), "torch": taken(9.0)}, {}, None, RATE)
    found = reported(disturbed, row(replace(case, dtype="bfloat16"), sstkern=4.0, torch=9.0))
    assert found["rows"][1]["float32_ratio"] is None


def test_the_geometric_mean():
    assert report.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert report.geometric_mean([0.5]) == pytest.approx(0.5)


def groups(found: dict) -> dict:
    return {(group["group"], group["cell"]): group for group in found["summary"]}


def test_inference_is_split_where_the_best_peer_nears_the_peak():
    case = Case("LSTM", batch=8, steps=50, size=128)
    at_1_ms = case.flops / 1e6  # GFLOP/s
    found = groups(
        reported(
            row(case, sstkern=1.0, torch=2.0),  # 40 % of peak
            row(case, sstkern=2.0, torch=8.0, openvino=16.0),  # 10 %
            row(case, sstkern=1.0, torch=1.0, openvino=0.9),  # 89 %
            row(Case("GRU", 8, 50, 128), sstkern=1.0, torch=1.5),
            peak=at_1_ms / 0.8,
        )
    )
    below, above = (found[f"inference full float32, best peer {side} 70% of peak", "LSTM"] for side in ("below", "at or above"))
    assert (below["points"], below["smallest"], below["below_1"]) == (2, 2.0, 0)
    assert below["geometric_mean"] == pytest.approx(8**0.5)
    assert (above["points"], above["geometric_mean"], above["below_1"]) == (1, pytest.approx(0.9), 1)
    assert found["all points", "GRU"]["geometric_mean"] == pytest.approx(1.5)
    assert found["all points", "LSTM"]["below_1"] == 1
    unknown = groups(reported(row(case, sstkern=1.0, torch=2.0)))
    assert unknown["inference full float32, peak unknown", "LSTM"]["points"] == 1


def test_training_is_compared_with_torch_only():
    full, sst2 = Case("RNN", 8, 50, 128, training=True), Case("RNN", 8, 50, 128, True, "sst2")
    found = groups(
        reported(
            row(full, sstkern=1.0, torch=4.0, torch_no_onednn=3.0, torch_compile=2.0),
            row(sst2, sstkern=1.0, torch=5.0, torch_no_onednn=2.0, torch_packed=4.0),
            row(Case("RNN", 8, 50, 128, True, dtype="bfloat16"), sstkern=1.0, torch=9.0),
        )
    )
    assert found["training full float32 / best of torch", "RNN"]["geometric_mean"] == pytest.approx(3.0)
    assert found["training sst2 float32 / better of torch padded, packed", "RNN"]["geometric_mean"] == pytest.approx(4.0)
    assert found["all points", "RNN"]["geometric_mean"] == pytest.approx((2 * 2 * 9) ** (1 / 3))


def test_the_long_single_sequence_has_a_line_of_its_own():
    found = groups(reported(row(Case("LSTM", 1, 200, 256), sstkern=1.0, torch=3.0), row(Case("LSTM", 1, 50, 128), sstkern=1.0, torch=9.0)))
    assert found["inference float32 (1,200,256)", "LSTM"]["geometric_mean"] == pytest.approx(3.0)


def test_the_files(tmp_path: Path):
    case = Case("LSTM", 2, 3, 4, training=True)
    found = reported(row(case, left_out={"openvino": "inference only"}, sstkern=2.0, torch=4.0), row(case, sstkern=2.0, torch_packed=3.0))
    report.write(found, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "bench.json").read_text()) == found
    first, second = csv.DictReader(io.StringIO((tmp_path / "new" / "bench.csv").read_text()))
    assert (first["cell"], first["phase"], first["sstkern_ms"], first["torch_ms"], first["torch_packed_ms"]) == (
        "LSTM",
        "training",
        "2.0",
        "4.0",
        "",
    )
    assert (first["ratio"], first["best_peer"], first["tokens"], first["left_out"]) == ("2.0", "torch", "6", "openvino: inference only")
    assert (second["torch_ms"], second["torch_packed_ms"], second["openvino_ms"]) == ("", "3.0", "")


def test_the_tables_name_what_is_missing_and_what_is_discarded():
    case = Case("LSTM", 2, 3, 4)
    disturbed = report.row(case, {"sstkern": taken(2.0), "torch": taken(4.0, 5.0)}, {}, None, RATE)
    found = reported(row(case, left_out={"openvino": "not there"}, sstkern=2.0, torch=5.0), disturbed)
    console = Console(width=200, file=io.StringIO())
    for part in report.tables(found):
        console.print(part)
    text = console.file.getvalue()
    lines = [line.replace("│", " ").split() for line in text.splitlines() if "2,3,4" in line and line.startswith("│")]
    assert lines[0] == ["LSTM", "2,3,4", "inference", "full", "float32", "2.000", "5.000", "2.50", "0%", "0.0", "-", "0%", "-"]
    assert "2.00*" in lines[1]
    assert "* discarded: LSTM 2,3,4 inference full float32: torch 5 ms alone, 4 ms among the others" in text
    assert "left out of 1 cases: openvino: not there" in text
    summed = next(line for line in text.splitlines() if "all points" in line)
    assert summed.replace("│", " ").split() == ["all", "points", "LSTM", "1", "2.50", "2.50", "0"]


def test_a_table_tells_what_compiling_took():
    case = Case("LSTM", 2, 3, 4)
    engines = {"sstkern": taken(2.0), "torch_compile": taken(4.0) | {"compile_seconds": 12.34}}
    found = reported(report.row(case, engines, {}, None, RATE), row(case, sstkern=2.0))
    console = Console(width=200, file=io.StringIO())
    assert [part.title for part in report.tables(found) if hasattr(part, "title")][1] == "seconds to compile and call once"
    console.print(report.tables(found)[1])
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines() if "2,3,4" in line]
    assert lines == [["LSTM", "2,3,4", "inference", "full", "float32", "12.3"]]


def test_what_was_slow_is_told_once():
    def rows(cell: str, note: str) -> list[dict]:
        engines = {"sstkern": taken(2.0) | {note: "why"}, "loop": taken(4.0)}
        return [report.row(Case(cell, 2, steps, 4), engines, {}, None, RATE) for steps in (3, 5)]

    found = report.reasons([*rows("LSTM", "stepped"), *rows("GRU", "plain")])
    assert found == ["LSTM was stepped in Python: why", "GRU ran in plain PyTorch: why"]
