// A call's time steps, some at a time: what is only needed within a span has room for its rows, not for those of all time steps. So tensors
// of 16-bit numbers stay what they are: the kernels, which compute in float32, see the rows of one span, as a call of its own whose first
// states are the span's before it.
#pragma once

#include <vector>

#include "arguments.h"

namespace sstkern {

struct Span {
  int64_t begin, end;      // time steps
  int64_t first_row;       // of all that the call has
  BatchSchedule schedule;  // of these time steps alone
};

// Spans of at least so many rows, but the last.
std::vector<Span> cut_spans(const BatchSchedule& schedule, int64_t rows);

// One span of all time steps, or, where the call's tensors have 16-bit numbers, several, whose rows of `width` float32 numbers fit a second
// cache; how they are cut depends on sizes and lengths alone.
template <class T>
std::vector<Span> make_spans(const Arguments<T>& a, int64_t width);
template <class T>
std::vector<Span> one_span(const Arguments<T>& a) {
  return {{0, a.schedule.steps(), 0, a.schedule.span(0, a.schedule.steps())}};
}

// The span that is visited as number `visit`.
inline const Span& visited(const std::vector<Span>& spans, int64_t visit, bool from_the_end) {
  return spans[from_the_end ? static_cast<int64_t>(spans.size()) - 1 - visit : visit];
}

// The most rows of a span.
int64_t most_rows(const std::vector<Span>& spans);

// The most positions of a thread's share of a span.
int64_t most_positions(Plan& plan, const std::vector<Span>& spans);

// The rows of a tensor that has one for every valid time step, `width` numbers from `column` on, as the kernels see those of a span: where
// they are, or, of 16-bit numbers, in a room of float32.
template <class T>
class SpanRows {
 public:
  // room_rows: how many rows the room has: as many as a span, or as the call, whose spans then stay side by side.
  SpanRows(const Arguments<T>& a, Tensor tensor, int64_t column, int64_t width, Layout layout, int64_t room_rows);

  // Of a tensor (rows, width) with valid rows only.
  SpanRows(const Arguments<T>& a, const Tensor& tensor, int64_t room_rows)
      : SpanRows(a, tensor, 0, tensor.size(1), {true, 0, tensor.size(1)}, room_rows) {}

  const T* read(const Span& span) const { return room_.defined() ? in_room(span) : sstkern::read<T>(tensor_) + start(span); }
  T* write(const Span& span) const { return room_.defined() ? in_room(span) : sstkern::write<T>(tensor_) + start(span); }
  Layout layout() const { return room_.defined() ? Layout{true, 0, width_} : layout_; }

  // Rows of the positions first..first+count-1 from the tensor to the room, and back; nothing where there is none. All in all threads.
  void load(const Span& span, int64_t first, int64_t count) const;
  void store(const Span& span, int64_t first, int64_t count) const;
  void store(const Span& span) const;

  // To `to` (a_.schedule.states(), width): of each sequence or piece the row that the span goes on from in its direction; where it has
  // none, that of `initial`. last: the span that `to` was for, none at first.
  void before(const Span& span, const Span* last, bool reverse, const T* initial, T* to) const;

 private:
  // Calls run(where 16-bit numbers are, where they are in the room, how many) for the rows of these positions.
  // Calls run(time step, position, sequence or piece) for those that go on in a span, at the step before it in its direction.
  template <class Run>
  void each_before(const Span& span, bool reverse, const Run& run) const;
  template <class Run>
  void convert(const Span& span, int64_t first, int64_t count, const Run& run) const;
  T* in_room(const Span& span) const { return sstkern::write<T>(room_) + (whole_ ? span.first_row * width_ : 0); }
  int64_t start(const Span& span) const {
    if (dealt()) return column_;  // the span's schedule knows where its pieces are
    return column_ + (layout_.packed ? span.first_row * layout_.row : span.begin * layout_.step);
  }
  // Whether the tensor has sequences, whose pieces are dealt out to the lanes that the call runs.
  bool dealt() const { return layout_.of_call && a_.schedule.dealt(); }

  const Arguments<T>& a_;
  Tensor tensor_;
  int64_t column_, width_;
  Layout layout_;
  bool whole_;
  Tensor room_;
};

}  // namespace sstkern
