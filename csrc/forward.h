// The forward of one layer, all its directions.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "arguments.h"

namespace sstkern {

// Output, last states, and what the backward needs, if it is wanted.
using LayerResult = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;

// saved_rows: how many rows each of what the backward needs gets, at least the valid ones, or -1 for all; none where it is not wanted.
// every: whether the states beside h after every step follow the last states.
template <class T>
LayerResult run_forward(const Arguments<T>& a, std::optional<int64_t> saved_rows, bool every);

}  // namespace sstkern
