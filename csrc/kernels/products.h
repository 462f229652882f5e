// An instruction set's matrix products, as the cells' kernels and the driver call them (kernels.h), compiled once for all cells.
#pragma once

#define SSTKERN_PRODUCTS

#include "gemm.h"
#include "kernels.h"
#include "peak.h"
#include "storage.h"
#include "weight_gradients.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Each panel is [tile][factors of the depth][column of the tile][width]. Column c of a panel is gate c % gates of its vector of units
// c / gates.
template <class T>
void pack_units(int gates, const Panels& panels, const T* weight, int64_t unit_stride, int64_t depth_stride, int64_t hidden_size,
                int64_t depth, int64_t begin, int64_t end, T* packed) {
  constexpr int width = Simd<T>::width;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int columns = gates * static_cast<int>(panels.width(panel));
    for (int first = 0, tile; first < columns; first += tile, packed += tile * width * factors(depth)) {
      tile = next_tile(columns - first);
      for (int c = 0; c < tile; ++c) {
        const int64_t unit = (panels.begin(panel) + (first + c) / gates) * width;
        const T* const from = weight + ((first + c) % gates * hidden_size + unit) * unit_stride;
        pack_column(tile, from, depth, hidden_size - unit, depth_stride, unit_stride, packed + c * width);
      }
    }
  }
}

template <class T>
void panel_product(int columns, T* sums, int64_t count, const T* const* rows, int64_t depth, const T* packed, const T* start) {
  Vec<T>* const to = reinterpret_cast<Vec<T>*>(sums);
  const Vec<T>* const from = reinterpret_cast<const Vec<T>*>(start);
  for (int c = 0, size; c < columns; c += size) {
    size = next_tile(columns - c);
    in_tile(size, [&](auto tile) {
      product<T, tile.columns>(to + c, columns, count, rows, factors(depth), packed + c * Simd<T>::width * factors(depth), from + c);
    });
  }
}

template <class T>
void plain_product(const Panels& panels, const T* const* in, T* const* out, int64_t count, int64_t depth, int64_t columns, int64_t begin,
                   int64_t end, const T* packed, bool accumulate, T* room) {
  const T* rows[kBlockRows];
  for (int64_t first = 0; first < count; first += kBlockRows) {
    const int64_t block = count - first < kBlockRows ? count - first : kBlockRows;
    for (int64_t r = 0; r < block; ++r) rows[r] = as_factors(in[first + r], depth, room + r * factors(depth));
    factor_product<T>(
        panels, rows, [&](int64_t r) { return out[first + r]; }, block, factors(depth), columns, begin, end, packed, accumulate);
  }
}

template <class T>
constexpr Products<T> products_of() {
  return {Simd<T>::width, kFactorParts,     kTileColumns,     kWidestTile,         pack_units<T>, panel_product<T>,
          pack_plain<T>,  plain_product<T>, gradient_work<T>, weight_gradients<T>, nullptr,       nullptr};
}

constexpr Products<float> float_products() {
  Products<float> products = products_of<float>();
  products.widen = widen;
  products.narrow = narrow;
  return products;
}

constexpr LevelProducts level_products{SSTKERN_STRING(SSTKERN_LEVEL),
                                       float_products(),
#ifdef SSTKERN_BFLOAT16
                                       {},
                                       nullptr,
                                       nullptr
#else
                                       products_of<double>(), multiply_adds, read_all
#endif
};

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
