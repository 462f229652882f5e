// What a program's loops are made of besides functions.h (sstkern/program/cpp.py writes them): units of rows loaded, computed side by side
// and stored.
#pragma once

#include "functions.h"
#include "kernels.h"
#include "vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Vectors to compute side by side where so many are alive at once.
constexpr int vectors_together(int alive) {
  constexpr int registers = SSTKERN_VECTOR_REGISTERS;
  return alive * kVectors <= 2 * registers ? kVectors : alive * 2 <= 2 * registers ? 2 : 1;
}

// A vector past the last unit is cut off, unless all are whole.
template <class T, int N, bool Whole>
SSTKERN_INLINE Vectors<T, N> load_row(const Units<T>* at, int slot, int64_t start, int64_t units) {
  return each<T, N>([&](int i) {
    const T* const from = static_cast<const T*>(at[i].slots[slot]) + start + at[i].unit;
    return Whole ? load(from) : load(from, units - at[i].unit);
  });
}

template <class T, int N, bool Whole>
SSTKERN_INLINE void store_row(const Units<T>* at, int slot, int64_t start, int64_t units, const Vectors<T, N>& values) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    T* const to = static_cast<T*>(at[i].slots[slot]) + start + at[i].unit;
    Whole ? store(to, values.part[i]) : store(to, values.part[i], units - at[i].unit);
  }
}

// The one number of a row that all its units take.
template <class T, int N>
SSTKERN_INLINE Vectors<T, N> load_one_row(const Units<T>* at, int slot, int64_t start) {
  return each<T, N>([&](int i) { return broadcast<T>(static_cast<const T*>(at[i].slots[slot])[start]); });
}

// Bools, a byte each.
template <class T, int N, bool Whole>
SSTKERN_INLINE Mask<T, N> load_mask(const Units<T>* at, int slot, int64_t start, int64_t units) {
  return truth<T>(each<T, N>([&](int i) {
    const bool* const from = static_cast<const bool*>(at[i].slots[slot]) + start + at[i].unit;
    const int64_t left = units - at[i].unit;
    Vec<T> found{};
    for (int lane = 0; lane < Simd<T>::width && (Whole || lane < left); ++lane) found[lane] = from[lane];
    return found;
  }));
}

template <class T, int N, bool Whole>
SSTKERN_INLINE void store_mask(const Units<T>* at, int slot, int64_t start, int64_t units, const Mask<T, N>& values) {
  const Vectors<T, N> given = numbers<T>(values);
  for (int i = 0; i < N; ++i) {
    bool* const to = static_cast<bool*>(at[i].slots[slot]) + start + at[i].unit;
    const int64_t left = units - at[i].unit;
    for (int lane = 0; lane < Simd<T>::width && (Whole || lane < left); ++lane) to[lane] = given.part[i][lane] != 0;
  }
}

template <class T, int N>
SSTKERN_INLINE Mask<T, N> load_one_mask(const Units<T>* at, int slot, int64_t start) {
  return truth<T>(each<T, N>([&](int i) { return broadcast<T>(static_cast<const bool*>(at[i].slots[slot])[start]); }));
}

template <class T, int N>
SSTKERN_INLINE Mask<T, N> spread_mask(bool value) {
  return truth<T>(spread<T, N>(T(value)));
}

// The sums of gate `gate` of product number `product` of the loop.
template <class T, int N>
SSTKERN_INLINE Vectors<T, N> load_sums(const Units<T>* at, int product, int gate) {
  return each<T, N>([&](int i) { return reinterpret_cast<const Vec<T>*>(at[i].sums[product])[gate]; });
}

template <class T, int N, bool Whole>
SSTKERN_INLINE Vectors<T, N> load_vector(const Units<T>* at, const T* vector, int64_t units) {
  return each<T, N>([&](int i) { return Whole ? load(vector + at[i].unit) : load(vector + at[i].unit, units - at[i].unit); });
}

template <class T>
using UnitsStep = void (*)(const UnitsGiven<T>&, const Units<T>*, int64_t);

// A loop's function. The last vectors are filled up with the last one, whose results are the same however often they are stored.
template <class T, UnitsStep<T> Whole, UnitsStep<T> Cut, int N>
void run(const UnitsGiven<T>& given, const Units<T>* places, int64_t count, int64_t units) {
  Units<T> last[N];
  for (int64_t first = 0; first < count; first += N) {
    const Units<T>* at = places + first;
    if (count - first < N) {
      for (int i = 0; i < N; ++i) last[i] = at[first + i < count ? i : count - first - 1];
      at = last;
    }
    bool whole = true;
    for (int i = 0; i < N; ++i) whole &= at[i].unit + Simd<T>::width <= units;
    whole ? Whole(given, at, units) : Cut(given, at, units);
  }
}

// reductions: those of reductions.h, or null where the program has none.
constexpr ProgramLibrary library_of(const UnitsFunction<float>* functions, int64_t count, const Reduction<float>* reductions) {
  return {kKernelsVersion, SSTKERN_STRING(SSTKERN_LEVEL), functions, nullptr, count, reductions, nullptr};
}

constexpr ProgramLibrary library_of(const UnitsFunction<double>* functions, int64_t count, const Reduction<double>* reductions) {
  return {kKernelsVersion, SSTKERN_STRING(SSTKERN_LEVEL), nullptr, functions, count, nullptr, reductions};
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
