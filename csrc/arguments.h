// The operators' arguments, checked: whatever is read through them lies inside its tensor.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "plan.h"
#include "registry.h"
#include "schedule.h"
#include "tensor.h"

namespace sstkern {

// One direction's, as torch.nn names them; undefined where the layer has none.
struct Weights {
  Tensor ih, hh, bias_ih, bias_hh, hr;
  Tensor parameters;  // the cell's own, one after the other: (parameters * H,)
};

enum class Phase { forward, backward };

// Of the call's tensors, whatever pieces its sequences are cut into.
struct Sizes {
  int64_t steps, batch, input, hidden, output, directions;
};

// bfloat16 and float16 are storage only: a call computes in float32.
ScalarType compute_type(ScalarType type);

Tensor prepare(const Tensor& tensor);

// All rows beside each other, of tensors of one dtype and of one shape but for the last dimension, as `prepare` gives them.
Tensor side_by_side(Tensors tensors);

// Throws RuntimeError unless the tensor has this shape and the dtype and device of x.
void check_size(const char* name, const Tensor& tensor, Ints expected, const Tensor& x);

template <class T>
const T* read(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
T* write(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

template <class T>
struct Arguments {
  const Kernels<T>& kernels;
  const Products<T>& products;
  Sizes size;
  ScalarType type;
  Tensor x;
  bool packed;  // whether x, the output and their gradients have valid rows only, (rows, features), else (steps, batch, features)
  std::vector<Weights> weights;
  Tensor h0, states0;  // (directions, schedule.states(), P) and (directions, schedule.states(), states * H)
  BatchSchedule schedule;
  int64_t given_states;  // the cell's, or, where sequences are cut, as many again that they begin anew with

  Arguments(std::string_view cell, Phase phase, const Tensor& x, Tensors given, Tensors hx, const std::optional<Tensor>& lengths,
            bool has_bias, bool bidirectional);

  bool projected() const { return weights[0].hr.defined(); }
  bool biased() const { return weights[0].bias_ih.defined(); }
  // Weights of a direction.
  int64_t per_direction() const { return 2 + 2 * biased() + projected() + kernels.parameters; }
  int64_t gates() const { return kernels.shape.gates * size.hidden; }
  int64_t states() const { return kernels.states * size.hidden; }
  int64_t parameters() const { return kernels.parameters * size.hidden; }
  // Whether the call's tensors have 16-bit numbers: what it computes is rounded where it is stored.
  bool rounded() const { return compute_type(type) != type; }
  // Of what a direction saves for the backward: the cell's values and states, and the hidden states where there is a projection.
  std::vector<int64_t> saved_widths() const;
  int64_t saved_per_direction() const { return projected() ? 3 : 2; }
  int64_t saved_width() const { return (kernels.saves + kernels.states + projected()) * size.hidden; }

  // Of what it computes with, and of what it stores, for itself; and of what it computes with for whoever calls.
  Tensor empty(Ints shape) const { return empty_tensor(shape, compute_type(type)); }
  Tensor zeros(Ints shape) const { return plain(shape).zero_(); }
  Tensor stored(Ints shape) const { return empty_tensor(shape, type); }
  Tensor plain(Ints shape) const { return plain_tensor(shape, compute_type(type)); }
  // For whoever calls, a row for each time step and sequence, zero in the padding.
  Tensor stored_rows(int64_t features) const {
    Tensor rows = plain_tensor(shape(features), type);
    return packed || schedule.full() ? rows : rows.zero_();
  }
  Tensor as_given(const Tensor& tensor) const { return tensor.to(type); }
  std::vector<int64_t> shape(int64_t features) const;
  // Of a contiguous tensor of that shape.
  Layout layout(int64_t features) const { return {packed, size.batch * features, features, true}; }
  int64_t output_features() const { return size.directions * size.output; }
  Layout x_layout() const { return packed ? Layout{true, 0, x.stride(0), true} : Layout{false, x.stride(0), x.stride(1), true}; }
  // A tensor (..., states * H) as one of the given dtype for each state.
  std::vector<Tensor> each_state(const Tensor& states) const;

  // A direction's first states, of sequences or of their pieces.
  const T* h0_of(int64_t direction) const { return read<T>(h0) + direction * schedule.states() * size.output; }
  const T* states0_of(int64_t direction) const {
    return kernels.states ? read<T>(states0) + direction * schedule.states() * states() : nullptr;
  }
  // The addresses of a direction's own parameters.
  std::vector<const T*> parameters_of(int64_t direction) const;
  LoopWork work() const {
    const int64_t weights = gates() * size.output;
    return {schedule,
            size.directions,
            schedule.steps(),
            weights,
            weights * static_cast<int64_t>(sizeof(T)),
            gates() * (size.input + size.output)};
  }
  // What the forward and the backward of a direction share, whatever the time steps.
  Recurrence<T> recurrence(int64_t direction, const T* const* parameters) const;

 private:
  Arguments(const Sizes& size, std::string_view cell, Phase phase, const Tensor& x, Tensors given, Tensors hx,
            const std::optional<Tensor>& lengths, bool has_bias);
  Arguments(Found<T> found, const Sizes& size, const Tensor& x, Tensors given, Tensors hx, const std::optional<Tensor>& lengths,
            bool has_bias);
  Tensor first_states(Tensors hx, int64_t i) const;
  Weights direction(Tensors given, bool has_bias, bool projected, const Tensor& x) const;
};

}  // namespace sstkern
