// Matrices packed for the products, in all threads.
#pragma once

#include <algorithm>

#include "arguments.h"
#include "memory.h"
#include "team.h"

namespace sstkern {

// Elements a thread should pack at least.
constexpr int64_t kPackGrain = 1 << 15;

// What run(begin, end, where panel `begin` starts) packs panels into; `size` elements for each of their vectors.
template <class T, class Run>
Numbers<T> pack(const Panels& panels, int64_t size, const Run& run) {
  Numbers<T> packed(panels.vectors * size);
  T* const to = packed.data();
  parallel_for(panels.count, std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, panels.widest() * size)),
               [&](int64_t begin, int64_t end) { run(begin, end, to + panels.begin(begin) * size); });
  return packed;
}

// A matrix (depth, columns), or transposed.
template <class T>
Numbers<T> pack_plain(const Products<T>& products, const Panels& panels, const Tensor& matrix, bool transposed = false) {
  const int row = transposed ? 1 : 0, column = 1 - row;
  const int64_t depth = matrix.size(row);
  return pack<T>(panels, products.packed(1, depth), [&](int64_t begin, int64_t end, T* to) {
    products.pack_plain(panels, read<T>(matrix), depth, matrix.size(column), matrix.stride(row), matrix.stride(column), begin, end, to);
  });
}

// A weight (gates * H, depth), or transposed, by units.
template <class T>
Numbers<T> pack_units(const Products<T>& products, int gates, const Panels& panels, const Tensor& weight, bool transposed = false) {
  const int unit = transposed ? 1 : 0, row = 1 - unit;
  const int64_t depth = weight.size(row);
  return pack<T>(panels, products.packed(gates, depth), [&](int64_t begin, int64_t end, T* to) {
    products.pack_units(gates, panels, read<T>(weight), weight.stride(unit), weight.stride(row), weight.size(unit) / gates, depth, begin,
                        end, to);
  });
}

}  // namespace sstkern
