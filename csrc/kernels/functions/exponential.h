// exp and expm1 of any number, beside the sigmoid and tanh of vec.h.
#pragma once

#include "rounding.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T>
struct ExpRange;

// exp is infinite above the highest and 0 below the lowest; exp - 1 is -1 below the third.
template <>
struct ExpRange<float> {
  static constexpr float highest = 89.0f, lowest = -105.0f, minus_one = -20.0f;
};
template <>
struct ExpRange<double> {
  static constexpr double highest = 710.0, lowest = -746.0, minus_one = -40.0;
};

// Below this, f(x) = x + a x^2 + ... with |a| <= 1/2 rounds to x.
template <class T>
constexpr T kTiny = T(1) / T(int64_t(1) << (Real<T>::mantissa_bits + 2));

// x = n ln(2) + r + lost, |r| <= ln(2) / 2; shifted is n with round_magic added. Members are made where they are: GCC 12 copies Vectors
// into a structure in pieces of 8 or 16 bytes, through memory, and exp took twice as long.
template <class T, int Count>
struct ExpArgument {
  using R = Real<T>;
  Vectors<T, Count> shifted, n, high, r, lost;

  SSTKERN_INLINE explicit ExpArgument(const Vectors<T, Count>& x)
      : shifted(fma<T>(x, R::log2_e, R::round_magic)),
        n(shifted - R::round_magic),
        high(fma<T>(n, -R::ln2_high, x)),
        r(fma<T>(n, -R::ln2_low, high)),
        lost(fma<T>(n, -R::ln2_low, high - r)) {}
};

// exp(r) - 1 - r
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> exp_beyond_linear(const Vectors<T, Count>& r) {
  static constexpr InverseFactorials<T> taylor;
  auto sum = spread<T, Count>(taylor.of[Real<T>::taylor_terms]);
#pragma GCC unroll 16
  for (int i = Real<T>::taylor_terms - 1; i >= 2; --i) sum = fma<T>(sum, r, taylor.of[i]);
  return r * r * sum;
}

// 2^n, for a normal result.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> power_of_two(const Vectors<T, Count>& shifted) {
  using Bits = typename Simd<T>::Bits;
  const Bits magic = (Bits)broadcast<T>(Real<T>::round_magic);
  return each<T, Count>(
      [&](int i) { return (Vec<T>)(((Bits)shifted.part[i] - magic + Real<T>::exponent_bias) << Real<T>::mantissa_bits); });
}

// 2^n is made of two halves, since n is beyond an exponent where the result is denormal or close to the largest number. What r loses is
// left out: with it the mean error is the same.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> exp(const Vectors<T, Count>& x) {
  using R = Real<T>;
  const ExpArgument<T, Count> at(clamp<T>(x, ExpRange<T>::lowest, ExpRange<T>::highest));
  const auto half = at.n * T(0.5) + R::round_magic;
  const auto rest = at.shifted - (half - R::round_magic);
  const auto fraction = at.r + exp_beyond_linear<T>(at.r);
  return (T(1) + fraction) * power_of_two<T>(half) * power_of_two<T>(rest);
}

// 2^n (1 + r + tail) - 1, whose first sum, of 2^n - 1 and 2^n r, keeps what it loses. All is halved until the end: 2^n may be too large.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> expm1(const Vectors<T, Count>& x) {
  const ExpArgument<T, Count> at(clamp<T>(x, ExpRange<T>::minus_one, ExpRange<T>::highest));
  const auto scale = power_of_two<T>(at.shifted - T(1));
  const auto tail = (at.lost + at.lost * at.r) + exp_beyond_linear<T>(at.r);
  const auto start = scale - T(0.5), more = scale * at.r;
  const auto sum = start + more;
  const auto lost = more - (sum - start);
  const auto result = (sum + (lost + scale * tail)) * T(2);
  return where<T>(lt<T>(absolute<T>(x), kTiny<T>), x, result);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
