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

// Vectors of a row of a tile, as a rule and at most: a vector that would be a tile by itself loads a factor for every multiply-add, and
// has 0.8 of the rate. With 16 registers 3 x 4 is as fast as 2 x 6 for many rows, but not for 5.
constexpr int kTileColumns = SSTKERN_VECTOR_REGISTERS == 32 ? 4 : 2, kWidestTile = SSTKERN_VECTOR_REGISTERS == 32 ? 4 : 3;

// The width of the first of the tiles that make up a panel of `columns`, all of about equal width.
inline int next_tile(int columns) {
  const int tiles = static_cast<int>(count_tiles(columns, kTileColumns, kWidestTile));
  return (columns + tiles - 1) / tiles;
}

template <int Columns>
struct Tile {
  static constexpr int columns = Columns;
};

// Calls run(Tile) for a tile of `columns`, unless that is none.
template <int Columns = kWidestTile, class Run>
inline void in_tile(int64_t columns, const Run& run) {
  if (columns == Columns)
    run(Tile<Columns>{});
  else if constexpr (Columns > 1)
    in_tile<Columns - 1>(columns, run);
}

// 12 rows of one vector are fast enough, whatever the registers.
template <int Columns>
constexpr int kTileRows = kAccumulators / Columns < 12 ? kAccumulators / Columns : 12;

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

// One tile of `count` <= R rows. sums has `stride` vectors a row.
template <class T, int Columns, int R>
inline void tile_product(Vec<T>* sums, int64_t stride, int64_t count, const T* const* from, int64_t depth, const T* panel, Start<T> start) {
  if (count < R) {
    if constexpr (R > 1) tile_product<T, Columns, R - 1>(sums, stride, count, from, depth, panel, start);
    return;
  }
  const T* rows[R];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r) rows[r] = from[r];
  multiply<T, R, Columns, runs_at_once(R * Columns)>(sums, stride, rows, depth, panel, start);
}

// sums[r][c] = start + sum over k of rows[r][k] * panel[k][c], for any number of rows in tiles of about equal height. A function of its
// own, since all products share it.
template <class T, int Columns>
__attribute__((noinline)) void product(Vec<T>* sums, int64_t stride, int64_t count, const T* const* rows, int64_t depth, const T* panel,
                                       Start<T> start) {
  if (depth == 0 && start)
    for (int64_t r = 0; r < count; ++r)
      for (int c = 0; c < Columns; ++c) sums[r * stride + c] = start[c];
  constexpr int most = kTileRows<Columns>;
  for (int64_t tiles = (count + most - 1) / most, first = 0; tiles > 0; --tiles) {
    const int64_t height = (count - first + tiles - 1) / tiles;
    tile_product<T, Columns, most>(sums + first * stride, stride, height, rows + first, depth, panel, start);
    first += height;
  }
}

// Writes a column of a tile of `columns`: to[k * columns * width] holds the factors number k, of matrix(k, lane) =
// from[lane * lane_stride + k * depth_stride].
template <class T>
inline void pack_column(int64_t columns, const T* from, int64_t depth, int64_t lanes, int64_t depth_stride, int64_t lane_stride, T* to) {
  constexpr int width = Simd<T>::width, parts = kFactorParts;
  int64_t k = 0;
  if (lanes >= width && depth_stride == 1)
    for (; k + width * parts <= depth; k += width * parts) {
      Vec<T> square[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) square[i] = factors_along(from + i * lane_stride + k);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) store(to + (k / parts + i) * columns * width, square[i]);
    }
  if (lanes >= width && lane_stride == 1)
    for (; k + parts <= depth; k += parts) {
      Vec<T> rows[parts];
      for (int part = 0; part < parts; ++part) rows[part] = load(from + (k + part) * depth_stride);
      store(to + k / parts * columns * width, factors_across<T>(rows));
    }
  for (; k < depth; k += parts)
    for (int lane = 0; lane < width; ++lane) {
      T* const at = to + k / parts * columns * width + lane;
      if (lane < lanes)
        store_factor(at, from + lane * lane_stride + k * depth_stride, depth_stride, depth - k);
      else
        *at = 0;
    }
}

// Those of a plain product in one thread.
template <class T>
inline Panels plain_panels(int64_t columns) {
  const int64_t vectors = (columns + Simd<T>::width - 1) / Simd<T>::width;
  return share_panels(vectors, count_tiles(vectors, kTileColumns, kWidestTile), 1);
}

// Packs panels begin..end-1 of matrix(k, column) = from[k * depth_stride + column * column_stride], zero past `columns`. A plain product's
// panel is a tile of neighbouring columns.
template <class T>
inline void pack_plain(const Panels& panels, const T* from, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride,
                       int64_t begin, int64_t end, T* packed) {
  constexpr int width = Simd<T>::width;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panels.begin(panel), tile = panels.width(panel);
    T* const to = packed + (first - panels.begin(begin)) * width * factors(depth);
    for (int64_t c = 0; c < tile; ++c) {
      const int64_t column = (first + c) * width;
      pack_column(tile, from + column * column_stride, depth, columns - column, depth_stride, column_stride, to + c * width);
    }
  }
}

// sums[r][c] = out_r[c], zero past `columns` numbers, which end in the last vector; and back.
template <class T, int Columns, class Out>
inline void load_sums(Vec<T>* sums, int64_t rows, const Out& out, int64_t columns) {
  constexpr int last = (Columns - 1) * Simd<T>::width;
  for (int64_t r = 0; r < rows; ++r, sums += Columns) {
    const T* const from = out(r);
#pragma GCC unroll 4
    for (int c = 0; c + 1 < Columns; ++c) sums[c] = load(from + c * Simd<T>::width);
    sums[Columns - 1] = load(from + last, columns - last);
  }
}

template <class T, int Columns, class Out>
inline void store_sums(const Vec<T>* sums, int64_t rows, const Out& out, int64_t columns) {
  constexpr int last = (Columns - 1) * Simd<T>::width;
  for (int64_t r = 0; r < rows; ++r, sums += Columns) {
    T* const to = out(r);
#pragma GCC unroll 4
    for (int c = 0; c + 1 < Columns; ++c) store(to + c * Simd<T>::width, sums[c]);
    store(to + last, sums[Columns - 1], columns - last);
  }
}

// out_r[column] = (accumulate ? out_r[column] : 0) + sum over k < depth of in_r[k] * matrix(k, column), for `count` rows of factors, up to
// kBlockRows, and the columns of panels begin..end-1.
template <class T, class Out>
inline void factor_product(const Panels& panels, const T* const* in, const Out& out, int64_t count, int64_t depth, int64_t columns,
                           int64_t begin, int64_t end, const T* packed, bool accumulate) {
  static constexpr Vec<T> zero[kWidestTile]{};
  Vec<T> sums[kBlockRows * kWidestTile];
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panels.begin(panel) * Simd<T>::width;
    const auto to = [&](int64_t r) { return out(r) + column; };
    in_tile(panels.width(panel), [&](auto tile) {
      if (accumulate) load_sums<T, tile.columns>(sums, count, to, columns - column);
      product<T, tile.columns>(sums, tile.columns, count, in, depth, packed + column * depth, accumulate ? nullptr : zero);
      store_sums<T, tile.columns>(sums, count, to, columns - column);
    });
  }
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
