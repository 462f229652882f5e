// What a core can do at most, to compare kernels with: multiply-adds on registers alone, and reading memory.
#pragma once

#include "vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Chains that hide each other's latency, in registers.
constexpr int kChains = 12;

// Keeps a value in a register, and the compiler from knowing it.
template <class V>
inline void opaque(V& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#else
  asm volatile("" : "+w"(value));
#endif
}

int64_t multiply_adds(int64_t rounds) {
  Vec<float> sum[kChains];
  const Vec<float> factor = broadcast<float>(0.5f), more = broadcast<float>(1.0f);
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) {
    sum[i] = more;
    opaque(sum[i]);
  }
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      sum[i] = fma_of(sum[i], factor, more);
      opaque(sum[i]);
    }
  return rounds * kChains * Simd<float>::width;
}

// Whole groups of 8 vectors only.
int64_t read_all(const float* from, int64_t count) {
  constexpr int width = Simd<float>::width, at_once = 8;
  int64_t done = 0;
  for (; done + at_once * width <= count; done += at_once * width) {
    Vec<float> values[at_once];
#pragma GCC unroll 8
    for (int i = 0; i < at_once; ++i) {
      values[i] = load(from + done + i * width);
      opaque(values[i]);
    }
  }
  return done;
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
