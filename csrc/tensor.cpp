#include "tensor.h"

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <array>

namespace sstkern {

std::vector<int64_t> contiguous_strides(Ints shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(1, shape[i]);
  }
  return strides;
}

ScalarType type_of(int32_t number) {
  static const std::array<std::pair<int32_t, ScalarType>, 6> known{{{aoti_torch_dtype_float32(), ScalarType::Float},
                                                                    {aoti_torch_dtype_float64(), ScalarType::Double},
                                                                    {aoti_torch_dtype_bfloat16(), ScalarType::BFloat16},
                                                                    {aoti_torch_dtype_float16(), ScalarType::Half},
                                                                    {aoti_torch_dtype_int64(), ScalarType::Long},
                                                                    {aoti_torch_dtype_bool(), ScalarType::Bool}}};
  for (const auto& [theirs, type] : known)
    if (theirs == number) return type;
  return static_cast<ScalarType>(number);  // for a message
}

int32_t number_of(ScalarType type) { return static_cast<int32_t>(torch::stable::detail::from(type)); }

int64_t size_of(ScalarType type) {
  switch (type) {
    case ScalarType::Bool:
      return 1;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    case ScalarType::Float:
      return 4;
    default:  // float64 and int64
      return 8;
  }
}

Tensor plain_tensor(Ints shape, ScalarType type) {
  const std::vector<int64_t> strides = contiguous_strides(shape);
  AtenTensorHandle made;
  const AOTITorchError failed = aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), number_of(type),
                                                         aoti_torch_device_type_cpu(), -1, &made);
  // PyTorch's own message is lost on the way.
  SSTKERN_CHECK(failed == AOTI_TORCH_SUCCESS, "sstkern: there is no memory for a tensor of shape ", shape, " of ", type);
  return Tensor(made);
}

Tensor Tensor::contiguous() const {
  if (is_contiguous()) return *this;
  Tensor made = plain_tensor(sizes(), scalar_type());
  made.copy_(*this);
  return made;
}

Tensor Tensor::to(ScalarType type) const {
  if (scalar_type() == type) return *this;
  Tensor made = plain_tensor(sizes(), type);
  made.copy_(*this);
  return made;
}

Tensor Tensor::clone() const {
  Tensor made = plain_tensor(sizes(), scalar_type());
  made.copy_(*this);
  return made;
}

Tensor Tensor::narrow(int64_t dim, int64_t start, int64_t length) const {
  std::vector<int64_t> shape = sizes().vec();
  if (dim < 0) dim += static_cast<int64_t>(shape.size());
  shape[dim] = length;
  AtenTensorHandle made;
  must(aoti_torch__reinterpret_tensor(handle_, this->dim(), shape.data(), strides().data(), start * stride(dim), &made));
  return Tensor(made);
}

Tensor Tensor::view(Ints shape) const {
  const std::vector<int64_t> strides = contiguous_strides(shape);
  AtenTensorHandle made;
  must(aoti_torch__reinterpret_tensor(handle_, static_cast<int64_t>(shape.size()), shape.data(), strides.data(), 0, &made));
  return Tensor(made);
}

}  // namespace sstkern
