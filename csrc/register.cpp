// Binds the kernels to the operators whose schemas sstkern/operators.py holds.
#include "boxed.h"
#include "capability.h"
#include "layer.h"
#include "program.h"
#include "program_call.h"
#include "registry.h"
#include "team.h"

STABLE_TORCH_LIBRARY_IMPL(sstkern, CPU, m) {
  m.impl("layer", &sstkern::Boxed<&sstkern::layer>::call);
  m.impl("layer_backward", &sstkern::Boxed<&sstkern::layer_backward>::call);
}

STABLE_TORCH_LIBRARY_IMPL(sstkern, CompositeExplicitAutograd, m) {
  m.impl("cpu_level_for", &sstkern::Boxed<&sstkern::level_for>::call);
  m.impl("cpu_capability", &sstkern::Boxed<&sstkern::cpu_capability>::call);
  m.impl("cpu_cell", &sstkern::Boxed<&sstkern::cpu_cell>::call);
  m.impl("cpu_cell_levels", &sstkern::Boxed<&sstkern::cpu_cell_levels>::call);
  m.impl("load_cpu_cells", &sstkern::Boxed<&sstkern::load_cpu_cells>::call);
  m.impl("load_program_library", &sstkern::Boxed<&sstkern::load_program_library>::call);
  m.impl("make_program", &sstkern::Boxed<&sstkern::make_program>::call);
  m.impl("forget_program", &sstkern::Boxed<&sstkern::forget_program>::call);
  m.impl("run_program", &sstkern::Boxed<&sstkern::run_program>::call);
  m.impl("cpu_runs", &sstkern::Boxed<&sstkern::cpu_runs>::call);
  m.impl("cpu_patience", &sstkern::Boxed<&sstkern::set_patience>::call);
  m.impl("cpu_peak", &sstkern::Boxed<&sstkern::cpu_peak>::call);
  m.impl("cpu_bandwidth", &sstkern::Boxed<&sstkern::cpu_bandwidth>::call);
}
