// The simple recurrent network (Elman 1990) with tanh or relu, as torch.nn.RNN writes it.
#pragma once

#include "../vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

struct Tanh {
  template <class T>
  static Group<T> value(const Group<T>& x) {
    return tanh<T>(x);
  }
  template <class T>
  static Group<T> gradient(const Group<T>& y, const Group<T>& dh) {
    return dh * (T(1) - y * y);
  }
};

struct Relu {
  // x < 0 and not x > 0: a NaN must come through.
  template <class T>
  static Group<T> value(const Group<T>& x) {
    return each<T>([&](int i) { return x.part[i] < broadcast<T>(0) ? broadcast<T>(0) : x.part[i]; });
  }
  // A choice, not a product: an infinite gradient of a unit at 0 is dropped.
  template <class T>
  static Group<T> gradient(const Group<T>& y, const Group<T>& dh) {
    return each<T>([&](int i) { return y.part[i] <= broadcast<T>(0) ? broadcast<T>(0) : dh.part[i]; });
  }
};

template <class T, class Nonlinearity>
struct Rnn {
  using V = Group<T>;
  static constexpr int gates = 1;
  static constexpr int states = 0;
  static constexpr int extras = 0;
  static constexpr int unit_blocks = 4;  // one gate alone leaves most accumulators unused
  static constexpr bool same_gate_gradients = true;
  static constexpr bool uses_h = false;

  static SSTKERN_INLINE V forward(V (&gate)[gates], const V (&from_h)[gates], V, V (&)[1], V (&)[1]) {
    gate[0] = Nonlinearity::template value<T>(gate[0] + from_h[0]);
    return gate[0];
  }

  static SSTKERN_INLINE V backward(const V (&gate)[gates], const V (&)[1], V, const V (&)[1], const V (&)[1], V dh, V (&)[1],
                                   V (&dgate)[gates], V (&)[gates]) {
    dgate[0] = Nonlinearity::template gradient<T>(gate[0], dh);
    return V{};
  }
};

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
