// Signs, extrema, roots and whole numbers: what takes a few instructions.
#pragma once

#include "masks.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> neg(const Vectors<T, Count>& x) {
  return each<T, Count>([&](int i) { return -x.part[i]; });
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> abs(const Vectors<T, Count>& x) {
  return absolute<T>(x);
}

// 0 of a NaN.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> sign(const Vectors<T, Count>& x) {
  return where<T>(gt<T>(x, T(0)), T(1), where<T>(lt<T>(x, T(0)), T(-1), T(0)));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> reciprocal(const Vectors<T, Count>& x) {
  return T(1) / x;
}

// A NaN in either passes.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> maximum(const Vectors<T, Count>& x, const Vectors<T, Count>& y) {
  return where<T>(logical_or<T>(gt<T>(x, y), isnan<T>(x)), x, y);
}
SSTKERN_NUMBER_FOR_EITHER(Vectors, maximum)

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> minimum(const Vectors<T, Count>& x, const Vectors<T, Count>& y) {
  return where<T>(logical_or<T>(lt<T>(x, y), isnan<T>(x)), x, y);
}
SSTKERN_NUMBER_FOR_EITHER(Vectors, minimum)

// A NaN in x stays; at_most is its like.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> at_least(const Vectors<T, Count>& x, T limit) {
  return where<T>(lt<T>(x, limit), limit, x);
}

// NaN where a bound is.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> clamp(const Vectors<T, Count>& x, T low, T high) {
  if (low != low || high != high) return each<T, Count>([&](int) { return broadcast<T>(low + high); });
  return at_most<T>(at_least<T>(x, low), high);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> hardtanh(const Vectors<T, Count>& x, T low, T high) {
  return clamp<T>(x, low, high);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> relu(const Vectors<T, Count>& x) {
  return at_least<T>(x, T(0));
}

// The vector extension has no root, and the C library's, lane by lane, may set errno.
#if defined(SSTKERN_ELEMENTWISE)
inline Vec<float> root(Vec<float> x) { return __builtin_elementwise_sqrt(x); }
inline Vec<double> root(Vec<double> x) { return __builtin_elementwise_sqrt(x); }
#elif defined(__x86_64__) && SSTKERN_VECTOR_BYTES == 16
inline Vec<float> root(Vec<float> x) { return __builtin_ia32_sqrtps(x); }
inline Vec<double> root(Vec<double> x) { return __builtin_ia32_sqrtpd(x); }
#elif defined(__x86_64__) && SSTKERN_VECTOR_BYTES == 32
inline Vec<float> root(Vec<float> x) { return __builtin_ia32_sqrtps256(x); }
inline Vec<double> root(Vec<double> x) { return __builtin_ia32_sqrtpd256(x); }
#elif defined(__x86_64__) && defined(__clang__)
inline Vec<float> root(Vec<float> x) { return __builtin_ia32_sqrtps512(x, 4); }  // 4: rounds as set
inline Vec<double> root(Vec<double> x) { return __builtin_ia32_sqrtpd512(x, 4); }
#elif defined(__x86_64__)
inline Vec<float> root(Vec<float> x) { return __builtin_ia32_sqrtps512_mask(x, x, -1, 4); }
inline Vec<double> root(Vec<double> x) { return __builtin_ia32_sqrtpd512_mask(x, x, -1, 4); }
#else
inline Vec<float> root(Vec<float> x) {
  for (int lane = 0; lane < Simd<float>::width; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
}
inline Vec<double> root(Vec<double> x) {
  for (int lane = 0; lane < Simd<double>::width; ++lane) x[lane] = __builtin_sqrt(x[lane]);
  return x;
}
#endif

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> sqrt(const Vectors<T, Count>& x) {
  return each<T, Count>([&](int i) { return root(x.part[i]); });
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> rsqrt(const Vectors<T, Count>& x) {
  return T(1) / sqrt<T>(x);
}

// The nearest whole number, the even one of two: what a sum with a number that has no bits for a fraction is rounded to. From that number
// on there is no fraction.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> round(const Vectors<T, Count>& x) {
  const T whole = T(int64_t(1) << Real<T>::mantissa_bits);
  const auto size = absolute<T>(x);
  return copy_sign<T>(where<T>(lt<T>(size, whole), (size + whole) - whole, size), x);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> floor(const Vectors<T, Count>& x) {
  const auto nearest = round<T>(x);
  return where<T>(gt<T>(nearest, x), nearest - T(1), nearest);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> ceil(const Vectors<T, Count>& x) {
  return neg<T>(floor<T>(neg<T>(x)));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> trunc(const Vectors<T, Count>& x) {
  return copy_sign<T>(floor<T>(absolute<T>(x)), x);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
