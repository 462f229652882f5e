// Ends a compile unit: first a header of this folder, then a cell's (cells/) or products.h, then this one. What the unit holds registers
// itself when its library is loaded: code that runs on every machine, and so is compiled for the baseline.
#include "kernels.h"

#ifdef SSTKERN_TARGET
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#if defined(SSTKERN_PROGRAM)  // written by sstkern/program/cpp.py; a library of its own
extern "C" __attribute__((visibility("default"))) const sstkern::ProgramLibrary sstkern_program = sstkern::SSTKERN_LEVEL::program;
#elif defined(SSTKERN_PRODUCTS)
static const bool registered = (sstkern::register_products(sstkern::SSTKERN_LEVEL::level_products), true);
#else
namespace sstkern {
constexpr CellLibrary library{kKernelsVersion, SSTKERN_LEVEL::cells, sizeof(SSTKERN_LEVEL::cells) / sizeof(CellKernels)};
}
#if defined(SSTKERN_CELL_LIBRARY)  // a library of its own, which sstkern.engines.cpu.load_cells loads
extern "C" __attribute__((visibility("default"))) const sstkern::CellLibrary sstkern_cells = sstkern::library;
#else
static const bool registered = (sstkern::register_cells(sstkern::library), true);
#endif
#endif
