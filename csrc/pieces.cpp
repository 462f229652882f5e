#include "pieces.h"

#include <ATen/ops/zeros.h>

#include <cstring>

#include "memory.h"

namespace sstkern {

namespace {

// Calls run(piece, sequence, whether it begins with what the sequence was given) for all pieces of a direction.
template <class Run>
void each_first(const BatchSchedule& schedule, bool reverse, const Run& run) {
  for (int64_t b = 0; b < schedule.sequences(); ++b) {
    const int64_t begin = schedule.first_piece(b), end = schedule.first_piece(b + 1);
    for (int64_t piece = begin; piece < end; ++piece)
      run(piece, b, reverse ? piece == end - 1 : piece == begin && !schedule.begins_anew(b));
  }
}

// The piece that a sequence ends with.
int64_t last_piece(const BatchSchedule& schedule, bool reverse, int64_t sequence) {
  return reverse ? schedule.first_piece(sequence) : schedule.first_piece(sequence + 1) - 1;
}

// Row `row` of a direction's, of `rows` rows.
char* row_of(const at::Tensor& states, int64_t direction, int64_t row) {
  const int64_t bytes = states.size(2) * static_cast<int64_t>(states.element_size());
  return static_cast<char*>(states.data_ptr()) + (direction * states.size(1) + row) * bytes;
}

at::Tensor rows_like(const at::Tensor& states, int64_t rows) {
  return empty_tensor({states.size(0), rows, states.size(2)}, states.scalar_type());
}

}  // namespace

at::Tensor first_of_pieces(const BatchSchedule& schedule, bool reverse, const at::Tensor& given, const at::Tensor& anew) {
  at::Tensor found = rows_like(given, schedule.states());
  const size_t bytes = given.size(2) * given.element_size();
  for (int64_t d = 0; d < given.size(0); ++d)
    each_first(schedule, reverse != (d == 1), [&](int64_t piece, int64_t b, bool of_given) {
      char* const to = row_of(found, d, piece);
      if (of_given || anew.defined())
        std::memcpy(to, row_of(of_given ? given : anew, d, b), bytes);
      else
        std::memset(to, 0, bytes);
    });
  return found;
}

at::Tensor last_of_sequences(const BatchSchedule& schedule, bool reverse, const at::Tensor& states) {
  at::Tensor found = rows_like(states, schedule.sequences());
  const size_t bytes = states.size(2) * states.element_size();
  for (int64_t d = 0; d < states.size(0); ++d)
    for (int64_t b = 0; b < schedule.sequences(); ++b)
      std::memcpy(row_of(found, d, b), row_of(states, d, last_piece(schedule, reverse != (d == 1), b)), bytes);
  return found;
}

at::Tensor last_gradients_of_pieces(const BatchSchedule& schedule, bool reverse, const at::Tensor& gradients) {
  at::Tensor found = rows_like(gradients, schedule.states()).zero_();
  const size_t bytes = gradients.size(2) * gradients.element_size();
  for (int64_t d = 0; d < gradients.size(0); ++d)
    for (int64_t b = 0; b < schedule.sequences(); ++b)
      std::memcpy(row_of(found, d, last_piece(schedule, reverse != (d == 1), b)), row_of(gradients, d, b), bytes);
  return found;
}

template <class T>
std::pair<at::Tensor, at::Tensor> first_gradients_of_sequences(const BatchSchedule& schedule, bool reverse, const at::Tensor& gradients) {
  const at::Tensor given = rows_like(gradients, schedule.sequences()).zero_(), anew = rows_like(gradients, schedule.sequences()).zero_();
  const int64_t width = gradients.size(2);
  for (int64_t d = 0; d < gradients.size(0); ++d)
    each_first(schedule, reverse != (d == 1), [&](int64_t piece, int64_t b, bool of_given) {
      const T* const from = reinterpret_cast<const T*>(row_of(gradients, d, piece));
      T* const to = reinterpret_cast<T*>(row_of(of_given ? given : anew, d, b));
      for (int64_t i = 0; i < width; ++i) to[i] += from[i];
    });
  return {given, anew};
}

template std::pair<at::Tensor, at::Tensor> first_gradients_of_sequences<float>(const BatchSchedule&, bool, const at::Tensor&);
template std::pair<at::Tensor, at::Tensor> first_gradients_of_sequences<double>(const BatchSchedule&, bool, const at::Tensor&);

}  // namespace sstkern
