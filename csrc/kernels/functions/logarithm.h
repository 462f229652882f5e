// log and log1p, as fdlibm makes them: of 2^k m, with m from sqrt(1/2) to sqrt(2), log(m) from s = (m - 1) / (m + 1).
#pragma once

#include "exponential.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// `series` is (log(m) - 2 s) / s^3 in powers of s^2, a minimax fit.
template <class T>
struct LogReal;

template <>
struct LogReal<float> {
  using Unsigned = uint32_t;
  static constexpr int32_t sqrt_half = 0x3f3504f3;
  static constexpr float smallest_normal = 1.17549435e-38f;
  static constexpr float series[] = {0.6666666269302368f, 0.40000972151756287f, 0.2849879264831543f, 0.2427879422903061f};
};

template <>
struct LogReal<double> {
  using Unsigned = uint64_t;
  static constexpr int64_t sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double smallest_normal = 2.2250738585072014e-308;
  static constexpr double series[] = {0.6666666666666734,  0.39999999999416536, 0.2857142874207051, 0.22222198599015636,
                                      0.18183563242496092, 0.15314073087453667, 0.1479576652057734};
};

// The sum of coefficient[i] x^i.
template <class T, int Count, int Size>
SSTKERN_INLINE Vectors<T, Count> polynomial(const Vectors<T, Count>& x, const T (&coefficient)[Size]) {
  auto sum = spread<T, Count>(coefficient[Size - 1]);
#pragma GCC unroll 32
  for (int i = Size - 2; i >= 0; --i) sum = fma<T>(sum, x, coefficient[i]);
  return sum;
}

// x = 2^k (1 + f), for a normal x above 0.
template <class T, int Count>
struct LogArgument {
  using R = Real<T>;
  using Int = typename R::Int;
  using Bits = typename Simd<T>::Bits;
  typedef typename LogReal<T>::Unsigned Unsigned __attribute__((vector_size(SSTKERN_VECTOR_BYTES)));
  static constexpr Int one = R::exponent_bias << R::mantissa_bits, mantissa = (Int(1) << R::mantissa_bits) - 1;

  Mask<T, Count> moved;  // x's bits, its exponent one higher from sqrt(2) on; unsigned sums, for a NaN's would overflow
  Vectors<T, Count> k, f;

  SSTKERN_INLINE explicit LogArgument(const Vectors<T, Count>& x)
      : moved(each_mask<T, Count>([&](int i) { return (Bits)((Unsigned)x.part[i] + (one - LogReal<T>::sqrt_half)); })),
        k(each<T, Count>([&](int i) { return exponent(moved.part[i]); }) - R::round_magic),
        f(each<T, Count>([&](int i) { return (Vec<T>)((moved.part[i] & mantissa) + LogReal<T>::sqrt_half); }) - T(1)) {}

  // With round_magic added, as whole numbers are converted.
  static SSTKERN_INLINE Vec<T> exponent(Bits bits) {
    return (Vec<T>)((Bits)((Unsigned)bits >> R::mantissa_bits) + ((Bits)broadcast<T>(R::round_magic) - R::exponent_bias));
  }
};

// k ln(2) + log(1 + f) + `low`, which is small; the lower part of k ln(2) is in it.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> log_of(const Vectors<T, Count>& k, const Vectors<T, Count>& f, const Vectors<T, Count>& low) {
  const auto s = f / (f + T(2));
  const auto z = s * s, half_square = f * f * T(0.5);
  const auto beyond = fma<T>(s, fma<T>(z, polynomial<T>(z, LogReal<T>::series), half_square), low);
  return k * Real<T>::ln2_high - ((half_square - beyond) - f);
}

// What both are where the argument, or 1 + the argument, is not a number above 0.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> log_edges(const Vectors<T, Count>& x, const Vectors<T, Count>& result) {
  const T infinity = T(__builtin_inf());
  const auto finite = where<T>(lt<T>(x, infinity), result, x);
  return where<T>(gt<T>(x, T(0)), finite, where<T>(eq<T>(x, T(0)), -infinity, where<T>(lt<T>(x, T(0)), T(__builtin_nan("")), x)));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> log(const Vectors<T, Count>& x) {
  constexpr int bits = Real<T>::mantissa_bits + 2;
  const auto small = lt<T>(x, LogReal<T>::smallest_normal);
  const LogArgument<T, Count> at(where<T>(small, x * T(int64_t(1) << bits), x));
  const auto k = at.k - where<T>(small, T(bits), T(0));
  return log_edges<T>(x, log_of<T>(k, at.f, k * Real<T>::ln2_low));
}

// log(u) + lost / u, where u is 1 + x rounded.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> log1p(const Vectors<T, Count>& x) {
  const auto u = x + T(1), x_of_u = u - T(1);
  const auto lost = (T(1) - (u - x_of_u)) + (x - x_of_u);
  const LogArgument<T, Count> at(u);
  const auto result = log_edges<T>(u, log_of<T>(at.k, at.f, at.k * Real<T>::ln2_low + lost / u));
  return where<T>(lt<T>(absolute<T>(x), kTiny<T>), x, result);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
