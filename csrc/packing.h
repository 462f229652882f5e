// Matrices packed for the products, in all threads.
#pragma once

#include <algorithm>

#include "arguments.h"
#include "team.h"

namespace sstkern {

// Elements a thread should pack at least.
constexpr int64_t kPackGrain = 1 << 15;

// Packs run(begin, end, where panel `begin` starts) of `panels` panels.
template <class T, class Run>
at::Tensor pack(const Arguments<T>& a, int64_t panels, int64_t panel_size, const Run& run) {
  at::Tensor packed = a.empty({panels * panel_size});
  T* const to = write<T>(packed);
  parallel_for(panels, std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, panel_size)),
               [&](int64_t begin, int64_t end) { run(begin, end, to + begin * panel_size); });
  return packed;
}

template <class T>
at::Tensor pack_plain(const Arguments<T>& a, const at::Tensor& matrix) {
  const int64_t depth = matrix.size(0), columns = matrix.size(1);
  return pack(a, a.products.plain_panels(columns), a.products.packed_plain(depth), [&](int64_t begin, int64_t end, T* to) {
    a.products.pack_plain(read<T>(matrix), depth, columns, matrix.stride(0), matrix.stride(1), begin, end, to);
  });
}

template <class T>
at::Tensor pack_units(const Arguments<T>& a, const at::Tensor& weight) {
  const PanelShape shape = a.kernels.shape;
  const int64_t depth = weight.size(1);
  return pack(a, a.products.unit_panels(shape, a.size.hidden), a.products.unit_panel(shape, depth), [&](int64_t begin, int64_t end, T* to) {
    a.products.pack_units(shape, read<T>(weight), depth, 1, a.size.hidden, depth, begin, end, to);
  });
}

}  // namespace sstkern
