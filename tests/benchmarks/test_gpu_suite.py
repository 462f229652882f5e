"""benchmarks/gpu.py: what it plans, what it keeps of it when jobs fail or time runs out, and a dry run of all of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parent)]
import gpu

TIMES = {"ours": {"ms": 1.0}, "cudnn": {"ms": 2.0}, "ratio": 2.0}
TIMED = {variant: dict.fromkeys(gpu.PHASES, TIMES) for variant in ("padded", "lengths")}


@pytest.fixture
def plan() -> gpu.Plan:
    """A job of each kind, of the module gpu_stand_in_jobs."""
    sizes = {"cell": "lstm", "dtype": "tf32", "batch": 4, "steps": 2}
    return gpu.Plan(
        environment=gpu._job("environment", result={"device": "Some GPU 9", "flashrnn": "absent"}),
        checks=[gpu._job("check", cell="gru", schedule="grid", dtype="tf32", result={"ok": True})],
        compiles=[],
        points=[gpu._job("point", **sizes, hidden_size=size, result=TIMED | {"ok": True}) for size in (64, 128)],
        flashrnn=[gpu._job("flashrnn", **sizes, hidden_size=64)],
        processes=1,
    )


def suite(plan: gpu.Plan, folder: Path, seconds: float = 60, **options: bool) -> gpu.Suite:
    return gpu.Suite(plan, folder, seconds, jobs="gpu_stand_in_jobs", **options)


def on_disk(folder: Path) -> dict:
    return json.loads((folder / "some-gpu-9" / "gpu.json").read_text())


class TestPlan:
    def test_every_kernel_is_checked_in_every_dtype(self):
        checks = {(job["cell"], job["schedule"], job["dtype"]) for job in gpu.full_plan().checks if job["job"] == "check"}
        cells = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_projected")
        kernels = {(cell, schedule) for cell in cells for schedule in gpu.SCHEDULES}
        dtypes = ("float16", "bfloat16", "tf32", "float32", "float64")
        assert checks == {(*kernel, dtype) for kernel in kernels for dtype in dtypes}

    def test_every_schedule_has_derivatives_graphs_and_streams(self):
        for kind in ("gradients", "graph", "streams"):
            assert {job["schedule"] for job in gpu.full_plan().checks if job["job"] == kind} == set(gpu.SCHEDULES)

    def test_the_grid_is_timed_once(self):
        points = [tuple(job[axis] for axis in ("cell", "dtype", "batch", "steps", "hidden_size")) for job in gpu.full_plan().points]
        assert len(points) == len(set(points)) == 3 * 3 * 4 * 2 * 6
        assert {point[4] for point in points} == {64, 128, 256, 512, 1024, 2048}

    def test_the_most_telling_points_come_first(self):
        ranked = gpu._by_rank(a=["a0", "a1", "a2"], b=["b0", "b1"])
        assert [tuple(point.values()) for point in ranked[:3]] == [("a0", "b0"), ("a0", "b1"), ("a1", "b0")]
        assert tuple(ranked[-1].values()) == ("a2", "b1")

    def test_points_that_differ_in_time_steps_share_their_kernels(self):
        plan = gpu.full_plan()
        assert len(plan.compiles) == len(plan.points) / 2
        assert all("steps" not in job for job in plan.compiles)


class TestReport:
    def test_results_are_on_disk(self, plan: gpu.Plan, tmp_path: Path):
        suite(plan, tmp_path).run()
        report = on_disk(tmp_path)
        assert report["complete"]
        assert [check["ok"] for check in report["checks"]] == [True]
        assert [(point["hidden_size"], point["padded"]["forward"]["ratio"]) for point in report["points"]] == [(64, 2.0), (128, 2.0)]
        assert report["flashrnn"] == report["left_out"] == []

    @pytest.mark.parametrize("ending", ["raises", "dies", "spoils the device"])
    def test_a_failing_kernel_is_reported_and_the_rest_goes_on(self, plan: gpu.Plan, tmp_path: Path, ending: str):
        suite(replace(plan, checks=[plan.checks[0] | {"ends": ending}]), tmp_path).run()
        report = on_disk(tmp_path)
        assert list(gpu.failures(report)) == ["check gru grid tf32"]
        assert "error" in report["checks"][0]
        assert len(report["points"]) == 2
        assert "0 ok, 1 failed, 0 refused by the launch table, of 1 checks" in gpu.table(report)

    def test_what_time_does_not_allow_is_named(self, plan: gpu.Plan, tmp_path: Path):
        slow = [job | {"seconds": 60} if job["hidden_size"] == 64 else job for job in plan.points]
        suite(replace(plan, points=slow), tmp_path, seconds=4).run()
        report = on_disk(tmp_path)
        assert report["points"] == []
        assert report["left_out"] == ["point lstm tf32 B=4 T=2 H=64", "point lstm tf32 B=4 T=2 H=128"]

    def test_an_interruption_loses_no_result(self, plan: gpu.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def interrupted(result: dict) -> str:
            if "padded" in result and len(on_disk(tmp_path)["points"]) == 1:
                raise KeyboardInterrupt
            return "ok"

        monkeypatch.setattr(gpu, "_outcome", interrupted)
        with pytest.raises(KeyboardInterrupt):
            suite(plan, tmp_path).run()
        report = on_disk(tmp_path)
        assert len(report["points"]) == 1
        assert not report["complete"]

    def test_what_was_left_out_is_done_by_a_resumed_run(self, plan: gpu.Plan, tmp_path: Path):
        suite(replace(plan, points=plan.points[:1]), tmp_path).run()
        before = on_disk(tmp_path)
        resumed = suite(plan, tmp_path, resume=True)
        resumed.run()
        after = on_disk(tmp_path)
        assert after["checks"] == before["checks"]
        assert after["points"][:1] == before["points"]
        assert [point["hidden_size"] for point in after["points"]] == [64, 128]
        assert [job["hidden_size"] for job in resumed.plan.compiles] == [128]
        assert [machine["device"] for machine in after["earlier"]] == ["Some GPU 9"]
        other = replace(plan, environment=plan.environment | {"result": {"device": "Some GPU 9", "torch": "3"}})
        with pytest.raises(RuntimeError, match="--resume: the report has torch None, this machine 3"):
            suite(other, tmp_path, resume=True).run()

    def test_a_machine_without_a_gpu_is_an_error(self, plan: gpu.Plan, tmp_path: Path):
        with pytest.raises(RuntimeError, match="the machine does not answer: ValueError: this job raises"):
            suite(replace(plan, environment=plan.environment | {"ends": "raises"}), tmp_path).run()

    def test_what_the_launch_table_refuses_is_no_failure(self):
        report = {"checks": [{"job": "check", "left_out": "schedule: too large"}], "points": [], "flashrnn": [], "left_out": []}
        assert gpu.failures(report) == {}
        assert "0 ok, 0 failed, 1 refused by the launch table, of 1 checks" in gpu.table(report)

    def test_wrong_results_are_failures(self):
        wrong = {"job": "check", "cell": "gru", "ok": False}
        assert gpu.failures({"checks": [wrong], "points": [], "flashrnn": []}) == {"check gru": "WRONG"}

    def test_the_table_has_geometric_means_and_counts(self):
        ratios = (0.5, 2.0, 8.0)
        points = [
            {"job": "point", "cell": "gru", "dtype": "tf32", "hidden_size": i}
            | {variant: {phase: {"ratio": ratio} for phase in gpu.PHASES} for variant in ("padded", "lengths")}
            for i, ratio in enumerate(ratios)
        ]
        lines = gpu.table({"checks": [], "points": points, "flashrnn": [], "left_out": ["point"]}).splitlines()
        assert lines[2].split() == ["GRU", "tf32", "padded", "3", *["2.00", "0.50", "8.00", "2", "1"] * 2]
        assert lines[-1] == "; ".join(
            [
                "0 ok, 0 failed, 0 refused by the launch table, of 0 checks",
                "3 ok, 0 failed, 0 refused by the launch table, of 3 points",
                "1 left out for lack of time",
            ]
        )


FLASHRNN = '''
import torch
from interpreter import patch_language_once

patch_language_once()  # the first job looks whether this can be imported; the kernels of all jobs are interpreted in its process

def flashrnn(Wx, R, b, function, backend):
    """An LSTM with FlashRNN's arguments: (B, T, G, N, D), (G, N, D, D), (G, N, D); returns the states (S, B, T, N, D), and the last."""
    batch, steps, gates, heads, size = Wx.shape
    assert (gates, heads, R.shape, b.shape) == (4, 1, (4, 1, size, size), (4, 1, size))
    assert (function, backend) == ("lstm", "cuda_fused")
    h = c = Wx.new_zeros(batch, size)
    states = []
    for t in range(steps):
        i, f, g, o = (Wx[:, t, :, 0] + torch.einsum("bp,gdp->bgd", h, R[:, 0]) + b[:, 0]).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(torch.stack([h, c])[:, :, None])
    return torch.stack(states, 2), None
'''


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, Path]:
    folder = tmp_path_factory.mktemp("dry")
    (folder / "flashrnn.py").write_text(FLASHRNN)
    command = [sys.executable, gpu.__file__, "--dry-run", "--minutes", "20", "--output", folder]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": f"{folder}:{Path(__file__).parents[1]}"}
    )
    return ran, folder / "cpu-as-a-stand-in"


class TestDryRun:
    @pytest.fixture
    def report(self, dry_run) -> dict:
        ran, folder = dry_run
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return json.loads((folder / "gpu.json").read_text())

    def test_everything_ran(self, report: dict):
        plan = gpu.dry_plan()
        assert report["complete"]
        assert report["left_out"] == []
        for section, jobs in {"checks": plan.checks, "points": plan.points, "flashrnn": plan.flashrnn}.items():
            assert [gpu._label(result) for result in report[section]] == [gpu._label(job) for job in jobs]
        assert all(result["ok"] for result in report["checks"] + report["points"])

    def test_the_environment_is_described(self, report: dict):
        import torch

        assert report["environment"]["torch"] == torch.__version__
        assert all(rate > 0 for rate in report["environment"]["measured"].values())

    def test_errors_are_beside_those_of_torch(self, report: dict):
        check = next(check for check in report["checks"] if (check["job"], check.get("dtype")) == ("check", "float32"))
        for variant in ("padded", "lengths", "lengths_on_device"):
            assert check[variant]["same_bits"]
            for part in ("forward", "backward"):
                assert 1e-9 < check[variant]["ours"][part] < 1e-6
                assert 1e-9 < check[variant]["cudnn"][part] < 1e-6

    def test_what_surrounds_a_layer_in_pytorch_is_checked(self, report: dict):
        (check,) = (check for check in report["checks"] if check["job"] == "in_pytorch")
        assert set(check["errors"]) == {"each sample", "compiled", "recompute"}

    def test_ratios_are_of_the_times(self, report: dict):
        (point,) = report["points"]
        for times in (point[variant][phase] for variant in ("padded", "lengths") for phase in gpu.PHASES):
            assert times["ratio"] == times["cudnn"]["ms"] / times["ours"]["ms"]
            assert times["predicted_h200_ms"] > 0
        assert 0 < point["padded"]["difference"]["backward"] < 1e-2
        assert point["lengths"]["forward"]["cudnn_prepacked"]["ms"] > 0
        assert point["schedules"] == ["resident"]

    def test_flashrnn_is_timed_where_it_can_be_imported(self, report: dict):
        assert report["environment"]["flashrnn"] == "importable"
        times = report["flashrnn"][0]["padded"]["forward_backward"]
        assert times["ratio"] == times["flashrnn"]["ms"] / times["ours"]["ms"]

    def test_a_picture_and_a_table_come_last(self, report: dict, dry_run):
        ran, folder = dry_run
        assert (folder / "gpu.png").read_bytes().startswith(b"\x89PNG")
        assert ran.stdout.splitlines()[-1].startswith("7 ok, 0 failed, 0 refused by the launch table, of 7 checks; 1 ok, 0 failed,")


def test_a_dry_run_of_own_cells(tmp_path: Path):
    command = [sys.executable, gpu.__file__, "--own-cells", "--dry-run", "--minutes", "20", "--output", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "cpu-as-a-stand-in" / "own-cells.json").read_text())
    assert report["complete"]
    assert report["left_out"] == []
    assert [check["ok"] for check in report["checks"]] == [True, True]
    assert 1e-9 < report["checks"][0]["4"]["ours"]["backward"] < 1e-5
    lstm, normalised = report["own_cells"]
    assert lstm["failed"] == normalised["failed"] == {}
    assert set(lstm["times"]["forward_backward"]) - set(normalised["times"]["forward_backward"]) == {"hand_written", "cudnn"}
    for times in (*lstm["times"].values(), *normalised["times"].values()):
        assert {"loop", "compiled_step", "compiled_step_graph", "scan", "ours_graph"} < set(times)
        for of_way in times.values():
            assert of_way["ratio"] == of_way["ms"] / times["ours"]["ms"]
    assert "time / ours: forward: " in ran.stdout
