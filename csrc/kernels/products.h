// An instruction set's matrix products, as the cells' kernels and the driver call them (kernels.h), compiled once for all cells.
#pragma once

#define SSTKERN_PRODUCTS

#include "gemm.h"
#include "kernels.h"
#include "peak.h"
#include "weight_gradients.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Each panel is [tile][factors of the depth][column of the tile][width]. Column c of a panel is gate c % gates of its block of units
// c / gates.
template <class T, int Tile>
inline void pack_units_in(PanelShape shape, const T* weight, int64_t unit_stride, int64_t depth_stride, int64_t hidden_size, int64_t depth,
                          int64_t begin, int64_t end, T* packed) {
  constexpr int width = Simd<T>::width;
  const int64_t size = shape.columns() * width * factors(depth);
  for (int64_t panel = begin; panel < end; ++panel, packed += size)
    for (int block = 0, c = 0; block < shape.blocks; ++block)
      for (int gate = 0; gate < shape.gates; ++gate, ++c) {
        const int64_t unit = (panel * shape.blocks + block) * width;
        T* const to = packed + (c / Tile * Tile * factors(depth) + c % Tile) * width;
        pack_column<T, Tile>(weight + (gate * hidden_size + unit) * unit_stride, depth, hidden_size - unit, depth_stride, unit_stride, to);
      }
}

template <class T, int Tile>
inline void panel_product_in(int columns, T* sums, int64_t count, const T* const* rows, int64_t depth, const T* packed, const T* start) {
  Vec<T>* const to = reinterpret_cast<Vec<T>*>(sums);
  const Vec<T>* const from = reinterpret_cast<const Vec<T>*>(start);
  for (int c = 0; c < columns; c += Tile)
    product<T, Tile>(
        to + c, columns, count, [rows](int64_t r) { return rows[r]; }, factors(depth), packed + c * Simd<T>::width * factors(depth),
        from + c);
}

template <class T>
void pack_units(PanelShape shape, const T* weight, int64_t unit_stride, int64_t depth_stride, int64_t hidden_size, int64_t depth,
                int64_t begin, int64_t end, T* packed) {
  in_tiles(shape.columns(), [&](auto tile) {
    pack_units_in<T, tile.size>(shape, weight, unit_stride, depth_stride, hidden_size, depth, begin, end, packed);
  });
}

template <class T>
void panel_product(PanelShape shape, T* sums, int64_t count, const T* const* rows, int64_t depth, const T* packed, const T* start) {
  in_tiles(shape.columns(), [&](auto tile) { panel_product_in<T, tile.size>(shape.columns(), sums, count, rows, depth, packed, start); });
}

template <class T>
void rows_product(const T* const* in, T* const* out, int64_t count, int64_t depth, int64_t columns, int64_t begin, int64_t end,
                  const T* packed, bool accumulate, T* room) {
  plain_product<T>([in](int64_t r) { return in[r]; }, [out](int64_t r) { return out[r]; }, count, depth, columns, begin, end, packed,
                   accumulate, room);
}

template <class T>
constexpr Products<T> products_of() {
  return {Simd<T>::width, kFactorParts,    kPlainPanel<T>,   pack_units<T>,      panel_product<T>,
          pack_plain<T>,  rows_product<T>, gradient_work<T>, weight_gradients<T>};
}

constexpr LevelProducts level_products{SSTKERN_STRING(SSTKERN_LEVEL),
                                       products_of<float>(),
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
