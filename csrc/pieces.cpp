#include "pieces.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace sstkern {

Pieces::Pieces(const BatchSchedule& schedule, bool reverse)
    : pieces_(schedule.batch()), sequences_(schedule.sequences()), first_(at::empty({pieces_}, at::kLong)) {
  int64_t* const first = first_.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < sequences_; ++b) {
    const int64_t begin = schedule.first_piece(b), end = schedule.first_piece(b + 1);
    for (int64_t piece = begin; piece < end; ++piece) {
      const bool of_given = reverse ? piece == end - 1 : piece == begin && !schedule.begins_anew(b);
      first[piece] = of_given ? b : sequences_ + b;
    }
    last_.push_back(reverse ? begin : end - 1);
  }
}

at::Tensor Pieces::first(const at::Tensor& given, const at::Tensor& anew) const { return at::cat({given, anew}).index_select(0, first_); }

at::Tensor Pieces::last(const at::Tensor& states) const { return states.index_select(0, at::tensor(last_, at::kLong)); }

at::Tensor Pieces::last_gradient(const at::Tensor& gradients) const {
  at::Tensor found = at::zeros({pieces_, gradients.size(1)}, gradients.options());
  const at::Tensor from = gradients.contiguous();
  const int64_t bytes = from.size(1) * from.element_size();
  const char* const rows = static_cast<const char*>(from.const_data_ptr());
  char* const to = static_cast<char*>(found.mutable_data_ptr());
  for (int64_t b = 0; b < sequences_; ++b) std::copy_n(rows + b * bytes, bytes, to + last_[b] * bytes);
  return found;
}

template <class T>
std::pair<at::Tensor, at::Tensor> Pieces::first_gradients(const at::Tensor& gradients) const {
  const int64_t width = gradients.size(1);
  at::Tensor found = at::zeros({2, sequences_, width}, gradients.options());
  const at::Tensor contiguous = gradients.contiguous();
  const T* from = contiguous.const_data_ptr<T>();
  const int64_t* const first = first_.const_data_ptr<int64_t>();
  for (int64_t piece = 0; piece < pieces_; ++piece, from += width) {
    T* const to = found.mutable_data_ptr<T>() + first[piece] * width;
    for (int64_t i = 0; i < width; ++i) to[i] += from[i];
  }
  return {found.select(0, 0), found.select(0, 1)};
}

namespace {

// run(pieces, direction) of each direction, stacked.
template <class Run>
at::Tensor of_directions(const BatchSchedule& schedule, int64_t directions, const Run& run) {
  std::vector<at::Tensor> found;
  for (int64_t d = 0; d < directions; ++d) found.push_back(run(Pieces(schedule, d == 1), d));
  return at::stack(found);
}

}  // namespace

std::vector<at::Tensor> first_of_pieces(const BatchSchedule& schedule, at::TensorList given, at::TensorList anew) {
  std::vector<at::Tensor> found;
  for (size_t i = 0; i < given.size(); ++i)
    found.push_back(of_directions(schedule, given[i].size(0), [&](const Pieces& pieces, int64_t d) {
      return pieces.first(given[i].select(0, d), anew[i].select(0, d));
    }));
  return found;
}

at::Tensor last_of_sequences(const BatchSchedule& schedule, const at::Tensor& states) {
  return of_directions(schedule, states.size(0), [&](const Pieces& pieces, int64_t d) { return pieces.last(states.select(0, d)); });
}

std::vector<at::Tensor> last_gradients_of_pieces(const BatchSchedule& schedule, at::TensorList gradients) {
  std::vector<at::Tensor> found;
  for (const at::Tensor& gradient : gradients)
    found.push_back(of_directions(schedule, gradient.size(0),
                                  [&](const Pieces& pieces, int64_t d) { return pieces.last_gradient(gradient.select(0, d)); }));
  return found;
}

template <class T>
std::pair<at::Tensor, at::Tensor> first_gradients_of_sequences(const BatchSchedule& schedule, const at::Tensor& gradients) {
  std::vector<at::Tensor> given, anew;
  for (int64_t d = 0; d < gradients.size(0); ++d) {
    const auto [of_given, of_anew] = Pieces(schedule, d == 1).first_gradients<T>(gradients.select(0, d));
    given.push_back(of_given);
    anew.push_back(of_anew);
  }
  return {at::stack(given), at::stack(anew)};
}

#define SSTKERN_INSTANTIATE(T)                                                                    \
  template std::pair<at::Tensor, at::Tensor> Pieces::first_gradients<T>(const at::Tensor&) const; \
  template std::pair<at::Tensor, at::Tensor> first_gradients_of_sequences<T>(const BatchSchedule&, const at::Tensor&);
SSTKERN_INSTANTIATE(float)
SSTKERN_INSTANTIATE(double)
#undef SSTKERN_INSTANTIATE

}  // namespace sstkern
