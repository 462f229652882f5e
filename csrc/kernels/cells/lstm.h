// Long short-term memory: Hochreiter and Schmidhuber 1997 with forget gates (Gers 2000), as torch.nn.LSTM writes it.
#pragma once

#include "recurrence.h"

namespace sstkern {
namespace SSTKERN_LEVEL {
namespace {  // another cell may have a struct of the same name

template <class T>
struct Lstm {
  static constexpr int gates = 4;   // i, f, g, o
  static constexpr int states = 1;  // c
  static constexpr int parameters = 0;
  static constexpr int saves = 4;  // the gates after their activation, folded but for g
  static constexpr bool same_gate_gradients = true;
  static constexpr bool uses_h = false;
  static constexpr bool uses_new_h = false;

  static SSTKERN_INLINE void forward(const ForwardGiven<T, Lstm>& given, ForwardResult<T, Lstm>& result) {
    const auto i = sigmoid<T>(given.from_x[0] + given.from_h[0]);
    const auto f = sigmoid<T>(given.from_x[1] + given.from_h[1]);
    const auto g = tanh<T>(given.from_x[2] + given.from_h[2]);
    const auto o = sigmoid<T>(given.from_x[3] + given.from_h[3]);
    const auto c = fma<T>(f, given.states[0], i * g);
    result.h = o * tanh<T>(c);
    result.states = {c};
    result.saved = {folded<T>(i), folded<T>(f), g, folded<T>(o)};
  }

  static SSTKERN_INLINE void backward(const BackwardGiven<T, Lstm>& given, BackwardResult<T, Lstm>& result) {
    const auto i = unfolded<T>(given.saved[0]), f = unfolded<T>(given.saved[1]), o = unfolded<T>(given.saved[3]);
    const auto& g = given.saved[2];
    const auto tanh_c = tanh<T>(given.states[0]);
    const auto dc = fma<T>(given.dh * o.value, tanh_gradient<T>(tanh_c), given.dstates[0]);
    result.dgates_x[0] = dc * g * i.value * i.rest;
    result.dgates_x[1] = dc * given.states_before[0] * f.value * f.rest;
    result.dgates_x[2] = dc * i.value * tanh_gradient<T>(g);
    result.dgates_x[3] = given.dh * tanh_c * o.value * o.rest;
    result.dstates = {dc * f.value};
  }
};

}  // namespace

SSTKERN_CELLS(cell_kernels<Lstm>("lstm"));

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
