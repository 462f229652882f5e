#include "pieces.h"

#include <cstring>
#include <optional>

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

// The rows of a tensor (directions, rows, width).
struct Rows {
  explicit Rows(const Tensor& states)
      : first(static_cast<char*>(states.mutable_data_ptr())), rows(states.size(1)), bytes(states.size(2) * size_of(states.scalar_type())) {}
  char* at(int64_t direction, int64_t row) const { return first + (direction * rows + row) * bytes; }

  char* first;
  int64_t rows, bytes;  // of each direction, and of a row
};

Tensor of_sequences(const BatchSchedule& schedule, const Tensor& states) {
  return plain_tensor({states.size(0), schedule.sequences(), states.size(2)}, states.scalar_type());
}
Tensor of_pieces(const BatchSchedule& schedule, const Tensor& states) {
  return empty_tensor({states.size(0), schedule.states(), states.size(2)}, states.scalar_type());
}

}  // namespace

Tensor first_of_pieces(const BatchSchedule& schedule, bool reverse, const Tensor& given, const Tensor& anew) {
  Tensor found = of_pieces(schedule, given);
  const Rows to(found), from(given);
  const std::optional<Rows> from_anew = anew.defined() ? std::optional<Rows>(anew) : std::nullopt;
  for (int64_t d = 0; d < given.size(0); ++d)
    each_first(schedule, reverse != (d == 1), [&](int64_t piece, int64_t b, bool of_given) {
      if (of_given || from_anew)
        std::memcpy(to.at(d, piece), (of_given ? from : *from_anew).at(d, b), to.bytes);
      else
        std::memset(to.at(d, piece), 0, to.bytes);
    });
  return found;
}

Tensor last_of_sequences(const BatchSchedule& schedule, bool reverse, const Tensor& states) {
  Tensor found = of_sequences(schedule, states);
  const Rows to(found), from(states);
  for (int64_t d = 0; d < states.size(0); ++d)
    for (int64_t b = 0; b < schedule.sequences(); ++b)
      std::memcpy(to.at(d, b), from.at(d, last_piece(schedule, reverse != (d == 1), b)), to.bytes);
  return found;
}

Tensor last_gradients_of_pieces(const BatchSchedule& schedule, bool reverse, const Tensor& gradients) {
  Tensor found = of_pieces(schedule, gradients).zero_();
  const Rows to(found), from(gradients);
  for (int64_t d = 0; d < gradients.size(0); ++d)
    for (int64_t b = 0; b < schedule.sequences(); ++b)
      std::memcpy(to.at(d, last_piece(schedule, reverse != (d == 1), b)), from.at(d, b), to.bytes);
  return found;
}

template <class T>
std::pair<Tensor, Tensor> first_gradients_of_sequences(const BatchSchedule& schedule, bool reverse, const Tensor& gradients) {
  Tensor given = of_sequences(schedule, gradients).zero_(), anew = of_sequences(schedule, gradients).zero_();
  const int64_t width = gradients.size(2);
  const Rows rows(gradients), of_given(given), of_anew(anew);
  for (int64_t d = 0; d < gradients.size(0); ++d)
    each_first(schedule, reverse != (d == 1), [&](int64_t piece, int64_t b, bool begins_with_given) {
      const T* const from = reinterpret_cast<const T*>(rows.at(d, piece));
      T* const to = reinterpret_cast<T*>((begins_with_given ? of_given : of_anew).at(d, b));
      for (int64_t i = 0; i < width; ++i) to[i] += from[i];
    });
  return {std::move(given), std::move(anew)};
}

template std::pair<Tensor, Tensor> first_gradients_of_sequences<float>(const BatchSchedule&, bool, const Tensor&);
template std::pair<Tensor, Tensor> first_gradients_of_sequences<double>(const BatchSchedule&, bool, const Tensor&);

}  // namespace sstkern
