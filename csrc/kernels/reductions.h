// What a program reduces along its rows (Reduction in kernels.h).
//
// The order of a sum is that of its width alone: not of the row's place in memory, of other rows or of the thread.
#pragma once

#include "functions/rounding.h"
#include "kernels.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Vectors that are summed up side by side, and how many of each before a sum begins anew: the error of a sum grows with its length.
constexpr int kSums = 4, kSumLength = 16;

// The sum with some numbers more, or with their products with others.
template <class T, bool Times>
SSTKERN_INLINE Vec<T> added(Vec<T> sum, const T* from, const T* times) {
  if constexpr (Times)
    return fma_of(load(from), load(times), sum);
  else
    return sum + load(from);
}

template <class T, bool Times>
SSTKERN_INLINE Vec<T> added(Vec<T> sum, const T* from, const T* times, int64_t count) {
  if constexpr (Times)
    return fma_of(load(from, count), load(times, count), sum);
  else
    return sum + load(from, count);
}

template <class T, bool Times>
SSTKERN_INLINE double row_sum(const T* from, const T* times, int64_t width) {
  constexpr int64_t lanes = Simd<T>::width, together = kSums * lanes;
  Vec<T> total[kSums] = {};
  int64_t at = 0;
  while (width - at >= together) {
    Vec<T> sum[kSums] = {};
    for (int k = 0; k < kSumLength && width - at >= together; ++k, at += together)
#pragma GCC unroll 4
      for (int i = 0; i < kSums; ++i) sum[i] = added<T, Times>(sum[i], from + at + i * lanes, times + at + i * lanes);
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) total[i] += sum[i];
  }
  Vec<T> rest{};
  for (; at < width; at += lanes) rest = added<T, Times>(rest, from + at, times + at, width - at);
  const Vec<T> sum = (total[0] + total[1]) + (total[2] + total[3]) + rest;
  double found = 0;
  for (int lane = 0; lane < lanes; ++lane) found += sum[lane];
  return found;
}

template <class T>
void sum_runs(const T* from, const T* times, T* to, int64_t runs, int64_t width, double divisor) {
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t begin = run * width;
    const double sum = times ? row_sum<T, true>(from + begin, times + begin, width) : row_sum<T, false>(from + begin, from, width);
    to[run] = static_cast<T>(sum / divisor);
  }
}

template <class T>
SSTKERN_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
  return maximum<T>(Vectors<T, 1>{{a}}, Vectors<T, 1>{{b}}).part[0];
}

// Of all lanes, in the first one. Lane after lane, the largest of 8 floats took 37 ns and so 4, of 64 floats 52 and 20 (AMD EPYC, AVX2).
template <class T, int Distance = Simd<T>::width / 2>
SSTKERN_INLINE Vec<T> largest_lane(Vec<T> v) {
  v = larger<T>(v, moved_down<T, Distance>(v, typename LanesBelow<Simd<T>::width>::Type{}));
  if constexpr (Distance > 1) return largest_lane<T, Distance / 2>(v);
  return v;
}

// A NaN passes. Vectors overlap at a row's end.
template <class T>
void largest_of_runs(const T* from, const T*, T* to, int64_t runs, int64_t width, double) {
  constexpr int64_t lanes = Simd<T>::width;
  for (int64_t run = 0; run < runs; ++run, from += width) {
    Vec<T> most = broadcast<T>(T(-__builtin_inf()));
    for (int64_t at = 0; at + lanes <= width; at += lanes) most = larger<T>(most, load(from + at));
    if (width > lanes && width % lanes) most = larger<T>(most, load(from + width - lanes));
    for (int64_t at = 0; at < width && width < lanes; ++at) most = larger<T>(most, broadcast<T>(from[at]));
    to[run] = width < lanes ? most[0] : largest_lane<T>(most)[0];
  }
}

// In double, as PyTorch has it.
template <class T, bool Back>
void sums_up_to_each(const T* from, const T*, T* to, int64_t runs, int64_t width, double) {
  for (int64_t run = 0; run < runs; ++run, from += width, to += width) {
    double sum = 0;
    for (int64_t k = 0; k < width; ++k) {
      const int64_t at = Back ? width - 1 - k : k;
      to[at] = static_cast<T>(sum += from[at]);
    }
  }
}

template <class T>
constexpr Reduction<T> reductions[kReductions] = {sum_runs<T>, largest_of_runs<T>, largest_of_runs<T>, sums_up_to_each<T, false>,
                                                  sums_up_to_each<T, true>};

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
