// One recurrent layer, all its directions: what stands between the operators' tensors and the kernels' plain memory.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace sstkern {

// See sstkern/operators.py, which holds the schemas and says what every argument is.
std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> layer(std::string_view cell, const at::Tensor& x,
                                                                               at::TensorList weights, at::TensorList hx,
                                                                               const std::optional<at::Tensor>& lengths, bool has_bias,
                                                                               bool bidirectional, std::optional<int64_t> saved_rows,
                                                                               bool every);

std::vector<at::Tensor> layer_backward(std::string_view cell, const at::Tensor& x, at::TensorList weights, at::TensorList hx,
                                       const std::optional<at::Tensor>& lengths, bool has_bias, bool bidirectional,
                                       const at::Tensor& output, at::TensorList saved, const std::optional<at::Tensor>& grad_output,
                                       at::TensorList grad_hx, const c10::List<bool>& needs, std::optional<int64_t> groups);

// Notes a call that ran.
void count_run(bool backward);

// What ran in this process so far: forward calls, backward calls, and how many threads shared the latest call's time loop.
std::vector<int64_t> cpu_runs();

}  // namespace sstkern
