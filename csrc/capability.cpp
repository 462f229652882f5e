#include "capability.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "forked.h"
#include "team.h"

namespace sstkern {

namespace {

struct Level {
  const char* name;
  bool supported;
  Kernels<float> (*float_kernels)(Cell);
  Kernels<float> (*bfloat16_kernels)(Cell);
  Kernels<double> (*double_kernels)(Cell);
  int64_t (*multiply_adds)(int64_t rounds);
  int64_t (*read_all)(const float* from, int64_t count);
};

// Best first.
std::vector<Level> levels() {
  std::vector<Level> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw");
  const auto bf16 = static_cast<bool>(__builtin_cpu_supports("avx512bf16"));
  all.push_back({"avx512_bf16", fma && avx512 && bf16, avx512::float_kernels, avx512_bf16::float_kernels, avx512::double_kernels,
                 avx512::multiply_adds, avx512::read_all});
  all.push_back({"avx512", fma && avx512, avx512::float_kernels, avx512::float_kernels, avx512::double_kernels, avx512::multiply_adds,
                 avx512::read_all});
  all.push_back({"avx2", fma && static_cast<bool>(__builtin_cpu_supports("avx2")), avx2::float_kernels, avx2::float_kernels,
                 avx2::double_kernels, avx2::multiply_adds, avx2::read_all});
#endif
  all.push_back({"baseline", true, baseline::float_kernels, baseline::float_kernels, baseline::double_kernels, baseline::multiply_adds,
                 baseline::read_all});
  return all;
}

Level choose() {
  const char* forced = std::getenv("SSTKERN_CPU_CAPABILITY");
  if (forced != nullptr && *forced == '\0') forced = nullptr;
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

// The best of some rounds of `run(thread, threads)`, which returns how much a thread did: all threads' sum for each second.
template <class Run>
double rate(const Run& run) {
  double best = 0;
  for (int round = 0; round < 8; ++round) {
    std::atomic<int64_t> done{0};
    const auto start = std::chrono::steady_clock::now();
    run_team(at::get_num_threads(), [&](int64_t thread, int64_t threads) { done += run(thread, threads); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(done.load()) / seconds.count());
  }
  return best;
}

}  // namespace

double cpu_peak() {
  const OneThreadIfForked guard;
  const Level& kernels = level();      // here: what it may throw could not leave a parallel region
  constexpr int64_t rounds = 2000000;  // about 5 ms
  return 2e-9 * rate([&kernels](int64_t, int64_t) { return kernels.multiply_adds(rounds); });
}

double cpu_bandwidth(int64_t bytes) {
  TORCH_CHECK_VALUE(bytes >= 4096, "bytes: expected at least 4096, got ", bytes);
  const OneThreadIfForked guard;
  const Level& kernels = level();
  const std::vector<float> memory(bytes / sizeof(float), 1.0f);
  const int64_t size = static_cast<int64_t>(memory.size()), repeats = std::max<int64_t>(1, (int64_t{1} << 28) / bytes);
  return 1e-9 * rate([&](int64_t thread, int64_t threads) {
           const int64_t begin = size * thread / threads, count = size * (thread + 1) / threads - begin;
           int64_t read = 0;
           for (int64_t i = 0; i < repeats; ++i) read += kernels.read_all(memory.data() + begin, count);
           return read * static_cast<int64_t>(sizeof(float));
         });
}

const std::string& cpu_capability() {
  static const std::string name = level().name;
  return name;
}

template <>
Kernels<float> kernels_for<float>(Cell cell, at::ScalarType given) {
  return given == at::kBFloat16 ? level().bfloat16_kernels(cell) : level().float_kernels(cell);
}

template <>
Kernels<double> kernels_for<double>(Cell cell, at::ScalarType) {
  return level().double_kernels(cell);
}

}  // namespace sstkern
