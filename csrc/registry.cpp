#include "registry.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <mutex>
#include <shared_mutex>

#include "capability.h"

namespace sstkern {

namespace {

struct Level {
  std::string_view name;
  const LevelProducts* products = nullptr;
  std::vector<const CellKernels*> cells = {};

  const CellKernels* find(std::string_view cell) const {
    for (const CellKernels* kernels : cells)
      if (cell == kernels->cell) return kernels;
    return nullptr;
  }
};

// Compile units register themselves before any of this file's own variables need be there.
struct Registry {
  std::shared_mutex mutex;
  std::vector<Level> levels;

  // Null where no unit of the level has registered itself.
  Level* find(std::string_view name) {
    for (Level& level : levels)
      if (level.name == name) return &level;
    return nullptr;
  }

  Level& level(std::string_view name) {
    if (Level* const known = find(name)) return *known;
    return levels.emplace_back(Level{name});
  }
};

Registry& registry() {
  static Registry one;
  return one;
}

const Kernels<float>& of_type(const CellKernels& kernels, float) { return kernels.of_float; }
const Kernels<double>& of_type(const CellKernels& kernels, double) { return kernels.of_double; }
const Products<float>& of_type(const LevelProducts& products, float) { return products.of_float; }
const Products<double>& of_type(const LevelProducts& products, double) { return products.of_double; }

// What `cell` has on the best level, or null.
template <class T>
const CellKernels* best(Registry& all, std::string_view cell, at::ScalarType given) {
  for (const std::string& name : allowed_levels(given)) {
    const Level* const level = all.find(name);
    const CellKernels* const kernels = level ? level->find(cell) : nullptr;
    if (kernels && of_type(*kernels, T{}).forward) return kernels;
  }
  return nullptr;
}

// Where its kernels are, in words.
std::string levels_of(Registry& all, std::string_view cell) {
  std::string levels;
  for (const Level& level : all.levels)
    if (level.find(cell)) levels.append(levels.empty() ? "" : ", ").append(level.name);
  return levels.empty() ? "none" : levels;
}

std::string last_error() {
  const char* const error = dlerror();
  return error ? error : "unknown error";
}

}  // namespace

void register_products(const LevelProducts& products) { registry().level(products.level).products = &products; }

void register_cells(const CellLibrary& library) {
  Registry& all = registry();
  const std::unique_lock lock(all.mutex);
  TORCH_CHECK_VALUE(library.version == kKernelsVersion, "cells: compiled with version ", library.version,
                    " of csrc/kernels/kernels.h, and this build has version ", kKernelsVersion, "; compile them again");
  for (int64_t i = 0; i < library.count; ++i)
    TORCH_CHECK_VALUE(!all.level(library.cells[i].level).find(library.cells[i].cell), "cells: '", library.cells[i].cell,
                      "' is registered already for ", library.cells[i].level);
  for (int64_t i = 0; i < library.count; ++i) all.level(library.cells[i].level).cells.push_back(&library.cells[i]);
}

const LevelProducts* products_of(std::string_view level) {
  const Level* const found = registry().find(level);
  return found ? found->products : nullptr;
}

template <class T>
Found<T> find_kernels(std::string_view cell, at::ScalarType given) {
  Registry& all = registry();
  const std::shared_lock lock(all.mutex);
  const CellKernels* const found = best<T>(all, cell, given);
  TORCH_CHECK_VALUE(found, "cell '", std::string(cell), "' has no CPU kernel for ", given, " that this process can use: it has them for ",
                    levels_of(all, cell), ", and this process uses ", cpu_capability(), " or less");
  return {of_type(*found, T{}), of_type(*products_of(found->level), T{})};
}

template Found<float> find_kernels<float>(std::string_view, at::ScalarType);
template Found<double> find_kernels<double>(std::string_view, at::ScalarType);

std::vector<int64_t> cpu_cell(std::string_view cell) {
  Registry& all = registry();
  const std::shared_lock lock(all.mutex);
  const CellKernels* const found = best<float>(all, cell, at::kFloat);
  if (!found) return {};
  const Kernels<float>& kernels = found->of_float;
  return {kernels.shape.gates, kernels.states, kernels.parameters, kernels.saves, kernels.same_gate_gradients};
}

std::vector<std::string> load_cpu_cells(const std::string& path) {
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK_VALUE(handle, "cells: cannot load ", path, ": ", last_error());
  const auto* const library = static_cast<const CellLibrary*>(dlsym(handle, "sstkern_cells"));
  TORCH_CHECK_VALUE(library, "cells: ", path, " has none: it lacks the symbol sstkern_cells");
  for (int64_t i = 0; library->version == kKernelsVersion && i < library->count; ++i)
    TORCH_CHECK_VALUE(products_of(library->cells[i].level), "cells: '", library->cells[i].cell, "' is compiled for '",
                      library->cells[i].level, "', which this build does not have");
  register_cells(*library);
  std::vector<std::string> names;
  for (int64_t i = 0; i < library->count; ++i) names.emplace_back(library->cells[i].cell);
  return names;
}

}  // namespace sstkern
