"""The command line: what it prints, where, and with which exit code."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from commands import call, start, told

import sstkern
from sstkern import cli, doctor
from sstkern.cells import CELLS, LIBRARY
from sstkern.engines.triton import aot


def test_the_version():
    assert call("--version").stdout == f"sstkern {doctor.version_or_advice('sstkern')}\n"


def test_the_commands_have_an_order():
    commands = ["train", "evaluate", "predict", "study", "gradcheck", "doctor", "bench", "aot-report"]
    assert list(typer.main.get_command(cli.app).commands) == commands


def test_every_cell_of_the_registry_can_be_named():
    assert all(name in call("gradcheck", "--help").stdout for name in CELLS)
    assert cli.BENCH_CELLS == ("lstm", "gru", "rnn")
    assert cli.LIBRARY_CELLS == tuple(LIBRARY)


@pytest.mark.parametrize("name", LIBRARY)
def test_hidden_sizes_of_the_library_s_cells(name: str):
    """Every multiple is a hidden size, and no other number is."""
    for size in range(1, 9):
        with pytest.raises(ValueError, match="hidden_size") if size % cli.MULTIPLES.get(name, 1) else nullcontext():
            LIBRARY[name](2, size)


WITHOUT_TORCH = """
import sys
sys.path.insert(0, {folder!r})
sys.modules["torch"] = None
sys.argv = ["sstkern", *{arguments!r}]
import sstkern_command
sstkern_command.main()
"""


def started(arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """By the installed command's entry, where torch cannot be imported."""
    code = WITHOUT_TORCH.format(folder=str(Path(sstkern.__file__).parents[1]), arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--help",), 0, "Text classifiers on fused recurrent layers"),
        (("train", "--help"), 0, "--pooling"),
        (("bench", "--help"), 0, "--growth"),
        (("fly",), 2, "No such command 'fly'"),
        (("evaluate", "--data", "x"), 2, "Missing option '--model'"),
        (("train", "--epochs", "many"), 2, "--epochs"),
        (("train", "--epochs", "0"), 1, "sstkern: epochs must be an integer of at least 1, not 0"),
        (("train", "--dropout", "1"), 1, "sstkern: dropout must be a number from 0 to below 1, not 1.0"),
        (("train", "--cell", "average", "--layers", "2"), 2, "--layers: the cell 'average' has no recurrent layer"),
        (
            ("bench", "--cell", "lstm", "--cell", "a:B"),
            2,
            "--cell: fused cells, of sstkern.cells or your own, are timed without torch.nn's",
        ),
        (
            ("bench", "--cell", "mgu", "--cell", "slstm", "--shape", "2,3,6"),
            2,
            "--shape: for slstm, expected a multiple of 4 as the hidden size",
        ),
        (
            ("gradcheck", "--cell", "slstm", "--hidden-size", "6"),
            2,
            "--hidden-size: for slstm, expected a multiple of 4 as the hidden size",
        ),
        (("bench", "--shape", "1,2"), 2, "--shape: expected three positive integers B,T,H"),
        (("gradcheck", "--cell", "lst"), 2, "--cell: 'lst' is unknown; there are lstm, gru, rnn_tanh, rnn_relu, layer_norm_lstm, "),
        (("bench", "--growth", "--memory"), 2, "--growth: has shapes of its own, and is not for --memory"),
        (("bench", "--widths", "--shape", "1,2,100"), 2, "--shape: with --widths, expected a multiple of 64 from 128 on as H, got 100"),
        (("doctor",), 1, "sstkern: torch is not installed"),
    ],
)
def test_help_and_wrong_options_need_no_torch(arguments: tuple[str, ...], status: int, said: str):
    found = started(arguments)
    assert found.returncode == status
    assert said in " ".join((found.stdout + found.stderr).replace("│", " ").split())


def test_the_installed_entry_runs_commands():
    process = start("gradcheck", "--steps", "2", "--dtype", "float64", code="import sstkern_command; sstkern_command.main()")
    said, _ = process.communicate(timeout=100)
    assert said.splitlines()[-1].endswith(" comparisons, 0 wrong")
    assert process.returncode == 0


def test_an_expected_error_is_one_line(monkeypatch):
    monkeypatch.setattr(aot, "HIDDEN_SIZES", (64,))  # the whole table takes seconds
    line = told(call("aot-report", "--target", "sm_90", "--target", "sm_1"))
    assert "target: 'sm_1' is unknown; there are sm_90, sm_80, sm_100, gfx942" in line


def test_a_usage_error_names_what_is_wrong():
    result = call("fly")
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--growth", "--shape", "1,2,3"), "--growth: has shapes of its own, and is not for --shape"),
        (("--growth", "--memory"), "--growth: has shapes of its own, and is not for --memory"),
        (("--growth", "--skewed"), "--growth: has shapes of its own, and is not for --skewed"),
        (("--skewed", "--memory"), "--skewed: has shapes of its own, and is not for --memory"),
        (("--skewed", "--shape", "1,2,3"), "--skewed: has shapes of its own, and is not for --shape"),
        (("--skewed", "--lengths", "full"), "--skewed: has lengths of its own, and is not for --lengths"),
        (("--resets", "--memory"), "--resets: has shapes of its own, and is not for --memory"),
        (("--resets", "--cell", "gru"), "--cell: is not for --resets, which times LSTMs"),
        (("--skewed", "--callers"), "--skewed: has shapes of its own, and is not for --callers"),
        (("--callers", "--dtype", "bfloat16"), "--callers: is in float32, and not for --dtype"),
        (("--callers", "--shape", "1,2,3"), "--callers: has shapes of its own, and is not for --shape"),
        (("--callers", "--lengths", "full"), "--callers: has lengths of its own, and is not for --lengths"),
        (("--seconds", "inf"), "--seconds"),
    ],
)
def test_benchmark_options_that_contradict(options: tuple[str, ...], message: str):
    result = call("bench", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "doctor", "bench", "aot-report"])
def test_every_option_has_help(name):
    command = typer.main.get_command(cli.app).commands[name]
    assert command.help
    assert all(parameter.help for parameter in command.params)
    assert command.help.split(",")[0] in call(name, "--help").stdout


def test_the_gradients_of_a_layer_are_checked(tmp_path):
    result = call("gradcheck", "--cell", "rnn_relu", "--dtype", "float64", "--steps", "3", "--plot", tmp_path / "errors.png")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^ok    d weight_hh_l0_reverse .* numerical  float64   gate h, unit \d, column \d; T 3, B 3", result.stdout, re.MULTILINE
    )
    assert re.fullmatch(r"\d+ comparisons, 0 wrong", result.stdout.splitlines()[-1])
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_gradient_is_exit_code_1(monkeypatch):
    weights = sstkern.GRU._weights
    monkeypatch.setattr(sstkern.GRU, "_weights", lambda layer: [w.detach() if w is layer.bias_hh_l0 else w for w in weights(layer)])
    result = call("gradcheck", "--cell", "gru", "--dtype", "float64", "--steps", "2", "--batch", "2")
    assert result.exit_code == 1
    assert {line.split()[2] for line in result.stdout.splitlines() if line.startswith("WRONG")} == {"bias_hh_l0"}


OWN = """
import torch
from torch import nn

class Leaky(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.hidden_size, self.x = input_size, hidden_size, nn.Linear(input_size, hidden_size)

    def forward(self, x, h):
        return 0.5 * h + torch.tanh(self.x(x))

class Wrong(Leaky):
    def forward(self, x, h):
        return super().forward(x.detach(), h)

def sized(size):
    raise AssertionError
"""


@pytest.fixture
def own_cells(tmp_path, monkeypatch):
    (tmp_path / "own_cells_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_cells_of_a_test"
    sys.modules.pop("own_cells_of_a_test", None)


def test_the_gradients_of_a_cell_of_one_s_own_are_checked(own_cells):
    result = call("gradcheck", "--cell", f"{own_cells}:Leaky", "--dtype", "float64")
    assert result.exit_code == 0, result.output
    tensors = {line.split()[2] for line in result.stdout.splitlines() if line.startswith("ok    d ")}
    assert {"input", "hx", "hx[0]", "hx[1]", "x.weight", "forward_cell.x.bias", "backward_cell.x.weight"} <= tensors
    result = call("gradcheck", "--cell", f"{own_cells}:Wrong", "--dtype", "float64")
    assert result.exit_code == 1
    assert {line.split()[2] for line in result.stdout.splitlines() if line.startswith("WRONG")} == {"input"}


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        (":Leaky", (), "cell: ':Leaky' is unknown"),
        ("no_such_module:Leaky", (), "cell: no_such_module cannot be imported: No module named 'no_such_module'"),
        ("own_cells_of_a_test:None_", (), "cell: the module own_cells_of_a_test has no None_"),
        ("own_cells_of_a_test:sized", (), "cell: own_cells_of_a_test:sized(3, 4) makes no cell: "),
        ("builtins:range", (), "cell: builtins:range(3, 4) makes no cell: cell: expected a torch.nn.Module"),
        ("own_cells_of_a_test:Leaky", ("--layers", "2"), "layers: own_cells_of_a_test:Leaky is checked as 1 layer, got 2"),
        ("mgu", ("--layers", "2"), "layers: mgu is checked as 1 layer, got 2"),
    ],
)
@pytest.mark.usefixtures("own_cells")
def test_a_name_that_leads_to_no_cell_is_told_in_a_line(cell, options, message):
    assert message in told(call("gradcheck", "--cell", cell, *options))


def test_cells_of_the_library_are_checked_on_the_c_engine_alone():
    result = call("gradcheck", "--cell", "mgu", "--engine", "triton")
    assert result.exit_code == 2
    assert "of fused cells, as mgu is one, 'cpu' is checked, got 'triton'" in " ".join(result.stderr.replace("│", "").split())


def test_an_engine_that_cannot_run_is_told():
    assert "backend: 'triton' cannot run here: torch finds no GPU" in told(call("gradcheck", "--engine", "triton"))


def test_the_doctor_prints_the_report(monkeypatch):
    monkeypatch.setattr("sstkern.doctor.report", lambda: [("torch", "2.13"), ("GPU", "none")])
    assert call("doctor").stdout == "torch: 2.13\nGPU: none\n"


@pytest.fixture
def compiled(monkeypatch) -> list[aot.Row]:
    """What "compiling" for sm_90 brings: one row."""
    configuration = aot.Configuration("sm_90", "forward", "lstm", "bfloat16", False, "resident", 1, 64, True)
    sizes = {"BLOCK_H": 64, "BLOCK_B": 16, "BLOCK_K": 64, "CHUNKS": 1, "PRECISION": "ieee", "num_warps": 4, "num_stages": 1}
    code = aot.Code(168, 0, 0, 34816, 0, {"HGMMA": 16}, 0, 0, 0, 0, 0)
    rows = [aot.Row(configuration, sizes, 1.25, code, programs=3)]
    monkeypatch.setattr(aot, "table", {"sm_90": [configuration]}.__getitem__)
    monkeypatch.setattr(aot, "rows", lambda configurations: rows)
    return rows


def test_the_ahead_of_time_report_is_a_line_a_kernel_and_a_file(compiled, tmp_path):
    result = call("aot-report", "--target", "sm_90", "--json", tmp_path / "report.json")
    assert result.exit_code == 0
    target, heading, line, verdict = result.stdout.splitlines()
    assert target == "sm_90"
    assert heading.split()[:3] == ["kernel", "cell", "dtype"]
    values = "forward lstm bfloat16 ieee resident yes 1 64 64x16x64x1 4 1 168 0 0 34816 3 1.2 HGMMA 16"
    assert line.split() == values.split()
    assert verdict == "1 kernels compiled, 0 bars broken"
    (row,) = json.loads((tmp_path / "report.json").read_text())
    assert (row["configuration"]["cell"], row["code"]["tensor_cores"], row["programs"]) == ("lstm", {"HGMMA": 16}, 3)


def test_the_ahead_of_time_report_fails_with_the_bar_that_is_broken(compiled):
    spilled = replace(compiled[0], code=replace(compiled[0].code, stack=16, local=2))
    compiled.append(spilled)
    result = call("aot-report", "--target", "sm_90")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-2:] == [
        "sm_90 forward lstm bfloat16 resident B=1 H=64: spills: 16 bytes of stack, 2 instructions that use it",
        "2 kernels compiled, 1 bars broken",
    ]


def test_without_typer_the_command_says_how_to_get_it():
    process = start("train", code="import sys, runpy; sys.modules['typer'] = None; runpy.run_module('sstkern', run_name='__main__')")
    assert process.communicate(timeout=60) == ("", 'sstkern: typer is not installed: pip install "sstkern[train]"\n')
    assert process.returncode == 1
