#include "spans.h"

#include <algorithm>

#include "team.h"

namespace sstkern {

namespace {

// Bytes of float32 rows at a time: half of a second cache of 1 MB. With 8 MB, LSTM training of (64, 200, 64) took 1.3 times as long.
constexpr int64_t kSpanBytes = int64_t{1} << 19;
// Rows at a time at least: of fewer, gradients of weights are summed in shorter runs (kManyRows in kernels/weight_gradients.h).
constexpr int64_t kLeastRows = 256;
// Numbers a thread should convert at least.
constexpr int64_t kConvertGrain = 1 << 15;

// How kernels know the dtype.
Storage storage_of(ScalarType type) { return type == ScalarType::Half ? Storage::float16 : Storage::bfloat16; }

}  // namespace

std::vector<Span> cut_spans(const BatchSchedule& schedule, int64_t rows) {
  const int64_t steps = schedule.view().steps;
  std::vector<Span> spans;
  int64_t begin = 0, first_row = 0, count = 0;
  const auto cut = [&](int64_t end) {
    spans.push_back({begin, end, first_row, schedule.span(begin, end)});
    begin = end;
    first_row += count;
    count = 0;
  };
  for (int64_t t = 0; t < steps; ++t) {
    if (count >= rows && schedule.active(t) > 0) cut(t);  // no span is without rows, unless all are
    count += schedule.active(t);
  }
  cut(steps);
  return spans;
}

template <class T>
std::vector<Span> make_spans(const Arguments<T>& a, int64_t width) {
  if (!a.rounded()) return one_span(a);
  const int64_t row_bytes = std::max<int64_t>(1, width) * static_cast<int64_t>(sizeof(T));
  return cut_spans(a.schedule, std::max(kLeastRows, kSpanBytes / row_bytes));
}

int64_t most_rows(const std::vector<Span>& spans) {
  int64_t most = 0;
  for (const Span& span : spans) most = std::max(most, span.schedule.rows());
  return most;
}

int64_t most_positions(Plan& plan, const std::vector<Span>& spans) {
  int64_t most = plan.most_rows();
  for (const Span& span : spans) {
    plan.share_rows(0, span.schedule);
    most = std::max(most, plan.most_rows());
  }
  return most;
}

template <class T>
SpanRows<T>::SpanRows(const Arguments<T>& a, Tensor tensor, int64_t column, int64_t width, Layout layout, int64_t room_rows)
    : a_(a), tensor_(std::move(tensor)), column_(column), width_(width), layout_(layout), whole_(room_rows == a.schedule.rows()) {
  if (a.rounded()) room_ = a.empty({room_rows, width});
}

template <class T>
template <class Run>
void SpanRows<T>::convert(const Span& span, int64_t first, int64_t count, const Run& run) const {
  if (!room_.defined() || width_ == 0) return;
  T* const room = in_room(span);
  uint16_t* const numbers = static_cast<uint16_t*>(const_cast<void*>(tensor_.const_data_ptr())) + start(span);
  const Schedule schedule = span.schedule.view();
  const bool together = layout_.row == width_ && (layout_.packed || a_.schedule.full()) && !dealt();  // a time step's rows
  for (int64_t t = 0; t < schedule.steps; ++t) {
    const int64_t active = std::min(schedule.active[t] - first, count);
    for (int64_t i = 0, rows; i < active; i += rows) {
      rows = together ? active : 1;
      run(numbers + layout_.at(schedule, t, first + i), room + (schedule.offset[t] + first + i) * width_, rows * width_);
    }
  }
}

template <class T>
void SpanRows<T>::load(const Span& span, int64_t first, int64_t count) const {
  convert(span, first, count, [&](const uint16_t* from, T* to, int64_t size) { a_.products.widen(storage_of(a_.type), from, to, size); });
}

template <class T>
void SpanRows<T>::store(const Span& span, int64_t first, int64_t count) const {
  convert(span, first, count, [&](uint16_t* to, const T* from, int64_t size) { a_.products.narrow(storage_of(a_.type), from, to, size); });
}

template <class T>
void SpanRows<T>::store(const Span& span) const {
  if (!room_.defined()) return;
  const int64_t numbers = std::max<int64_t>(1, span.schedule.rows() * width_ / std::max<int64_t>(1, a_.schedule.batch()));
  parallel_for(a_.schedule.batch(), std::max<int64_t>(1, kConvertGrain / numbers),
               [&](int64_t begin, int64_t end) { store(span, begin, end - begin); });
}

template <class T>
template <class Run>
void SpanRows<T>::each_before(const Span& span, bool reverse, const Run& run) const {
  const int64_t t = reverse ? span.end : span.begin - 1;
  if (t < 0 || t == a_.schedule.steps()) return;
  const Schedule all = a_.schedule.view();
  for (int64_t p = 0; p < all.active[t]; ++p) run(t, p, all.states_at(t, p));
}

template <class T>
void SpanRows<T>::before(const Span& span, const Span* last, bool reverse, const T* initial, T* to) const {
  // Not all again for each span: of a sequence that begins anew with every step there are as many as rows.
  if (last)
    each_before(*last, reverse,
                [&](int64_t, int64_t, int64_t state) { std::copy_n(initial + state * width_, width_, to + state * width_); });
  else
    std::copy_n(initial, a_.schedule.states() * width_, to);
  const Schedule all = a_.schedule.view();
  each_before(span, reverse, [&](int64_t t, int64_t p, int64_t state) {
    const int64_t from = column_ + layout_.at(all, t, p);
    T* const row = to + state * width_;
    if (room_.defined())
      a_.products.widen(storage_of(a_.type), static_cast<const uint16_t*>(tensor_.const_data_ptr()) + from, row, width_);
    else
      std::copy_n(sstkern::read<T>(tensor_) + from, width_, row);
  });
}

#define SSTKERN_INSTANTIATE(T)                                               \
  template std::vector<Span> make_spans(const Arguments<T>&, int64_t width); \
  template class SpanRows<T>;
SSTKERN_INSTANTIATE(float)
SSTKERN_INSTANTIATE(double)
#undef SSTKERN_INSTANTIATE

}  // namespace sstkern
