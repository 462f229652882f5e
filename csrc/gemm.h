// The matrix product under the time loop: a few rows times a packed panel of the recurrent weights.
#pragma once

#include "vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Accumulators that fit the register file beside one row of the panel: 24 of 32 registers, 12 of 16.
constexpr int kAccumulators = SSTKERN_VECTOR_REGISTERS == 32 ? 24 : 12;

template <int Columns>
constexpr int kTileRows = kAccumulators / Columns;

// Calls f.template run<R>() with R = rows, 1 <= rows <= R.
template <int R, class F>
inline void with_rows(int64_t rows, const F& f) {
  if (rows == R) {
    f.template run<R>();
  } else if constexpr (R > 1) {
    with_rows<R - 1>(rows, f);
  }
}

// Products are added up in runs of this many and the runs' sums then among themselves: a single chain of H additions is less accurate
// than torch's matrix product.
constexpr int64_t kRun = 64;

// sum[r][c] += sum over k of row_r[k] * panel[k][c]; `row` gives the address of row r's element 0.
template <class T, int R, int Columns, class Row>
inline void multiply(Vec<T> (&sum)[R][Columns], const Row& row, int64_t depth, const T* panel) {
  const T* rows[R];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r) rows[r] = row(r);
  for (int64_t begin = 0; begin < depth; begin += kRun) {
    const int64_t end = depth - begin < kRun ? depth : begin + kRun;
    Vec<T> local[R][Columns]{};  // registers: `sum` itself is indexed at run time by the callers' epilogues
    for (int64_t k = begin; k < end; ++k, panel += Columns * Simd<T>::width) {
      Vec<T> weight[Columns];
#pragma GCC unroll 32
      for (int c = 0; c < Columns; ++c) weight[c] = load(panel + c * Simd<T>::width);
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r) {
        const Vec<T> value = broadcast<T>(rows[r][k]);
#pragma GCC unroll 32
        for (int c = 0; c < Columns; ++c) local[r][c] += value * weight[c];
      }
    }
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
      for (int c = 0; c < Columns; ++c) sum[r][c] += local[r][c];
  }
}

// A plain product's panel: kPlainColumns vectors of neighbouring columns.
constexpr int kPlainColumns = 4;

template <class T>
inline int64_t plain_panels(int64_t columns) {
  const int64_t panel = kPlainColumns * Simd<T>::width;
  return (columns + panel - 1) / panel;
}

template <class T>
inline int64_t plain_packed_size(int64_t depth, int64_t columns) {
  return plain_panels<T>(columns) * kPlainColumns * Simd<T>::width * depth;
}

// matrix(k, column) = from[k * depth_stride + column * column_stride], zero past `columns`.
template <class T>
inline void pack_plain(const T* from, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, T* packed) {
  const int64_t panel_columns = kPlainColumns * Simd<T>::width;
  for (int64_t panel = 0; panel < plain_panels<T>(columns); ++panel)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t c = 0; c < panel_columns; ++c) {
        const int64_t column = panel * panel_columns + c;
        *packed++ = column < columns ? from[k * depth_stride + column * column_stride] : T(0);
      }
}

// out_r[column] = (accumulate ? out_r[column] : 0) + sum over k of in_r[k] * matrix(k, column), for `count` rows.
template <class T, class In, class Out>
struct PlainTile {
  const In& in;
  const Out& out;
  int64_t first, depth, columns, panel;
  const T* packed;
  bool accumulate;

  template <int R>
  void run() const {
    constexpr int width = Simd<T>::width;
    const int64_t begin = panel * kPlainColumns * width;
    Vec<T> sum[R][kPlainColumns];
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < kPlainColumns; ++c) {
        const int64_t column = begin + c * width;
        sum[r][c] = accumulate && column < columns ? load(out(first + r) + column, columns - column) : Vec<T>{};
      }
    multiply<T, R, kPlainColumns>(sum, [&](int r) { return in(first + r); }, depth, packed + begin * depth);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < kPlainColumns; ++c) {
        const int64_t column = begin + c * width;
        if (column < columns) store(out(first + r) + column, sum[r][c], columns - column);
      }
  }
};

template <class T, class In, class Out>
inline void plain_product(const In& in, const Out& out, int64_t count, int64_t depth, int64_t columns, const T* packed, bool accumulate) {
  constexpr int rows = kTileRows<kPlainColumns>;
  for (int64_t panel = 0; panel < plain_panels<T>(columns); ++panel)
    for (int64_t first = 0; first < count; first += rows) {
      const int64_t left = count - first;
      with_rows<rows>(left < rows ? left : rows, PlainTile<T, In, Out>{in, out, first, depth, columns, panel, packed, accumulate});
    }
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
