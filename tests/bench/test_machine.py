"""What the report says of the machine."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sstkern.bench import machine


def test_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["sstkern", "bench", "--output", "a b"])
    found = machine.environment()
    assert found["command"] == "sstkern bench --output 'a b'"
    assert (found["torch"], found["threads"]) == (torch.__version__, 1)
    assert found["capability"] == torch.ops.sstkern.cpu_capability()
    assert found["packages"]["onnxruntime"]
    assert found["extension"] == "built"


def test_peak_and_bandwidth_are_what_the_extension_measures(monkeypatch: pytest.MonkeyPatch):
    asked = []
    operators = SimpleNamespace(cpu_peak=lambda: 123.5, cpu_bandwidth=lambda size: asked.append(size) or 40.0)
    monkeypatch.setattr(torch.ops, "sstkern", operators, raising=False)
    assert machine.peak() == 123.5
    assert [machine.bandwidth(5000, 1), machine.bandwidth(5000, 1), machine.bandwidth(5000, 2)] == [40.0] * 3
    assert asked == [5000, 5000]  # once for each number of threads
    assert machine.bandwidth(4095, 1) is None


def test_without_such_an_operator_there_is_no_figure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.ops, "sstkern", SimpleNamespace(), raising=False)
    assert machine.peak() is None
    assert machine.bandwidth(6000, 1) is None

    def declared_only():
        raise NotImplementedError

    monkeypatch.setattr(torch.ops, "sstkern", SimpleNamespace(cpu_peak=declared_only), raising=False)
    assert machine.peak() is None


def test_a_level_that_the_machine_lacks_ends_the_run_at_its_start(monkeypatch: pytest.MonkeyPatch):
    def refused():
        raise ValueError("SSTKERN_CPU_CAPABILITY is 'sse9'")

    monkeypatch.setattr(torch.ops, "sstkern", SimpleNamespace(cpu_capability=refused), raising=False)
    with pytest.raises(ValueError, match="sse9"):
        machine.environment()


def test_the_processor_s_name(tmp_path: Path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert machine._cpu_model(file) == "Some CPU @ 2 GHz"
    assert machine._cpu_model(tmp_path / "none") == machine.platform.machine()


def test_the_rate_of_a_large_product_is_measured_once_for_each_dtype(monkeypatch: pytest.MonkeyPatch):
    machine.product_rate.cache_clear()
    monkeypatch.setattr(machine, "_LARGE", 100)
    monkeypatch.setattr(machine.timing, "block", lambda run, seconds: (run(), [0.004, 0.002, 0.003])[1])
    assert machine.product_rate(torch.float32, 1) == pytest.approx(2 * 100**3 / 0.002 / 1e9)
    monkeypatch.setattr(machine.timing, "block", lambda run, seconds: [0.001])
    assert machine.product_rate(torch.float32, 1) == pytest.approx(1.0)
    assert machine.product_rate(torch.bfloat16, 1) == pytest.approx(2.0)
    machine.product_rate.cache_clear()
