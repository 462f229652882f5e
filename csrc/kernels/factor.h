// What a matrix product multiplies. Sums are of type T everywhere, and so are the factors, but where SSTKERN_BFLOAT16 is defined: there a
// factor is a pair of bfloat16 numbers, neighbours along the depth of the product, and an instruction adds both their products to a
// float32 sum.
//
// Memory for packed factors is counted, and passed, as elements of T: a pair has the size of a float.
#pragma once

#include "vec.h"

#ifdef SSTKERN_BFLOAT16
#include "intrinsics.h"
#endif

namespace sstkern {
namespace SSTKERN_LEVEL {

#ifndef SSTKERN_BFLOAT16

constexpr int kFactorParts = 1;  // numbers in a factor

template <class T>
inline Vec<T> load_factors(const T* from) {
  return load(from);
}

template <class T>
inline Vec<T> broadcast_factor(const T* from) {
  return broadcast<T>(*from);
}

template <class T>
SSTKERN_INLINE Vec<T> multiply_add(Vec<T> sum, Vec<T> a, Vec<T> b) {
  return fma_of(a, b, sum);
}

// A vector of factors whose parts follow each other from `from` on.
template <class T>
inline Vec<T> factors_along(const T* from) {
  return load(from);
}

// A vector of factors whose parts are numbers of these rows.
template <class T>
inline Vec<T> factors_across(const Vec<T> (&parts)[kFactorParts]) {
  return parts[0];
}

// One factor, of which `left` parts exist.
template <class T>
inline void store_factor(T* to, const T* from, int64_t, int64_t) {
  *to = *from;
}

#else

constexpr int kFactorParts = 2;

template <class T>
inline __m512bh load_factors(const T* from) {
  return (__m512bh)_mm512_loadu_si512(from);
}

template <class T>
inline __m512bh broadcast_factor(const T* from) {
  int pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return (__m512bh)_mm512_set1_epi32(pair);
}

template <class T>
SSTKERN_INLINE Vec<T> multiply_add(Vec<T> sum, __m512bh a, __m512bh b) {
  return (Vec<T>)_mm512_dpbf16_ps((__m512)sum, a, b);
}

template <class T>
inline Vec<T> factors_along(const T* from) {
  return (Vec<T>)_mm512_cvtne2ps_pbh((__m512)load(from + Simd<T>::width), (__m512)load(from));
}

template <class T>
inline Vec<T> factors_across(const Vec<T> (&parts)[kFactorParts]) {
  const auto rounded = [&](int part) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)parts[part])); };
  return (Vec<T>)_mm512_or_si512(rounded(0), _mm512_slli_epi32(rounded(1), 16));
}

template <class T>
inline void store_factor(T* to, const T* from, int64_t stride, int64_t left) {
  const Vec<T> parts[kFactorParts] = {broadcast<T>(*from), left > 1 ? broadcast<T>(from[stride]) : Vec<T>{}};
  *to = factors_across<T>(parts)[0];
}

#endif

// Factors of `depth` numbers.
inline int64_t factors(int64_t depth) { return (depth + kFactorParts - 1) / kFactorParts; }

// `depth` numbers as factors: themselves, or written to `room`.
template <class T>
inline const T* as_factors(const T* from, int64_t depth, T* room) {
  if constexpr (kFactorParts == 1) return from;
  constexpr int width = Simd<T>::width * kFactorParts;
  int64_t k = 0;
  for (; k + width <= depth; k += width) store(room + k / kFactorParts, factors_along(from + k));
  for (; k < depth; k += kFactorParts) store_factor(room + k / kFactorParts, from + k, 1, depth - k);
  return room;
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
