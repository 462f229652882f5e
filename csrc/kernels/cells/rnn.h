// The simple recurrent network (Elman 1990) with tanh or relu, as torch.nn.RNN writes it.
#pragma once

#include "recurrence.h"

namespace sstkern {
namespace SSTKERN_LEVEL {
namespace {  // another cell may have a struct of the same name

struct Tanh {
  template <class T>
  static Vectors<T> value(const Vectors<T>& x) {
    return tanh<T>(x);
  }
  template <class T>
  static Vectors<T> gradient(const Vectors<T>& y, const Vectors<T>& dh) {
    return dh * tanh_gradient<T>(y);
  }
};

struct Relu {
  // x < 0 and not x > 0: a NaN must come through.
  template <class T>
  static Vectors<T> value(const Vectors<T>& x) {
    return each<T>([&](int i) { return x.part[i] < broadcast<T>(0) ? broadcast<T>(0) : x.part[i]; });
  }
  // A choice, not a product: an infinite gradient of a unit at 0 is dropped.
  template <class T>
  static Vectors<T> gradient(const Vectors<T>& y, const Vectors<T>& dh) {
    return each<T>([&](int i) { return y.part[i] <= broadcast<T>(0) ? broadcast<T>(0) : dh.part[i]; });
  }
};

template <class T, class Nonlinearity>
struct Rnn {
  static constexpr int gates = 1;
  static constexpr int states = 0;
  static constexpr int parameters = 0;
  static constexpr int saves = 0;
  static constexpr bool same_gate_gradients = true;
  static constexpr bool uses_h = false;
  static constexpr bool uses_new_h = true;  // both derivatives are made from it

  static SSTKERN_INLINE void forward(const ForwardGiven<T, Rnn>& given, ForwardResult<T, Rnn>& result) {
    result.h = Nonlinearity::template value<T>(given.from_x[0] + given.from_h[0]);
  }

  static SSTKERN_INLINE void backward(const BackwardGiven<T, Rnn>& given, BackwardResult<T, Rnn>& result) {
    result.dgates_x[0] = Nonlinearity::template gradient<T>(given.h, given.dh);
  }
};

template <class T>
using RnnTanh = Rnn<T, Tanh>;
template <class T>
using RnnRelu = Rnn<T, Relu>;

}  // namespace

SSTKERN_CELLS(cell_kernels<RnnTanh>("rnn_tanh"), cell_kernels<RnnRelu>("rnn_relu"));

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
