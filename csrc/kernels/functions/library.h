// The C library's functions, lane by lane: for what is rare. They work in double, which rounds a float once.
#pragma once

#include "rounding.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Lanes of `result` where the mask is true become f(i, lane).
template <class T, int Count, class F>
inline void set_lanes(const Mask<T, Count>& m, Vectors<T, Count>& result, const F& f) {
  for (int i = 0; i < Count; ++i)
    for (int lane = 0; lane < Simd<T>::width; ++lane)
      if (m.part[i][lane]) result.part[i][lane] = T(f(i, lane));
}

template <class T, int Count, class F>
SSTKERN_INLINE Vectors<T, Count> each_lane(const F& f) {
  Vectors<T, Count> result;
  for (int i = 0; i < Count; ++i)
    for (int lane = 0; lane < Simd<T>::width; ++lane) result.part[i][lane] = T(f(i, lane));
  return result;
}

#define SSTKERN_OF_THE_LIBRARY(function)                                                                \
  template <class T, int Count>                                                                         \
  inline Vectors<T, Count> function(const Vectors<T, Count>& x) {                                       \
    return each_lane<T, Count>([&](int i, int lane) { return __builtin_##function(x.part[i][lane]); }); \
  }
SSTKERN_OF_THE_LIBRARY(tan)
SSTKERN_OF_THE_LIBRARY(sinh)
SSTKERN_OF_THE_LIBRARY(cosh)
SSTKERN_OF_THE_LIBRARY(asinh)
#undef SSTKERN_OF_THE_LIBRARY

template <class T, int Count>
inline Vectors<T, Count> atan2(const Vectors<T, Count>& y, const Vectors<T, Count>& x) {
  return each_lane<T, Count>([&](int i, int lane) { return __builtin_atan2(y.part[i][lane], x.part[i][lane]); });
}
SSTKERN_NUMBER_FOR_EITHER(Vectors, atan2)

template <class T, int Count>
inline Vectors<T, Count> pow(const Vectors<T, Count>& x, const Vectors<T, Count>& y) {
  return each_lane<T, Count>([&](int i, int lane) { return __builtin_pow(x.part[i][lane], y.part[i][lane]); });
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> pow(T x, const Vectors<T, Count>& y) {
  return pow<T>(spread<T, Count>(x), y);
}

// As PyTorch: these exponents are products and roots, so (-inf)^0.5 is NaN.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> pow(const Vectors<T, Count>& x, T y) {
  if (y == T(2)) return x * x;
  if (y == T(1)) return x;
  if (y == T(3)) return x * x * x;
  if (y == T(0.5)) return sqrt<T>(x);
  if (y == T(-0.5)) return rsqrt<T>(x);
  if (y == T(-1)) return reciprocal<T>(x);
  if (y == T(-2)) return reciprocal<T>(x * x);
  if (y == T(0)) return spread<T, Count>(T(1));
  return pow<T>(x, spread<T, Count>(y));
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
