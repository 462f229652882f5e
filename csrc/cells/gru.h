// Gated recurrent unit: Cho et al. 2014 in cuDNN's form, as torch.nn.GRU writes it: n = tanh(x_n + r * h_n).
#pragma once

#include "../vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T>
struct Gru {
  using V = Group<T>;
  static constexpr int gates = 3;  // r, z, n
  static constexpr int states = 0;
  static constexpr int extras = 1;                                            // h_n, the recurrent part of n: dr needs it
  static constexpr int unit_blocks = SSTKERN_VECTOR_REGISTERS == 32 ? 1 : 2;  // tiles of 3 columns, or of 2
  static constexpr bool same_gate_gradients = false;
  static constexpr bool uses_h = true;

  static SSTKERN_INLINE V forward(V (&gate)[gates], const V (&from_h)[gates], V h, V (&)[1], V (&extra)[1]) {
    gate[0] = sigmoid<T>(gate[0] + from_h[0]);
    gate[1] = sigmoid<T>(gate[1] + from_h[1]);
    gate[2] = tanh<T>(gate[2] + gate[0] * from_h[2]);
    extra[0] = from_h[2];
    return gate[2] + gate[1] * (h - gate[2]);
  }

  static SSTKERN_INLINE V backward(const V (&gate)[gates], const V (&extra)[1], V h, const V (&)[1], const V (&)[1], V dh, V (&)[1],
                                   V (&dgate_x)[gates], V (&dgate_h)[gates]) {
    const T one = 1;
    const V dn = dh * (one - gate[1]) * (one - gate[2] * gate[2]);
    dgate_x[0] = dgate_h[0] = dn * extra[0] * gate[0] * (one - gate[0]);
    dgate_x[1] = dgate_h[1] = dh * (h - gate[2]) * gate[1] * (one - gate[1]);
    dgate_x[2] = dn;
    dgate_h[2] = dn * gate[0];
    return dh * gate[1];
  }
};

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
