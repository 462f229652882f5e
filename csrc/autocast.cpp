#include "autocast.h"

#include <ATen/autocast_mode.h>

namespace sstkern {

std::vector<at::Tensor> autocast(at::TensorList tensors) {
  std::vector<at::Tensor> cast;
  cast.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    const at::DeviceType device = tensor.device().type();
    cast.push_back(at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device));
  }
  return cast;
}

}  // namespace sstkern
