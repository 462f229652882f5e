// One SIMD vector type and the functions the cells need, written with the compiler's vector extension.
//
// This header is compiled once for every instruction set (see level_*.cpp). Everything lives in a namespace named after the level
// and nothing from the standard library or ATen is included: an inline function of theirs compiled for AVX-512 could be the copy
// that the linker keeps for the whole program.
#pragma once

#include <stdint.h>

#ifndef SSTKERN_LEVEL
#error "include this header from a level_*.cpp file"
#endif

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T>
struct Real;

template <>
struct Real<float> {
  using Int = int32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr Int exponent_bias = 127;
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float log2_e = 1.44269504088896341f;
  static constexpr float ln2_high = 0.693359375f;
  static constexpr float ln2_low = -2.12194440054690583e-4f;
  static constexpr float exp_limit = 87.0f;   // exp(-87) is still a normal number
  static constexpr float tanh_limit = 10.0f;  // tanh(10) rounds to 1
  static constexpr int taylor_terms = 7;      // remainder 1.5e-8 of exp(r) - 1 for |r| <= ln(2) / 2
};

template <>
struct Real<double> {
  using Int = int64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr Int exponent_bias = 1023;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double log2_e = 1.44269504088896340736;
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double exp_limit = 708.0;
  static constexpr double tanh_limit = 20.0;
  static constexpr int taylor_terms = 13;  // remainder 1.2e-17
};

template <class T>
struct Simd {
  typedef T Vec __attribute__((vector_size(SSTKERN_VECTOR_BYTES)));
  typedef typename Real<T>::Int Bits __attribute__((vector_size(SSTKERN_VECTOR_BYTES)));
  static constexpr int width = SSTKERN_VECTOR_BYTES / sizeof(T);
};

template <class T>
using Vec = typename Simd<T>::Vec;

template <class T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <class T>
inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

// The first `count` lanes only: the last block of a hidden size that is no multiple of the width.
template <class T>
inline Vec<T> load(const T* from, int64_t count) {
  if (count >= Simd<T>::width) return load(from);
  Vec<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

template <class T>
inline void store(T* to, Vec<T> v, int64_t count) {
  if (count >= Simd<T>::width) return store(to, v);
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}

template <class T>
inline Vec<T> absolute(Vec<T> x) {
  using Bits = typename Simd<T>::Bits;
  const Bits sign = (Bits)(broadcast<T>(T(-0.0)));
  return (Vec<T>)((Bits)x & ~sign);
}

template <class T>
inline Vec<T> copy_sign(Vec<T> magnitude, Vec<T> sign_of) {
  using Bits = typename Simd<T>::Bits;
  const Bits sign = (Bits)(broadcast<T>(T(-0.0)));
  return (Vec<T>)(((Bits)magnitude & ~sign) | ((Bits)sign_of & sign));
}

// min(x, limit); a NaN in x stays.
template <class T>
inline Vec<T> at_most(Vec<T> x, T limit) {
  return x > broadcast<T>(limit) ? broadcast<T>(limit) : x;
}

// of[i] = 1 / i!
template <class T>
struct InverseFactorials {
  T of[Real<T>::taylor_terms + 1];
  constexpr InverseFactorials() : of{} {
    T factorial = 1;
    for (int i = 1; i <= Real<T>::taylor_terms; ++i) of[i] = T(1) / (factorial *= i);
  }
};

// exp(x) = scale * (1 + fraction) with scale = 2^n and |x - n ln 2| <= ln(2) / 2; x within +-exp_limit.
template <class T>
struct ScaledExp {
  Vec<T> scale, fraction;
};

template <class T>
inline ScaledExp<T> scaled_exp(Vec<T> x) {
  using R = Real<T>;
  using Bits = typename Simd<T>::Bits;
  const Vec<T> magic = broadcast<T>(R::round_magic);
  const Vec<T> shifted = x * R::log2_e + magic;
  const Vec<T> n = shifted - magic;
  const Vec<T> r = (x - n * R::ln2_high) - n * R::ln2_low;
  static constexpr InverseFactorials<T> taylor;
  Vec<T> sum = broadcast<T>(taylor.of[R::taylor_terms]);
#pragma GCC unroll 16
  for (int i = R::taylor_terms - 1; i >= 2; --i) sum = sum * r + taylor.of[i];
  const Bits exponent = (Bits)shifted - (Bits)magic + R::exponent_bias;
  return {(Vec<T>)(exponent << R::mantissa_bits), r * r * sum + r};
}

// 1 / (1 + exp(-x)), from exp(-|x|) so that nothing overflows and both tails keep their relative accuracy.
template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  const ScaledExp<T> e = scaled_exp<T>(-at_most<T>(absolute<T>(x), Real<T>::exp_limit));
  const Vec<T> tail = e.scale * e.fraction + e.scale;
  const Vec<T> numerator = x < broadcast<T>(0) ? tail : broadcast<T>(1);
  return numerator / (tail + T(1));
}

// (exp(2|x|) - 1) / (exp(2|x|) + 1) with the sign of x; exp(.) - 1 without cancellation keeps small x accurate.
template <class T>
inline Vec<T> tanh(Vec<T> x) {
  const ScaledExp<T> e = scaled_exp<T>(at_most<T>(absolute<T>(x), Real<T>::tanh_limit) * T(2));
  const Vec<T> minus_one = e.scale * e.fraction + (e.scale - T(1));
  return copy_sign<T>(minus_one / (minus_one + T(2)), x);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
