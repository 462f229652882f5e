import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import busy


def test_it_says_what_two_threads_are_worth_beside_others(monkeypatch, capsys):
    threads = torch.get_num_threads()
    for name, value in (("SHAPES", ((1, 5, 8),)), ("SECONDS", 0.01), ("ROUNDS", 1)):
        monkeypatch.setattr(busy, name, value)
    started = []
    popen = busy.subprocess.Popen
    monkeypatch.setattr(busy.subprocess, "Popen", lambda *given: started.append(popen(*given)) or started[-1])
    try:
        busy.main()
    finally:
        torch.set_num_threads(threads)
    rows = [line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [label for label, _ in rows] == [f"{count}, (1, 5, 8), {phase}" for count in (0, 1, 2) for phase in ("inference", "training")]
    for _, figures in rows:
        one, two, ratio = map(float, figures.split(", "))
        assert abs(ratio - one / two) < 0.02 + 0.02 * ratio / min(one, two)  # all three are rounded
    assert len(started) == 3
    assert all(process.poll() is not None for process in started)
