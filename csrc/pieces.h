// States of a call's sequences as those of the pieces that they are cut into, and back. A piece begins with what its sequence was given,
// or, behind a cut, with the state that sequences begin anew with.
#pragma once

#include <utility>

#include "schedule.h"
#include "tensor.h"

namespace sstkern {

// Here states are contiguous, (directions, sequences, width) or (directions, pieces, width). `reverse` is of the first direction; a second
// one runs the other way.

// What each piece begins with, of what sequences are given and begin anew with: zeros where that is undefined.
Tensor first_of_pieces(const BatchSchedule& schedule, bool reverse, const Tensor& given, const Tensor& anew);
// Of what pieces end with, what each sequence does.
Tensor last_of_sequences(const BatchSchedule& schedule, bool reverse, const Tensor& states);

// The gradients of these: of the last, zero where a piece does not end its sequence; of the first, of both that it takes.
Tensor last_gradients_of_pieces(const BatchSchedule& schedule, bool reverse, const Tensor& gradients);
template <class T>
std::pair<Tensor, Tensor> first_gradients_of_sequences(const BatchSchedule& schedule, bool reverse, const Tensor& gradients);

}  // namespace sstkern
