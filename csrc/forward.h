// The forward of one layer, all its directions.
#pragma once

#include <tuple>
#include <vector>

#include "arguments.h"

namespace sstkern {

// Output, last states, and what the backward needs, if it is wanted.
using LayerResult = std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>>;

template <class T>
LayerResult run_forward(const Arguments<T>& a, bool save_for_backward);

}  // namespace sstkern
