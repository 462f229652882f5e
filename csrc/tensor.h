// A tensor of PyTorch's, through the C functions that every PyTorch since 2.11 has: one build of this library runs with all of them.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>

#include <utility>
#include <vector>

#include "check.h"

namespace sstkern {

using ScalarType = torch::headeronly::ScalarType;

// What such a function returns is an error's number only: the message goes to the standard error. So what may be wrong is checked before.
inline void must(AOTITorchError error) {
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("sstkern: PyTorch could not do what it was asked for");
}

// The dtypes that the engine knows, by their numbers in PyTorch.
ScalarType type_of(int32_t number);
int32_t number_of(ScalarType type);
// Bytes of a number.
int64_t size_of(ScalarType type);

std::vector<int64_t> contiguous_strides(Ints shape);

class Tensor {
 public:
  Tensor() = default;
  // Takes what the handle owns.
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(const Tensor& other) {
    if (other.handle_) must(aoti_torch_new_tensor_handle(other.handle_, &handle_));
  }
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  bool defined() const { return handle_ != nullptr; }
  AtenTensorHandle get() const { return handle_; }
  // Gives away what it owns.
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  int64_t dim() const { return number<int64_t>(aoti_torch_get_dim); }
  int64_t numel() const { return number<int64_t>(aoti_torch_get_numel); }
  Ints sizes() const { return {number<int64_t*>(aoti_torch_get_sizes), static_cast<size_t>(dim())}; }
  Ints strides() const { return {number<int64_t*>(aoti_torch_get_strides), static_cast<size_t>(dim())}; }
  int64_t size(int64_t i) const { return at(sizes(), i); }
  int64_t stride(int64_t i) const { return at(strides(), i); }
  ScalarType scalar_type() const { return type_of(number<int32_t>(aoti_torch_get_dtype)); }
  bool is_contiguous() const { return number<bool>(aoti_torch_is_contiguous); }
  bool is_cpu() const { return number<int32_t>(aoti_torch_get_device_type) == aoti_torch_device_type_cpu(); }
  // Where it is, for a message.
  const char* device() const { return is_cpu() ? "the CPU" : "another device"; }

  const void* const_data_ptr() const { return number<const void*>(torch_get_const_data_ptr); }
  void* mutable_data_ptr() const { return number<void*>(torch_get_mutable_data_ptr); }
  // Null in a tensor without a number. The caller has checked the dtype: the C function cannot.
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(mutable_data_ptr());
  }

  Tensor contiguous() const;  // itself where it is so
  Tensor to(ScalarType type) const;
  Tensor clone() const;
  Tensor narrow(int64_t dim, int64_t start, int64_t length) const;
  Tensor view(Ints shape) const;  // of a contiguous one
  const Tensor& zero_() const {
    must(aoti_torch_zero_(handle_));
    return *this;
  }
  const Tensor& copy_(const Tensor& from) const {
    must(aoti_torch_copy_(handle_, from.handle_, 0));
    return *this;
  }

 private:
  template <class N, class Read>
  N number(Read read) const {
    N found{};
    must(read(handle_, &found));
    return found;
  }
  static int64_t at(Ints numbers, int64_t i) { return numbers[i < 0 ? i + numbers.size() : i]; }

  AtenTensorHandle handle_ = nullptr;
};

using Tensors = torch::headeronly::HeaderOnlyArrayRef<Tensor>;

// New, on the CPU, with no numbers in it yet: memory of PyTorch's own.
Tensor plain_tensor(Ints shape, ScalarType type);

}  // namespace sstkern
