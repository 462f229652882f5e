// Memory for a call's tensors that a call before has left.
#pragma once

#include <ATen/core/Tensor.h>

namespace sstkern {

// As at::empty on the CPU. What the system gives is cleared page by page at the first touch, and what at::empty frees it takes back or not,
// which rests on what the process has freed before: a training step of an LSTM (64, 20, 40), say, takes twice as long where it does. So
// tensors of 32 kB to 16 MB leave their memory for the next ones, up to 48 MB in all. Any thread may call it, and a forked child.
at::Tensor empty_tensor(at::IntArrayRef shape, at::ScalarType type);

}  // namespace sstkern
