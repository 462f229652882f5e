#include "arguments.h"

#include "pieces.h"

namespace sstkern {

namespace {

Tensor features_contiguous(const Tensor& tensor) { return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }

Sizes sizes(const Tensor& x, Tensors given, const std::optional<Tensor>& lengths, bool bidirectional, int64_t gates) {
  const bool packed = x.dim() == 2;
  SSTKERN_CHECK(packed || x.dim() == 3, "x: expected 3 dimensions (time steps, batch, features), or 2 (rows, features), got shape ",
                x.sizes());
  if (packed) check_packed_lengths(lengths, x.size(0));
  const int64_t directions = bidirectional ? 2 : 1;
  SSTKERN_CHECK(given.size() >= 2 && given.size() % directions == 0, "weights: got ", given.size(), " tensors for ", directions,
                " direction(s)");
  SSTKERN_CHECK(given[0].dim() == 2 && given[1].dim() == 2, "weight_ih and weight_hh: expected 2 dimensions, got shapes ", given[0].sizes(),
                " and ", given[1].sizes());
  SSTKERN_CHECK(given[1].size(0) > 0, "weight_hh: expected at least one row, got shape ", given[1].sizes());
  const int64_t steps = packed ? longest(*lengths) : x.size(0), batch = packed ? lengths->size(0) : x.size(1);
  return {steps, batch, x.size(-1), given[1].size(0) / gates, given[1].size(1), directions};
}

}  // namespace

ScalarType compute_type(ScalarType type) { return type == ScalarType::BFloat16 || type == ScalarType::Half ? ScalarType::Float : type; }

Tensor prepare(const Tensor& tensor) { return tensor.to(compute_type(tensor.scalar_type())).contiguous(); }

Tensor side_by_side(Tensors tensors) {
  std::vector<int64_t> shape = tensors[0].sizes().vec();
  shape.back() = 0;
  for (const Tensor& tensor : tensors) shape.back() += tensor.size(-1);
  const int64_t bytes = size_of(tensors[0].scalar_type());
  Tensor found = empty_tensor(shape, tensors[0].scalar_type());
  const int64_t rows = shape.back() == 0 ? 0 : found.numel() / shape.back();
  char* to = static_cast<char*>(found.mutable_data_ptr());
  for (const Tensor& tensor : tensors) {
    const int64_t width = tensor.size(-1) * bytes;
    const char* const from = static_cast<const char*>(tensor.const_data_ptr());
    for (int64_t row = 0; row < rows; ++row) std::copy_n(from + row * width, width, to + row * shape.back() * bytes);
    to += width;
  }
  return found;
}

void check_size(const char* name, const Tensor& tensor, Ints expected, const Tensor& x) {
  SSTKERN_CHECK(tensor.sizes() == expected, name, ": expected shape ", expected, ", got ", tensor.sizes());
  SSTKERN_CHECK(tensor.scalar_type() == x.scalar_type(), name, ": expected dtype ", x.scalar_type(), " like x, got ", tensor.scalar_type());
  SSTKERN_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU, like x, got one on ", tensor.device());
}

template <class T>
Arguments<T>::Arguments(std::string_view cell, Phase phase, const Tensor& x, Tensors given, Tensors hx,
                        const std::optional<Tensor>& lengths, bool has_bias, bool bidirectional)
    : Arguments(sizes(x, given, lengths, bidirectional, gates_of<T>(cell, x.scalar_type())), cell, phase, x, given, hx, lengths, has_bias) {
}

template <class T>
Arguments<T>::Arguments(const Sizes& size, std::string_view cell, Phase phase, const Tensor& x, Tensors given, Tensors hx,
                        const std::optional<Tensor>& lengths, bool has_bias)
    : Arguments(find_kernels<T>(cell, x.scalar_type(), size.hidden, phase == Phase::forward ? 0 : size.input), size, x, given, hx, lengths,
                has_bias) {}

template <class T>
Arguments<T>::Arguments(Found<T> found, const Sizes& size, const Tensor& x, Tensors given, Tensors hx, const std::optional<Tensor>& lengths,
                        bool has_bias)
    : kernels(found.kernels),
      products(found.products),
      size(size),
      type(x.scalar_type()),
      x(features_contiguous(x)),
      packed(x.dim() == 2),
      schedule(lengths, size.steps, size.batch) {
  SSTKERN_CHECK_VALUE(!packed || schedule.rows() == x.size(0), "lengths: their sum is ", schedule.rows(), ", but x has ", x.size(0),
                      " rows");
  const int64_t count = static_cast<int64_t>(given.size()) / size.directions, plain = 2 + 2 * has_bias + kernels.parameters;
  const bool projected = count == plain + 1;
  SSTKERN_CHECK(count == plain || (projected && kernels.projects), "weights: expected ", plain,
                kernels.projects ? " (or one more with a projection)" : "", " for each direction, got ", given.size(), " for ",
                size.directions, " direction(s)");
  SSTKERN_CHECK(projected || size.output == size.hidden, "weight_hh: expected ", size.hidden, " columns without a projection, got ",
                size.output);
  for (int64_t d = 0; d < size.directions; ++d) weights.push_back(direction(given.slice(d * count, count), has_bias, projected, x));
  const int64_t states = 1 + kernels.states;
  given_states = static_cast<int64_t>(hx.size());
  SSTKERN_CHECK(given_states == states || (schedule.cut() && given_states == 2 * states), "hx: expected ", states,
                schedule.cut() ? " states, or as many again" : " state(s)", ", got ", hx.size());
  const char* const name = kernels.states == 1 ? "c_0" : "a state beside h";
  for (int64_t i = 0; i < given_states; ++i)
    check_size(i % states == 0 ? "h_0" : name, hx[i], {size.directions, size.batch, i % states == 0 ? size.output : size.hidden}, x);
  h0 = first_states(hx, 0);
  std::vector<Tensor> others;
  for (int64_t i = 1; i < states; ++i) others.push_back(first_states(hx, i));
  if (kernels.states == 1) states0 = others[0];
  if (kernels.states > 1) states0 = side_by_side(others);
}

// State number i, of sequences or of their pieces.
template <class T>
Tensor Arguments<T>::first_states(Tensors hx, int64_t i) const {
  if (!schedule.cut()) return prepare(hx[i]);
  const int64_t anew = 1 + kernels.states + i;
  return first_of_pieces(schedule, false, prepare(hx[i]), anew < given_states ? prepare(hx[anew]) : Tensor());
}

template <class T>
Weights Arguments<T>::direction(Tensors given, bool has_bias, bool projected, const Tensor& x) const {
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
  std::vector<Tensor> own;
  for (const Tensor& parameter : given.slice(place + projected)) {
    check_size("the cell's own parameters", parameter, {size.hidden}, x);
    own.push_back(prepare(parameter));
  }
  w.parameters = side_by_side(own);
  return w;
}

template <class T>
std::vector<int64_t> Arguments<T>::saved_widths() const {
  std::vector<int64_t> widths{kernels.saves * size.hidden, states()};
  if (projected()) widths.push_back(size.hidden);
  return widths;
}

template <class T>
std::vector<Tensor> Arguments<T>::each_state(const Tensor& states) const {
  if (kernels.states == 1) return {as_given(states)};
  std::vector<Tensor> each;
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
