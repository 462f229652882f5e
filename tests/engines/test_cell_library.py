"""Kernels of cells that the library does not have: each is one header, compiled apart from it, and registered at run time."""

import dataclasses
import os
import platform
import re
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from cell_flags import FLAGS
from layers import only
from own_cells import COUPLED, PEEPHOLE, PEEPHOLES

import sstkern
from sstkern import cells, engines
from sstkern.cells import PROJECTION, RECURRENT, Cell, Weight
from sstkern.modules import Recurrent
from sstkern.testing import gradcheck

HERE = Path(__file__).parent / "cells"
KERNELS = Path(__file__).parents[2] / "csrc" / "kernels"
SIZE = 9  # no multiple of a vector's width


class PeepholeLSTM(Recurrent):
    cell = dataclasses.replace(PEEPHOLE, name="peephole_lstm")


class CoupledLSTM(Recurrent):
    cell = dataclasses.replace(COUPLED, name="coupled_lstm")


LAYERS = [PeepholeLSTM, CoupledLSTM]


def compiled(unit: str, folder: Path, *options: str) -> Path:
    """A shared library of the text of a compile unit."""
    (folder / "unit.cpp").write_text(unit)
    library = folder / "cells.so"
    command = [os.environ.get("CXX", "c++"), *FLAGS, f"-I{KERNELS}", f"-I{HERE}", "unit.cpp", "-o", str(library), *options]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return library


def unit(header: str, level: str) -> str:
    return f'#include "levels/{level}.h"\n#include "{header}"\n#include "levels/end.h"\n'


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The coupled LSTM is compiled for every machine, the other one for this machine's instruction set."""
    level = engines.cpu.level()
    before, found = processor_seconds(), {}
    for header, target in (("peephole_lstm.h", level), ("coupled_lstm.h", "baseline")):
        found[header] = compiled(unit(header, target), tmp_path_factory.mktemp("cells"), "-MD", "-MF", "headers")
    assert processor_seconds() - before < 60  # 10 on a quiet machine
    assert engines.cpu.load_cells(found["peephole_lstm.h"]) == ["peephole_lstm"]
    assert engines.cpu.load_cells(str(found["coupled_lstm.h"])) == ["coupled_lstm"]
    return found


@pytest.fixture(autouse=True)
def registered(libraries: dict[str, Path]):
    for layer in LAYERS:
        cells.register(layer.cell)
    yield
    for layer in LAYERS:
        del cells._registered[layer.cell.name]


def headers_of_bfloat16s_own(folder: Path) -> str:
    (folder / "unit.cpp").write_text(unit("peephole_lstm.h", "avx512_bf16"))
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-M", f"-I{KERNELS}", f"-I{HERE}", "unit.cpp"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_headers_of_kernels_are_all_it_takes(libraries: dict[str, Path], tmp_path: Path):
    listed = [(library.parent / "headers").read_text() for library in libraries.values()]
    if platform.machine() == "x86_64":
        listed.append(headers_of_bfloat16s_own(tmp_path))
    for text in listed:
        headers = [Path(word) for word in text.split() if word.endswith(".h")]
        own = [header for header in headers if header.is_relative_to(KERNELS) or header.is_relative_to(HERE)]
        assert KERNELS / "recurrence.h" in own
        # The C library's and the compiler's own, for integers and vectors; neither C++'s nor torch's.
        others = [header for header in headers if header not in own]
        assert not [header for header in others if "torch" in header.parts or "c++" in header.parts]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_values_and_gradients(kind: type[Recurrent], bidirectional: bool):
    torch.manual_seed(0)
    layer = kind(4, SIZE, 2, bidirectional=bidirectional)
    with only("cpu"):
        report = gradcheck(layer, engine="cpu", dtypes=[torch.float64, torch.float32, torch.bfloat16], shapes=[(1, 1), (5, 3)], elements=5)
    assert report.ok, report.table()
    gradients = {row.tensor for row in report.rows if row.against == "numerical"}
    assert {f"d {name}" for name, _ in layer.named_parameters()} < gradients
    assert {row.against for row in report.rows if "lengths" in row.case} == {"numerical", "reference", "float64"}


def test_many_rows_and_units_in_any_number_of_threads():
    torch.manual_seed(0)
    layer, x = PeepholeLSTM(20, 70, dtype=torch.float64), torch.randn(12, 50, 20, dtype=torch.float64, requires_grad=True)
    lengths, inputs, threads = torch.randint(0, 13, (50,)), [x, *layer.parameters()], torch.get_num_threads()
    found = {}
    try:
        for engine, count in (("reference", threads), ("cpu", 1), ("cpu", 2)):
            torch.set_num_threads(count)
            with sstkern.backend(engine):
                output, (h, c) = layer(x, lengths=lengths)
            found[engine, count] = [output, h, c, *torch.autograd.grad((output * output).sum() + (h * c).sum(), inputs)]
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, found["cpu", 1], found["cpu", 2]))
    for ours, right in zip(found["cpu", 1], found["reference", threads], strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-11, atol=1e-11)


def test_in_pytorch_as_any_layer():
    torch.manual_seed(0)
    layer, x = PeepholeLSTM(3, SIZE, dtype=torch.float64), torch.randn(6, 4, 3, dtype=torch.float64)
    weights = dict(layer.named_parameters())

    def loss(weights: dict, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0].square().sum()

    with only("cpu"):
        of_samples = torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, x[:, :, None])
    for b in range(4):
        for name, gradient in zip(weights, torch.autograd.grad(loss(weights, x[:, b : b + 1]), [*weights.values()]), strict=True):
            torch.testing.assert_close(of_samples[name][b], gradient, rtol=1e-12, atol=1e-13)
    with only("cpu"):
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0], layer(x)[0])
    h = torch.zeros(1, 4, SIZE, dtype=torch.float64)
    call = (layer.cell.name, x, [*weights.values()], [h, h], torch.tensor([6, 0, 2, 3]), True, False, 24)
    torch.library.opcheck(torch.ops.sstkern.layer, call)


def test_which_engine_has_it():
    found = engines.support(PeepholeLSTM.cell)
    assert found["reference"] is None
    assert found["cpu"] is None
    assert found["triton"] is not None
    assert engines.lacks_cell("triton", "peephole_lstm") == "it has no kernel for the cell 'peephole_lstm'"
    assert engines.cpu.kernels("peephole_lstm") == (4, 1, 3, 4, True, True)
    assert engines.cpu.kernels("coupled_lstm") == (3, 1, 0, 3, True, True)
    assert engines.cpu.kernels("another") is None


def lacks(cell: Cell, **changes: object) -> str | None:
    return engines.cpu.lacks(dataclasses.replace(cell, **changes))


def test_kernels_of_another_cell_are_refused():
    cell = PeepholeLSTM.cell
    assert lacks(cell) is None
    different = {
        "gates 3 in the definition, 4 in the kernel": {"gates": ("i", "f", "g")},
        "states beside h 0 in the definition, 1 in the kernel": {"states": ("h",)},
        "parameters 0 in the definition, 3 in the kernel": {"parameters": ()},
        "same_gate_gradients False in the definition, True in the kernel": {"same_gate_gradients": False},
    }
    for difference, change in different.items():
        assert lacks(cell, **change) == f"its kernel of 'peephole_lstm' is another cell's: {difference}"
    reads_h = engines.cpu.lacks(dataclasses.replace(cells.CELLS["gru"], stages=(RECURRENT, PROJECTION)))
    assert reads_h.startswith("its kernel of 'gru' is another cell's")
    wide = (*cell.parameters[:2], Weight("weight_co", ("H", "H")))
    assert lacks(cell, parameters=wide) == "its kernels take parameters of shape (H,) only, and 'peephole_lstm' has others"


def test_sizes_are_checked_before_memory_is_touched():
    layer = PeepholeLSTM(3, SIZE)
    weights = [weight.detach() for weight in layer.parameters()]
    h = torch.zeros(1, 2, SIZE)

    def call(weights: list) -> None:
        torch.ops.sstkern.layer(layer.cell.name, torch.zeros(4, 2, 3), weights, [h, h], None, True, False, None)

    call(weights)
    for place in range(-len(PEEPHOLES), 0):
        wrong = list(weights)
        wrong[place] = torch.zeros(SIZE - 1)
        with pytest.raises(RuntimeError, match=r"the cell's own parameters: expected shape \[9\], got \[8\]"):
            call(wrong)
    with pytest.raises(RuntimeError, match=r"weights: expected 7 .* for each direction, got 6 for 1 direction\(s\)"):
        call(weights[:-1])


LIBRARY = """
#include "kernels.h"
using namespace sstkern;
template <class T> constexpr Kernels<T> kernels(int gates, int states) {{ return {{{{gates, 1}}, states, 0, 3, true, true}}; }}
constexpr CellKernels cells[] = {{{cells}}};
extern "C" __attribute__((visibility("default"))) const CellLibrary sstkern_cells{{{version}, cells, sizeof(cells) / sizeof(CellKernels)}};
"""
NEW = '{"new_cell", "baseline", kernels<float>(3, 1), kernels<double>(3, 1)}'
REFUSED = {
    "compiled with version 0 of csrc/kernels/kernels.h, and this build has version 7; compile them again": ("0", NEW),
    "'new_cell' is in the library twice": ("kKernelsVersion", f"{NEW}, {NEW}"),
    "'new_cell' has no gates": ("kKernelsVersion", NEW.replace("3, 1", "0, 1")),
    "'new_cell' is compiled for 'sse9', which this build does not have": ("kKernelsVersion", NEW.replace("baseline", "sse9")),
    "'lstm' is registered already for baseline": ("kKernelsVersion", NEW.replace("new_cell", "lstm")),
}
if platform.machine() == "x86_64":  # elsewhere there is one level
    other = NEW.replace("new_cell", "coupled_lstm").replace("baseline", "avx512").replace("3, 1", "3, 2")
    REFUSED["'coupled_lstm' for avx512 is another cell than the one for baseline"] = ("kKernelsVersion", other)


@pytest.mark.parametrize("message", REFUSED)
def test_cells_that_do_not_fit_are_refused(message: str, tmp_path: Path):
    version, given = REFUSED[message]
    library = compiled(LIBRARY.format(version=version, cells=given), tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"cells: {message}")):
        engines.cpu.load_cells(library)
    assert engines.cpu.kernels("new_cell") is None


def test_what_is_no_library_of_cells_is_refused(libraries: dict[str, Path], tmp_path: Path):
    with pytest.raises(ValueError, match=r"cells: cannot load /nowhere/cells.so: .*No such file"):
        engines.cpu.load_cells("/nowhere/cells.so")
    with pytest.raises(ValueError, match=r"cells: .*cells.so has none: it lacks the symbol sstkern_cells"):
        engines.cpu.load_cells(compiled("int nothing;", tmp_path))
    with pytest.raises(ValueError, match="cells: 'coupled_lstm' is registered already for baseline"):
        engines.cpu.load_cells(libraries["coupled_lstm.h"])


def test_a_path_is_of_the_current_folder(libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(libraries["coupled_lstm.h"].parent)
    with pytest.raises(ValueError, match="'coupled_lstm' is registered already"):  # and so was found
        engines.cpu.load_cells("cells.so")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another architecture has one instruction set")
def test_kernels_that_this_process_cannot_use_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = compiled(
        LIBRARY.format(version="kKernelsVersion", cells=NEW.replace("new_cell", "far").replace("baseline", "avx512")), tmp_path
    )
    assert engines.cpu.load_cells(library) == ["far"]
    monkeypatch.setattr(engines.cpu, "kernels", lambda name: None)  # as on a machine without AVX-512
    told = f"its kernels for the cell 'far' are for avx512, and this process uses {engines.cpu.level()} or less for float32"
    assert lacks(PeepholeLSTM.cell, name="far") == told
