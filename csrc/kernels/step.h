// What a cell's step is given and gives, on a few vectors of hidden units at once. A cell is a class template of one type T, with
//
//   gates, states (beside h), parameters (vectors of its own, (H,) each), saves (vectors that the backward needs of the forward);
//   same_gate_gradients: whether the gates' gradients are the same for the input's part and for the state's;
//   uses_h: whether the step reads the h before it, beside the recurrent product;
//   uses_new_h: whether the backward reads the h that the step made, before a projection;
//   forward(given, result) and backward(given, result), below.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// `Size` values, perhaps none: an array cannot have none.
template <class V, int Size>
struct List {
  V at[Size];
  SSTKERN_INLINE V& operator[](int i) { return at[i]; }
  SSTKERN_INLINE const V& operator[](int i) const { return at[i]; }
};

template <class V>
struct List<V, 0> {
  SSTKERN_INLINE V& operator[](int) const { __builtin_unreachable(); }
};

// Gates are sums before their activation: the input's part and the state's, biases included.
template <class T, class Cell>
struct ForwardGiven {
  List<Vectors<T>, Cell::gates> from_x, from_h;
  Vectors<T> h;
  List<Vectors<T>, Cell::states> states;
  List<Vectors<T>, Cell::parameters> parameters;
};

template <class T, class Cell>
struct ForwardResult {
  Vectors<T> h;
  List<Vectors<T>, Cell::states> states;
  List<Vectors<T>, Cell::saves> saved;
};

template <class T, class Cell>
struct BackwardGiven {
  List<Vectors<T>, Cell::saves> saved;
  Vectors<T> h, h_before;
  List<Vectors<T>, Cell::states> states_before, states;
  List<Vectors<T>, Cell::parameters> parameters;
  Vectors<T> dh;  // of the h after the step; dstates likewise
  List<Vectors<T>, Cell::states> dstates;
};

// dgates_h is not read where both gradients are the same; dh is what reaches the h before past the recurrent product, and not read unless
// the step uses it.
template <class T, class Cell>
struct BackwardResult {
  List<Vectors<T>, Cell::gates> dgates_x, dgates_h;
  List<Vectors<T>, Cell::parameters> dparameters;
  Vectors<T> dh;
  List<Vectors<T>, Cell::states> dstates;
};

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
