#include "autocast.h"

#include <ATen/autocast_mode.h>

namespace sstkern {

std::vector<at::Tensor> autocast(at::TensorList tensors) {
  std::vector<at::Tensor> cast;
  cast.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    const at::DeviceType device = tensor.device().type();
    const at::ScalarType dtype = at::autocast::get_autocast_dtype(device);
    const at::Tensor found = at::autocast::cached_cast(dtype, tensor, device);
    // The cache may have it from a region around this one, with another dtype.
    const bool stays = !tensor.is_floating_point() || tensor.scalar_type() == at::kDouble;
    cast.push_back(stays || found.scalar_type() == dtype ? found : tensor.to(dtype));
  }
  return cast;
}

}  // namespace sstkern
