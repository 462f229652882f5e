// The LSTM whose input gate is what its forget gate leaves (Greff et al. 2017, "CIFG"): a cell the library does not have.
#pragma once

#include "recurrence.h"

namespace sstkern {
namespace SSTKERN_LEVEL {
namespace {  // another cell may have a struct of the same name

template <class T>
struct CoupledLstm {
  static constexpr int gates = 3;   // f, g, o
  static constexpr int states = 1;  // c
  static constexpr int parameters = 0;
  static constexpr int saves = 3;  // the gates after their activation
  static constexpr bool same_gate_gradients = true;
  static constexpr bool uses_h = false;
  static constexpr bool uses_new_h = false;

  static SSTKERN_INLINE void forward(const ForwardGiven<T, CoupledLstm>& given, ForwardResult<T, CoupledLstm>& result) {
    const auto f = sigmoid<T>(given.from_x[0] + given.from_h[0]);
    const auto g = tanh<T>(given.from_x[1] + given.from_h[1]);
    const auto o = sigmoid<T>(given.from_x[2] + given.from_h[2]);
    const auto c = g + f * (given.states[0] - g);
    result.h = o * tanh<T>(c);
    result.states = {c};
    result.saved = {f, g, o};
  }

  static SSTKERN_INLINE void backward(const BackwardGiven<T, CoupledLstm>& given, BackwardResult<T, CoupledLstm>& result) {
    const T one = 1;
    const auto &f = given.saved[0], &g = given.saved[1], &o = given.saved[2];
    const auto tanh_c = tanh<T>(given.states[0]);
    const auto dc = given.dstates[0] + given.dh * o * (one - tanh_c * tanh_c);
    result.dgates_x[0] = dc * (given.states_before[0] - g) * f * (one - f);
    result.dgates_x[1] = dc * (one - f) * (one - g * g);
    result.dgates_x[2] = given.dh * tanh_c * o * (one - o);
    result.dstates = {dc * f};
  }
};

}  // namespace

SSTKERN_CELLS(cell_kernels<CoupledLstm>("coupled_lstm"));

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
