// Gradients of weights: one sum of outer products over all valid rows.
#pragma once

#include "gemm.h"
#include "kernels.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Rows summed at once: a whole number of runs, and few enough that they stay in the second cache as they are. Machines with AVX-512 have
// 1 MB of it and more: with 512 rows instead of 256 an LSTM's backward (48, 37, 200 to 300) takes 1.5% less. The bits do
// not rest on it.
constexpr int64_t kGradientRows = (SSTKERN_VECTOR_BYTES == 64 ? 8 : 4) * kRun;
// Where there are fewer than kManyRows, a loop's own sums are of few rows too: one run of all has up to 1.2 times its rounding (96 rows).
constexpr int64_t kManyRows = 4 * kRun, kFewRows = kRun / 2;
// Factors of a block of rows.
constexpr int64_t kGradientFactors = kGradientRows / kFactorParts;
// Gates whose gradients are transposed at once: two row blocks of a plain product, and whole cache lines of a row.
constexpr int64_t kGradientGates = 2 * kBlockRows;

// Elements of working memory for transposed gates, and for what pack_rows makes of one block of rows, each with the gap after it.
template <class T>
constexpr int64_t kTransposed = kGradientGates * kGradientFactors + kGap<T>;

template <class T>
inline int64_t packed_block(int64_t columns) {
  return plain_panels<T>(columns).vectors * Simd<T>::width * kGradientFactors + kGap<T>;
}

// Elements of working memory that weight_gradients needs.
template <class T>
inline int64_t gradient_work(const WeightGradient<T>* weights, int64_t count) {
  int64_t size = kTransposed<T>;
  for (int64_t w = 0; w < count; ++w) size += packed_block<T>(weights[w].columns);
  return size;
}

template <class T>
inline void close_gaps(const WeightGradient<T>* weights, int64_t count, const T* work) {
  const T* end = work + kTransposed<T>;
  close_gap(end - kGap<T>);
  for (int64_t w = 0; w < count; ++w) close_gap((end += packed_block<T>(weights[w].columns)) - kGap<T>);
}

// transposed[g * kGradientFactors + k] = the factor of rows k * kFactorParts.. of left[r * left_size + g], for `rows` rows and `gates`
// gates.
template <class T>
inline void transpose_block(const T* left, int64_t left_size, int64_t rows, int64_t gates, T* transposed) {
  constexpr int width = Simd<T>::width, parts = kFactorParts;
  for (int64_t g = 0; g < gates; g += width) {
    int64_t r = 0;
    if (gates - g >= width)
      for (; r + width * parts <= rows; r += width * parts) {
        Vec<T> square[width];
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) {
          Vec<T> numbers[parts];
          for (int part = 0; part < parts; ++part) numbers[part] = load(left + (r + i * parts + part) * left_size + g);
          square[i] = factors_across<T>(numbers);
        }
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) store(transposed + (g + i) * kGradientFactors + r / parts, square[i]);
      }
    for (; r < rows; r += parts)
      for (int64_t i = g; i < gates && i < g + width; ++i)
        store_factor(transposed + i * kGradientFactors + r / parts, left + r * left_size + i, left_size, rows - r);
  }
}

// Rows as the panels of a matrix: pack_plain for rows that lie anywhere.
template <class T>
inline void pack_rows(const Panels& panels, const T* const* rows, int64_t count, int64_t columns, T* packed) {
  constexpr int width = Simd<T>::width, parts = kFactorParts;
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t begin = panels.begin(panel) * width, end = panels.begin(panel + 1) * width;
    for (int64_t k = 0; k < count; k += parts)
      for (int64_t column = begin; column < end; column += width, packed += width) {
        Vec<T> numbers[parts]{};
        for (int part = 0; part < parts && k + part < count; ++part) {
          const T* const from = rows[k + part] + column;
          numbers[part] = column + width <= columns ? load(from) : load(from, columns - column);
        }
        store(packed, factors_across<T>(numbers));
      }
  }
}

// out[g][c] = (accumulate ? out[g][c] : 0) + sum over rows r of left[r * left_size + g] * right[r][c] for each of the weights, for g in
// begin..end-1.
template <class T>
inline void weight_gradients(const T* left, int64_t left_size, int64_t rows, const WeightGradient<T>* weights, int64_t count, int64_t begin,
                             int64_t end, bool accumulate, T* work) {
  T* const transposed = work;
  if constexpr (kGapBytes > 0) close_gaps(weights, count, work);
  const T* of_gates[kBlockRows];
  const int64_t most = rows < kManyRows ? kFewRows : kGradientRows;
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t depth = rows - first < most ? rows - first : most;
    T* packed = work + kTransposed<T>;
    for (int64_t w = 0; w < count; packed += packed_block<T>(weights[w].columns), ++w)
      pack_rows<T>(plain_panels<T>(weights[w].columns), weights[w].right + first, depth, weights[w].columns, packed);
    for (int64_t gate = begin; gate < end; gate += kGradientGates) {
      const int64_t gates = end - gate < kGradientGates ? end - gate : kGradientGates;
      transpose_block<T>(left + first * left_size + gate, left_size, depth, gates, transposed);
      packed = work + kTransposed<T>;
      for (int64_t w = 0; w < count; packed += packed_block<T>(weights[w].columns), ++w) {
        const WeightGradient<T>& weight = weights[w];
        const Panels panels = plain_panels<T>(weight.columns);
        for (int64_t block = 0; block < gates; block += kBlockRows) {
          const int64_t rows = gates - block < kBlockRows ? gates - block : kBlockRows;
          for (int64_t g = 0; g < rows; ++g) of_gates[g] = transposed + (block + g) * kGradientFactors;
          T* const out = weight.out + (gate + block) * weight.columns;
          factor_product<T>(
              panels, of_gates, [&](int64_t g) { return out + g * weight.columns; }, rows, factors(depth), weight.columns, 0, panels.count,
              packed, accumulate || first > 0);
        }
      }
    }
  }
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
