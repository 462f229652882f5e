#include "forward.h"

#include <ATen/ops/_unsafe_view.h>

#include "packing.h"
#include "plan.h"

namespace sstkern {

namespace {

// A thread's own.
template <class T>
class ForwardMemory {
 public:
  ForwardMemory(const Arguments<T>& a, const Share& share)
      : rows_(share.count),
        h_factors_(share.count),
        left_(a.projected() ? share.count : 0),
        right_(left_.size()),
        chunk_x_(std::max(share.count, kChunkRows)),
        chunk_sums_(a.empty({kChunkRows * a.kernels.shape.gates * a.products.vectors(a.size.hidden) * a.products.width})),
        panels_(a.empty({room_for_panel(a, a.size.input) + room_for_panel(a, a.size.output)})),
        x_room_(a.empty({a.products.factor_room(std::max(share.count, kChunkRows), a.size.input)})),
        h_room_(a.empty({a.products.factor_room(share.count, a.size.output)})),
        hidden_room_(a.empty({a.projected() ? a.products.factor_room(kBlockRows, a.size.hidden) : 0})) {}

  ForwardWork<T> work() {
    return {rows_.data(),          h_factors_.data(), left_.data(),      right_.data(),     chunk_x_.data(),
            write<T>(chunk_sums_), write<T>(panels_), write<T>(x_room_), write<T>(h_room_), write<T>(hidden_room_)};
  }

 private:
  static int64_t room_for_panel(const Arguments<T>& a, int64_t depth) { return a.products.packed(a.kernels.shape.columns(), depth); }

  std::vector<ForwardRow<T>> rows_;
  std::vector<const T*> h_factors_, left_;
  std::vector<T*> right_;
  std::vector<const T*> chunk_x_;
  at::Tensor chunk_sums_, panels_, x_room_, h_room_, hidden_room_;
};

template <class T>
class LayerForward {
 public:
  LayerForward(const Arguments<T>& a, std::optional<int64_t> saved_rows)
      : a_(a),
        save_(saved_rows.has_value()),
        rows_(rows(a, saved_rows)),
        plan_(make_plan(a.work())),
        output_(a.empty(a.rounded() ? std::vector<int64_t>{rows_, a.output_features()} : a.shape(a.output_features()))),
        h_n_(a.empty({a.size.directions, a.size.batch, a.size.output})),
        states_n_(a.empty({a.size.directions, a.size.batch, a.states()})) {
    for (int64_t d = 0; d < a.size.directions; ++d) parameters_.push_back(a.parameters_of(d));
    for (int64_t d = 0; d < a.size.directions; ++d) calls_.push_back(call(d));
  }

  LayerResult run() {
    const auto memory_for = [&](const Share& share) { return ForwardMemory<T>(a_, share); };
    run_plan(a_.work(), plan_, memory_for, [&](int64_t direction, const Share& share, ForwardMemory<T>& memory) {
      a_.kernels.forward(calls_[direction], share, memory.work());
    });
    std::vector<at::Tensor> hx_n{a_.as_given(h_n_)};
    for (at::Tensor& state : a_.each_state(states_n_)) hx_n.push_back(std::move(state));
    at::Tensor output = a_.rounded() ? rounded_output() : output_;
    if (!save_) return {std::move(output), std::move(hx_n), {}};
    // A rounded output would not be the h that the recurrence went on with.
    if (a_.rounded()) saved_.push_back(output_);
    // The rows nobody used: what an operator returns is the same bits for the same input.
    const int64_t valid = a_.schedule.rows();
    if (rows_ > valid)
      for (const at::Tensor& tensor : saved_) tensor.narrow(0, valid, rows_ - valid).zero_();
    return {std::move(output), std::move(hx_n), std::move(saved_)};
  }

 private:
  Forward<T> call(int64_t d) {
    const Sizes& size = a_.size;
    const Weights& w = a_.weights[d];
    Forward<T> f{a_.recurrence(d, parameters_[d].data())};
    f.units = a_.products.unit_panels(a_.kernels.shape, size.hidden, plan_.parts());
    f.outputs = a_.products.plain_panels(size.output, plan_.parts());
    f.x = read<T>(a_.x);
    f.input_size = size.input;
    f.x_at = a_.x_layout();
    f.weight_ih = read<T>(w.ih);
    f.weight_hh = read<T>(w.hh);
    f.packed_ih = packed_unless(size.steps <= 1 || size.steps * plan_.most_rows() <= kChunkRows, f.units, w.ih);
    f.packed_hh = packed_unless(size.steps <= 1, f.units, w.hh);
    f.bias_ih = read<T>(w.bias_ih);
    f.bias_hh = read<T>(w.bias_hh);
    f.weight_hr = a_.projected() ? kept(packed_, pack_plain(a_.products, f.outputs, w.hr, true)) : nullptr;
    f.output = write<T>(output_) + d * size.output;
    f.h_n = write<T>(h_n_) + d * size.batch * size.output;
    f.states_n = write<T>(states_n_) + d * size.batch * a_.states();
    const int64_t rows = save_ ? rows_ : size.batch;
    f.save_for_backward = save_;
    f.saved = save_ ? kept(saved_, a_.empty({rows, a_.saves()})) : nullptr;
    f.states = kept(saved_, a_.empty({rows, a_.states()}));
    f.hidden = a_.projected() ? kept(saved_, a_.empty({rows, size.hidden})) : nullptr;
    return f;
  }

  // What the caller is given of the packed output.
  at::Tensor rounded_output() const {
    const at::Tensor valid = a_.as_given(output_.narrow(0, 0, a_.schedule.rows()));
    const std::vector<int64_t> shape = a_.shape(a_.output_features());
    if (a_.packed || a_.schedule.full()) return at::_unsafe_view(valid, shape);  // a result that is a view cannot be changed in place
    at::Tensor padded = at::zeros(shape, valid.options());
    padded.flatten(0, 1).index_copy_(0, a_.schedule.padded_rows(), valid);
    return padded;
  }

  static int64_t rows(const Arguments<T>& a, std::optional<int64_t> saved_rows) {
    const int64_t valid = a.schedule.rows();
    if (!saved_rows) return valid;
    if (*saved_rows == -1) return a.packed ? valid : a.size.steps * a.size.batch;
    TORCH_CHECK_VALUE(*saved_rows >= valid, "saved_rows: expected at least ", valid, ", the number of valid time steps, got ", *saved_rows);
    return *saved_rows;
  }

  T* kept(std::vector<at::Tensor>& in, at::Tensor tensor) {
    in.push_back(std::move(tensor));
    return write<T>(in.back());
  }

  const T* packed_unless(bool used_once, const Panels& units, const at::Tensor& weight) {
    return used_once ? nullptr : kept(packed_, pack_units(a_.products, a_.kernels.shape.gates, units, weight));
  }

  const Arguments<T>& a_;
  const bool save_;
  const int64_t rows_;  // of what is saved
  const Plan plan_;
  at::Tensor output_, h_n_, states_n_;
  std::vector<at::Tensor> saved_, packed_;
  std::vector<std::vector<const T*>> parameters_;
  std::vector<Forward<T>> calls_;
};

}  // namespace

template <class T>
LayerResult run_forward(const Arguments<T>& a, std::optional<int64_t> saved_rows) {
  return LayerForward<T>(a, saved_rows).run();
}

template LayerResult run_forward(const Arguments<float>&, std::optional<int64_t>);
template LayerResult run_forward(const Arguments<double>&, std::optional<int64_t>);

}  // namespace sstkern
