"""How csrc/kernels cut a width that is no multiple of anything: into panels, among threads, and a vector at the last unit."""

import ctypes
import os
import subprocess
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from cell_flags import FLAGS
from cpu_functions import KERNELS, TYPES

LEVELS = [
    *["avx512"] * torch.cpu._is_avx512_supported(),
    *["avx2"] * torch.cpu._is_avx2_supported(),
    "baseline",
]
TILES = {"16 registers": (2, 3), "32 registers": (4, 4)}
"""Vectors of a tile's row as a rule, and at most."""
_UNIT = """
#include "levels/{level}.h"
#include "vec.h"

namespace sstkern {{
namespace SSTKERN_LEVEL {{

#define ENTRY extern "C" __attribute__((visibility("default")))

template <class T>
void cut(const T* from, T* loaded, T* stored, int64_t count) {{
  const Vec<T> v = load(from, count);
  store(loaded, v);
  store(stored, v, count);
}}
ENTRY void cut_float(const float* from, float* loaded, float* stored, int64_t count) {{ cut(from, loaded, stored, count); }}
ENTRY void cut_double(const double* from, double* loaded, double* stored, int64_t count) {{ cut(from, loaded, stored, count); }}
ENTRY int64_t vector_bytes() {{ return SSTKERN_VECTOR_BYTES; }}

ENTRY int64_t begins(int64_t vectors, int tile, int widest, int64_t threads, int64_t* at) {{
  const Panels panels = share_panels(vectors, count_tiles(vectors, tile, widest), threads);
  for (int64_t panel = 0; panel <= panels.count; ++panel) at[panel] = panels.begin(panel);
  return panels.count;
}}

constexpr CellKernels cells[] = {{{{}}}};

}}
}}

#include "levels/end.h"
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    def compiled(level: str) -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp(level)
        (folder / "panels.cpp").write_text(_UNIT.format(level=level))
        command = [os.environ.get("CXX", "c++"), *FLAGS, f"-I{KERNELS}", "panels.cpp", "-o", "panels.so"]
        subprocess.run(command, cwd=folder, check=True, timeout=300)
        return ctypes.CDLL(str(folder / "panels.so"))

    return cache(compiled)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", TYPES)
def test_a_vector_is_cut_off_after_any_lane(level: str, kind: str, library):
    kernels = library(level)
    width = kernels.vector_bytes() // np.dtype(TYPES[kind]).itemsize
    given = np.arange(1, width + 3, dtype=TYPES[kind])
    for count in range(1, width + 2):
        loaded, stored = np.full(width, -1, given.dtype), np.full(width + 2, -1, given.dtype)
        getattr(kernels, f"cut_{kind}")(*(ctypes.c_void_p(array.ctypes.data) for array in (given, loaded, stored)), ctypes.c_int64(count))
        lanes = min(count, width)
        assert loaded.tolist() == [*given[:lanes], *[0] * (width - lanes)]
        assert stored.tolist() == [*given[:lanes], *[-1] * (width + 2 - lanes)]


def begins(kernels: ctypes.CDLL, vectors: int, tile: tuple[int, int], threads: int) -> list[int]:
    """The first vector of each panel, and the end."""
    at = (ctypes.c_int64 * (vectors + 2))()
    count = kernels.begins(ctypes.c_int64(vectors), *tile, ctypes.c_int64(threads), at)
    return list(at[: count + 1])


@pytest.mark.parametrize("registers", TILES)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_panels_and_threads_have_about_as_much_each(registers: str, threads: int, library):
    tile, widest = TILES[registers]
    for vectors in range(1, 60):
        at = begins(library("baseline"), vectors, (tile, widest), threads)
        widths = [end - begin for begin, end in pairwise(at)]
        assert (at[0], at[-1]) == (0, vectors)
        assert 1 <= min(widths) <= max(widths) <= min(widest, min(widths) + 1)
        panels = len(widths)
        parts = [at[panels * (part + 1) // threads] - at[panels * part // threads] for part in range(threads)]
        assert max(parts) - min(parts) <= 1
        if threads == 1:
            assert panels == -(-vectors // tile) or (widest > tile and panels == max(1, vectors // tile))
            assert min(widths) > 1 or vectors == 1


def test_no_columns_are_one_panel_of_nothing(library):
    assert begins(library("baseline"), 0, (2, 3), 2) == [0, 0]
