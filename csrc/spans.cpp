#include "spans.h"

#include <algorithm>

#include "team.h"

namespace sstkern {

namespace {

// Bytes of float32 rows at a time: an eighth of all, so that small calls gain too, but as many as make a call's own cost small, and no more
// than a third cache holds.
constexpr int64_t kLeastBytes = int64_t{1} << 20, kMostBytes = int64_t{1} << 23;
// Rows at a time at least: gradients of weights are summed over so many (kernels/weight_gradients.h).
constexpr int64_t kLeastRows = 256;
// Numbers a thread should convert at least.
constexpr int64_t kConvertGrain = 1 << 15;

// How kernels know the dtype.
Storage storage_of(at::ScalarType type) { return type == at::kHalf ? Storage::float16 : Storage::bfloat16; }

// Calls run(row in the tensor, row in the room) for `rows`, in all threads.
template <class Run>
void each_row(const std::vector<uint16_t*>& rows, int64_t width, const Run& run) {
  parallel_for(static_cast<int64_t>(rows.size()), std::max<int64_t>(1, kConvertGrain / std::max<int64_t>(1, width)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) run(rows[r], r * width);
               });
}

}  // namespace

template <class T>
std::vector<Span> make_spans(const Arguments<T>& a, int64_t width) {
  if (!a.rounded()) return one_span(a);
  const int64_t row_bytes = std::max<int64_t>(1, width) * static_cast<int64_t>(sizeof(T));
  const int64_t bytes = std::clamp(a.schedule.rows() * row_bytes / 8, kLeastBytes, kMostBytes);
  const int64_t most = std::max(kLeastRows, bytes / row_bytes);
  std::vector<Span> spans;
  int64_t begin = 0, first_row = 0, rows = 0;
  const auto cut = [&](int64_t end) {
    spans.push_back({begin, end, first_row, a.schedule.span(begin, end)});
    begin = end;
    first_row += rows;
    rows = 0;
  };
  for (int64_t t = 0; t < a.size.steps; ++t) {
    const int64_t active = a.schedule.active(t);
    if (rows > 0 && rows + active > most) cut(t);
    rows += active;
  }
  cut(a.size.steps);
  return spans;
}

int64_t most_rows(const std::vector<Span>& spans) {
  int64_t most = 0;
  for (const Span& span : spans) most = std::max(most, span.schedule.rows());
  return most;
}

template <class T>
SpanRows<T>::SpanRows(const Arguments<T>& a, at::Tensor tensor, int64_t column, int64_t width, Layout layout, int64_t room_rows)
    : a_(a), tensor_(std::move(tensor)), column_(column), width_(width), layout_(layout), whole_(room_rows == a.schedule.rows()) {
  if (a.rounded()) room_ = a.empty({room_rows, width});
}

template <class T>
std::vector<uint16_t*> SpanRows<T>::rows(const Span& span) const {
  uint16_t* const numbers = static_cast<uint16_t*>(const_cast<void*>(tensor_.const_data_ptr()));
  return span.schedule.rows_of(numbers + start(span), layout_);
}

template <class T>
void SpanRows<T>::load(const Span& span) const {
  if (!room_.defined() || width_ == 0) return;
  T* const room = in_room(span);
  const Storage storage = storage_of(a_.type);
  each_row(rows(span), width_, [&](const uint16_t* row, int64_t at) { a_.products.widen(storage, row, room + at, width_); });
}

template <class T>
void SpanRows<T>::store(const Span& span) const {
  if (!room_.defined() || width_ == 0) return;
  const T* const room = in_room(span);
  const Storage storage = storage_of(a_.type);
  each_row(rows(span), width_, [&](uint16_t* row, int64_t at) { a_.products.narrow(storage, room + at, row, width_); });
}

template <class T>
void SpanRows<T>::before(const Span& span, bool reverse, const T* initial, T* to) const {
  std::copy_n(initial, a_.size.batch * width_, to);
  const int64_t t = reverse ? span.end : span.begin - 1;
  if (t < 0 || t == a_.size.steps) return;
  const Schedule all = a_.schedule.view();
  for (int64_t p = 0; p < all.active[t]; ++p) {
    const int64_t from = column_ + layout_.at(all, t, p);
    T* const row = to + all.order[p] * width_;
    if (room_.defined())
      a_.products.widen(storage_of(a_.type), static_cast<const uint16_t*>(tensor_.const_data_ptr()) + from, row, width_);
    else
      std::copy_n(sstkern::read<T>(tensor_) + from, width_, row);
  }
}

#define SSTKERN_INSTANTIATE(T)                                               \
  template std::vector<Span> make_spans(const Arguments<T>&, int64_t width); \
  template class SpanRows<T>;
SSTKERN_INSTANTIATE(float)
SSTKERN_INSTANTIATE(double)
#undef SSTKERN_INSTANTIATE

}  // namespace sstkern
