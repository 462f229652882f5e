// States of a call's sequences as those of the pieces that they are cut into, and back. A piece begins with what its sequence was given,
// or, behind a cut, with the state that the caller has sequences begin anew with.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>
#include <vector>

#include "schedule.h"

namespace sstkern {

// Of one direction. States are tensors (sequences, width) or (pieces, width).
class Pieces {
 public:
  Pieces(const BatchSchedule& schedule, bool reverse);

  // What each piece begins with, of what sequences are given and begin anew with.
  at::Tensor first(const at::Tensor& given, const at::Tensor& anew) const;
  // Of what pieces end with, what each sequence does.
  at::Tensor last(const at::Tensor& states) const;

  // The gradients of these: of `last`, zero where a piece does not end its sequence; of `first`, of both that it takes.
  at::Tensor last_gradient(const at::Tensor& gradients) const;
  template <class T>
  std::pair<at::Tensor, at::Tensor> first_gradients(const at::Tensor& gradients) const;

 private:
  int64_t pieces_, sequences_;
  at::Tensor first_;           // by piece, the sequence that it begins with the given state of, or `sequences` more for the other
  std::vector<int64_t> last_;  // by sequence, its last piece
};

// The same of all directions and of several states: tensors (directions, sequences, width) each.
std::vector<at::Tensor> first_of_pieces(const BatchSchedule& schedule, at::TensorList given, at::TensorList anew);
at::Tensor last_of_sequences(const BatchSchedule& schedule, const at::Tensor& states);
std::vector<at::Tensor> last_gradients_of_pieces(const BatchSchedule& schedule, at::TensorList gradients);
template <class T>
std::pair<at::Tensor, at::Tensor> first_gradients_of_sequences(const BatchSchedule& schedule, const at::Tensor& gradients);

}  // namespace sstkern
