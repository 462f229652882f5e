// What torch's own operators do to their tensors under autocast.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace sstkern {

// Floating-point tensors but float64 in the dtype that autocast has for their device. A weight is cast once for as long as the autocast
// region lasts: torch keeps the cast, in the same cache that its own operators use, if the weight is a leaf that wants a gradient.
std::vector<at::Tensor> autocast(at::TensorList tensors);

}  // namespace sstkern
