// One recurrent layer, all its directions: what stands between the operators' tensors and the kernels' plain memory.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace sstkern {

// See sstkern/operators.py, which holds the schemas and says what every argument is.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> layer(const std::string& cell, const Tensor& x,
                                                                   const std::vector<Tensor>& weights, const std::vector<Tensor>& hx,
                                                                   const std::optional<Tensor>& lengths, bool has_bias, bool bidirectional,
                                                                   std::optional<int64_t> saved_rows, bool every);

std::vector<Tensor> layer_backward(const std::string& cell, const Tensor& x, const std::vector<Tensor>& weights,
                                   const std::vector<Tensor>& hx, const std::optional<Tensor>& lengths, bool has_bias, bool bidirectional,
                                   const Tensor& output, const std::vector<Tensor>& saved, const std::optional<Tensor>& grad_output,
                                   const std::vector<Tensor>& grad_hx, const std::vector<bool>& needs, std::optional<int64_t> groups);

// Notes a call that ran.
void count_run(bool backward);

// What ran in this process so far: forward calls, backward calls, and how many threads shared the latest call's time loop.
std::vector<int64_t> cpu_runs();

}  // namespace sstkern
