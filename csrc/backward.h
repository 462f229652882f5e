// The backward of one layer, all its directions.
#pragma once

#include <optional>
#include <vector>

#include "arguments.h"
#include "gradients.h"

namespace sstkern {

// What the backward is given of the forward and of what came after it.
struct BackwardArguments {
  Tensor output;
  Tensors saved;
  std::optional<Tensor> grad_output;
  Tensors grad_hx;
  const std::vector<bool>& needs;  // which gradients to return, in the order of the flat inputs: x, every weight, every state
};

// Throws RuntimeError unless all have the sizes and types that the forward's have.
template <class T>
void check_backward(const Arguments<T>& a, const BackwardArguments& given);

// The gradients that are needed, in order.
template <class T>
std::vector<Tensor> run_backward(const Arguments<T>& a, const BackwardArguments& given, const std::optional<Groups>& groups);

}  // namespace sstkern
