// The LSTM whose gates also see c (Gers et al. 2002), by a vector each: a cell the library does not have.
#pragma once

#include "recurrence.h"

namespace sstkern {
namespace SSTKERN_LEVEL {
namespace {  // another cell may have a struct of the same name

template <class T>
struct PeepholeLstm {
  static constexpr int gates = 4;       // i, f, g, o
  static constexpr int states = 1;      // c
  static constexpr int parameters = 3;  // of c before the step for i and f, of c after it for o
  static constexpr int saves = 4;       // the gates after their activation
  static constexpr bool same_gate_gradients = true;
  static constexpr bool uses_h = false;
  static constexpr bool uses_new_h = false;

  static SSTKERN_INLINE void forward(const ForwardGiven<T, PeepholeLstm>& given, ForwardResult<T, PeepholeLstm>& result) {
    const auto &before = given.states[0], &to_i = given.parameters[0], &to_f = given.parameters[1], &to_o = given.parameters[2];
    const auto i = sigmoid<T>(given.from_x[0] + given.from_h[0] + to_i * before);
    const auto f = sigmoid<T>(given.from_x[1] + given.from_h[1] + to_f * before);
    const auto g = tanh<T>(given.from_x[2] + given.from_h[2]);
    const auto c = f * before + i * g;
    const auto o = sigmoid<T>(given.from_x[3] + given.from_h[3] + to_o * c);
    result.h = o * tanh<T>(c);
    result.states = {c};
    result.saved = {i, f, g, o};
  }

  static SSTKERN_INLINE void backward(const BackwardGiven<T, PeepholeLstm>& given, BackwardResult<T, PeepholeLstm>& result) {
    const T one = 1;
    const auto &i = given.saved[0], &f = given.saved[1], &g = given.saved[2], &o = given.saved[3];
    const auto &before = given.states_before[0], &c = given.states[0];
    const auto tanh_c = tanh<T>(c);
    const auto d_o = given.dh * tanh_c * o * (one - o);
    const auto dc = given.dstates[0] + given.dh * o * (one - tanh_c * tanh_c) + d_o * given.parameters[2];
    const auto di = dc * g * i * (one - i);
    const auto df = dc * before * f * (one - f);
    result.dgates_x = {di, df, dc * i * (one - g * g), d_o};
    result.dparameters = {di * before, df * before, d_o * c};
    result.dstates = {dc * f + di * given.parameters[0] + df * given.parameters[1]};
  }
};

}  // namespace

SSTKERN_CELLS(cell_kernels<PeepholeLstm>("peephole_lstm"));

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
