#include "schedule.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace sstkern {

namespace {

constexpr int64_t kCopyGrain = 1 << 15;  // bytes a thread should move at least

int64_t grain(int64_t row_bytes) { return std::max<int64_t>(1, kCopyGrain / std::max<int64_t>(1, row_bytes)); }

const char* bytes(const at::Tensor& tensor) { return static_cast<const char*>(tensor.const_data_ptr()); }

at::Tensor features_contiguous(const at::Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

}  // namespace

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
  if (bounds.back() != batch()) bounds.push_back(batch());
  return bounds;
}

at::Tensor BatchSchedule::gather(const at::Tensor& padded) const {
  if (full_ && padded.is_contiguous()) return padded.reshape({rows_, padded.size(2)});
  const at::Tensor from = features_contiguous(padded);
  at::Tensor rows = at::empty({rows_, padded.size(2)}, padded.options());
  const int64_t size = padded.size(2) * padded.element_size(), step = from.stride(0) * padded.element_size(),
                row = from.stride(1) * padded.element_size();
  const char* source = bytes(from);
  char* target = static_cast<char*>(rows.mutable_data_ptr());
  const int64_t per_step = std::max<int64_t>(1, rows_ / std::max<int64_t>(1, steps_));
  at::parallel_for(0, steps_, grain(size * per_step), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t p = 0; p < active_[t]; ++p) std::memcpy(target + (offset_[t] + p) * size, source + t * step + order_[p] * row, size);
  });
  return rows;
}

at::Tensor BatchSchedule::scatter(const at::Tensor& rows) const {
  const int64_t features = rows.size(1), size = features * rows.element_size();
  if (full_) return rows.view({steps_, batch(), features});
  at::Tensor padded = at::empty({steps_, batch(), features}, rows.options());
  const char* source = bytes(rows);
  char* target = static_cast<char*>(padded.mutable_data_ptr());
  at::parallel_for(0, steps_, grain(size * std::max<int64_t>(1, batch())), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t p = 0; p < batch(); ++p) {
        char* to = target + (t * batch() + order_[p]) * size;
        if (p < active_[t])
          std::memcpy(to, source + (offset_[t] + p) * size, size);
        else
          std::memset(to, 0, size);
      }
  });
  return padded;
}

at::Tensor BatchSchedule::gather_previous(const at::Tensor& output, const at::Tensor& initial, bool reverse) const {
  const at::Tensor from = features_contiguous(output), first = initial.contiguous();
  const int64_t features = output.size(2), size = features * output.element_size(), step = from.stride(0) * output.element_size(),
                row = from.stride(1) * output.element_size();
  at::Tensor rows = at::empty({rows_, features}, output.options());
  char* target = static_cast<char*>(rows.mutable_data_ptr());
  const int64_t per_step = std::max<int64_t>(1, rows_ / std::max<int64_t>(1, steps_));
  at::parallel_for(0, steps_, grain(size * per_step), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t p = 0; p < active_[t]; ++p) {
        const bool is_first = reverse ? t == length_[p] - 1 : t == 0;
        const char* source = is_first ? bytes(first) + order_[p] * size : bytes(from) + (reverse ? t + 1 : t - 1) * step + order_[p] * row;
        std::memcpy(target + (offset_[t] + p) * size, source, size);
      }
  });
  return rows;
}

}  // namespace sstkern
