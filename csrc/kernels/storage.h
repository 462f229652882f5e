// Numbers of 16 bits, bfloat16 or float16, as they are kept in memory, and the float32 numbers that kernels compute with.
#pragma once

#include "kernels.h"
#include "vec.h"

#ifdef SSTKERN_HARDWARE_FLOAT16
#include "intrinsics.h"
#endif

namespace sstkern {
namespace SSTKERN_LEVEL {

constexpr int kLanes = Simd<float>::width;
typedef uint16_t Short __attribute__((vector_size(2 * kLanes)));
typedef uint32_t Word __attribute__((vector_size(4 * kLanes)));

inline Word words(uint32_t value) { return value - Word{}; }
inline Word to_words(Short from) { return __builtin_convertvector(from, Word); }
inline Short to_shorts(Word from) { return __builtin_convertvector(from, Short); }

struct BFloat16 {
  static SSTKERN_INLINE Vec<float> widen(Short from) { return (Vec<float>)(to_words(from) << 16); }

  // To the nearest, ties to even; a NaN stays one.
  static SSTKERN_INLINE Short narrow(Vec<float> from) {
    const Word bits = (Word)from;
    const Word rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return to_shorts((bits & 0x7fffffff) > words(0x7f800000) ? words(0x7fc0) : rounded);
  }
};

#if defined(SSTKERN_HARDWARE_FLOAT16) && SSTKERN_VECTOR_BYTES == 64

struct Float16 {
  static SSTKERN_INLINE Vec<float> widen(Short from) { return (Vec<float>)_mm512_cvtph_ps((__m256i)from); }
  static SSTKERN_INLINE Short narrow(Vec<float> from) {
    return (Short)_mm512_cvtps_ph((__m512)from, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

#elif defined(SSTKERN_HARDWARE_FLOAT16)

struct Float16 {
  static SSTKERN_INLINE Vec<float> widen(Short from) { return (Vec<float>)_mm256_cvtph_ps((__m128i)from); }
  static SSTKERN_INLINE Short narrow(Vec<float> from) { return (Short)_mm256_cvtps_ph((__m256)from, _MM_FROUND_TO_NEAREST_INT); }
};

#else

// A normal number's exponent moves by 112. One that float16 has no normal number for is made, and rounded, by a float32 addition.
struct Float16 {
  static SSTKERN_INLINE Vec<float> widen(Short from) {
    const Word bits = to_words(from), magnitude = (bits & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const Word normal = magnitude + (112u << 23);
    const Word infinite = normal + (112u << 23);
    const Word small = (Word)((Vec<float>)(normal + (1u << 23)) - (Vec<float>)words(113u << 23));
    const Word value = exponent == words(0x0f800000) ? infinite : exponent == words(0) ? small : normal;
    return (Vec<float>)(value | (bits & 0x8000) << 16);
  }

  // To the nearest, ties to even; a NaN stays one.
  static SSTKERN_INLINE Short narrow(Vec<float> from) {
    const Word bits = (Word)from, magnitude = bits & 0x7fffffff;
    const Word half = words(126u << 23);  // 0.5: its last bit is worth the smallest float16 number
    const Word small = (Word)((Vec<float>)magnitude + (Vec<float>)half) - half;
    const Word normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const Word large = magnitude > words(0x7f800000) ? words(0x7e00) : words(0x7c00);
    const Word value = magnitude >= words(143u << 23) ? large : magnitude < words(113u << 23) ? small : normal;
    return to_shorts(value | (bits >> 16 & 0x8000));
  }
};

#endif

// Calls run(from, count) for whole vectors of `count` numbers and the rest.
template <class Kind>
inline void widen_all(const uint16_t* from, float* to, int64_t count) {
  for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes) {
    Short given;
    __builtin_memcpy(&given, from, sizeof(given));
    store(to, Kind::widen(given));
  }
  Short rest{};
  for (int64_t i = 0; i < count; ++i) rest[i] = from[i];
  if (count > 0) store(to, Kind::widen(rest), count);
}

template <class Kind>
inline void narrow_all(const float* from, uint16_t* to, int64_t count) {
  for (; count >= kLanes; count -= kLanes, from += kLanes, to += kLanes) {
    const Short found = Kind::narrow(load(from));
    __builtin_memcpy(to, &found, sizeof(found));
  }
  if (count <= 0) return;
  const Short rest = Kind::narrow(load(from, count));
  for (int64_t i = 0; i < count; ++i) to[i] = rest[i];
}

inline void widen(Storage storage, const uint16_t* from, float* to, int64_t count) {
  storage == Storage::bfloat16 ? widen_all<BFloat16>(from, to, count) : widen_all<Float16>(from, to, count);
}

inline void narrow(Storage storage, const float* from, uint16_t* to, int64_t count) {
  storage == Storage::bfloat16 ? narrow_all<BFloat16>(from, to, count) : narrow_all<Float16>(from, to, count);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
