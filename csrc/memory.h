// Memory for a call's tensors that a call before has left.
#pragma once

#include <ATen/core/Tensor.h>

namespace sstkern {

// As at::empty on the CPU. What the system gives is cleared page by page at the first touch, and what at::empty frees it takes back, as it
// likes: a training step of an LSTM (64, 20, 40), say, takes twice as long in a process where it does. So tensors of a few pages and more
// leave their memory for the next ones, up to 64 MB in all.
at::Tensor empty_tensor(at::IntArrayRef shape, at::ScalarType type);

}  // namespace sstkern
