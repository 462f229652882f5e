#include "arguments.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <c10/util/Exception.h>

#include "pieces.h"

namespace sstkern {

namespace {

at::Tensor features_contiguous(const at::Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

// How many time steps a packed x has.
int64_t steps_of(const at::Tensor& lengths) {
  const at::Tensor alone = lengths_alone(lengths);
  return alone.numel() ? alone.max().item<int64_t>() : 0;
}

Sizes sizes(const at::Tensor& x, at::TensorList given, const std::optional<at::Tensor>& lengths, bool bidirectional, int64_t gates) {
  const bool packed = x.dim() == 2;
  TORCH_CHECK(packed || x.dim() == 3, "x: expected 3 dimensions (time steps, batch, features), or 2 (rows, features), got shape ",
              x.sizes());
  if (packed) check_packed_lengths(lengths, x.size(0));
  const int64_t directions = bidirectional ? 2 : 1;
  TORCH_CHECK(given.size() >= 2 && given.size() % directions == 0, "weights: got ", given.size(), " tensors for ", directions,
              " direction(s)");
  TORCH_CHECK(given[0].dim() == 2 && given[1].dim() == 2, "weight_ih and weight_hh: expected 2 dimensions, got shapes ", given[0].sizes(),
              " and ", given[1].sizes());
  TORCH_CHECK(given[1].size(0) > 0, "weight_hh: expected at least one row, got shape ", given[1].sizes());
  const int64_t steps = packed ? steps_of(*lengths) : x.size(0), batch = packed ? lengths->size(0) : x.size(1);
  return {steps, batch, x.size(-1), given[1].size(0) / gates, given[1].size(1), directions};
}

}  // namespace

at::ScalarType compute_type(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf ? at::kFloat : type; }

at::Tensor prepare(const at::Tensor& tensor) { return tensor.to(compute_type(tensor.scalar_type())).contiguous(); }

void check_size(const char* name, const at::Tensor& tensor, at::IntArrayRef expected, const at::Tensor& x) {
  TORCH_CHECK(tensor.sizes() == expected, name, ": expected shape ", expected, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, ": expected dtype ", x.scalar_type(), " like x, got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == x.device(), name, ": expected device ", x.device(), " like x, got ", tensor.device());
}

template <class T>
Arguments<T>::Arguments(std::string_view cell, Phase phase, const at::Tensor& x, at::TensorList given, at::TensorList hx,
                        const std::optional<at::Tensor>& lengths, bool has_bias, bool bidirectional)
    : Arguments(sizes(x, given, lengths, bidirectional, gates_of<T>(cell, x.scalar_type())), cell, phase, x, given, hx, lengths, has_bias) {
}

template <class T>
Arguments<T>::Arguments(const Sizes& size, std::string_view cell, Phase phase, const at::Tensor& x, at::TensorList given, at::TensorList hx,
                        const std::optional<at::Tensor>& lengths, bool has_bias)
    : Arguments(find_kernels<T>(cell, x.scalar_type(), size.hidden, phase == Phase::forward ? 0 : size.input), size, x, given, hx, lengths,
                has_bias) {}

template <class T>
Arguments<T>::Arguments(Found<T> found, const Sizes& size, const at::Tensor& x, at::TensorList given, at::TensorList hx,
                        const std::optional<at::Tensor>& lengths, bool has_bias)
    : kernels(found.kernels),
      products(found.products),
      size(size),
      type(x.scalar_type()),
      x(features_contiguous(x)),
      packed(x.dim() == 2),
      schedule(lengths, size.steps, size.batch) {
  TORCH_CHECK_VALUE(!packed || schedule.rows() == x.size(0), "lengths: their sum is ", schedule.rows(), ", but x has ", x.size(0), " rows");
  const int64_t count = static_cast<int64_t>(given.size()) / size.directions, plain = 2 + 2 * has_bias + kernels.parameters;
  const bool projected = count == plain + 1;
  TORCH_CHECK(count == plain || (projected && kernels.projects), "weights: expected ", plain,
              kernels.projects ? " (or one more with a projection)" : "", " for each direction, got ", given.size(), " for ",
              size.directions, " direction(s)");
  TORCH_CHECK(projected || size.output == size.hidden, "weight_hh: expected ", size.hidden, " columns without a projection, got ",
              size.output);
  for (int64_t d = 0; d < size.directions; ++d) weights.push_back(direction(given.slice(d * count, count), has_bias, projected, x));
  const int64_t states = 1 + kernels.states;
  given_states = static_cast<int64_t>(hx.size());
  TORCH_CHECK(given_states == states || (schedule.cut() && given_states == 2 * states), "hx: expected ", states,
              schedule.cut() ? " states, or as many again" : " state(s)", ", got ", hx.size());
  const char* const name = kernels.states == 1 ? "c_0" : "a state beside h";
  for (int64_t i = 0; i < given_states; ++i)
    check_size(i % states == 0 ? "h_0" : name, hx[i], {size.directions, size.batch, i % states == 0 ? size.output : size.hidden}, x);
  h0 = first_states(hx, 0);
  std::vector<at::Tensor> others;
  for (int64_t i = 1; i < states; ++i) others.push_back(first_states(hx, i));
  if (kernels.states == 1) states0 = others[0];
  if (kernels.states > 1) states0 = at::cat(others, -1);
}

// State number i, of sequences or of their pieces.
template <class T>
at::Tensor Arguments<T>::first_states(at::TensorList hx, int64_t i) const {
  if (!schedule.cut()) return prepare(hx[i]);
  const int64_t anew = 1 + kernels.states + i;
  return first_of_pieces(schedule, false, prepare(hx[i]), anew < given_states ? prepare(hx[anew]) : at::Tensor());
}

template <class T>
Weights Arguments<T>::direction(at::TensorList given, bool has_bias, bool projected, const at::Tensor& x) const {
  check_size("weight_ih", given[0], {gates(), size.input}, x);
  check_size("weight_hh", given[1], {gates(), size.output}, x);
  Weights w;
  w.ih = prepare(given[0]);
  w.hh = prepare(given[1]);
  if (has_bias) {
    check_size("bias_ih", given[2], {gates()}, x);
    check_size("bias_hh", given[3], {gates()}, x);
    w.bias_ih = prepare(given[2]);
    w.bias_hh = prepare(given[3]);
  }
  const int64_t place = 2 + 2 * has_bias;
  if (projected) {
    check_size("weight_hr", given[place], {size.output, size.hidden}, x);
    w.hr = prepare(given[place]);
  }
  if (kernels.parameters == 0) return w;
  const at::TensorList own = given.slice(place + projected);
  for (const at::Tensor& parameter : own) check_size("the cell's own parameters", parameter, {size.hidden}, x);
  w.parameters = prepare(at::stack(own));
  return w;
}

template <class T>
std::vector<int64_t> Arguments<T>::saved_widths() const {
  std::vector<int64_t> widths{kernels.saves * size.hidden, states()};
  if (projected()) widths.push_back(size.hidden);
  return widths;
}

template <class T>
std::vector<at::Tensor> Arguments<T>::each_state(const at::Tensor& states) const {
  if (kernels.states == 1) return {as_given(states)};
  std::vector<at::Tensor> each;
  for (int64_t i = 0; i < kernels.states; ++i) each.push_back(as_given(states.narrow(-1, i * size.hidden, size.hidden)).contiguous());
  return each;
}

template <class T>
std::vector<int64_t> Arguments<T>::shape(int64_t features) const {
  return packed ? std::vector<int64_t>{x.size(0), features} : std::vector<int64_t>{size.steps, size.batch, features};
}

template <class T>
std::vector<const T*> Arguments<T>::parameters_of(int64_t direction) const {
  std::vector<const T*> each;
  for (int64_t p = 0; p < kernels.parameters; ++p) each.push_back(read<T>(weights[direction].parameters) + p * size.hidden);
  return each;
}

template <class T>
Recurrence<T> Arguments<T>::recurrence(int64_t direction, const T* const* parameters) const {
  Recurrence<T> r;
  r.products = &products;
  r.reverse = direction == 1;
  r.hidden_size = size.hidden;
  r.output_size = size.output;
  r.parameters = parameters;
  return r;
}

template struct Arguments<float>;
template struct Arguments<double>;

}  // namespace sstkern
