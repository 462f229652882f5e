#include "schedule.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

namespace sstkern {

namespace {

void check_kind(const at::Tensor& lengths) {
  TORCH_CHECK(lengths.device().is_cpu() && lengths.scalar_type() == at::kLong, "lengths: expected an int64 tensor on the CPU, got ",
              lengths.scalar_type(), " on ", lengths.device());
}

void check_range(const int64_t* lengths, int64_t batch, int64_t most, const char* what) {
  for (int64_t b = 0; b < batch; ++b)
    TORCH_CHECK_VALUE(lengths[b] >= 0 && lengths[b] <= most, "lengths[", b, "] is ", lengths[b], "; allowed are 0 to ", most,
                      ", the number of ", what);
}

}  // namespace

void check_packed_lengths(const std::optional<at::Tensor>& lengths, int64_t rows) {
  TORCH_CHECK(lengths.has_value(), "lengths: an x of 2 dimensions (rows, features) needs them");
  TORCH_CHECK(lengths->dim() == 1, "lengths: expected one length for each sequence, got shape ", lengths->sizes());
  check_kind(*lengths);
  const at::Tensor contiguous = lengths->contiguous();
  const int64_t* const given = contiguous.const_data_ptr<int64_t>();
  check_range(given, lengths->size(0), rows, "rows of x");
  for (int64_t b = 1; b < lengths->size(0); ++b)
    TORCH_CHECK_VALUE(given[b] <= given[b - 1], "lengths: those of a packed x fall; lengths[", b, "] is ", given[b], " after ",
                      given[b - 1]);
}

BatchSchedule::BatchSchedule(const std::optional<at::Tensor>& lengths, int64_t steps, int64_t batch)
    : steps_(steps), active_(steps, batch), order_(batch), length_(batch, steps), full_(true) {
  std::iota(order_.begin(), order_.end(), 0);
  if (lengths.has_value()) {
    TORCH_CHECK(lengths->dim() == 1 && lengths->size(0) == batch, "lengths: expected one length for each of ", batch,
                " sequences, got shape ", lengths->sizes());
    check_kind(*lengths);
    const at::Tensor contiguous = lengths->contiguous();
    const int64_t* given = contiguous.const_data_ptr<int64_t>();
    check_range(given, batch, steps, "time steps");
    std::stable_sort(order_.begin(), order_.end(), [given](int64_t a, int64_t b) { return given[a] > given[b]; });
    for (int64_t p = 0; p < batch; ++p) length_[p] = given[order_[p]];
    full_ = batch == 0 || length_.back() == steps;
    int64_t p = batch;
    for (int64_t t = 0; t < steps; ++t) {
      while (p > 0 && length_[p - 1] <= t) --p;
      active_[t] = p;
    }
  }
  count_rows();
}

BatchSchedule BatchSchedule::span(int64_t begin, int64_t end) const {
  BatchSchedule part;
  part.steps_ = end - begin;
  part.order_ = order_;
  part.active_.assign(active_.begin() + begin, active_.begin() + end);
  for (const int64_t length : length_) part.length_.push_back(std::clamp<int64_t>(length - begin, 0, part.steps_));
  part.full_ = part.length_.empty() || part.length_.back() == part.steps_;
  part.count_rows();
  return part;
}

void BatchSchedule::count_rows() {
  rows_ = 0;
  offset_.clear();
  for (const int64_t active : active_) {
    offset_.push_back(rows_);
    rows_ += active;
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

at::Tensor BatchSchedule::padded_rows() const {
  at::Tensor rows = at::empty({rows_}, at::kLong);
  int64_t* to = rows.mutable_data_ptr<int64_t>();
  for (int64_t t = 0; t < steps_; ++t)
    for (int64_t p = 0; p < active_[t]; ++p) *to++ = t * batch() + order_[p];
  return rows;
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
