// In which order a call visits its (time step, sequence) pairs, and which of them are padding.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "kernels.h"

namespace sstkern {

// Sorts the batch by falling length once per call: at every time step the valid rows are then a prefix, and padding costs nothing.
class BatchSchedule {
 public:
  // lengths: int64 (batch,) on the CPU, or none where every sequence has `steps` time steps. Throws ValueError outside 0..steps.
  BatchSchedule(const std::optional<at::Tensor>& lengths, int64_t steps, int64_t batch);

  Schedule view() const;
  int64_t rows() const { return rows_; }  // valid (time step, sequence) pairs
  int64_t batch() const { return static_cast<int64_t>(order_.size()); }

  // Bounds of `parts` ranges of positions with about equal numbers of time steps.
  std::vector<int64_t> split(int64_t parts) const;

  // The valid rows of a (steps, batch, features) tensor of any strides, in row order: (rows, features). The tensor's own memory where
  // that is the order already.
  at::Tensor gather(const at::Tensor& padded) const;
  // The reverse, with zeros in the padding: contiguous (steps, batch, features).
  at::Tensor scatter(const at::Tensor& rows) const;
  // Row (t, p) holds what came before time step t in the sequence at position p: output (steps, batch, features), or initial
  // (batch, features) at the sequence's first step in this direction.
  at::Tensor gather_previous(const at::Tensor& output, const at::Tensor& initial, bool reverse) const;

 private:
  int64_t steps_, rows_;
  std::vector<int64_t> offset_, active_, order_, length_;
  bool full_;
};

}  // namespace sstkern
