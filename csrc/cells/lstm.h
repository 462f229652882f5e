// Long short-term memory: Hochreiter and Schmidhuber 1997 with forget gates (Gers 2000), as torch.nn.LSTM writes it.
#pragma once

#include "../vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T>
struct Lstm {
  using V = Group<T>;
  static constexpr int gates = 4;   // i, f, g, o
  static constexpr int states = 1;  // c, beside h
  static constexpr int extras = 0;
  static constexpr int unit_blocks = 1;
  static constexpr bool same_gate_gradients = true;
  static constexpr bool uses_h = false;

  static SSTKERN_INLINE V forward(V (&gate)[gates], const V (&from_h)[gates], V, V (&state)[1], V (&)[1]) {
    gate[0] = sigmoid<T>(gate[0] + from_h[0]);
    gate[1] = sigmoid<T>(gate[1] + from_h[1]);
    gate[2] = tanh<T>(gate[2] + from_h[2]);
    gate[3] = sigmoid<T>(gate[3] + from_h[3]);
    state[0] = gate[1] * state[0] + gate[0] * gate[2];
    return gate[3] * tanh<T>(state[0]);
  }

  static SSTKERN_INLINE V backward(const V (&gate)[gates], const V (&)[1], V, const V (&previous)[1], const V (&state)[1], V dh,
                                   V (&dstate)[1], V (&dgate)[gates], V (&)[gates]) {
    const T one = 1;
    const V tanh_c = tanh<T>(state[0]);
    const V dc = dstate[0] + dh * gate[3] * (one - tanh_c * tanh_c);
    dgate[0] = dc * gate[2] * gate[0] * (one - gate[0]);
    dgate[1] = dc * previous[0] * gate[1] * (one - gate[1]);
    dgate[2] = dc * gate[0] * (one - gate[2] * gate[2]);
    dgate[3] = dh * tanh_c * gate[3] * (one - gate[3]);
    dstate[0] = dc * gate[1];
    return V{};
  }
};

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
