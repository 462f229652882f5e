"""The kernels, compiled ahead of time for GPUs that are not there: they keep the bars, and each bar is seen to be broken."""

import dataclasses
import os
from collections.abc import Iterable

import pytest
import torch
import triton
from triton.runtime.driver import driver

from sstkern import engines
from sstkern.cells import CELLS
from sstkern.engines.triton import aot, launch
from sstkern.program import ahead

SAMPLE = [
    (kernel, cell, dtype, False, schedule, 64, 128)
    for kernel in ("forward", "backward")
    for cell, dtype, schedule in (("lstm", "bfloat16", "grid"), ("gru", "float16", "streamed"), ("rnn_tanh", "float32", "stepwise"))
]

# The bars are kept by the compiler that they were set with. Triton 3.7.1, which Python 3.10 has, spills 16 to 184 bytes in eleven of the
# kernels for sm_90, and `aot.broken` finds no invalidation of L1 after a counter is read in its code for gfx942.
bars = pytest.mark.skipif(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9), reason="Triton is older than 3.9")


@pytest.fixture(scope="module", autouse=True)
def _cold_cache(tmp_path_factory):
    before = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    yield
    if before is None:
        del os.environ["TRITON_CACHE_DIR"]
    else:
        os.environ["TRITON_CACHE_DIR"] = before


def largest(table: list[aot.Configuration]) -> list[aot.Configuration]:
    """Of the layers that the table picks a schedule for, the largest of each kind; `make aot` compiles all of them.

    Wherever a kernel comes near the 255 registers there are, the LSTM's needs the most, so bfloat16 stands for the other cells' dtypes,
    and a grid, whose kernels are the largest, for a simple RNN's schedules; ReLU's is tanh's with less to compute. float16's kernels are
    bfloat16's with other conversions, so those of the LSTM's grid stand for all of them.
    """
    found = {}
    for c in sorted(table, key=lambda c: (c.hidden_size, c.batch)):
        match c.cell, c.dtype:
            case "lstm", "float16":
                wanted = c.schedule == "grid"
            case "lstm", _:
                wanted = True
            case "gru", "bfloat16":
                wanted = c.schedule != "stepwise"
            case "rnn_tanh", "bfloat16":
                wanted = c.schedule == "grid"
            case _:
                wanted = False
        if c.picked and wanted:
            found[c.kernel, c.cell, c.dtype, c.tf32, c.schedule] = c
    return list(found.values())


def compiled(monkeypatch: pytest.MonkeyPatch, configurations: Iterable[aot.Configuration]) -> list[aot.Row]:
    """In this process, whose GPU is none again at the end of the test."""
    monkeypatch.setattr(driver, "_active", None)
    return [aot.compiled(c) for c in configurations]


@pytest.fixture(scope="module")
def hopper() -> list[aot.Configuration]:
    return aot.table("sm_90")


@bars
@pytest.mark.parametrize("numbers", aot.NUMBERS, ids=lambda numbers: numbers[0] + " TF32" * numbers[1])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_the_largest_kernels_for_hopper_keep_every_bar(hopper, kernel, numbers, monkeypatch):
    rows = compiled(monkeypatch, (c for c in largest(hopper) if (c.kernel, c.dtype, c.tf32) == (kernel, *numbers)))
    assert {row.configuration.cell for row in rows} == ({"lstm", "gru", "rnn_tanh"} if numbers[0] == "bfloat16" else {"lstm"})
    assert not (faults := aot.broken(rows)), "\n".join(faults)
    assert numbers[0] != "float64" or {name for row in rows for name in row.code.tensor_cores} == {"DMMA"}
    for row in rows:
        c, card = row.configuration, aot.TARGETS["sm_90"].card
        asked = launch.Layer(
            getattr(torch, c.dtype),
            row.sizes["PRECISION"],
            len(CELLS[c.cell].gates),
            c.batch,
            c.hidden_size,
        )
        plan = launch.choose(card, asked, c.kernel == "backward")
        assert plan.schedule == c.schedule == row.sizes["SCHEDULE"]
        assert {"BLOCK_H": plan.block_h, "BLOCK_B": plan.block_b, "num_warps": plan.num_warps}.items() <= row.sizes.items()


@bars
@pytest.mark.parametrize(("target", "cores"), [("sm_80", "HMMA"), ("sm_100", "UTCHMMA"), ("gfx942", "v_mfma")])
def test_kernels_for_other_gpus_compile_fit_and_use_their_tensor_cores(target, cores, monkeypatch):
    rows = compiled(monkeypatch, (aot.Configuration(target, *which, picked=False) for which in SAMPLE))
    assert not (faults := aot.broken(rows)), "\n".join(faults)
    for row in rows:
        assert set(row.code.tensor_cores) == (set() if row.configuration.schedule == "stepwise" else {cores})


def test_rows_come_in_their_order_from_processes_of_their_own():
    configurations = [
        aot.Configuration("sm_80", "forward", "rnn_tanh", dtype, False, "stepwise", 64, 128, False) for dtype in ("float32", "float16")
    ]
    rows = list(aot.rows(configurations))
    assert [row.configuration for row in rows] == configurations
    assert all(row.code.registers > 16 for row in rows), [row.error for row in rows]


SOUND = """
 Function forward:
  REG:168 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:680 TEXTURE:0 SURFACE:0 SAMPLER:0
        /*0000*/                   LDC R1, c[0x0][0x28] ;                    /* 0x00000a00ff017b82 */
                                                                             /* 0x000fe20000000800 */
        /*0010*/              @!P1 LDG.E.128 R16, desc[UR12][R4.64] ;        /* 0x0000000c04109981 */
        /*0020*/                   LDG.E.STRONG.GPU R32, desc[UR12][R180.64] ;
        /*0030*/                   CCTL.IVALL ;
        /*0040*/              @!P2 BRA `(.L_x_1) ;
        /*0050*/                   LDG.E.128.STRONG.GPU R24, desc[UR12][R236.64] ;
        /*0060*/               @P0 LDG.E.128.STRONG.GPU R28, desc[UR12][R236.64+0x100] ;
        /*0070*/                   HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0080*/                   HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0090*/              @!P4 STG.E.128 desc[UR12][R30.64], R24 ;
        /*00a0*/                   MEMBAR.ALL.GPU ;
        /*00b0*/                   ERRBAR;
        /*00c0*/                   REDG.E.ADD.STRONG.GPU desc[UR12][R180.64], R25 ;
        /*00d0*/                   EXIT ;
"""

SOUND_ON_AMD = """
	global_load_dwordx2 v[2:3], v1, s[4:5]
	global_atomic_or v2, v1, v3, s[6:7] sc0
	s_waitcnt vmcnt(0)
	buffer_inv sc1
	buffer_load_dwordx4 v[4:7], v8, s[0:3], 0 offen sc0 nt
	v_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
	buffer_store_dwordx2 v[4:5], v8, s[0:3], 0 offen
	buffer_wbl2 sc1
	s_waitcnt vmcnt(0)
	global_atomic_add v1, v2, s[6:7]
	.amdhsa_next_free_vgpr 230
    .private_segment_fixed_size: 0
    .vgpr_count:     230
"""


def row(text: str = SOUND, target: str = "sm_90", shared: int = 49152, **changes) -> aot.Row:
    """A grid forward of bfloat16 that exchanges 4096 bytes, as `text` says."""
    assembly, gpu = aot.TARGETS[target].assembly, aot.TARGETS[target].gpu
    configuration = aot.Configuration(target, "forward", "lstm", "bfloat16", False, "grid", 64, 64, True)
    configuration = dataclasses.replace(configuration, **changes)
    sizes = {"BLOCK_H": 16, "BLOCK_B": 16, "BLOCK_K": 64, "CHUNKS": 2, "BLOCK_U": 8}
    code = aot.read(text, assembly, threads=4 * gpu.warp_size, shared=shared)
    return aot.Row(configuration, sizes, 0.0, code, programs=aot.programs_at_once(code, 4, aot.TARGETS[target]))


def test_the_figures_are_those_of_the_disassembly():
    assert row().code == aot.Code(
        registers=168,
        stack=0,
        local=0,
        shared=49152,
        tensor_memory=0,
        tensor_cores={"HGMMA": 2},
        acquires=1,
        releases=1,
        unfenced=0,
        past_l1=2 * 16 * 128,
        through_l1=0,
    )
    amd = row(SOUND_ON_AMD, "gfx942").code
    assert (amd.registers, amd.stack, amd.local, amd.tensor_cores) == (230, 0, 0, {"v_mfma": 1})
    assert (amd.acquires, amd.releases, amd.unfenced, amd.past_l1) == (1, 1, 0, 16 * 256)


@pytest.mark.parametrize(
    ("target", "registers", "shared", "tensor_memory", "expected"),
    [
        ("sm_90", 32, 0, 0, 16),  # 64 warps
        ("sm_90", 168, 34816, 0, 3),  # 512 // 168 warps in each quarter
        ("sm_90", 168, 115712, 0, 2),  # 2 * (113 + 1) KB of 228
        ("sm_90", 168, 115713, 0, 1),
        ("sm_90", 255, 232448, 0, 1),
        ("sm_90", 255, 232449, 0, 0),
        ("sm_100", 32, 0, 128, 4),  # of 512 columns
        ("gfx942", 64, 16384, 0, 4),
        ("gfx942", 500, 0, 0, 1),
    ],
)
def test_the_programs_of_a_multiprocessor(target, registers, shared, tensor_memory, expected):
    code = dataclasses.replace(row().code, registers=registers, shared=shared, tensor_memory=tensor_memory)
    assert aot.programs_at_once(code, 4, aot.TARGETS[target]) == expected


LOCAL = "        /*00e0*/                   LDL.LU R1, [R1] ;\n"
SPILLED = SOUND.replace("STACK:0", "STACK:16").replace("LDC R1, c[0x0][0x28]", "STL [R1+0x4], R2")
RELAXED = SOUND.replace("MEMBAR.ALL.GPU", "MEMBAR.ALL.CTA")
THROUGH_L1 = SOUND.replace("LDG.E.128.STRONG.GPU", "LDG.E.128")
HALF_THROUGH_L1 = SOUND.replace("@P0 LDG.E.128.STRONG.GPU", "LDG.E.128")


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (row(SPILLED), "spills: 16 bytes of stack, 1 instructions that use it"),
        (row(SOUND + LOCAL * 5), "spills: 0 bytes of stack, 5 instructions"),
        (row(shared=232449), "does not fit a multiprocessor: 168 registers, 232449 bytes of shared memory of 232448"),
        (row(SOUND.replace("HGMMA.64x16x16", "HMMA.16816")), "has no HGMMA among its tensor-core instructions {'HMMA': 2}"),
        (row(SOUND.replace("HGMMA.64x16x16", "FFMA"), dtype="float16"), "has no HGMMA among its tensor-core instructions {}"),
        (row(SOUND.replace("CCTL.IVALL", "NOP")), "never acquires"),
        (row(SOUND.replace("LDG.E.STRONG.GPU", "LDG.E")), "never acquires"),
        (row(RELAXED), "does not release: 1 additions to a counter have no fence before them, 0 have"),
        (row(SOUND.replace("REDG", "NOP")), "does not release: 0 additions"),
        (row(SOUND.replace("ERRBAR;", "STG.E.128 desc[UR12][R30.64], R24 ;")), "does not release: 1 additions"),
        (row(THROUGH_L1), "loads past L1 only 0 bytes of the 4096"),
        (row(HALF_THROUGH_L1), "loads past L1 only 2048 bytes of the 4096"),
        (row(SOUND.replace("@P0 LDG.E.128.STRONG.GPU", "LDGSTS.E")), "copies through L1: 1 instructions"),
        (row(kernel="backward"), "loads past L1 only 4096 bytes of the 8192"),
        (row(SOUND_ON_AMD.replace("buffer_inv sc1", "s_nop 0"), "gfx942"), "never acquires"),
        (row(SOUND_ON_AMD.replace("buffer_wbl2 sc1", "s_nop 0"), "gfx942"), "does not release"),
        (row(SOUND_ON_AMD, "gfx942", shared=65537), "does not fit a multiprocessor"),
        (dataclasses.replace(row(), code=None, error="PTXASError: no"), "does not compile: PTXASError: no"),
    ],
)
def test_a_broken_bar_is_reported_with_its_row(faulty, message):
    sound = row(cell="gru")
    (line,) = aot.broken([sound, faulty])
    c = faulty.configuration
    assert line.startswith(f"{c.target} {c.kernel} lstm {c.dtype} grid B=64 H=64: {message}")


def test_what_keeps_its_bars_is_not_reported():
    no_exchange = row(SOUND.replace("CCTL", "NOP"), schedule="resident")
    no_product = row(SOUND.replace("HGMMA", "FFMA"), schedule="stepwise")
    float32 = row(SOUND.replace("HGMMA", "FFMA"), dtype="float32", schedule="resident")
    elsewhere = row(SPILLED.replace("HGMMA", "HMMA"), "sm_80")
    assert aot.broken([row(), row(SOUND_ON_AMD, "gfx942"), no_exchange, no_product, float32, elsewhere]) == []


def test_the_table_has_every_kernel_once(hopper):
    cells = [*aot.with_kernels(), "lstm_projected"]
    every = [(kernel, cell, *numbers) for kernel in ("forward", "backward") for cell in cells for numbers in aot.NUMBERS]
    assert {(c.kernel, c.cell, c.dtype, c.tf32) for c in hopper} == set(every)
    assert {c.schedule for c in hopper} == set(launch.SCHEDULES)
    # The stepwise kernels are the same for all sizes.
    by_hand = [which for which in every if which[1] != "lstm_projected"]
    assert [(c.kernel, c.cell, c.dtype, c.tf32) for c in hopper if c.schedule == "stepwise" and not c.generated] == by_hand


def test_interpreted_kernels_are_not_compiled(monkeypatch):
    monkeypatch.setattr(engines, "_INTERPRETING", True)
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set"):
        aot.table("sm_90")


OWN = ["torch.nn:LSTMCell", "sstkern.cells:LayerNormGRUCell"]


@pytest.fixture(scope="module")
def own() -> list[aot.Configuration]:
    return aot.own_table("sm_90", OWN)


def test_the_table_of_own_cells_has_every_size_and_number(own):
    assert {(c.cell, c.kernel, c.dtype, c.hidden_size) for c in own} == {
        (cell, kernel, dtype, size)
        for cell in OWN
        for kernel in ("forward", "backward")
        for dtype in ("bfloat16", "float32")
        for size in aot.OWN_SIZES
    }
    assert {c.schedule for c in own} == {"resident", "grid", "streamed"}


@bars
@pytest.mark.parametrize("cell", OWN)
def test_own_cells_kernels_for_hopper_keep_every_bar(own, cell, monkeypatch):
    rows = compiled(monkeypatch, (c for c in own if (c.cell, c.dtype) == (cell, "bfloat16") and c.hidden_size < 1024))
    assert len(rows) == 4
    assert not (faults := aot.broken(rows)), "\n".join(faults)
    for row in rows:
        assert row.sizes["EXCHANGES"] == (row.configuration.schedule == "grid") == (row.code.acquires > 0)
        assert set(row.code.tensor_cores) <= {"HGMMA", "HMMA"}
        assert row.code.tensor_cores


@bars
def test_a_projections_kernels_for_hopper_keep_every_bar(hopper, monkeypatch):
    """By schedule, of bfloat16."""
    mine = {(c.kernel, c.schedule): c for c in hopper if (c.cell, c.dtype) == ("lstm_projected", "bfloat16")}
    assert set(mine) == {
        ("forward", "resident"),
        ("forward", "grid"),
        ("forward", "streamed"),
        ("backward", "resident"),
        ("backward", "grid"),
        ("backward", "streamed"),
    }
    assert not (faults := aot.broken(compiled(monkeypatch, mine.values()))), "\n".join(faults)


@bars
def test_a_wait_that_is_missing_in_an_own_cells_kernel_is_seen(own, monkeypatch):
    """The barrier of generated kernels is what the bar looks for."""
    grid = next(c for c in own if (c.cell, c.kernel, c.schedule, c.dtype) == (OWN[0], "forward", "grid", "bfloat16"))
    launched = aot._launched(grid)
    assert launched.arguments["EXCHANGES"]
    monkeypatch.setattr(aot, "_launched", lambda *_: launched._replace(arguments=launched.arguments | {"EXCHANGES": False}))
    (row,) = compiled(monkeypatch, [grid])
    row.sizes["EXCHANGES"] = True
    (fault,) = aot.broken([row])
    assert "never acquires" in fault


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module", "No module named 'no_such_module'"),
        ("torch.nn:NoCell", "there is no 'NoCell' in torch.nn"),
        ("torch.nn:Linear", "'torch.nn:Linear' as Linear\\(16, 16\\): "),
        ("math", "math has no cells"),
    ],
)
def test_what_is_no_cell_is_refused(name, reason):
    with pytest.raises(ValueError, match=f"cell: .*{reason}"):
        ahead.cells(name)


def test_a_module_stands_for_its_cells():
    assert ahead.cells("torch.nn") == ["torch.nn:GRUCell", "torch.nn:LSTMCell", "torch.nn:RNNCell"]
