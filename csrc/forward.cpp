#include "forward.h"

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
        chunk_sums_(a.empty({a.products.unit_sums(a.kernels.shape, a.size.hidden, kChunkRows)})),
        panels_(a.empty({a.products.unit_panel(a.kernels.shape, a.size.input) + a.products.unit_panel(a.kernels.shape, a.size.output)})),
        x_room_(a.empty({a.products.factor_room(std::max(share.count, kChunkRows), a.size.input)})),
        h_room_(a.empty({a.products.factor_room(share.count, a.size.output)})),
        hidden_room_(a.empty({a.projected() ? a.products.factor_room(kBlockRows, a.size.hidden) : 0})) {}

  ForwardWork<T> work() {
    return {rows_.data(),          h_factors_.data(), left_.data(),      right_.data(),     chunk_x_.data(),
            write<T>(chunk_sums_), write<T>(panels_), write<T>(x_room_), write<T>(h_room_), write<T>(hidden_room_)};
  }

 private:
  std::vector<ForwardRow<T>> rows_;
  std::vector<const T*> h_factors_, left_;
  std::vector<T*> right_;
  std::vector<const T*> chunk_x_;
  at::Tensor chunk_sums_, panels_, x_room_, h_room_, hidden_room_;
};

template <class T>
class LayerForward {
 public:
  LayerForward(const Arguments<T>& a, bool save_for_backward)
      : a_(a),
        save_(save_for_backward),
        plan_(make_plan(a)),
        output_(a.empty({a.size.steps, a.size.batch, a.size.directions * a.size.output})),
        h_n_(a.empty({a.size.directions, a.size.batch, a.size.output})),
        states_n_(a.empty({a.size.directions, a.size.batch, a.states()})) {
    for (int64_t d = 0; d < a.size.directions; ++d) parameters_.push_back(a.parameters_of(d));
    for (int64_t d = 0; d < a.size.directions; ++d) calls_.push_back(call(d));
  }

  LayerResult run() {
    const auto memory_for = [&](const Share& share) { return ForwardMemory<T>(a_, share); };
    run_plan(a_, plan_, memory_for, [&](int64_t direction, const Share& share, ForwardMemory<T>& memory) {
      a_.kernels.forward(calls_[direction], share, memory.work());
    });
    if (!save_) saved_.clear();
    // The rows nobody used: what an operator returns is the same bits for the same input.
    for (const at::Tensor& tensor : saved_) tensor.narrow(0, a_.schedule.rows(), a_.all_rows() - a_.schedule.rows()).zero_();
    // A rounded output would not be the h that the recurrence went on with.
    if (save_ && a_.type != output_.scalar_type()) saved_.push_back(output_);
    std::vector<at::Tensor> hx_n{a_.as_given(h_n_)};
    for (at::Tensor& state : a_.each_state(states_n_)) hx_n.push_back(std::move(state));
    return {a_.as_given(output_), std::move(hx_n), std::move(saved_)};
  }

 private:
  Forward<T> call(int64_t d) {
    const Sizes& size = a_.size;
    const Weights& w = a_.weights[d];
    Forward<T> f{a_.recurrence(d, parameters_[d].data())};
    f.x = read<T>(a_.x);
    f.input_size = size.input;
    f.x_step = a_.x.stride(0);
    f.x_row = a_.x.stride(1);
    f.weight_ih = read<T>(w.ih);
    f.weight_hh = read<T>(w.hh);
    f.packed_ih = packed_unless(size.steps <= 1 || size.steps * plan_.most_rows() <= kChunkRows, w.ih);
    f.packed_hh = packed_unless(size.steps <= 1, w.hh);
    f.bias_ih = read<T>(w.bias_ih);
    f.bias_hh = read<T>(w.bias_hh);
    f.weight_hr = a_.projected() ? kept(packed_, pack_plain(a_, w.hr.t())) : nullptr;
    f.output = write<T>(output_) + d * size.output;
    f.h_n = write<T>(h_n_) + d * size.batch * size.output;
    f.states_n = write<T>(states_n_) + d * size.batch * a_.states();
    // Rows for every time step, though only the valid ones are used: a shape that does not depend on the lengths' values.
    const int64_t rows = save_ ? a_.all_rows() : size.batch;
    f.save_for_backward = save_;
    f.saved = save_ ? kept(saved_, a_.empty({rows, a_.saves()})) : nullptr;
    f.states = kept(saved_, a_.empty({rows, a_.states()}));
    f.hidden = a_.projected() ? kept(saved_, a_.empty({rows, size.hidden})) : nullptr;
    return f;
  }

  T* kept(std::vector<at::Tensor>& in, at::Tensor tensor) {
    in.push_back(std::move(tensor));
    return write<T>(in.back());
  }

  const T* packed_unless(bool used_once, const at::Tensor& weight) { return used_once ? nullptr : kept(packed_, pack_units(a_, weight)); }

  const Arguments<T>& a_;
  const bool save_;
  const Plan plan_;
  at::Tensor output_, h_n_, states_n_;
  std::vector<at::Tensor> saved_, packed_;
  std::vector<std::vector<const T*>> parameters_;
  std::vector<Forward<T>> calls_;
};

}  // namespace

template <class T>
LayerResult run_forward(const Arguments<T>& a, bool save_for_backward) {
  return LayerForward<T>(a, save_for_backward).run();
}

template LayerResult run_forward(const Arguments<float>&, bool);
template LayerResult run_forward(const Arguments<double>&, bool);

}  // namespace sstkern
