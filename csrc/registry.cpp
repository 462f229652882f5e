#include "registry.h"

#include <dlfcn.h>

#include <limits>
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

// What `cell` has on a level, or null.
template <class T>
const CellKernels* find(Registry& all, std::string_view cell, std::string_view name) {
  const Level* const level = all.find(name);
  const CellKernels* const kernels = level ? level->find(cell) : nullptr;
  return kernels && of_type(*kernels, T{}).forward ? kernels : nullptr;
}

// On the best level for such calls, or on the best that it has any on.
template <class T>
const CellKernels* best(Registry& all, std::string_view cell, ScalarType given, int64_t units, int64_t inputs) {
  if (const CellKernels* const kernels = find<T>(all, cell, level_for(given, units, inputs))) return kernels;
  for (const std::string& name : allowed_levels(given))
    if (const CellKernels* const kernels = find<T>(all, cell, name)) return kernels;
  return nullptr;
}

constexpr int64_t kMany = std::numeric_limits<int32_t>::max();

template <class T>
std::vector<int64_t> numbers(const Kernels<T>& kernels) {
  return {kernels.shape.gates, kernels.states, kernels.parameters, kernels.saves, kernels.same_gate_gradients, kernels.projects};
}

// Whether both are kernels of one cell, for what they say of it: saved tensors may go from one to the other.
bool agree(const CellKernels& a, const CellKernels& b) {
  const auto doubles = [](const CellKernels& kernels) { return kernels.of_double.forward != nullptr; };
  return numbers(a.of_float) == numbers(b.of_float) && (!doubles(a) || numbers(a.of_double) == numbers(a.of_float)) &&
         (!doubles(b) || numbers(b.of_double) == numbers(b.of_float));
}

// Throws ValueError unless cell number i of the library can be registered beside all others.
void check_new(Registry& all, const CellLibrary& library, int64_t i) {
  const CellKernels& cell = library.cells[i];
  SSTKERN_CHECK_VALUE(cell.of_float.shape.gates > 0, "cells: '", cell.cell, "' has no gates");
  for (int64_t before = 0; before < i; ++before)
    SSTKERN_CHECK_VALUE(std::string_view(library.cells[before].cell) != cell.cell, "cells: '", cell.cell, "' is in the library twice");
  const Level* const own = all.find(cell.level);
  SSTKERN_CHECK_VALUE(!own || !own->find(cell.cell), "cells: '", cell.cell, "' is registered already for ", cell.level);
  for (const Level& level : all.levels)
    if (const CellKernels* const known = level.find(cell.cell))
      SSTKERN_CHECK_VALUE(agree(*known, cell), "cells: '", cell.cell, "' for ", cell.level, " is another cell than the one for ",
                          std::string(level.name));
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
  SSTKERN_CHECK_VALUE(library.version == kKernelsVersion, "cells: compiled with version ", library.version,
                      " of csrc/kernels/kernels.h, and this build has version ", kKernelsVersion, "; compile them again");
  for (int64_t i = 0; i < library.count; ++i) check_new(all, library, i);
  for (int64_t i = 0; i < library.count; ++i) all.level(library.cells[i].level).cells.push_back(&library.cells[i]);
}

const LevelProducts* products_of(std::string_view level) {
  const Level* const found = registry().find(level);
  return found ? found->products : nullptr;
}

template <class T>
Found<T> find_kernels(std::string_view cell, ScalarType given, int64_t units, int64_t inputs) {
  Registry& all = registry();
  const std::shared_lock lock(all.mutex);
  const CellKernels* const found = best<T>(all, cell, given, units, inputs);
  SSTKERN_CHECK_VALUE(found, "cell '", std::string(cell), "' has no CPU kernel for ", given, " that this process can use");
  return {of_type(*found, T{}), of_type(*products_of(found->level), T{})};
}

template Found<float> find_kernels<float>(std::string_view, ScalarType, int64_t, int64_t);
template Found<double> find_kernels<double>(std::string_view, ScalarType, int64_t, int64_t);

template <class T>
int64_t gates_of(std::string_view cell, ScalarType given) {
  return find_kernels<T>(cell, given, kMany, 0).kernels.shape.gates;
}

template int64_t gates_of<float>(std::string_view, ScalarType);
template int64_t gates_of<double>(std::string_view, ScalarType);

std::vector<int64_t> cpu_cell(std::string_view cell) {
  Registry& all = registry();
  const std::shared_lock lock(all.mutex);
  const CellKernels* const found = best<float>(all, cell, ScalarType::Float, kMany, 0);
  if (!found) return {};
  return numbers(found->of_float);
}

std::vector<std::string> cpu_cell_levels(std::string_view cell) {
  Registry& all = registry();
  const std::shared_lock lock(all.mutex);
  std::vector<std::string> levels;
  for (const Level& level : all.levels)
    if (level.find(cell)) levels.emplace_back(level.name);
  return levels;
}

std::vector<std::string> load_cpu_cells(const std::string& path) {
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  SSTKERN_CHECK_VALUE(handle, "cells: cannot load ", path, ": ", last_error());
  const auto* const library = static_cast<const CellLibrary*>(dlsym(handle, "sstkern_cells"));
  SSTKERN_CHECK_VALUE(library, "cells: ", path, " has none: it lacks the symbol sstkern_cells");
  for (int64_t i = 0; library->version == kKernelsVersion && i < library->count; ++i)
    SSTKERN_CHECK_VALUE(products_of(library->cells[i].level), "cells: '", library->cells[i].cell, "' is compiled for '",
                        library->cells[i].level, "', which this build does not have");
  register_cells(*library);
  std::vector<std::string> names;
  for (int64_t i = 0; i < library->count; ++i) names.emplace_back(library->cells[i].cell);
  return names;
}

}  // namespace sstkern
