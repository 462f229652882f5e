// One SIMD vector type and the functions the cells need, written with the compiler's vector extension.
//
// This header is compiled once for every instruction set (see levels/). Everything lives in a namespace named after the level
// and nothing from the standard library or ATen is included: an inline function of theirs compiled for AVX-512 could be the copy
// that the linker keeps for the whole program.
#pragma once

#include <stdint.h>

// Clang has that and __builtin_elementwise_sqrt from 17 on.
#if defined(__clang__)
#if __has_builtin(__builtin_elementwise_fma)
#define SSTKERN_ELEMENTWISE
#endif
#endif

#if defined(__aarch64__) && !defined(SSTKERN_ELEMENTWISE)
#include <arm_neon.h>
#endif

#include "kernels.h"

#ifndef SSTKERN_LEVEL
#error "include a header of levels/ first"
#endif

// A macro's value as a string.
#define SSTKERN_STRING(value) SSTKERN_STRING_OF(value)
#define SSTKERN_STRING_OF(value) #value

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

template <int... Lane>
struct Lanes {};

// Lanes<0, 1, ..., Count - 1>
template <int Count, int... Lane>
struct LanesBelow : LanesBelow<Count - 1, Count - 1, Lane...> {};
template <int... Lane>
struct LanesBelow<0, Lane...> {
  using Type = Lanes<Lane...>;
};

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

// The upper lanes moved down by `Distance`.
template <class T, int Distance, int... Lane>
inline Vec<T> moved_down(Vec<T> v, Lanes<Lane...>) {
  constexpr int width = Simd<T>::width;
#if defined(__clang__)
  return __builtin_shufflevector(v, v, ((Lane + Distance) % width)...);
#else
  return __builtin_shuffle(v, typename Simd<T>::Bits{((Lane + Distance) % width)...});
#endif
}

// Lanes in pieces of falling powers of two.
template <class T, int Piece = Simd<T>::width / 2>
inline void store_pieces(T* to, Vec<T> v, int64_t count) {
  if (count & Piece) {
    __builtin_memcpy(to, &v, Piece * sizeof(T));
    to += Piece;
    v = moved_down<T, Piece>(v, typename LanesBelow<Simd<T>::width>::Type{});
  }
  if constexpr (Piece > 1) store_pieces<T, Piece / 2>(to, v, count);
}

// Sanitizers do not see what masked loads and stores touch.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SSTKERN_MASK_BYTES 0
#else
#define SSTKERN_MASK_BYTES SSTKERN_VECTOR_BYTES
#endif

#if SSTKERN_MASK_BYTES == 64
inline unsigned first_lanes(int64_t count, int width) { return ((1u << width) - 1) >> (count < width ? width - count : 0); }
inline Vec<float> load_masked(const float* from, int64_t count) {
  return __builtin_ia32_loadups512_mask(from, Vec<float>{}, static_cast<unsigned short>(first_lanes(count, 16)));
}
inline Vec<double> load_masked(const double* from, int64_t count) {
  return __builtin_ia32_loadupd512_mask(from, Vec<double>{}, static_cast<unsigned char>(first_lanes(count, 8)));
}
inline void store_masked(float* to, Vec<float> v, int64_t count) {
  __builtin_ia32_storeups512_mask(to, v, static_cast<unsigned short>(first_lanes(count, 16)));
}
inline void store_masked(double* to, Vec<double> v, int64_t count) {
  __builtin_ia32_storeupd512_mask(to, v, static_cast<unsigned char>(first_lanes(count, 8)));
}
#elif SSTKERN_MASK_BYTES == 32
inline Vec<float> load_masked(const float* from, int64_t count) {
  const Simd<float>::Bits lanes{0, 1, 2, 3, 4, 5, 6, 7};
  return __builtin_ia32_maskloadps256(reinterpret_cast<const Vec<float>*>(from), lanes < static_cast<int32_t>(count));
}
inline Vec<double> load_masked(const double* from, int64_t count) {
  typedef long long Mask __attribute__((vector_size(32)));
  return __builtin_ia32_maskloadpd256(reinterpret_cast<const Vec<double>*>(from), Mask{0, 1, 2, 3} < static_cast<long long>(count));
}
#else
template <class T>
inline Vec<T> load_masked(const T* from, int64_t count) {
  if (count >= Simd<T>::width) return load(from);
  Vec<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}
#endif

// The first `count` lanes only, and zeros: the last block of a hidden size that is no multiple of the width. Lane by lane, a load and a
// store of 1 to 7 floats took 11 ns together and so 1.1; with AVX2's masked store 4.0 (AMD EPYC).
template <class T>
inline Vec<T> load(const T* from, int64_t count) {
  return load_masked(from, count);
}

template <class T>
inline void store(T* to, Vec<T> v, int64_t count) {
#if SSTKERN_MASK_BYTES == 64
  store_masked(to, v, count);
#else
  count >= Simd<T>::width ? store(to, v) : store_pieces(to, v, count);
#endif
}

// Swaps blocks of `Distance` lanes between two rows of a matrix: what a transposition is made of.
template <class T, int Distance, int... Lane>
inline void exchange(Vec<T>& a, Vec<T>& b, Lanes<Lane...>) {
  constexpr int width = Simd<T>::width;
#if defined(__clang__)
  const Vec<T> first = __builtin_shufflevector(a, b, (Lane & Distance ? width + Lane - Distance : Lane)...);
  b = __builtin_shufflevector(a, b, (Lane & Distance ? width + Lane : Lane + Distance)...);
#else
  using Bits = typename Simd<T>::Bits;
  const Vec<T> first = __builtin_shuffle(a, b, Bits{(Lane & Distance ? width + Lane - Distance : Lane)...});
  b = __builtin_shuffle(a, b, Bits{(Lane & Distance ? width + Lane : Lane + Distance)...});
#endif
  a = first;
}

// A square matrix of one vector a row.
template <class T, int Distance = Simd<T>::width / 2>
inline void transpose(Vec<T> (&rows)[Simd<T>::width]) {
  constexpr int width = Simd<T>::width;
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i)
    if (!(i & Distance)) exchange<T, Distance>(rows[i], rows[i + Distance], typename LanesBelow<width>::Type{});
  if constexpr (Distance > 1) transpose<T, Distance / 2>(rows);
}

// Vectors worked on side by side. A cell's step is a chain of dependent operations, and one chain at a time leaves most of a core idle:
// the LSTM's took 93 cycles a vector by itself and takes 59 side by side with three others (AMD EPYC, AVX2).
constexpr int kVectors = 4;

template <class T, int Count = kVectors>
struct Vectors {
  Vec<T> part[Count];
};

template <class T, int Count = kVectors, class F>
inline Vectors<T, Count> each(const F& f) {
  Vectors<T, Count> result;
#pragma GCC unroll 8
  for (int i = 0; i < Count; ++i) result.part[i] = f(i);
  return result;
}

#define SSTKERN_VECTORS_OPERATOR(op)                                                             \
  template <class T, int Count>                                                                  \
  inline Vectors<T, Count> operator op(const Vectors<T, Count>& a, const Vectors<T, Count>& b) { \
    return each<T, Count>([&](int i) { return a.part[i] op b.part[i]; });                        \
  }                                                                                              \
  template <class T, int Count>                                                                  \
  inline Vectors<T, Count> operator op(const Vectors<T, Count>& a, T b) {                        \
    return each<T, Count>([&](int i) { return a.part[i] op b; });                                \
  }                                                                                              \
  template <class T, int Count>                                                                  \
  inline Vectors<T, Count> operator op(T a, const Vectors<T, Count>& b) {                        \
    return each<T, Count>([&](int i) { return a op b.part[i]; });                                \
  }
SSTKERN_VECTORS_OPERATOR(+)
SSTKERN_VECTORS_OPERATOR(-)
SSTKERN_VECTORS_OPERATOR(*)
SSTKERN_VECTORS_OPERATOR(/)
#undef SSTKERN_VECTORS_OPERATOR

// a b + c, rounded once where the instruction set has that. It is written out, and all is compiled without contraction: GCC chooses anew in
// each place that it inlines a step into which products of a sum to round, and a unit's bits then depend on its company.
#ifdef SSTKERN_FMA
#if defined(SSTKERN_ELEMENTWISE)
template <class V>
inline V fma_of(V a, V b, V c) {
  return __builtin_elementwise_fma(a, b, c);
}
#elif defined(__aarch64__)
inline Vec<float> fma_of(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
inline Vec<double> fma_of(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#elif SSTKERN_VECTOR_BYTES == 32
inline Vec<float> fma_of(Vec<float> a, Vec<float> b, Vec<float> c) { return __builtin_ia32_vfmaddps256(a, b, c); }
inline Vec<double> fma_of(Vec<double> a, Vec<double> b, Vec<double> c) { return __builtin_ia32_vfmaddpd256(a, b, c); }
#else
constexpr int kCurrentRounding = 4;
inline Vec<float> fma_of(Vec<float> a, Vec<float> b, Vec<float> c) {
  return __builtin_ia32_vfmaddps512_mask(a, b, c, static_cast<unsigned short>(-1), kCurrentRounding);
}
inline Vec<double> fma_of(Vec<double> a, Vec<double> b, Vec<double> c) {
  return __builtin_ia32_vfmaddpd512_mask(a, b, c, static_cast<unsigned char>(-1), kCurrentRounding);
}
#endif
#else
template <class V>
inline V fma_of(V a, V b, V c) {
  return a * b + c;
}
#endif

template <class T, int Count>
inline Vectors<T, Count> fma(const Vectors<T, Count>& a, const Vectors<T, Count>& b, const Vectors<T, Count>& c) {
  return each<T, Count>([&](int i) { return fma_of(a.part[i], b.part[i], c.part[i]); });
}

template <class T, int Count>
inline Vectors<T, Count> fma(const Vectors<T, Count>& a, T b, const Vectors<T, Count>& c) {
  return each<T, Count>([&](int i) { return fma_of(a.part[i], broadcast<T>(b), c.part[i]); });
}

template <class T, int Count>
inline Vectors<T, Count> fma(const Vectors<T, Count>& a, const Vectors<T, Count>& b, T c) {
  return each<T, Count>([&](int i) { return fma_of(a.part[i], b.part[i], broadcast<T>(c)); });
}

template <class T, int Count>
inline Vectors<T, Count> fma(const Vectors<T, Count>& a, T b, T c) {
  return each<T, Count>([&](int i) { return fma_of(a.part[i], broadcast<T>(b), broadcast<T>(c)); });
}

// 1 - y^2, the derivative of y = tanh(x), rounded once.
template <class T, int Count>
inline Vectors<T, Count> tanh_gradient(const Vectors<T, Count>& y) {
  return each<T, Count>([&](int i) { return fma_of(-y.part[i], y.part[i], broadcast<T>(1)); });
}

template <class T, int Count>
inline Vectors<T, Count> absolute(const Vectors<T, Count>& x) {
  using Bits = typename Simd<T>::Bits;
  const Bits sign = (Bits)(broadcast<T>(T(-0.0)));
  return each<T, Count>([&](int i) { return (Vec<T>)((Bits)x.part[i] & ~sign); });
}

template <class T, int Count>
inline Vectors<T, Count> copy_sign(const Vectors<T, Count>& magnitude, const Vectors<T, Count>& sign_of) {
  using Bits = typename Simd<T>::Bits;
  const Bits sign = (Bits)(broadcast<T>(T(-0.0)));
  return each<T, Count>([&](int i) { return (Vec<T>)(((Bits)magnitude.part[i] & ~sign) | ((Bits)sign_of.part[i] & sign)); });
}

// A NaN in x stays.
template <class T, int Count>
inline Vectors<T, Count> at_most(const Vectors<T, Count>& x, T limit) {
  return each<T, Count>([&](int i) { return x.part[i] > broadcast<T>(limit) ? broadcast<T>(limit) : x.part[i]; });
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
template <class T, int Count>
struct ScaledExp {
  Vectors<T, Count> scale, fraction;
};

template <class T, int Count>
SSTKERN_INLINE ScaledExp<T, Count> scaled_exp(const Vectors<T, Count>& x) {
  using R = Real<T>;
  using Bits = typename Simd<T>::Bits;
  const Vec<T> magic = broadcast<T>(R::round_magic);
  const Vectors<T, Count> shifted = fma<T>(x, R::log2_e, R::round_magic);
  const Vectors<T, Count> n = shifted - R::round_magic;
  const Vectors<T, Count> r = fma<T>(n, -R::ln2_low, fma<T>(n, -R::ln2_high, x));
  static constexpr InverseFactorials<T> taylor;
  const Vec<T> last = broadcast<T>(taylor.of[R::taylor_terms]);
  Vectors<T, Count> sum = each<T, Count>([&](int) { return last; });
#pragma GCC unroll 16
  for (int i = R::taylor_terms - 1; i >= 2; --i) sum = fma<T>(sum, r, taylor.of[i]);
  const auto scale = [&](int i) { return (Vec<T>)(((Bits)shifted.part[i] - (Bits)magic + R::exponent_bias) << R::mantissa_bits); };
  return {each<T, Count>(scale), fma<T>(r * r, sum, r)};
}

// 0 below -exp_limit, where exp(-x) would overflow: 0 and 1 far out, whose derivative is 0 for an infinite x too.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> sigmoid(const Vectors<T, Count>& x) {
  const ScaledExp<T, Count> e = scaled_exp<T>(at_most<T>(x, Real<T>::exp_limit) * T(-1));
  const Vectors<T, Count> y = T(1) / fma<T>(e.scale, e.fraction, e.scale + T(1));
  return each<T, Count>([&](int i) { return x.part[i] < broadcast<T>(-Real<T>::exp_limit) ? Vec<T>{} : y.part[i]; });
}

// A gate y from 0 to 1 as it is saved: y, or y - 1 above a half, so that 16 bits are as precise near 1 as near 0. Of an LSTM's forget gates
// of 0.9985, say, bfloat16 would make 1, and of their gradients 0. In float32 and float64 both numbers come back bit for bit.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> folded(const Vectors<T, Count>& y) {
  return each<T, Count>([&](int i) { return y.part[i] > broadcast<T>(T(0.5)) ? y.part[i] - broadcast<T>(1) : y.part[i]; });
}

template <class T, int Count>
struct Gate {
  Vectors<T, Count> value, rest;  // y and 1 - y
};

template <class T, int Count>
SSTKERN_INLINE Gate<T, Count> unfolded(const Vectors<T, Count>& saved) {
  const auto from_one = each<T, Count>([&](int i) { return saved.part[i] < broadcast<T>(0) ? broadcast<T>(1) : Vec<T>{}; });
  return {from_one + saved, (T(1) - from_one) - saved};
}

// Where |x| is below 0.625, x and a multiple of its cube (the polynomial of Cephes' tanhf); else 1 - 2 / (exp(2|x|) + 1) with the sign of
// x. Each has the rounding of about its last operation: (exp(2|x|) - 1) / (exp(2|x|) + 1), one formula for all, has up to twice as much.
template <int Count>
SSTKERN_INLINE Vectors<float, Count> tanh_of(const Vectors<float, Count>& x) {
  const auto magnitude = absolute<float>(x), square = x * x;
  const ScaledExp<float, Count> e = scaled_exp<float>(at_most<float>(magnitude, Real<float>::tanh_limit) * 2.0f);
  const auto large = 1.0f - 2.0f / fma<float>(e.scale, e.fraction, e.scale + 1.0f);
  auto slope = fma<float>(square, -5.70498872745e-3f, 2.06390887954e-2f);
  constexpr float rest[] = {-5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f};
#pragma GCC unroll 4
  for (const float term : rest) slope = fma<float>(slope, square, term);
  const auto small = fma<float>(magnitude * square, slope, magnitude);
  const auto either = [&](int i) { return magnitude.part[i] < broadcast<float>(0.625f) ? small.part[i] : large.part[i]; };
  return copy_sign<float>(each<float, Count>(either), x);
}

// (exp(2|x|) - 1) / (exp(2|x|) + 1) with the sign of x; exp(.) - 1 without cancellation keeps small x accurate.
template <int Count>
SSTKERN_INLINE Vectors<double, Count> tanh_of(const Vectors<double, Count>& x) {
  const ScaledExp<double, Count> e = scaled_exp<double>(at_most<double>(absolute<double>(x), Real<double>::tanh_limit) * 2.0);
  const auto minus_one = fma<double>(e.scale, e.fraction, e.scale - 1.0);
  return copy_sign<double>(minus_one / (minus_one + 2.0), x);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> tanh(const Vectors<T, Count>& x) {
  return tanh_of(x);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
