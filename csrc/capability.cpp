#include "capability.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "arguments.h"
#include "forked.h"
#include "registry.h"
#include "team.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sstkern {

namespace {

struct Level {
  std::string name;
  bool supported;
};

#if defined(__x86_64__)
// Not every compiler knows it in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

// Best first: each contains those after it.
std::vector<Level> levels() {
  std::vector<Level> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw");
  const auto bf16 = static_cast<bool>(__builtin_cpu_supports("avx512bf16"));
  all.push_back({"avx512_bf16", fma && avx512 && bf16});
  all.push_back({"avx512", fma && avx512});
  all.push_back({"avx2", fma && has_f16c() && static_cast<bool>(__builtin_cpu_supports("avx2"))});
#endif
  all.push_back({"baseline", true});
  return all;
}

// What the environment asks for, or null.
const char* forced_level() {
  const char* const forced = std::getenv("SSTKERN_CPU_CAPABILITY");
  return forced != nullptr && *forced != '\0' ? forced : nullptr;
}

// The level of this process and all below.
std::vector<std::string> choose() {
  const char* const forced = forced_level();
  std::string allowed;
  std::vector<std::string> chosen;
  for (const Level& level : levels()) {
    if (!level.supported) continue;
    if (!chosen.empty() || forced == nullptr || forced == level.name) chosen.push_back(level.name);
    allowed += std::string(allowed.empty() ? "" : ", ") + level.name;
  }
  SSTKERN_CHECK_VALUE(!chosen.empty(), "SSTKERN_CPU_CAPABILITY is '", forced, "'; this machine has: ", allowed);
  return chosen;
}

const std::vector<std::string>& chosen() {
  static const std::vector<std::string> all = choose();
  return all;
}

// What measures a core. avx512_bf16 has none of its own.
const LevelProducts& measures() {
  for (const std::string& level : allowed_levels(ScalarType::Float))
    if (const LevelProducts* const products = products_of(level)) return *products;
  throw std::logic_error("sstkern was built without kernels");
}

// The best of some rounds of `run(thread, threads)`, which returns how much a thread did: all threads' sum for each second.
template <class Run>
double rate(const Run& run) {
  double best = 0;
  for (int round = 0; round < 8; ++round) {
    std::atomic<int64_t> done{0};
    const auto start = std::chrono::steady_clock::now();
    run_team(most_threads(), [&](int64_t thread, int64_t threads) { done += run(thread, threads); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(done.load()) / seconds.count());
  }
  return best;
}

}  // namespace

double cpu_peak() {
  const OneThreadIfForked guard;
  const LevelProducts& level = measures();  // here: what it may throw could not leave a parallel region
  constexpr int64_t rounds = 2000000;       // about 5 ms
  return 2e-9 * rate([&level](int64_t, int64_t) { return level.multiply_adds(rounds); });
}

double cpu_bandwidth(int64_t bytes) {
  SSTKERN_CHECK_VALUE(bytes >= 4096, "bytes: expected at least 4096, got ", bytes);
  const OneThreadIfForked guard;
  const LevelProducts& level = measures();
  const std::vector<float> memory(bytes / sizeof(float), 1.0f);
  const int64_t size = static_cast<int64_t>(memory.size()), repeats = std::max<int64_t>(1, (int64_t{1} << 28) / bytes);
  return 1e-9 * rate([&](int64_t thread, int64_t threads) {
           const int64_t begin = size * thread / threads, count = size * (thread + 1) / threads - begin;
           int64_t read = 0;
           for (int64_t i = 0; i < repeats; ++i) read += level.read_all(memory.data() + begin, count);
           return read * static_cast<int64_t>(sizeof(float));
         });
}

const std::string& cpu_capability() { return chosen().front(); }

const std::vector<std::string>& allowed_levels(ScalarType given) {
  static const std::vector<std::string> without_bf16(chosen().begin() + (cpu_capability() == "avx512_bf16"), chosen().end());
  return given == ScalarType::BFloat16 ? chosen() : without_bf16;
}

// Backward of 64 sequences, 20 steps, 8 inputs and 8 units: AVX-512 takes 1.12 times as long as AVX2 for an LSTM, 1.13 for a GRU, 1.07 for
// an RNN; with 32 inputs 0.96, 0.97 and 0.98, with 12 units 0.87 (AMD EPYC, one thread).
const std::string& level_for(ScalarType given, int64_t units, int64_t inputs) {
  static const bool forced = forced_level() != nullptr;
  const std::vector<std::string>& allowed = allowed_levels(given);
  const int64_t size = size_of(compute_type(given));
  const bool few = units * size <= 32 && inputs * size <= 3 * 32;  // bytes of AVX2's vectors
  const auto narrow = std::find(allowed.begin(), allowed.end(), "avx2");
  return !forced && few && allowed.front() == "avx512" && narrow != allowed.end() ? *narrow : allowed.front();
}

}  // namespace sstkern
