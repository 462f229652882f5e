// The matrix products under the time loop and around it: a few rows at a time times packed panels of a matrix.
//
// Every element is a sum in an order that depends on nothing but the product's depth: a row's result has the same bits whatever the
// other rows are.
#pragma once

#include "factor.h"
#include "kernels.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Accumulators that fit the register file beside one row of the panel and a factor: 24 of 32 registers, 12 of 16.
constexpr int kAccumulators = SSTKERN_VECTOR_REGISTERS == 32 ? 24 : 12;

// Vectors of a row of a tile, of which a panel of `columns` has a whole number.
constexpr int tile_columns(int columns) { return SSTKERN_VECTOR_REGISTERS == 16 ? 2 : columns % 4 == 0 ? 4 : 3; }

template <int Size>
struct Tile {
  static constexpr int size = Size;
};

// Calls run(Tile) with the tile of a panel of `columns`.
template <class Run>
inline void in_tiles(int columns, const Run& run) {
#if SSTKERN_VECTOR_REGISTERS == 16
  run(Tile<2>{});
#else
  tile_columns(columns) == 4 ? run(Tile<4>{}) : run(Tile<3>{});
#endif
}

template <int Columns>
constexpr int kTileRows = kAccumulators / Columns;

// Products are added up in runs of this many and the runs' sums then among themselves: a single chain of H additions is less accurate
// than torch's matrix product.
constexpr int64_t kRun = 64;

// What sums start from: the same vectors for every row, or (null) what they hold.
template <class T>
using Start = const Vec<T>*;

// sums[r][c] = start + sum over k < depth of rows[r][k] * panel[k][c], `Runs` runs at a time; depth is as many times Runs whole runs, or
// any where Runs is 1. A function of its own: where GCC inlines it, the callers' variables push accumulators out of their registers, and
// products take 2.4 times as long.
template <class T, int R, int Columns, int Runs>
__attribute__((noinline)) void add_runs(Vec<T>* sums, int64_t stride, const T* const (&rows)[R], int64_t depth, const T* panel,
                                        Start<T> start) {
  constexpr int width = Simd<T>::width;
  const Vec<T>* from = start ? start : sums;
  int64_t from_stride = start ? 0 : stride;
  for (int64_t done = 0; done < depth; done += Runs * kRun, panel += (Runs - 1) * kRun * Columns * width) {
    const int64_t end = depth - done < kRun ? depth : done + kRun;
    Vec<T> local[Runs][R][Columns];
#pragma GCC unroll 32
    for (int run = 0; run < Runs; ++run)
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
        for (int c = 0; c < Columns; ++c) local[run][r][c] = Vec<T>{};
    for (int64_t k = done; k < end; ++k, panel += Columns * width)
#pragma GCC unroll 32
      for (int run = 0; run < Runs; ++run) {
        decltype(load_factors(panel)) weight[Columns];
#pragma GCC unroll 32
        for (int c = 0; c < Columns; ++c) weight[c] = load_factors(panel + (run * kRun * Columns + c) * width);
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) {
          const auto value = broadcast_factor(rows[r] + run * kRun + k);
#pragma GCC unroll 32
          for (int c = 0; c < Columns; ++c) local[run][r][c] = multiply_add<T>(local[run][r][c], value, weight[c]);
        }
      }
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 32
      for (int c = 0; c < Columns; ++c) {
        Vec<T> sum = from[r * from_stride + c];
#pragma GCC unroll 32
        for (int run = 0; run < Runs; ++run) sum += local[run][r][c];
        sums[r * stride + c] = sum;
      }
    from = sums;
    from_stride = stride;
  }
}

template <class T, int R, int Columns, int Runs>
inline void multiply(Vec<T>* sums, int64_t stride, const T* (&rows)[R], int64_t depth, const T* panel, Start<T> start) {
  const int64_t done = Runs == 1 ? depth : depth / (Runs * kRun) * (Runs * kRun);
  if (done > 0) add_runs<T, R, Columns, Runs>(sums, stride, rows, done, panel, start);
  if (done == depth) return;
  if constexpr (Runs > 1) {
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) rows[r] += done;
    multiply<T, R, Columns, Runs / 2>(sums, stride, rows, depth - done, panel + done * Columns * Simd<T>::width,
                                      done > 0 ? nullptr : start);
  }
}

// Eight sums in progress hide what a multiply-add takes; a tile of few rows has them from several runs. Not with AVX-512, where one stream
// of vectors is as much as the second cache gives: two took 1.0 to 1.8 times as long (1 row, depths 128 and 256, 96 KB to 1 MB).
constexpr int runs_at_once(int accumulators) { return SSTKERN_VECTOR_BYTES == 64 || accumulators > 4 ? 1 : accumulators > 2 ? 2 : 4; }

// One tile of `count` <= R rows, of which row(r) gives the address. sums has `stride` vectors a row.
template <class T, int Columns, int R, class Row>
inline void tile_product(Vec<T>* sums, int64_t stride, int64_t count, const Row& row, int64_t depth, const T* panel, Start<T> start) {
  if (count < R) {
    if constexpr (R > 1) tile_product<T, Columns, R - 1>(sums, stride, count, row, depth, panel, start);
    return;
  }
  const T* rows[R];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r) rows[r] = row(r);
  multiply<T, R, Columns, runs_at_once(R * Columns)>(sums, stride, rows, depth, panel, start);
}

// sums[r][c] = start + sum over k of row_r[k] * panel[k][c], for any number of rows in tiles of about equal height.
template <class T, int Columns, class Row>
inline void product(Vec<T>* sums, int64_t stride, int64_t count, const Row& row, int64_t depth, const T* panel, Start<T> start) {
  if (depth == 0 && start)
    for (int64_t r = 0; r < count; ++r)
      for (int c = 0; c < Columns; ++c) sums[r * stride + c] = start[c];
  constexpr int most = kTileRows<Columns>;
  for (int64_t tiles = (count + most - 1) / most, first = 0; tiles > 0; --tiles) {
    const int64_t height = (count - first + tiles - 1) / tiles;
    tile_product<T, Columns, most>(sums + first * stride, stride, height, [&](int64_t r) { return row(first + r); }, depth, panel, start);
    first += height;
  }
}

// Writes column c of a tile's panel: to[k * Columns * width] holds the factors number k, of matrix(k, lane) =
// from[lane * lane_stride + k * depth_stride].
template <class T, int Columns>
inline void pack_column(const T* from, int64_t depth, int64_t lanes, int64_t depth_stride, int64_t lane_stride, T* to) {
  constexpr int width = Simd<T>::width, parts = kFactorParts;
  int64_t k = 0;
  if (lanes >= width && depth_stride == 1)
    for (; k + width * parts <= depth; k += width * parts) {
      Vec<T> square[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) square[i] = factors_along(from + i * lane_stride + k);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) store(to + (k / parts + i) * Columns * width, square[i]);
    }
  if (lanes >= width && lane_stride == 1)
    for (; k + parts <= depth; k += parts) {
      Vec<T> rows[parts];
      for (int part = 0; part < parts; ++part) rows[part] = load(from + (k + part) * depth_stride);
      store(to + k / parts * Columns * width, factors_across<T>(rows));
    }
  for (; k < depth; k += parts)
    for (int lane = 0; lane < width; ++lane) {
      T* const at = to + k / parts * Columns * width + lane;
      if (lane < lanes)
        store_factor(at, from + lane * lane_stride + k * depth_stride, depth_stride, depth - k);
      else
        *at = 0;
    }
}

// A plain product's panel: one tile of neighbouring columns.
constexpr int kPlainColumns = tile_columns(4);

template <class T>
constexpr int64_t kPlainPanel = kPlainColumns * Simd<T>::width;

template <class T>
inline int64_t plain_panels(int64_t columns) {
  return (columns + kPlainPanel<T> - 1) / kPlainPanel<T>;
}

template <class T>
inline int64_t plain_panel(int64_t depth) {
  return kPlainPanel<T> * factors(depth);
}

// Packs panels begin..end-1 of matrix(k, column) = from[k * depth_stride + column * column_stride], zero past `columns`.
template <class T>
inline void pack_plain(const T* from, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, int64_t begin,
                       int64_t end, T* packed) {
  for (int64_t panel = begin; panel < end; ++panel)
    for (int c = 0; c < kPlainColumns; ++c) {
      const int64_t column = panel * kPlainPanel<T> + c * Simd<T>::width;
      pack_column<T, kPlainColumns>(from + column * column_stride, depth, columns - column, depth_stride, column_stride,
                                    packed + (panel - begin) * plain_panel<T>(depth) + c * Simd<T>::width);
    }
}

// sums[r][c] = out_r[c], zero past `columns` columns; and back.
template <class T, class Out>
inline void load_sums(Vec<T>* sums, int64_t rows, const Out& out, int64_t columns) {
  constexpr int width = Simd<T>::width;
  if (columns >= kPlainPanel<T>) {
    for (int64_t r = 0; r < rows; ++r, sums += kPlainColumns) {
      const T* const from = out(r);
#pragma GCC unroll 4
      for (int c = 0; c < kPlainColumns; ++c) sums[c] = load(from + c * width);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int c = 0; c < kPlainColumns; ++c)
      sums[r * kPlainColumns + c] = c * width < columns ? load(out(r) + c * width, columns - c * width) : Vec<T>{};
}

template <class T, class Out>
inline void store_sums(const Vec<T>* sums, int64_t rows, const Out& out, int64_t columns) {
  constexpr int width = Simd<T>::width;
  if (columns >= kPlainPanel<T>) {
    for (int64_t r = 0; r < rows; ++r, sums += kPlainColumns) {
      T* const to = out(r);
#pragma GCC unroll 4
      for (int c = 0; c < kPlainColumns; ++c) store(to + c * width, sums[c]);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int c = 0; c < kPlainColumns; ++c)
      if (c * width < columns) store(out(r) + c * width, sums[r * kPlainColumns + c], columns - c * width);
}

// out_r[column] = (accumulate ? out_r[column] : 0) + sum over k < depth of in_r[k] * matrix(k, column), for `count` rows of factors and the
// columns of panels begin..end-1.
template <class T, class In, class Out>
inline void factor_product(const In& in, const Out& out, int64_t count, int64_t depth, int64_t columns, int64_t begin, int64_t end,
                           const T* packed, bool accumulate) {
  constexpr Vec<T> zero[kPlainColumns]{};
  Vec<T> sums[kBlockRows * kPlainColumns];
  for (int64_t first = 0; first < count; first += kBlockRows) {
    const int64_t rows = count - first < kBlockRows ? count - first : kBlockRows;
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = panel * kPlainPanel<T>;
      const auto to = [&](int64_t r) { return out(first + r) + column; };
      if (accumulate) load_sums<T>(sums, rows, to, columns - column);
      product<T, kPlainColumns>(
          sums, kPlainColumns, rows, [&](int64_t r) { return in(first + r); }, depth, packed + column * depth, accumulate ? nullptr : zero);
      store_sums<T>(sums, rows, to, columns - column);
    }
  }
}

// The same for rows of `depth` numbers; room has factor_room(kBlockRows, depth) elements.
template <class T, class In, class Out>
inline void plain_product(const In& in, const Out& out, int64_t count, int64_t depth, int64_t columns, int64_t begin, int64_t end,
                          const T* packed, bool accumulate, T* room) {
  const T* rows[kBlockRows];
  for (int64_t first = 0; first < count; first += kBlockRows) {
    const int64_t block = count - first < kBlockRows ? count - first : kBlockRows;
    for (int64_t r = 0; r < block; ++r) rows[r] = as_factors(in(first + r), depth, room + r * factors(depth));
    factor_product<T>([&rows](int64_t r) { return rows[r]; }, [&](int64_t r) { return out(first + r); }, block, factors(depth), columns,
                      begin, end, packed, accumulate);
  }
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
