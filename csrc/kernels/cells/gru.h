// Gated recurrent unit: Cho et al. 2014 in cuDNN's form, as torch.nn.GRU writes it: n = tanh(x_n + r * h_n).
#pragma once

#include "recurrence.h"

namespace sstkern {
namespace SSTKERN_LEVEL {
namespace {  // another cell may have a struct of the same name

template <class T>
struct Gru {
  static constexpr int gates = 3;  // r, z, n
  static constexpr int states = 0;
  static constexpr int parameters = 0;
  static constexpr int saves = 4;  // the gates after their activation, folded but for n, and h_n, which dr needs
  static constexpr bool same_gate_gradients = false;
  static constexpr bool uses_h = true;
  static constexpr bool uses_new_h = false;

  static SSTKERN_INLINE void forward(const ForwardGiven<T, Gru>& given, ForwardResult<T, Gru>& result) {
    const auto r = sigmoid<T>(given.from_x[0] + given.from_h[0]);
    const auto z = sigmoid<T>(given.from_x[1] + given.from_h[1]);
    const auto n = tanh<T>(fma<T>(r, given.from_h[2], given.from_x[2]));
    result.h = fma<T>(z, given.h - n, n);
    result.saved = {folded<T>(r), folded<T>(z), n, given.from_h[2]};
  }

  static SSTKERN_INLINE void backward(const BackwardGiven<T, Gru>& given, BackwardResult<T, Gru>& result) {
    const auto r = unfolded<T>(given.saved[0]), z = unfolded<T>(given.saved[1]);
    const auto &n = given.saved[2], &h_n = given.saved[3];
    const auto dn = given.dh * z.rest * tanh_gradient<T>(n);
    result.dgates_x[0] = result.dgates_h[0] = dn * h_n * r.value * r.rest;
    result.dgates_x[1] = result.dgates_h[1] = given.dh * (given.h_before - n) * z.value * z.rest;
    result.dgates_x[2] = dn;
    result.dgates_h[2] = dn * r.value;
    result.dh = given.dh * z.value;
  }
};

}  // namespace

SSTKERN_CELLS(cell_kernels<Gru>("gru"));

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
