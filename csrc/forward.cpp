#include "forward.h"

#include "packing.h"
#include "pieces.h"
#include "plan.h"
#include "spans.h"

namespace sstkern {

namespace {

// A thread's own.
template <class T>
class ForwardMemory {
 public:
  ForwardMemory(const Arguments<T>& a, const Panels& units, const Share& share)
      : rows_(share.count),
        h_factors_(share.count),
        left_(a.projected() ? share.count : 0),
        right_(left_.size()),
        chunk_x_(std::max(share.count, kChunkRows)),
        chunk_sums_(a.products.chunk_sums(units, a.kernels.shape.gates, units.count)),
        panels_(room_for_panel(a, a.size.input) + kGap<T> + room_for_panel(a, a.size.output)),
        x_room_(a.products.factor_room(std::max(share.count, kChunkRows), a.size.input)),
        h_room_(a.products.factor_room(share.count, a.size.output)),
        hidden_room_(a.projected() ? a.products.factor_room(kBlockRows, a.size.hidden) : 0) {
    if constexpr (kGapBytes > 0) close_gaps(a, units);
  }

  ForwardWork<T> work() {
    return {rows_.data(),       h_factors_.data(), left_.data(),   right_.data(),  chunk_x_.data(),
            chunk_sums_.data(), panels_.data(),    x_room_.data(), h_room_.data(), hidden_room_.data()};
  }

 private:
  static int64_t room_for_panel(const Arguments<T>& a, int64_t depth) { return a.products.packed(a.kernels.shape.columns(), depth); }

  void close_gaps(const Arguments<T>& a, const Panels& units) const {
    close_gap(panels_.data() + room_for_panel(a, a.size.input));
    for (int64_t panel = 1; panel <= units.count; ++panel)
      close_gap(chunk_sums_.data() + a.products.chunk_sums(units, a.kernels.shape.gates, panel) - kGap<T>);
  }

  std::vector<ForwardRow<T>> rows_;
  std::vector<const T*> h_factors_, left_;
  std::vector<T*> right_;
  std::vector<const T*> chunk_x_;
  Numbers<T> chunk_sums_, panels_, x_room_, h_room_, hidden_room_;
};

// One direction's rows, as its kernels read and write them.
template <class T>
struct ForwardRows {
  SpanRows<T> x, output;
  std::vector<SpanRows<T>> saved;  // what the backward needs: the cell's saved values, states, hidden states where there is a projection

  void store(const Span& span, int64_t first, int64_t count) const {
    output.store(span, first, count);
    for (const SpanRows<T>& rows : saved) rows.store(span, first, count);
  }
};

template <class T>
class LayerForward {
 public:
  LayerForward(const Arguments<T>& a, std::optional<int64_t> saved_rows, bool every)
      : a_(a),
        saves_(saved_rows.has_value()),
        every_(every),
        save_(saves_ || (every && a.kernels.states > 0)),
        plan_(make_plan(a.work())),
        units_(a.products.unit_panels(a.kernels.shape, a.size.hidden, plan_.parts())),
        spans_(make_spans(a, a.size.directions * (a.size.input + a.size.output + (save_ ? a.saved_width() : 0)))),
        output_(clears_padding(a) ? a.plain(a.shape(a.output_features())) : a.stored_rows(a.output_features())),
        // Of pieces those that they begin with, which are read before: they may have no step, or be in several spans.
        h_n_(a.schedule.cut() ? a.h0 : a.plain({a.size.directions, a.size.batch, a.size.output})),
        states_n_(a.schedule.cut() && a.kernels.states ? a.states0 : a.plain({a.size.directions, a.schedule.states(), a.states()})) {
    if (save_)
      for (int64_t d = 0; d < a.size.directions; ++d)
        for (const int64_t width : a.saved_widths()) saved_.push_back(a.stored({rows(saved_rows.value_or(a.schedule.rows())), width}));
    for (int64_t d = 0; d < a.size.directions; ++d) {
      parameters_.push_back(a.parameters_of(d));
      rows_.push_back(rows_of(d));
      calls_.push_back(call(d));
    }
  }

  LayerResult run() {
    const auto memory_for = [&](const Share& share) { return ForwardMemory<T>(a_, units_, share); };
    auto memory = thread_memory(plan_, most_positions(plan_, spans_), memory_for);
    // Threads convert the rows that they have to themselves; of those that they share, the caller's does.
    const bool shared = plan_.parts() > 1;
    for (int64_t visit = 0; visit < static_cast<int64_t>(spans_.size()); ++visit) {
      for (int64_t d = 0; d < a_.size.directions; ++d) {
        begin(d, visit);
        if (shared) rows_[d].x.load(span(d, visit), 0, a_.schedule.batch());
      }
      run_plan(a_.work(), plan_, memory, memory_for, [&](int64_t d, const Share& share, ForwardMemory<T>& memory) {
        if (!shared) rows_[d].x.load(span(d, visit), share.first, share.count);
        a_.kernels.forward(calls_[d], share, memory.work());
        if (!shared) rows_[d].store(span(d, visit), share.first, share.count);
      });
      for (int64_t d = 0; shared && d < a_.size.directions; ++d) rows_[d].store(span(d, visit), 0, a_.schedule.batch());
    }
    if (a_.schedule.cut()) {
      h_n_ = last_of_sequences(a_.schedule, false, h_n_);
      states_n_ = last_of_sequences(a_.schedule, false, states_n_);
    }
    std::vector<Tensor> hx_n{a_.as_given(h_n_)};
    for (Tensor& state : a_.each_state(states_n_)) hx_n.push_back(std::move(state));
    if (every_)
      for (int64_t i = 0; i < a_.kernels.states; ++i) hx_n.push_back(every_state(i));
    // The rows nobody used: what an operator returns is the same bits for the same input.
    const int64_t valid = a_.schedule.rows();
    for (const Tensor& tensor : saved_)
      if (tensor.size(0) > valid) tensor.narrow(0, valid, tensor.size(0) - valid).zero_();
    return {std::move(output_), std::move(hx_n), saves_ ? std::move(saved_) : std::vector<Tensor>()};
  }

 private:
  // Whether the kernels set the output's padding to zero.
  static bool clears_padding(const Arguments<T>& a) { return !a.rounded() && !a.schedule.cut(); }

  // State number i beside h after every step, where the call has its rows: (., directions * H), zero in the padding.
  Tensor every_state(int64_t i) const {
    const int64_t hidden = a_.size.hidden, features = a_.size.directions * hidden;
    Tensor found = a_.stored_rows(features);
    const int64_t bytes = size_of(a_.type);
    for (int64_t d = 0; d < a_.size.directions; ++d) {
      const Tensor& states = saved_[d * a_.saved_per_direction() + 1];
      const char* const from = static_cast<const char*>(states.const_data_ptr()) + i * hidden * bytes;
      const std::vector<char*> to =
          a_.schedule.rows_of(static_cast<char*>(found.mutable_data_ptr()) + d * hidden * bytes, in_bytes(a_.layout(features), bytes));
      for (size_t row = 0; row < to.size(); ++row) std::copy_n(from + row * a_.states() * bytes, hidden * bytes, to[row]);
    }
    return found;
  }

  static Layout in_bytes(const Layout& layout, int64_t bytes) {
    return {layout.packed, layout.step * bytes, layout.row * bytes, layout.of_call};
  }

  // The span that a direction comes to as number `visit`.
  const Span& span(int64_t d, int64_t visit) const { return visited(spans_, visit, d == 1); }

  ForwardRows<T> rows_of(int64_t d) const {
    const Sizes& size = a_.size;
    const int64_t most = most_rows(spans_);
    const auto of_tensor = [&](const Tensor& tensor, int64_t column, int64_t width, const Layout& layout) {
      return SpanRows<T>(a_, tensor, column, width, layout, most);
    };
    ForwardRows<T> rows{of_tensor(a_.x, 0, size.input, a_.x_layout()),
                        of_tensor(output_, d * size.output, size.output, a_.layout(a_.output_features())),
                        {}};
    if (!save_) return rows;
    const int64_t each = a_.saved_per_direction();
    for (int64_t i = d * each; i < (d + 1) * each; ++i) rows.saved.emplace_back(a_, saved_[i], most);
    return rows;
  }

  // What stays the same for all spans.
  Forward<T> call(int64_t d) {
    const Sizes& size = a_.size;
    const Weights& w = a_.weights[d];
    Forward<T> f{a_.recurrence(d, parameters_[d].data())};
    f.units = units_;
    f.outputs = a_.products.plain_panels(size.output, plan_.parts());
    f.input_size = size.input;
    f.x_at = rows_[d].x.layout();
    f.weight_ih = read<T>(w.ih);
    f.weight_hh = read<T>(w.hh);
    f.packed_ih = packed_unless(size.steps <= 1 || size.steps * plan_.most_rows() <= kChunkRows, f.units, w.ih);
    f.packed_hh = packed_unless(size.steps <= 1, f.units, w.hh);
    f.bias_ih = read<T>(w.bias_ih);
    f.bias_hh = read<T>(w.bias_hh);
    f.weight_hr = a_.projected() ? kept(pack_plain(a_.products, f.outputs, w.hr, true)) : nullptr;
    f.output_at = rows_[d].output.layout();
    f.h_n = write<T>(h_n_) + d * a_.schedule.states() * size.output;
    f.states_n = write<T>(states_n_) + d * a_.schedule.states() * a_.states();
    f.save_for_backward = save_;
    if (save_) return f;
    f.saved = nullptr;
    f.states = kept(Numbers<T>(a_.schedule.batch() * a_.states()));
    f.hidden = a_.projected() ? kept(Numbers<T>(a_.schedule.batch() * size.hidden)) : nullptr;
    return f;
  }

  // Its visit of a span: the first states are what the span before left.
  void begin(int64_t d, int64_t visit) {
    const Span& at = span(d, visit);
    const ForwardRows<T>& rows = rows_[d];
    Forward<T>& f = calls_[d];
    plan_.share_rows(d, at.schedule);
    f.schedule = at.schedule.view();
    f.x = rows.x.read(at);
    f.output = rows.output.write(at);
    f.h0 = visit == 0 ? a_.h0_of(d) : f.h_n;
    f.states0 = visit == 0 ? a_.states0_of(d) : f.states_n;
    if (!save_) return;
    f.saved = rows.saved[0].write(at);
    f.states = rows.saved[1].write(at);
    f.hidden = a_.projected() ? rows.saved[2].write(at) : nullptr;
  }

  int64_t rows(int64_t saved_rows) const {
    const int64_t valid = a_.schedule.rows();
    if (saved_rows == -1) return a_.packed ? valid : a_.size.steps * a_.size.batch;
    SSTKERN_CHECK_VALUE(saved_rows >= valid, "saved_rows: expected at least ", valid, ", the number of valid time steps, got ", saved_rows);
    return saved_rows;
  }

  T* kept(Numbers<T> numbers) {
    kept_.push_back(std::move(numbers));
    return kept_.back().data();
  }

  const T* packed_unless(bool used_once, const Panels& units, const Tensor& weight) {
    return used_once ? nullptr : kept(pack_units(a_.products, a_.kernels.shape.gates, units, weight));
  }

  const Arguments<T>& a_;
  const bool saves_, every_, save_;  // what the backward needs is returned; the states of every step are; both are kept
  Plan plan_;
  const Panels units_;
  const std::vector<Span> spans_;
  Tensor output_, h_n_, states_n_;
  std::vector<Tensor> saved_;
  std::vector<Numbers<T>> kept_;
  std::vector<std::vector<const T*>> parameters_;
  std::vector<ForwardRows<T>> rows_;
  std::vector<Forward<T>> calls_;
};

}  // namespace

template <class T>
LayerResult run_forward(const Arguments<T>& a, std::optional<int64_t> saved_rows, bool every) {
  return LayerForward<T>(a, saved_rows, every).run();
}

template LayerResult run_forward(const Arguments<float>&, std::optional<int64_t>, bool);
template LayerResult run_forward(const Arguments<double>&, std::optional<int64_t>, bool);

}  // namespace sstkern
