"""`sstkern bench` from the command line."""

import csv
import json
from collections.abc import Collection
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sstkern import cli
from sstkern.bench import callers, growth, memory, own, paths, skewed, suite, ways, widths
from sstkern.bench.growth import BASE, Point
from sstkern.bench.own_cases import OwnProblem
from sstkern.bench.peers import Engine, Prepared, Unavailable


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["bench", "--threads", "1", "--seconds", "0.01", *map(str, arguments)])


def test_a_small_run_prints_tables_and_leaves_files(tmp_path: Path):
    options = ("--cell", "lstm", "--cell", "gru", "--shape", "2,3,4", "--phase", "inference", "--lengths", "sst2", "--dtype", "float32")
    result = call(*options, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.csv", "ratios-float32.png"}
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["cell"], row["batch"], row["steps"], row["size"], row["lengths"]) for row in found["rows"]] == [
        ("LSTM", 2, 3, 4, "sst2"),
        ("GRU", 2, 3, 4, "sst2"),
    ]
    assert (found["complete"], found["environment"]["threads"]) == (True, 1)
    assert [line["cell"] for line in csv.DictReader((tmp_path / "bench.csv").open())] == ["LSTM", "GRU"]
    assert result.stdout.splitlines()[-3:] == [str(tmp_path / name) for name in ("bench.json", "bench.csv", "ratios-float32.png")]
    assert any("2,3,4" in line and "GRU" in line for line in result.stdout.splitlines())


def test_growth_and_memory_run_instead_of_the_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    points = [Point(axis, BASE, 1) for axis in growth.AXES]
    monkeypatch.setattr(growth, "points", lambda *arguments: points)
    row = {
        "axis": "steps",
        "value": 10,
        "cell": "LSTM",
        "phase": "inference",
        "lengths": "full",
        "us_per_token": {"sstkern": 1.0},
        "discarded": None,
    }
    monkeypatch.setattr(growth, "measure", lambda point, seconds: row | {"axis": point.axis})
    monkeypatch.setattr(memory, "in_a_process", lambda case, threads, engine: 3 * 2**20)
    grown = call("--growth", "--cell", "lstm", "--phase", "inference", "--lengths", "full", "--output", tmp_path)
    assert grown.exit_code == 0, grown.output
    result = call("--memory", "--cell", "lstm", "--shape", "2,3,4", "--lengths", "full", "--dtype", "float16", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stderr == "1/1: LSTM B2 T3 H4 training full float16\n"
    assert {path.name for path in tmp_path.iterdir()} == {"growth.json", "growth-lstm-inference.png", "memory.json", "memory-float16.png"}
    assert ["LSTM", "2,3,4", "full", "float16", "3.0", "3.0"] in [line.replace("│", " ").split() for line in result.stdout.splitlines()]


def test_widths_are_a_table_of_the_least_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = {
        "batch": 48,
        "steps": 37,
        "threads": 1,
        "size": [64, 72, 80, 128],
        "gflops": [4.0, 3.0, 2.0, 4.0],
        "share": [1, 0.96, 0.9, 1],
    }

    def measure(curve, threads, seconds):
        assert curve.shape == (48, 37, 128)
        return {"cell": curve.cell, "phase": curve.case(64).phase} | figures

    monkeypatch.setattr(widths, "measure", measure)
    result = call("--widths", "--cell", "gru", "--phase", "training", "--shape", "48,37,128", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    assert "GRU training 0.90 80 75%" in lines
    assert lines[-2:] == [str(tmp_path / "widths.json"), str(tmp_path / "widths.png")]


def test_growth_of_plain_pytorch_is_a_table_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(growth, "points", lambda *arguments: [])
    times = {250: 1.0, 500: 2.0, 1000: 4.8, 2000: 9.6}
    monkeypatch.setattr(
        paths, "measure", lambda point, seconds: {"way": point.way, **point.case.as_row(), "ms": times[point.case.steps] * 10}
    )
    result = call("--growth", "--cell", "gru", "--phase", "training", "--lengths", "full", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"growth.json", "paths.json"}
    lines = [line.replace("│", " ").split() for line in result.stdout.splitlines()]
    for steps, milliseconds, ratio in (("500", "20.0", "2.00"), ("1000", "48.0", "2.40*"), ("2000", "96.0", "2.00")):
        assert ["GRU", "forward", "mode", "full", steps, milliseconds, ratio] in lines


def test_skewed_batches_are_a_table_of_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = {"sstkern_packed": (2.0, 2**20), "sstkern_nested": (4.0, 0), "torch_packed": (7.0, 3 * 2**20)}
    engines = {name: {"ms": ms, "bytes": size} for name, (ms, size) in figures.items()}

    def measure(case, threads, seconds):
        ratios = {"time_ratio": skewed.over_ours(engines, "ms"), "memory_ratio": skewed.over_ours(engines, "bytes")}
        late = "sstkern_packed 3 ms alone, 2 ms among the others" if case.batch == 4000 else None
        return case.as_row() | ratios | {"engines": engines, "left_out": {"sstkern_padded": "too large"}, "discarded": late}

    monkeypatch.setattr(skewed, "measure", measure)
    result = call("--skewed", "--cell", "gru", "--phase", "training", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert [row["batch"] for row in json.loads((tmp_path / "skewed.json").read_text())["rows"]] == [4000, 256]
    lines = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    assert "GRU 4000,2000,32 rest_1 training sstkern_packed 2.00* 3.50 1.0 3.00" in lines
    assert "GRU 256,5000,64 rest_20 training sstkern_nested 4.00 1.75 0.0 -" in lines
    assert "GRU 256,5000,64 rest_20 training torch_packed 7.00 - 3.0 -" in lines
    assert lines[-3:] == [
        "* discarded: GRU 4000,2000,32 training rest_1 float32: sstkern_packed 3 ms alone, 2 ms among the others",
        "left out of 2 cases: sstkern_padded: too large",
        str(tmp_path / "skewed.json"),
    ]


def test_callers_are_a_table_of_calls_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def measure(case, threads, seconds):
        rates = {"sstkern": {1: 900.0, 2: 1500.0, 4: 1000.0, 8: 500.0}}
        return case.as_row() | {"ideal": 2000.0, "calls_per_second": rates, "left_out": {"torch": "failed: no reason"}}

    monkeypatch.setattr(callers, "measure", measure)
    result = call("--callers", "--cell", "gru", "--phase", "training", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "callers.json").read_text())["rows"]) == 1
    lines = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    assert "GRU 3,40,256 training sstkern 900 0.45 1,500 0.75 1,000 0.50 500 0.25" in lines
    assert lines[-2:] == ["left out of 1 cases: torch: failed: no reason", str(tmp_path / "callers.json")]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch):
    """Ours, the loop and one that is late: no compiler."""

    def late(problem: OwnProblem) -> Prepared:
        raise Unavailable("compiling took more than 7 s")

    def engines(limit: float, peers: Collection[str]) -> list[Engine]:
        assert (limit, peers) == (7, ["loop", "scan"])
        return [Engine("sstkern", ways.ours), Engine("loop", OwnProblem.eager), Engine("scan", late)]

    monkeypatch.setattr(ways, "engines", engines)


OWN = (
    "--cell",
    "own_cells_to_time:Leaky",
    "--cell",
    "own_cells_to_time:Learned",
    "--shape",
    "2,3,4",
    "--compile-limit",
    "7",
    "--peer",
    "loop",
    "--peer",
    "scan",
)


@pytest.mark.usefixtures("in_process")
def test_own_cells_are_timed_beside_other_ways_to_run_them(tmp_path: Path):
    result = call(*OWN, "--input-size", "5", "--phase", "training", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "own_cells.json").read_text())
    assert [(row["cell"], row["input_size"], row["phase"]) for row in found["rows"]] == [
        ("own_cells_to_time:Leaky", 5, "training"),
        ("own_cells_to_time:Learned", 5, "training"),
    ]
    assert {group["cell"] for group in found["summary"]} <= {"own_cells_to_time:Leaky", "own_cells_to_time:Learned", "all cells"}
    assert (tmp_path / "own_cells.png").read_bytes().startswith(b"\x89PNG")
    lines = result.stdout.splitlines()
    assert lines[-4:] == [
        "left out of 2 cases: scan: compiling took more than 7 s",
        str(tmp_path / "own_cells.json"),
        str(tmp_path / "own_cells.png"),
        str(tmp_path / "own_cells-fastest.png"),
    ]
    assert any("│ Learned " in line and "2,3,4" in line for line in lines)


@pytest.mark.usefixtures("in_process")
def test_a_terminal_shows_which_way_is_being_prepared_and_a_pipe_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = (*OWN[2:], "--phase", "inference", "--output", tmp_path)
    quiet = call(*options)
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich a terminal
    monkeypatch.setenv("COLUMNS", "250")
    shown = call(*options)
    steps = [shown.stderr.find(what) for what in ("preparing sstkern", "preparing loop", "preparing scan", "timing")]
    assert -1 < steps[0] < steps[1] < steps[2] < steps[3]
    assert quiet.stderr == ""
    assert "preparing" not in quiet.stdout + shown.stdout


@pytest.mark.usefixtures("in_process")
def test_own_cells_files_have_the_names_that_are_given(tmp_path: Path):
    files = tmp_path / "a" / "figures.json", tmp_path / "b" / "picture.png"
    result = call(*OWN[2:], "--phase", "inference", "--json", files[0], "--plot", files[1])
    assert result.exit_code == 0, result.output
    assert json.loads(files[0].read_text())["complete"]
    written = *files, tmp_path / "b" / "picture-fastest.png"
    assert result.stdout.splitlines()[-3:] == list(map(str, written))
    assert all(file.exists() for file in written)


def test_an_interrupted_run_of_own_cells_says_where_the_rest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(own, "measure", interrupt)
    result = call(*OWN, "--output", tmp_path)
    assert result.exit_code == 130
    assert result.stdout.splitlines()[-1] == f"interrupted; what was measured is in {tmp_path / 'own_cells.json'}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--cell", "own_cells_to_time:Leaky", "--cell", "lstm"),
            "fused cells, of sstkern.cells or your own, are timed without torch.nn's",
        ),
        (("--cell", "own_cells_to_time:Leaky", "--growth"), "--growth: is not for fused cells"),
        (("--cell", "own_cells_to_time:Leaky", "--widths"), "--widths: is not for fused cells"),
        (("--widths", "--memory"), "--widths: has shapes of its own, and is not for --memory"),
        (("--widths", "--shape", "48,37,100"), "--shape: with --widths, expected a multiple of 64 from 128 on as H, got 100"),
        (("--widths", "--shape", "48,37,128", "--shape", "8,37,128"), "--shape: with --widths, expected one, of which H is the largest"),
        (("--widths", "--lengths", "full"), "--widths: has lengths of its own, and is not for --lengths"),
        (("--cell", "own_cells_to_time:Leaky", "--dtype", "bfloat16"), "--dtype: is not for fused cells"),
        (("--cell", "mgu", "--dtype", "bfloat16"), "--dtype: is not for fused cells"),
        (("--cell", "lstm", "--json", "a.json"), "--json: is for fused cells: one of sstkern.cells"),
        (("--input-size", "3"), "--input-size: is for fused cells: one of sstkern.cells"),
        (("--cell", "tree"), "--cell: 'tree' is unknown; there are lstm, gru, rnn, layer_norm_lstm, "),
    ],
)
def test_options_that_mean_nothing_for_a_cell_are_refused(options: tuple[str, ...], message: str):
    result = call(*options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_name_that_leads_to_no_cell_is_a_line_before_anything_runs(tmp_path: Path):
    result = call(*OWN, "--cell", "own_cells_to_time:no_cell", "--output", tmp_path)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "cell: own_cells_to_time:no_cell(4, 4) makes no cell: " in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_says_where_the_rest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "measure", interrupt)
    result = call("--shape", "2,3,4", "--output", tmp_path)
    assert result.exit_code == 130
    assert result.stdout.splitlines()[-1] == f"interrupted; what was measured is in {tmp_path}"
    assert not list(tmp_path.iterdir())


def test_the_compiler_is_asked_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    found = {"rows": [], "summary": [], "complete": True}
    monkeypatch.setattr(suite, "run", lambda cases, engines, *rest: asked.append(engines[-1].name) or found)
    for options in ((), ("--compile",)):
        assert call(*options, "--output", tmp_path).exit_code == 0
    assert asked == ["openvino", "torch_compile"]


def test_wrong_options_are_usage_errors(tmp_path: Path):
    result = call("--shape", "2,3", "--output", tmp_path)
    assert result.exit_code == 2
    said = "--shape: expected three positive integers B,T,H, as in 32,20,128, got '2,3'"
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert call("--cell", "tree").exit_code == 2
    assert call("--threads", "0").exit_code == 2
