#include "schedule.h"

#include <algorithm>
#include <numeric>

namespace sstkern {

BatchSchedule::BatchSchedule(const std::optional<at::Tensor>& lengths, int64_t steps, int64_t batch)
    : steps_(steps), offset_(steps), active_(steps, batch), order_(batch), length_(batch, steps), full_(true) {
  std::iota(order_.begin(), order_.end(), 0);
  if (lengths.has_value()) {
    TORCH_CHECK(lengths->dim() == 1 && lengths->size(0) == batch, "lengths: expected one length for each of ", batch,
                " sequences, got shape ", lengths->sizes());
    TORCH_CHECK(lengths->device().is_cpu() && lengths->scalar_type() == at::kLong, "lengths: expected an int64 tensor on the CPU, got ",
                lengths->scalar_type(), " on ", lengths->device());
    const at::Tensor contiguous = lengths->contiguous();
    const int64_t* given = contiguous.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b)
      TORCH_CHECK_VALUE(given[b] >= 0 && given[b] <= steps, "lengths[", b, "] is ", given[b], "; allowed are 0 to ", steps,
                        ", the number of time steps");
    std::stable_sort(order_.begin(), order_.end(), [given](int64_t a, int64_t b) { return given[a] > given[b]; });
    for (int64_t p = 0; p < batch; ++p) length_[p] = given[order_[p]];
    full_ = batch == 0 || length_.back() == steps;
    int64_t p = batch;
    for (int64_t t = 0; t < steps; ++t) {
      while (p > 0 && length_[p - 1] <= t) --p;
      active_[t] = p;
    }
  }
  rows_ = 0;
  for (int64_t t = 0; t < steps; ++t) {
    offset_[t] = rows_;
    rows_ += active_[t];
  }
}

Schedule BatchSchedule::view() const { return {steps_, offset_.data(), active_.data(), order_.data(), length_.data()}; }

std::vector<int64_t> BatchSchedule::split(int64_t parts) const {
  std::vector<int64_t> bounds{0};
  int64_t work = 0;
  for (int64_t p = 0; p < batch(); ++p) {
    work += length_[p] + 1;  // + 1: a sequence of length 0 still has its final state to write
    const int64_t done = static_cast<int64_t>(bounds.size());
    if (done < parts && work * parts >= (rows_ + batch()) * done) bounds.push_back(p + 1);
  }
  if (bounds.size() == 1 || bounds.back() != batch()) bounds.push_back(batch());  // one range at least, of nothing
  return bounds;
}

std::vector<std::vector<int64_t>> BatchSchedule::rows_of_groups(int64_t groups) const {
  TORCH_CHECK_VALUE(groups > 0 && batch() % groups == 0, "groups: ", groups, " do not share ", batch(), " sequences equally");
  std::vector<std::vector<int64_t>> rows(groups);
  const int64_t each = batch() / groups;
  for (int64_t t = 0; t < steps_; ++t)
    for (int64_t p = 0; p < active_[t]; ++p) rows[order_[p] / each].push_back(offset_[t] + p);
  return rows;
}

}  // namespace sstkern
