#include "capability.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <vector>

namespace sstkern {

namespace {

struct Level {
  const char* name;
  bool supported;
  Kernels<float> (*float_kernels)(Cell);
  Kernels<double> (*double_kernels)(Cell);
};

// Best first.
std::vector<Level> levels() {
  std::vector<Level> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw");
  all.push_back({"avx512", fma && avx512, avx512::float_kernels, avx512::double_kernels});
  all.push_back({"avx2", fma && static_cast<bool>(__builtin_cpu_supports("avx2")), avx2::float_kernels, avx2::double_kernels});
#endif
  all.push_back({"baseline", true, baseline::float_kernels, baseline::double_kernels});
  return all;
}

Level choose() {
  const char* forced = std::getenv("SSTKERN_CPU_CAPABILITY");
  std::string allowed;
  for (const Level& level : levels()) {
    if (!level.supported) continue;
    if (forced == nullptr || std::string(forced) == level.name) return level;
    allowed += std::string(allowed.empty() ? "" : ", ") + level.name;
  }
  TORCH_CHECK_VALUE(false, "SSTKERN_CPU_CAPABILITY is '", forced, "'; this machine has: ", allowed);
}

const Level& level() {
  static const Level chosen = choose();
  return chosen;
}

}  // namespace

const std::string& cpu_capability() {
  static const std::string name = level().name;
  return name;
}

template <>
Kernels<float> kernels_for<float>(Cell cell) {
  return level().float_kernels(cell);
}

template <>
Kernels<double> kernels_for<double>(Cell cell) {
  return level().double_kernels(cell);
}

}  // namespace sstkern
