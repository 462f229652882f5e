// Binds the kernels to the operators whose schemas sstkern/operators.py holds.
#include <torch/library.h>

#include "autocast.h"
#include "capability.h"
#include "layer.h"
#include "program.h"
#include "program_call.h"
#include "registry.h"
#include "team.h"

TORCH_LIBRARY_IMPL(sstkern, CPU, m) {
  m.impl("layer", &sstkern::layer);
  m.impl("layer_backward", &sstkern::layer_backward);
}

TORCH_LIBRARY_IMPL(sstkern, CompositeExplicitAutograd, m) {
  m.impl("cpu_level_for", &sstkern::level_for);
  m.impl("cpu_capability", [] { return sstkern::cpu_capability(); });
  m.impl("cpu_cell", &sstkern::cpu_cell);
  m.impl("cpu_cell_levels", &sstkern::cpu_cell_levels);
  m.impl("load_cpu_cells", &sstkern::load_cpu_cells);
  m.impl("load_program_library", &sstkern::load_program_library);
  m.impl("make_program", &sstkern::make_program);
  m.impl("forget_program", &sstkern::forget_program);
  m.impl("run_program", &sstkern::run_program);
  m.impl("cpu_runs", &sstkern::cpu_runs);
  m.impl("cpu_patience", &sstkern::set_patience);
  m.impl("cpu_peak", &sstkern::cpu_peak);
  m.impl("cpu_bandwidth", &sstkern::cpu_bandwidth);
}

TORCH_LIBRARY_IMPL(sstkern, CompositeImplicitAutograd, m) { m.impl("autocast", &sstkern::autocast); }
