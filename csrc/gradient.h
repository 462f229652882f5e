// Gradients of weights: one sum of outer products over all valid rows.
#pragma once

#include "gemm.h"
#include "kernels.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Rows summed at once: a whole number of runs, and few enough that they stay in the second cache as they are.
constexpr int64_t kGradientRows = 4 * kRun;
// Gates whose gradients are transposed at once: two row blocks of a plain product, and whole cache lines of a row.
constexpr int64_t kGradientGates = 2 * kBlockRows;

// Elements that pack_rows makes of one block of rows.
template <class T>
inline int64_t packed_block(int64_t columns) {
  return plain_panels<T>(columns) * plain_panel<T>(kGradientRows);
}

// Elements of working memory that weight_gradients needs.
template <class T>
inline int64_t gradient_work(const WeightGradient<T>* weights, int64_t count) {
  int64_t size = kGradientGates * kGradientRows;
  for (int64_t w = 0; w < count; ++w) size += packed_block<T>(weights[w].columns);
  return size;
}

// transposed[g * kGradientRows + r] = left[r * left_size + g], for `rows` rows and `gates` gates.
template <class T>
inline void transpose_block(const T* left, int64_t left_size, int64_t rows, int64_t gates, T* transposed) {
  constexpr int width = Simd<T>::width;
  for (int64_t g = 0; g < gates; g += width) {
    int64_t r = 0;
    if (gates - g >= width)
      for (; r + width <= rows; r += width) {
        Vec<T> square[width];
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) square[i] = load(left + (r + i) * left_size + g);
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) store(transposed + (g + i) * kGradientRows + r, square[i]);
      }
    for (; r < rows; ++r)
      for (int64_t i = g; i < gates && i < g + width; ++i) transposed[i * kGradientRows + r] = left[r * left_size + i];
  }
}

// Rows as the panels of a matrix: pack_plain for rows that lie anywhere.
template <class T>
inline void pack_rows(const T* const* rows, int64_t count, int64_t columns, T* packed) {
  constexpr int width = Simd<T>::width;
  for (int64_t panel = 0; panel < plain_panels<T>(columns); ++panel)
    for (int64_t k = 0; k < count; ++k)
      for (int c = 0; c < kPlainColumns; ++c, packed += width) {
        const int64_t column = panel * kPlainPanel<T> + c * width;
        store(packed, column < columns ? load(rows[k] + column, columns - column) : Vec<T>{});
      }
}

// out[g][c] = sum over rows r of left[r * left_size + g] * right[r][c] for each of the weights, for g in begin..end-1.
template <class T>
inline void weight_gradients(const T* left, int64_t left_size, int64_t rows, const WeightGradient<T>* weights, int64_t count, int64_t begin,
                             int64_t end, T* work) {
  T* const transposed = work;
  for (int64_t first = 0; first < rows; first += kGradientRows) {
    const int64_t depth = rows - first < kGradientRows ? rows - first : kGradientRows;
    T* packed = work + kGradientGates * kGradientRows;
    for (int64_t w = 0; w < count; packed += packed_block<T>(weights[w].columns), ++w)
      pack_rows<T>(weights[w].right + first, depth, weights[w].columns, packed);
    for (int64_t gate = begin; gate < end; gate += kGradientGates) {
      const int64_t gates = end - gate < kGradientGates ? end - gate : kGradientGates;
      transpose_block<T>(left + first * left_size + gate, left_size, depth, gates, transposed);
      packed = work + kGradientGates * kGradientRows;
      for (int64_t w = 0; w < count; packed += packed_block<T>(weights[w].columns), ++w) {
        const WeightGradient<T>& weight = weights[w];
        plain_product<T>([&](int64_t g) { return transposed + g * kGradientRows; },
                         [&](int64_t g) { return weight.out + (gate + g) * weight.columns; }, gates, depth, weight.columns, 0,
                         plain_panels<T>(weight.columns), packed, first > 0);
      }
    }
  }
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
