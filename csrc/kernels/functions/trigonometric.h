// sin, cos and atan.
#pragma once

#include "library.h"
#include "logarithm.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// pi / 2 is the sum of all parts. So few bits have the first ones that n times such a part is exact for n up to `largest` 2 / pi, and the
// `exact` first differences of x and these are so too.
// sine: (sin(r) - r) / r^3 in powers of r^2; cosine: (cos(r) - 1 + r^2 / 2) / r^4, |r| <= pi / 4. arctangent: (t - atan(t)) / t^3,
// |t| <= 7/16. All are minimax fits.
template <class T>
struct Angles;

template <>
struct Angles<float> {
  static constexpr float largest = 6433.0f;
  static constexpr int exact = 2;
  static constexpr float half_pi[] = {0x1.92p+0f, 0x1.fb4p-12f, 0x1.444p-24f, 0x1.68c234p-39f};
  static constexpr float sine[] = {-0.16666655242443085f, 0.008332190103828907f, -0.00019518405315466225f};
  static constexpr float cosine[] = {0.04166664555668831f, -0.00138873013202101f, 2.443066841806285e-05f};
  static constexpr float arctangent[] = {0.3333330452442169f, -0.19997787475585938f, 0.14230316877365112f, -0.10495202243328094f,
                                         0.05828237533569336f};
};

template <>
struct Angles<double> {
  static constexpr double largest = 102943.0;
  static constexpr int exact = 1;
  static constexpr double half_pi[] = {0x1.921fb544p+0, 0x1.0b4611a6p-34, 0x1.3198a2e037073p-69};
  static constexpr double sine[] = {-0.16666666666666632,  0.008333333333322455,    -0.00019841269829813296,
                                    2.755731368748373e-06, -2.5050756693311967e-08, 1.589667998166278e-10};
  static constexpr double cosine[] = {0.0416666666666666,      -0.0013888888888874441, 2.480158728963633e-05,
                                      -2.7557314387477597e-07, 2.087572705987081e-09,  -1.1359802482575732e-11};
  static constexpr double arctangent[] = {0.3333333333333293,   -0.1999999999987648,   0.1428571427250276,  -0.11111110405419455,
                                          0.09090887132244234,  -0.07691876185469634,  0.06661072909815124, -0.058335681879785106,
                                          0.049768669333336846, -0.036531217661782155, 0.016285343617254228};
};

// x = n pi / 2 + r + lost; the lowest bits of `shifted` are n's.
template <class T, int Count>
struct AngleArgument {
  using A = Angles<T>;
  static constexpr int last = sizeof(A::half_pi) / sizeof(T) - 1;
  Vectors<T, Count> shifted, n, before, part, r, lost;

  SSTKERN_INLINE explicit AngleArgument(const Vectors<T, Count>& x)
      : shifted(x * T(0.63661977236758134308) + Real<T>::round_magic),
        n(shifted - Real<T>::round_magic),
        before(without_exact(x, n)),
        part(n * A::half_pi[last - 1]),
        r(before - part),
        lost(((before - r) - part) - n * A::half_pi[last]) {}

  static SSTKERN_INLINE Vectors<T, Count> without_exact(const Vectors<T, Count>& x, const Vectors<T, Count>& n) {
    auto rest = x - n * A::half_pi[0];
#pragma GCC unroll 2
    for (int i = 1; i < A::exact; ++i) rest = rest - n * A::half_pi[i];
    return rest;
  }

  SSTKERN_INLINE typename Simd<T>::Bits quarters(int i) const { return (typename Simd<T>::Bits)shifted.part[i]; }
};

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> short_sine(const AngleArgument<T, Count>& at, const Vectors<T, Count>& square) {
  return at.r + ((at.lost - at.lost * square * T(0.5)) + at.r * square * polynomial<T>(square, Angles<T>::sine));
}

// 1 - r^2 / 2 keeps what it loses.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> short_cosine(const AngleArgument<T, Count>& at, const Vectors<T, Count>& square) {
  const auto half = square * T(0.5), start = T(1) - half;
  const auto lost = (T(1) - start) - half;
  return start + (lost + (square * square * polynomial<T>(square, Angles<T>::cosine) - at.r * at.lost));
}

// sin(x + turn pi / 2) for x >= 0.
template <int Turn, class T, int Count>
SSTKERN_INLINE Vectors<T, Count> turned_sine(const Vectors<T, Count>& x) {
  const AngleArgument<T, Count> at(x);
  const auto square = at.r * at.r;
  const auto odd = each_mask<T, Count>([&](int i) { return (at.quarters(i) & 1) != Turn; });
  const auto value = where<T>(odd, short_cosine<T>(at, square), short_sine<T>(at, square));
  const auto flip = [&](int i) { return ((at.quarters(i) + Turn) & 2) << (8 * sizeof(T) - 2); };
  return each<T, Count>([&](int i) { return (Vec<T>)((typename Simd<T>::Bits)value.part[i] ^ flip(i)); });
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> sin(const Vectors<T, Count>& x) {
  using Bits = typename Simd<T>::Bits;
  const auto size = absolute<T>(x), value = turned_sine<0, T>(size);
  const Bits sign = (Bits)broadcast<T>(T(-0.0));
  auto result = each<T, Count>([&](int i) { return (Vec<T>)((Bits)value.part[i] ^ ((Bits)x.part[i] & sign)); });
  const auto large = gt<T>(size, Angles<T>::largest);
  if (any<T>(large)) set_lanes<T>(large, result, [&](int i, int lane) { return __builtin_sin(x.part[i][lane]); });
  return result;
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> cos(const Vectors<T, Count>& x) {
  const auto size = absolute<T>(x);
  auto result = turned_sine<1, T>(size);
  const auto large = gt<T>(size, Angles<T>::largest);
  if (any<T>(large)) set_lanes<T>(large, result, [&](int i, int lane) { return __builtin_cos(x.part[i][lane]); });
  return result;
}

// atan(x) = atan(c) + atan((x - c) / (1 + c x)), with c = 0, 1/2, 1, 3/2 or infinite, as in fdlibm.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> atan(const Vectors<T, Count>& x) {
  const auto size = absolute<T>(x);
  const auto steps = [&](T from_7, T from_11, T from_19, T from_39) {
    const auto above = where<T>(lt<T>(size, T(39.0 / 16)), from_19, from_39);
    const auto middle = where<T>(lt<T>(size, T(19.0 / 16)), spread<T, Count>(from_11), above);
    const auto below = where<T>(lt<T>(size, T(11.0 / 16)), spread<T, Count>(from_7), middle);
    return where<T>(lt<T>(size, T(7.0 / 16)), T(0), below);
  };
  constexpr double high[] = {0.4636476090008061, 0.7853981633974483, 0.982793723247329, 1.5707963267948966};
  constexpr double low[] = {2.2698777452961687e-17, 3.061616997868383e-17, 1.3903311031230998e-17, 6.123233995736766e-17};
  const auto lower = [&](int i) { return T(high[i] - double(T(high[i])) + low[i]); };
  const auto c = steps(T(0.5), T(1), T(1.5), T(1));
  const auto far = ge<T>(size, T(39.0 / 16));
  const auto t = where<T>(far, T(-1), size - c) / where<T>(far, size, T(1) + c * size);
  const auto square = t * t;
  const auto beyond = t * square * polynomial<T>(square, Angles<T>::arctangent);
  const auto start = steps(T(high[0]), T(high[1]), T(high[2]), T(high[3]));
  const auto result = start - ((beyond - steps(lower(0), lower(1), lower(2), lower(3))) - t);
  return copy_sign<T>(result, x);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
