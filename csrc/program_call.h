// A call of a program over sequences, forward or backward: both are programs.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace sstkern {

// The results, the states after each sequence's last step, and the sums over rows that the program has.
using ProgramResult = std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

// inputs: (T, B, width) where the call is padded, unless of rows only, else (N, width). weights: (., .). vectors: contiguous. states:
// (B, width). lengths: int64 on the CPU, (B,), or (B, 1 + T) as schedule.h has them; with rows they fall. Where they cut sequences into
// pieces, the states that these begin anew with follow the others; a backward is given the last states' gradients only, and returns those
// of both. saved_rows: how many rows the outputs get that have rows only, at least
// the valid ones; those that nobody used are zero. groups: equal shares of the batch, each with sums of its own, (groups, ...).
ProgramResult run_program(int64_t program, const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& vectors, const std::vector<Tensor>& states, const std::optional<Tensor>& lengths,
                          const std::vector<double>& numbers, bool reverse, bool padded, std::optional<int64_t> saved_rows,
                          std::optional<int64_t> groups, bool backward);

}  // namespace sstkern
