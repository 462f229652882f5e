// The cells' kernels of every instruction set, and which of them this process uses.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"
#include "tensor.h"

namespace sstkern {

template <class T>
struct Found {
  const Kernels<T>& kernels;
  const Products<T>& products;
};

// The best that this process may use (level_for) for tensors of type `given`, which compute in T. Throws ValueError where there is none.
template <class T>
Found<T> find_kernels(std::string_view cell, ScalarType given, int64_t units, int64_t inputs);

// The number of gates of a cell that find_kernels finds.
template <class T>
int64_t gates_of(std::string_view cell, ScalarType given);

// The numbers of gates, states beside h, parameters and saved values of a cell that find_kernels finds, whether its gates' gradients are
// the same, and whether it projects; nothing otherwise.
std::vector<int64_t> cpu_cell(std::string_view cell);

// The instruction sets that a cell has kernels for, whether this process can use them or not.
std::vector<std::string> cpu_cell_levels(std::string_view cell);

// Registers the cells of a shared library (kernels/levels/end.h). Returns their names. Throws ValueError where the library cannot be
// loaded, was compiled with headers of another version, or has a cell that is registered already, or differs from the one of another
// instruction set.
std::vector<std::string> load_cpu_cells(const std::string& path);

// Null where the build has no such level.
const LevelProducts* products_of(std::string_view level);

}  // namespace sstkern
