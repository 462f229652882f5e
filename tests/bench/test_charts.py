"""Pictures of made-up rows: that they are drawn, with what is in them."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sstkern.bench import cases, charts, growth
from sstkern.bench.own_cases import OwnCase


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *rest, **options: (saved.append(self), save(self, *rest, **options))[1])
    return saved


def described(case: cases.Case) -> dict:
    return {name: getattr(case, name) for name in ("cell", "batch", "steps", "size", "phase", "lengths", "dtype")}


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_ratios(tmp_path: Path, figures: list[Figure]):
    rows = [described(case) | {"ratio": 2.0, "discarded": None} for case in cases.grid(shapes=[(1, 2, 3), (4, 5, 6)])]
    rows[0]["ratio"] = None
    rows[1]["discarded"] = "why"
    paths = charts.ratios(rows, tmp_path / "new")
    assert [path.name for path in paths] == ["ratios-float32.png", "ratios-bfloat16.png"]
    assert all(map(is_png, paths))
    first = figures[0]
    assert [panel.get_title() for panel in first.axes] == [
        f"{phase}, {lengths} lengths" for phase in ("inference", "training") for lengths in ("full", "sst2")
    ]
    assert [label.get_text() for label in first.axes[0].get_yticklabels()] == ["1,2,3", "4,5,6"]
    drawn = [len(panel.get_offsets()) for panel in first.axes[0].collections]
    assert drawn == [1, 0, 2, 0, 2, 0]  # each cell's dots, then its entry of the legend


def test_own_cells(tmp_path: Path, figures: list[Figure]):
    def row(cell: str, steps: int, training: bool, **ms: float) -> dict:
        case = OwnCase(cell, 1, steps, 3, training=training)
        return described(case) | {"engines": {name: {"ms": time} for name, time in ms.items()}, "discarded": None}

    rows = [
        row("a:A", 2, False, sstkern=2.0, loop=8.0, scan=3.0),
        row("b:B", 2, False, sstkern=2.0, loop=6.0),
        row("a:A", 5, True, loop=6.0),
    ]
    assert is_png(charts.own_cells(rows, tmp_path / "new" / "own.png"))
    (figure,) = figures
    assert [panel.get_title() for panel in figure.axes] == [
        f"{phase}, {shape}" for phase in ("inference", "training") for shape in ("1,2,3", "1,5,3")
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a:A", "b:B"]
    loop, _, scan, _ = figure.axes[0].collections  # each peer's dots, then its entry of the legend
    assert loop.get_offsets().tolist() == [[4.0, 0.0], [3.0, 1.0]]
    assert scan.get_offsets().tolist() == [[1.5, 0.0]]
    assert [len(found.get_offsets()) for found in figure.axes[3].collections] == [0, 0, 0, 0]  # ours did not run


def test_the_fastest_way_beside_own_cells(tmp_path: Path, figures: list[Figure]):
    def row(cell: str, batch: int, training: bool, ratio: float | None, discarded: str | None = None) -> dict:
        return described(OwnCase(cell, batch, 2, 3, training=training)) | {"ratio": ratio, "discarded": discarded}

    rows = [row("a:A", 1, False, 8.0), row("a:A", 4, False, 2.0, "why"), row("b:B", 1, False, None), row("b:B", 4, True, 3.0)]
    assert is_png(charts.fastest_of_own_cells(rows, tmp_path / "fastest.png"))
    (figure,) = figures
    inference, training = figure.axes
    assert (inference.get_title(), training.get_title()) == ("inference", "training")
    assert [label.get_text() for label in inference.get_yticklabels()] == ["A", "B"]
    few, _, many, _ = inference.collections  # each shape's dots, then its entry of the legend
    assert (few.get_offsets().tolist(), many.get_offsets().tolist()) == ([[8.0, 0.0]], [[2.0, 0.0]])
    assert [dots.get_facecolors()[0, 3] for dots in (few, many)] == [1, 0]  # filled, hollow
    assert training.collections[2].get_offsets().tolist() == [[3.0, 1.0]]


def test_growth(tmp_path: Path, figures: list[Figure]):
    rows = [
        described(point.case)
        | {"axis": point.axis, "value": point.value, "us_per_token": {"sstkern": 1.0 + point.value, "torch": 2.0}, "discarded": None}
        for point in growth.points(1, ["LSTM", "GRU"], ["inference"])
    ]
    rows[0]["discarded"] = "why"
    paths = charts.growth(rows, tmp_path)
    assert [path.name for path in paths] == ["growth-lstm-inference.png", "growth-gru-inference.png"]
    assert all(map(is_png, paths))
    steps, *_, threads = figures[0].axes
    assert (steps.get_xlabel(), threads.get_xlabel()) == ("time steps", "threads")
    assert list(steps.lines[0].get_ydata()) == [1 + value for value in growth.SWEEPS["steps"]]
    labels = [line.get_label() for line in steps.lines if not line.get_label().startswith("_")]
    assert labels == ["sstkern, full", "sstkern, sst2", "torch, full", "torch, sst2"]
    hollow = [list(line.get_xdata()) for line in steps.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert hollow == [[growth.SWEEPS["steps"][0]]] * 2  # ours and torch's


def test_widths(tmp_path: Path, figures: list[Figure]):
    row = {"cell": "GRU", "phase": "training", "batch": 48, "steps": 37, "threads": 1}
    row |= {"size": [64, 96, 128], "gflops": [40.0, 30.0, 80.0], "share": [1.0, 0.5, 1.0]}
    assert is_png(charts.widths([row, row | {"phase": "inference"}], tmp_path / "widths.png"))
    training, inference = figures[0].axes
    assert (training.get_title(), inference.get_title()) == ("training", "inference")
    rates, expected = training.lines
    assert rates.get_label() == "GRU"
    assert (list(rates.get_xdata()), list(rates.get_ydata())) == ([64, 96, 128], [40, 30, 80])
    assert list(expected.get_ydata()) == [40, 60, 80]


def test_memory(tmp_path: Path, figures: list[Figure]):
    rows = [
        described(cases.Case("LSTM", 1, 2, 3, True, lengths, dtype)) | {"bytes": {"sstkern": 2**21, "torch": 0}}
        for dtype in ("float32", "float16")
        for lengths in cases.LENGTHS
    ]
    paths = charts.memory(rows, tmp_path)
    assert all(map(is_png, paths))
    assert [path.name for path in paths] == ["memory-float32.png", "memory-float16.png"]
    assert "float16" in figures[1].get_suptitle()
    ours, torch, packed = figures[0].axes[0].collections
    assert ours.get_offsets()[0][0] == 2  # MiB
    assert torch.get_offsets()[0][0] > 0  # a logarithm shows it
    assert len(packed.get_offsets()) == 0
