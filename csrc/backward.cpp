#include "backward.h"

#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>

#include "packing.h"
#include "plan.h"

namespace sstkern {

namespace {

// One direction's tensors; undefined where the layer has none.
struct Buffers {
  at::Tensor dgates_x, dgates_h, dparameters, dh_total, dhidden, weight_hh, weight_hr;
};

template <class T>
class LayerBackward {
 public:
  LayerBackward(const Arguments<T>& a, const BackwardArguments& given, const std::optional<Groups>& groups)
      : a_(a),
        given_(given),
        groups_(groups),
        plan_(make_plan(a.work())),
        units_(a.products.plain_panels(a.size.hidden, plan_.parts())),
        outputs_(a.products.plain_panels(a.size.output, plan_.parts())),
        output_(a.rounded() ? given.saved.back() : given.output.contiguous()),
        dh_(prepare(given.grad_hx[0]).clone()),
        dstates_(a.kernels.states ? joined(given.grad_hx.slice(1)) : at::Tensor()) {
    if (given.grad_output.has_value()) grad_output_ = prepare(*given.grad_output);
    for (int64_t d = 0; d < a.size.directions; ++d) {
      parameters_.push_back(a.parameters_of(d));
      buffers_.push_back(buffers(d));
      calls_.push_back(call(d));
    }
  }

  void run_loop() {
    struct Memory {
      std::vector<BackwardRow<T>> rows;
      std::vector<const T*> left;
      std::vector<T*> right;
      std::vector<T> room;
    };
    const int64_t room = a_.products.factor_room(kBlockRows, std::max(a_.gates(), a_.size.output));
    const auto memory_for = [&](const Share& share) {
      return Memory{std::vector<BackwardRow<T>>(share.count), std::vector<const T*>(share.count), std::vector<T*>(share.count),
                    std::vector<T>(room)};
    };
    run_plan(a_.work(), plan_, memory_for, [&](int64_t direction, const Share& share, Memory& memory) {
      a_.kernels.backward(calls_[direction], share, {memory.rows.data(), memory.left.data(), memory.right.data(), memory.room.data()});
    });
  }

  std::vector<at::Tensor> gradients() {
    if (needs_x()) {
      std::vector<at::Tensor> dgates;
      for (const Buffers& b : buffers_) dgates.push_back(b.dgates_x);
      found_.push_back(input_gradient(a_, dgates));
    }
    const std::vector<const T*> x = a_.schedule.rows_of(read<T>(a_.x), a_.x_layout());
    for (int64_t d = 0; d < a_.size.directions; ++d) {
      matrices(d, x);
      if (a_.biased()) biases(d);
      if (a_.projected()) projection(d);
      if (a_.kernels.parameters) parameters(d);
    }
    if (needs_state(0)) found_.push_back(dh_);
    std::vector<at::Tensor> dstates = a_.kernels.states ? a_.each_state(dstates_) : std::vector<at::Tensor>();
    for (size_t i = 0; i < dstates.size(); ++i)
      if (needs_state(1 + static_cast<int64_t>(i))) found_.push_back(dstates[i]);
    for (at::Tensor& gradient : found_) gradient = a_.as_given(gradient);
    return std::move(found_);
  }

 private:
  bool needs_x() const { return given_.needs[0]; }
  bool needs_weight(int64_t direction, int64_t index) const { return given_.needs[1 + direction * a_.per_direction() + index]; }
  bool needs_state(int64_t index) const { return given_.needs[1 + a_.size.directions * a_.per_direction() + index]; }

  // The states' gradients as the kernels take them, to be written.
  static at::Tensor joined(at::TensorList states) { return states.size() == 1 ? prepare(states[0]).clone() : prepare(at::cat(states, -1)); }

  Buffers buffers(int64_t d) const {
    const Weights& w = a_.weights[d];
    const int64_t rows = a_.schedule.rows();
    Buffers b;
    b.dgates_x = a_.empty({rows, a_.gates()});
    b.dgates_h = a_.kernels.same_gate_gradients ? b.dgates_x : a_.empty({rows, a_.gates()});
    b.dparameters = a_.empty({rows, a_.parameters()});
    if (needs_state(0) || a_.size.steps > 1) b.weight_hh = pack_plain(a_.products, outputs_, w.hh);
    if (!a_.projected()) return b;
    b.weight_hr = pack_plain(a_.products, units_, w.hr);
    b.dh_total = a_.empty({rows, a_.size.output});
    b.dhidden = a_.empty({a_.size.batch, a_.size.hidden});
    return b;
  }

  Backward<T> call(int64_t d) const {
    const Buffers& b = buffers_[d];
    const Sizes& size = a_.size;
    const at::TensorList saved = given_.saved.slice(d * a_.saved_per_direction(), a_.saved_per_direction());
    Backward<T> f{a_.recurrence(d, parameters_[d].data())};
    f.units = units_;
    f.outputs = outputs_;
    f.needs_dh0 = needs_state(0);
    f.weight_hh = read<T>(b.weight_hh);
    f.weight_hr = read<T>(b.weight_hr);
    f.output = read<T>(output_) + d * size.output;
    f.grad_output = grad_output_.defined() ? read<T>(grad_output_) + d * size.output : nullptr;
    f.grad_output_at = a_.layout(a_.output_features());
    f.saved = read<T>(saved[0]);
    f.states = read<T>(saved[1]);
    f.dgates_x = write<T>(b.dgates_x);
    f.dgates_h = write<T>(b.dgates_h);
    f.dparameters = write<T>(b.dparameters);
    f.dh_total = write<T>(b.dh_total);
    f.dhidden = write<T>(b.dhidden);
    f.dh = write<T>(dh_) + d * size.batch * size.output;
    f.dstates = a_.kernels.states ? write<T>(dstates_) + d * size.batch * a_.states() : nullptr;
    return f;
  }

  // The gradient of a weight that the rows `right` are multiplied with, to be written.
  WeightGradient<T> gradient_of(const at::Tensor& weight, const std::vector<const T*>& right) {
    std::vector<int64_t> shape = weight.sizes().vec();
    if (groups_) shape.insert(shape.begin(), static_cast<int64_t>(groups_->size()));
    found_.push_back(a_.schedule.rows() == 0 ? a_.zeros(shape) : a_.empty(shape));
    return {right.data(), weight.size(1), write<T>(found_.back())};
  }

  void matrices(int64_t d, const std::vector<const T*>& x) {
    const Backward<T>& f = calls_[d];
    std::vector<WeightGradient<T>> of_x, of_h;
    std::vector<const T*> h_previous;
    if (needs_weight(d, 0)) of_x.push_back(gradient_of(a_.weights[d].ih, x));
    if (needs_weight(d, 1)) {
      h_previous = a_.schedule.previous_rows_of(f.output, f.output_at, f.h0, a_.size.output, f.reverse);
      (a_.kernels.same_gate_gradients ? of_x : of_h).push_back(gradient_of(a_.weights[d].hh, h_previous));
    }
    weight_gradients(a_, buffers_[d].dgates_x, of_x, groups_);
    weight_gradients(a_, buffers_[d].dgates_h, of_h, groups_);
  }

  void biases(int64_t d) {
    const Buffers& b = buffers_[d];
    const bool of_x = needs_weight(d, 2), of_h = needs_weight(d, 3);
    if (of_x) found_.push_back(row_sums(a_, b.dgates_x, groups_));
    if (of_h) found_.push_back(of_x && a_.kernels.same_gate_gradients ? found_.back().clone() : row_sums(a_, b.dgates_h, groups_));
  }

  void projection(int64_t d) {
    if (!needs_weight(d, 2 + 2 * a_.biased())) return;
    const T* const hidden = read<T>(given_.saved[d * a_.saved_per_direction() + 2]);
    std::vector<const T*> rows(a_.schedule.rows());
    for (size_t r = 0; r < rows.size(); ++r) rows[r] = hidden + static_cast<int64_t>(r) * a_.size.hidden;
    weight_gradients(a_, buffers_[d].dh_total, {gradient_of(a_.weights[d].hr, rows)}, groups_);
  }

  void parameters(int64_t d) {
    const int64_t first = 2 + 2 * a_.biased() + a_.projected(), size = a_.size.hidden;
    const at::Tensor sums = row_sums(a_, buffers_[d].dparameters, groups_);
    for (int64_t p = 0; p < a_.kernels.parameters; ++p)
      if (needs_weight(d, first + p)) found_.push_back(sums.narrow(-1, p * size, size).clone());
  }

  const Arguments<T>& a_;
  const BackwardArguments& given_;
  const std::optional<Groups>& groups_;
  const Plan plan_;
  const Panels units_, outputs_;
  at::Tensor output_, grad_output_, dh_, dstates_;
  std::vector<std::vector<const T*>> parameters_;
  std::vector<Buffers> buffers_;
  std::vector<Backward<T>> calls_;
  std::vector<at::Tensor> found_;
};

template <class T>
void check_saved(const Arguments<T>& a, at::TensorList saved) {
  const int64_t each = a.saved_per_direction(), count = a.size.directions * each + a.rounded();
  TORCH_CHECK(static_cast<int64_t>(saved.size()) == count, "saved: expected ", count, " tensors, got ", saved.size(),
              "; was the forward called with saved_rows?");
  TORCH_CHECK(saved[0].dim() == 2 && saved[0].size(0) >= a.schedule.rows(), "saved: expected at least ", a.schedule.rows(),
              " rows, got shape ", saved[0].sizes());
  const int64_t rows = saved[0].size(0);
  for (int64_t d = 0; d < a.size.directions; ++d) {
    const at::TensorList mine = saved.slice(d * each, each);
    check_size("saved values of the cell", mine[0], {rows, a.saves()}, a.x);
    check_size("saved states", mine[1], {rows, a.states()}, a.x);
    if (a.projected()) check_size("saved hidden states", mine[2], {rows, a.size.hidden}, a.x);
  }
  for (const at::Tensor& tensor : saved) TORCH_CHECK(tensor.is_contiguous(), "saved: expected contiguous tensors");
  if (a.rounded()) check_size("saved output", saved.back(), {rows, a.output_features()}, a.x);
}

}  // namespace

template <class T>
void check_backward(const Arguments<T>& a, const BackwardArguments& given) {
  const Sizes& size = a.size;
  const std::vector<int64_t> output_shape = a.shape(a.output_features());
  check_saved(a, given.saved);
  const auto check = [&](const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK(tensor.sizes() == shape && tensor.scalar_type() == a.type, name, ": expected shape ", shape, " and dtype ", a.type,
                ", got ", tensor.sizes(), " and ", tensor.scalar_type());
  };
  TORCH_CHECK(given.output.sizes() == output_shape, "output: expected shape ", output_shape, ", got ", given.output.sizes());
  TORCH_CHECK(given.output.scalar_type() == a.type, "output: expected dtype ", a.type, ", got ", given.output.scalar_type());
  if (given.grad_output.has_value()) check("grad_output", *given.grad_output, output_shape);
  const int64_t states = 1 + a.kernels.states, weights = size.directions * a.per_direction();
  TORCH_CHECK(static_cast<int64_t>(given.grad_hx.size()) == states, "grad_hx: expected ", states, " tensors, got ", given.grad_hx.size());
  check("grad_hx", given.grad_hx[0], a.h0.sizes());
  for (const at::Tensor& grad : given.grad_hx.slice(1)) check("grad_hx", grad, {size.directions, size.batch, size.hidden});
  TORCH_CHECK(static_cast<int64_t>(given.needs.size()) == 1 + weights + states, "needs: expected ", 1 + weights + states, " flags, got ",
              given.needs.size());
}

template <class T>
std::vector<at::Tensor> run_backward(const Arguments<T>& a, const BackwardArguments& given, const std::optional<Groups>& groups) {
  LayerBackward<T> backward(a, given, groups);
  backward.run_loop();
  return backward.gradients();
}

#define SSTKERN_INSTANTIATE(T)                                                 \
  template void check_backward(const Arguments<T>&, const BackwardArguments&); \
  template std::vector<at::Tensor> run_backward(const Arguments<T>&, const BackwardArguments&, const std::optional<Groups>&);
SSTKERN_INSTANTIATE(float)
SSTKERN_INSTANTIATE(double)
#undef SSTKERN_INSTANTIATE

}  // namespace sstkern
