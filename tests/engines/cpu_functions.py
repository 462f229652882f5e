"""A shared library of the elementwise functions of csrc/kernels/functions.h, called over arrays."""

import ctypes
from pathlib import Path
from unittest import mock

import numpy as np

from sstkern.program import cache, compiler

KERNELS = Path(__file__).parents[2] / "csrc" / "kernels"
TYPES = {"float": np.float32, "double": np.float64}
COUNTS = {np.float32: (1, 4), np.float64: (2, 4)}
"""How many vectors side by side. Four are one unrolled loop more, or less, for either type: each function costs the compiler 30 ms a count.
"""
_SAME_NAME = (
    "neg abs sign reciprocal sqrt rsqrt relu floor ceil round trunc exp expm1 log log1p sin cos tan atan sinh cosh asinh erf sigmoid "
    "tanh silu mish log_sigmoid hardsigmoid hardswish gelu gelu_tanh"
)
_COMPARISONS = "lt le gt ge eq ne"

EXPRESSIONS = {
    **{name: f"{name}<T>(x)" for name in _SAME_NAME.split()},
    **{name: f"{name}<T>(x, y)" for name in ("maximum", "minimum", "atan2", "pow")},
    **{f"{name}_number": f"{name}<T>(x, n)" for name in ("maximum", "minimum", "atan2", "pow")},
    **{f"number_{name}": f"{name}<T>(n, x)" for name in ("maximum", "minimum", "atan2", "pow")},
    **{name: f"numbers<T>({name}<T>(x, y))" for name in (*_COMPARISONS.split(), "logical_and", "logical_or")},
    **{f"{name}_number": f"numbers<T>({name}<T>(x, n))" for name in _COMPARISONS.split()},
    **{f"number_{name}": f"numbers<T>({name}<T>(n, x))" for name in _COMPARISONS.split()},
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "div": "x / y",
    "square": "pow<T>(x, T(2))",
    "softplus": "softplus<T>(x, T(1), T(20))",
    "steep_softplus": "softplus<T>(x, T(4), T(2))",
    "elu": "elu<T>(x, T(1.5), T(1.25), T(0.75))",
    "leaky_relu": "leaky_relu<T>(x, T(0.125))",
    "hardtanh": "hardtanh<T>(x, T(-0.5), T(2))",
    "clamp": "clamp<T>(x, T(-0.5), T(2))",
    "clamp_below": "clamp<T>(x, T(-__builtin_inf()), T(2))",
    "clamp_crossed": "clamp<T>(x, T(2), T(-0.5))",
    "logical_not": "numbers<T>(logical_not<T>(x))",
    "mask_not": "numbers<T>(logical_not<T>(lt<T>(x, y)))",
    "mask_and": "numbers<T>(logical_and<T>(lt<T>(x, y), y))",
    "mask_or": "numbers<T>(logical_or<T>(x, lt<T>(x, y)))",
    "isnan": "numbers<T>(isnan<T>(x))",
    "truth": "numbers<T>(truth<T>(x))",
    "where": "where<T>(lt<T>(x, y), x, y)",
    "where_number": "where<T>(lt<T>(x, y), x, n)",
    "where_numbers": "where<T>(lt<T>(x, y), n, T(2))",
    "number_where": "where<T>(lt<T>(x, y), n, y)",
    "where_mask": "numbers<T>(where<T>(lt<T>(x, y), truth<T>(y), isnan<T>(x)))",
}
"""Expressions of Vectors x and y and a number n. A mask is made 0 and 1."""

_UNIT = """
#define SSTKERN_CELL_LIBRARY
#include "levels/{level}.h"
#include "functions.h"

namespace sstkern {{
namespace SSTKERN_LEVEL {{

template <class T, int Count, class F>
inline void over(const T* x, const T* y, T* out, int64_t size, const F& f) {{
  constexpr int width = Simd<T>::width;
  for (int64_t at = 0; at < size; at += Count * width) {{
    const auto of = [&](const T* from) {{ return each<T, Count>([&](int i) {{ return load(from + at + i * width); }}); }};
    const Vectors<T, Count> result = f(of(x), of(y));
    for (int i = 0; i < Count; ++i) store(out + at + i * width, result.part[i]);
  }}
}}

#define ENTRY(name, T_, Count_, ...)                                                                                            \\
  extern "C" __attribute__((visibility("default"))) void name##_##T_##_##Count_(const T_* x, const T_* y, T_ n, T_* out, int64_t size) {{ \\
    using T = T_;                                                                                                               \\
    using V = Vectors<T, Count_>;                                                                                               \\
    over<T, Count_>(x, y, out, size, [&](const V& x, const V& y) {{ return (void)n, (void)y, __VA_ARGS__; }});                   \\
  }}
{entries}

constexpr CellKernels cells[] = {{{{}}}};

}}
}}

#include "levels/end.h"
"""


def compiled(level: str) -> Path:
    """A shared library of all functions for a level, for both types: in the cache of own cells, so that all workers compile it once."""
    entries = [
        f"ENTRY({name}, {kind}, {count}, {text})"
        for name, text in EXPRESSIONS.items()
        for kind, dtype in TYPES.items()
        for count in COUNTS[dtype]
    ]
    flags = *compiler.FLAGS, "-O3", "-Wall", "-Werror"
    with mock.patch.multiple(cache, FLAGS=flags, _known={}), mock.patch.multiple(compiler, FLAGS=flags, SECONDS=300.0):
        return cache.library(_UNIT.format(level=level, entries="\n".join(entries)), level)


class Functions:
    """The functions of a library, by name, over arrays of any size."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))

    def __call__(self, name: str, x: np.ndarray, y: np.ndarray | float = 0.0, n: float = 0.0, count: int = 4) -> np.ndarray:
        (kind,) = [kind for kind, dtype in TYPES.items() if dtype == x.dtype]
        size, step = x.size, 4 * 64 // x.itemsize  # of vectors of 64 bytes at most
        x, y = (np.resize(np.ascontiguousarray(np.broadcast_to(v, x.shape), x.dtype), -(-size // step) * step) for v in (x, y))
        out = np.empty_like(x)
        number = (ctypes.c_float if kind == "float" else ctypes.c_double)(n)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y)]
        getattr(self.library, f"{name}_{kind}_{count}")(*pointers, number, ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(len(x)))
        return out[:size]
