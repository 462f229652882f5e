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
  static constexpr int saves = 4;  // the gates after their activation
  static constexpr bool same_gate_gradients = true;
  static constexpr bool uses_h = false;
  static constexpr bool uses_new_h = false;

  static SSTKERN_INLINE void forward(const ForwardGiven<T, Lstm>& given, ForwardResult<T, Lstm>& result) {
    const auto i = sigmoid<T>(given.from_x[0] + given.from_h[0]);
    const auto f = sigmoid<T>(given.from_x[1] + given.from_h[1]);
    const auto g = tanh<T>(given.from_x[2] + given.from_h[2]);
    const auto o = sigmoid<T>(given.from_x[3] + given.from_h[3]);
    const auto c = f * given.states[0] + i * g;
    result.h = o * tanh<T>(c);
    result.states = {c};
    result.saved = {i, f, g, o};
  }

  static SSTKERN_INLINE void backward(const BackwardGiven<T, Lstm>& given, BackwardResult<T, Lstm>& result) {
    const T one = 1;
    const auto &i = given.saved[0], &f = given.saved[1], &g = given.saved[2], &o = given.saved[3];
    const auto tanh_c = tanh<T>(given.states[0]);
    const auto dc = given.dstates[0] + given.dh * o * (one - tanh_c * tanh_c);
    result.dgates_x[0] = dc * g * i * (one - i);
    result.dgates_x[1] = dc * given.states_before[0] * f * (one - f);
    result.dgates_x[2] = dc * i * (one - g * g);
    result.dgates_x[3] = given.dh * tanh_c * o * (one - o);
    result.dstates = {dc * f};
  }
};

}  // namespace

SSTKERN_CELLS(cell_kernels<Lstm>("lstm"));

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
