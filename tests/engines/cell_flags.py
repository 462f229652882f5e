"""How a cell's kernels are compiled apart from the extension, as CONTRIBUTING.md says; warnings are errors."""

FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-DSSTKERN_CELL_LIBRARY",
    "-Wall",
    "-Werror",
]
