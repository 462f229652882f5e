#include "schedule.h"

#include <c10/util/Exception.h>

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

at::Tensor lengths_alone(const at::Tensor& lengths) {
  TORCH_CHECK(lengths.dim() == 1 || (lengths.dim() == 2 && lengths.size(1) > 0),
              "lengths: expected one length for each sequence, got shape ", lengths.sizes());
  check_kind(lengths);
  return (lengths.dim() == 1 ? lengths : lengths.select(1, 0)).contiguous();
}

void check_packed_lengths(const std::optional<at::Tensor>& lengths, int64_t rows) {
  TORCH_CHECK(lengths.has_value(), "lengths: an x of 2 dimensions (rows, features) needs them");
  const at::Tensor alone = lengths_alone(*lengths);
  const int64_t* const given = alone.const_data_ptr<int64_t>();
  check_range(given, alone.size(0), rows, "rows of x");
  for (int64_t b = 1; b < alone.size(0); ++b)
    TORCH_CHECK_VALUE(given[b] <= given[b - 1], "lengths: those of a packed x fall; lengths[", b, "] is ", given[b], " after ",
                      given[b - 1]);
}

BatchSchedule::BatchSchedule(const std::optional<at::Tensor>& lengths, int64_t steps, int64_t batch)
    : steps_(steps), sequences_(batch), full_(true) {
  if (!lengths.has_value()) {
    active_.assign(steps, batch);
    order_.resize(batch);
    std::iota(order_.begin(), order_.end(), 0);
    length_.assign(batch, steps);
    count_rows();
    return;
  }
  const at::Tensor alone = lengths_alone(*lengths);
  TORCH_CHECK(alone.size(0) == batch, "lengths: expected one length for each of ", batch, " sequences, got shape ", lengths->sizes());
  const int64_t* const given = alone.const_data_ptr<int64_t>();
  check_range(given, batch, steps, "time steps");
  full_ = std::all_of(given, given + batch, [steps](int64_t length) { return length == steps; });
  if (lengths->dim() == 1)
    sort({given, given + batch});
  else
    cut_sequences(lengths->contiguous(), steps);
}

void BatchSchedule::cut_sequences(const at::Tensor& lengths, int64_t steps) {
  TORCH_CHECK(lengths.size(1) == 1 + steps, "resets: expected ", steps, " time steps, as x has, got ", lengths.size(1) - 1);
  const int64_t* row = lengths.const_data_ptr<int64_t>();
  std::vector<int64_t> sequence, start, length;  // by piece
  before_.assign(steps + 1, 0);
  for (int64_t b = 0; b < sequences_; ++b, row += 1 + steps) {
    first_piece_.push_back(static_cast<int64_t>(length.size()));
    begins_anew_.push_back(row[0] > 0 && row[1] != 0);
    int64_t from = 0;
    const auto end = [&](int64_t t) {
      sequence.push_back(b);
      start.push_back(from);
      length.push_back(t - from);
      from = t;
    };
    for (int64_t t = 0; t < row[0]; ++t) {
      ++before_[t + 1];
      if (t > 0 && row[1 + t] != 0) end(t);
    }
    end(row[0]);
  }
  first_piece_.push_back(static_cast<int64_t>(length.size()));
  std::partial_sum(before_.begin(), before_.end(), before_.begin());
  steps_ = length.empty() ? 0 : *std::max_element(length.begin(), length.end());
  sort(length);
  for (const int64_t piece : order_) {
    sequence_.push_back(sequence[piece]);
    start_.push_back(start[piece]);
  }
}

void BatchSchedule::sort(const std::vector<int64_t>& lengths) {
  int64_t p = static_cast<int64_t>(lengths.size());
  order_.resize(p);
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  for (const int64_t number : order_) length_.push_back(lengths[number]);
  for (int64_t t = 0; t < steps_; ++t) {
    while (p > 0 && length_[p - 1] <= t) --p;
    active_.push_back(p);
  }
  count_rows();
}

BatchSchedule BatchSchedule::span(int64_t begin, int64_t end) const {
  BatchSchedule part = *this;
  part.steps_ = end - begin;
  part.active_.assign(active_.begin() + begin, active_.begin() + end);
  for (int64_t& length : part.length_) length = std::clamp<int64_t>(length - begin, 0, part.steps_);
  for (int64_t& start : part.start_) start += begin;
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

Schedule BatchSchedule::view() const {
  const Schedule found{steps_, offset_.data(), active_.data(), order_.data(), length_.data(), nullptr, nullptr, nullptr};
  if (!cut()) return found;
  Schedule pieces = found;
  pieces.sequence = sequence_.data();
  pieces.start = start_.data();
  pieces.before = before_.data();
  return pieces;
}

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
  TORCH_CHECK_VALUE(groups > 0 && sequences_ % groups == 0, "groups: ", groups, " do not share ", sequences_, " sequences equally");
  std::vector<std::vector<int64_t>> rows(groups);
  const int64_t each = sequences_ / groups;
  const std::vector<int64_t>& sequence = cut() ? sequence_ : order_;
  for (int64_t t = 0; t < steps_; ++t)
    for (int64_t p = 0; p < active_[t]; ++p) rows[sequence[p] / each].push_back(offset_[t] + p);
  return rows;
}

}  // namespace sstkern
