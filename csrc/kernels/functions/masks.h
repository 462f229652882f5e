// What is true or false in each lane, numbers in place of vectors, and choices.
#pragma once

#include "../vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// All bits of a lane are set where it is true, else none.
template <class T, int Count = kVectors>
struct Mask {
  typename Simd<T>::Bits part[Count];
};

template <class T, int Count, class F>
inline Mask<T, Count> each_mask(const F& f) {
  Mask<T, Count> result;
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) result.part[i] = (typename Simd<T>::Bits)f(i);
  return result;
}

// A number in every lane.
template <class T, int Count = kVectors>
inline Vectors<T, Count> spread(T value) {
  return each<T, Count>([&](int) { return broadcast<T>(value); });
}

// A function of two Vectors takes a number for either.
#define SSTKERN_NUMBER_FOR_EITHER(Result, function)                           \
  template <class T, int Count>                                               \
  SSTKERN_INLINE Result<T, Count> function(const Vectors<T, Count>& x, T y) { \
    return function<T>(x, spread<T, Count>(y));                               \
  }                                                                           \
  template <class T, int Count>                                               \
  SSTKERN_INLINE Result<T, Count> function(T x, const Vectors<T, Count>& y) { \
    return function<T>(spread<T, Count>(x), y);                               \
  }

#define SSTKERN_COMPARISON(function, op)                                                           \
  template <class T, int Count>                                                                    \
  SSTKERN_INLINE Mask<T, Count> function(const Vectors<T, Count>& x, const Vectors<T, Count>& y) { \
    return each_mask<T, Count>([&](int i) { return x.part[i] op y.part[i]; });                     \
  }                                                                                                \
  SSTKERN_NUMBER_FOR_EITHER(Mask, function)
SSTKERN_COMPARISON(lt, <)
SSTKERN_COMPARISON(le, <=)
SSTKERN_COMPARISON(gt, >)
SSTKERN_COMPARISON(ge, >=)
SSTKERN_COMPARISON(eq, ==)
SSTKERN_COMPARISON(ne, !=)
#undef SSTKERN_COMPARISON

template <class T, int Count>
SSTKERN_INLINE Mask<T, Count> isnan(const Vectors<T, Count>& x) {
  return ne<T>(x, x);
}

// What is not 0, a NaN too.
template <class T, int Count>
SSTKERN_INLINE Mask<T, Count> truth(const Vectors<T, Count>& x) {
  return ne<T>(x, T(0));
}

template <class T, int Count>
SSTKERN_INLINE Mask<T, Count> truth(const Mask<T, Count>& m) {
  return m;
}

template <class T, class M>
SSTKERN_INLINE auto logical_not(const M& of) {
  const auto m = truth<T>(of);
  return each_mask<T, sizeof(m) / sizeof(Vec<T>)>([&](int i) { return ~m.part[i]; });
}

template <class T, class M, class N>
SSTKERN_INLINE auto logical_and(const M& a, const N& b) {
  const auto m = truth<T>(a), n = truth<T>(b);
  return each_mask<T, sizeof(m) / sizeof(Vec<T>)>([&](int i) { return m.part[i] & n.part[i]; });
}

template <class T, class M, class N>
SSTKERN_INLINE auto logical_or(const M& a, const N& b) {
  const auto m = truth<T>(a), n = truth<T>(b);
  return each_mask<T, sizeof(m) / sizeof(Vec<T>)>([&](int i) { return m.part[i] | n.part[i]; });
}

// The first where the mask is true, else the second.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> where(const Mask<T, Count>& m, const Vectors<T, Count>& x, const Vectors<T, Count>& y) {
  return each<T, Count>([&](int i) { return m.part[i] ? x.part[i] : y.part[i]; });
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> where(const Mask<T, Count>& m, const Vectors<T, Count>& x, T y) {
  return where<T>(m, x, spread<T, Count>(y));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> where(const Mask<T, Count>& m, T x, const Vectors<T, Count>& y) {
  return where<T>(m, spread<T, Count>(x), y);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> where(const Mask<T, Count>& m, T x, T y) {
  return where<T>(m, spread<T, Count>(x), spread<T, Count>(y));
}

template <class T, int Count>
SSTKERN_INLINE Mask<T, Count> where(const Mask<T, Count>& m, const Mask<T, Count>& x, const Mask<T, Count>& y) {
  return each_mask<T, Count>([&](int i) { return (m.part[i] & x.part[i]) | (~m.part[i] & y.part[i]); });
}

// 1 where it is true, else 0.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> numbers(const Mask<T, Count>& m) {
  return where<T>(m, T(1), T(0));
}

template <class T, int Count>
SSTKERN_INLINE bool any(const Mask<T, Count>& m) {
  typename Simd<T>::Bits all = m.part[0];
#pragma GCC unroll 8
  for (int i = 1; i < Count; ++i) all |= m.part[i];
  uint64_t words[sizeof(all) / sizeof(uint64_t)], found = 0;
  __builtin_memcpy(words, &all, sizeof(all));
  for (uint64_t word : words) found |= word;
  return found != 0;
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
