#include "backward.h"

#include "packing.h"
#include "pieces.h"
#include "plan.h"
#include "spans.h"

namespace sstkern {

namespace {

// One direction's, for a span's rows; nothing where the layer has none.
template <class T>
struct Buffers {
  Numbers<T> dgates_x, own_dgates_h, dparameters, dh_total, dhidden, h_before, states_before, weight_ih, weight_hh, weight_hr;

  T* dgates_h() const { return own_dgates_h.data() ? own_dgates_h.data() : dgates_x.data(); }
};

// One direction's gradients; undefined where they are not wanted.
struct WeightGradients {
  Tensor ih, hh, bias_ih, bias_hh, hr, parameters;
};

// One direction's rows, as its kernels read them.
template <class T>
struct BackwardRows {
  SpanRows<T> output, saved, states;
  std::optional<SpanRows<T>> x, grad_output, hidden, grad_states;

  void load(const Span& span, int64_t first, int64_t count) const {
    for (const SpanRows<T>* rows : {&output, &saved, &states}) rows->load(span, first, count);
    for (const auto* rows : {&x, &grad_output, &hidden, &grad_states})
      if (*rows) (*rows)->load(span, first, count);
  }
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
        spans_(groups ? one_span(a) : make_spans(a, a.size.directions * row_width())),
        most_(most_rows(spans_)),
        output_(given.output.contiguous()),
        dh_(last_gradients(prepare(given.grad_hx[0]))),
        dstates_(a.kernels.states ? last_gradients(joined(given.grad_hx.slice(1, a.kernels.states))) : Tensor()) {
    if (given.grad_output.has_value()) grad_output_ = given.grad_output->contiguous();
    if (static_cast<int64_t>(given.grad_hx.size()) > 1 + a.kernels.states)
      for (int64_t d = 0; d < a.size.directions; ++d) grad_states_.push_back(gradients_of_every_state(d));
    if (needs_x()) {
      dx_ = a.stored_rows(a.size.input);
      // Both directions' sum is rounded once.
      dx_rows_.emplace(a, dx_, 0, a.size.input, a.layout(a.size.input), a.size.directions == 1 ? most_ : a.schedule.rows());
    }
    for (int64_t d = 0; d < a.size.directions; ++d) {
      parameters_.push_back(a.parameters_of(d));
      buffers_.push_back(buffers(d));
      rows_.push_back(rows_of(d));
      gradients_.push_back(gradients_of(d));
      calls_.push_back(call(d));
    }
  }

  void run() {
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
    auto memory = thread_memory(plan_, most_positions(plan_, spans_), memory_for);
    // As in the forward: who has rows converts them.
    const bool shared = plan_.parts() > 1;
    for (int64_t visit = 0; visit < visits(); ++visit) {
      for (int64_t d = 0; d < a_.size.directions; ++d) {
        begin(d, visit);
        if (shared) rows_[d].load(span(d, visit), 0, a_.schedule.batch());
      }
      run_plan(a_.work(), plan_, memory, memory_for, [&](int64_t d, const Share& share, Memory& memory) {
        if (!shared) rows_[d].load(span(d, visit), share.first, share.count);
        a_.kernels.backward(calls_[d], share, {memory.rows.data(), memory.left.data(), memory.right.data(), memory.room.data()});
      });
      for (int64_t d = 0; d < a_.size.directions; ++d) add_gradients(d, visit);
    }
  }

  // Those that are needed, in order.
  std::vector<Tensor> gradients() {
    std::vector<Tensor> found;
    if (needs_x()) found.push_back(dx_);
    for (int64_t d = 0; d < a_.size.directions; ++d) {
      const WeightGradients& of = gradients_[d];
      for (const Tensor& gradient : {of.ih, of.hh, of.bias_ih, of.bias_hh, of.hr})
        if (gradient.defined()) found.push_back(gradient);
      for (int64_t p = 0; p < a_.kernels.parameters; ++p)
        if (needs_weight(d, own(p))) found.push_back(of.parameters.narrow(-1, p * a_.size.hidden, a_.size.hidden).clone());
    }
    const std::vector<Tensor> dstates = state_gradients();
    for (size_t i = 0; i < dstates.size(); ++i)
      if (needs_state(static_cast<int64_t>(i))) found.push_back(dstates[i]);
    for (Tensor& gradient : found) gradient = a_.as_given(gradient);
    return found;
  }

 private:
  bool needs_x() const { return given_.needs[0]; }
  bool needs_weight(int64_t direction, int64_t index) const { return given_.needs[1 + direction * a_.per_direction() + index]; }
  bool needs_state(int64_t index) const { return given_.needs[1 + a_.size.directions * a_.per_direction() + index]; }
  // Whether that of an h is needed that a sequence, or a piece of one, begins with.
  bool needs_first() const { return needs_state(0) || (anew() && needs_state(1 + a_.kernels.states)); }
  // Whether the states are given that sequences begin anew with.
  bool anew() const { return a_.given_states > 1 + a_.kernels.states; }
  // The place of a direction's projection, and of the cell's own parameters, among its weights.
  int64_t projection() const { return 2 + 2 * a_.biased(); }
  int64_t own(int64_t parameter) const { return projection() + a_.projected() + parameter; }

  // Numbers that a row has of all that a span holds.
  int64_t row_width() const {
    const int64_t gates = (a_.kernels.same_gate_gradients ? 1 : 2) * a_.gates();
    return 2 * a_.size.input + (2 + a_.projected()) * a_.size.output + a_.saved_width() + gates + a_.parameters();
  }

  int64_t visits() const { return static_cast<int64_t>(spans_.size()); }
  // The span that a direction comes to as number `visit`.
  const Span& span(int64_t d, int64_t visit) const { return visited(spans_, visit, d == 0); }

  // The last states' gradients, to be written: of sequences, or of the pieces that they end with.
  Tensor last_gradients(const Tensor& given) const {
    return a_.schedule.cut() ? last_gradients_of_pieces(a_.schedule, false, given) : given.clone();
  }

  // Of all states that the call was given.
  std::vector<Tensor> state_gradients() const {
    if (!a_.schedule.cut()) return each_state(dh_, dstates_);
    const auto [h, h_anew] = first_gradients_of_sequences<T>(a_.schedule, false, dh_);
    if (a_.kernels.states == 0) return anew() ? std::vector<Tensor>{h, h_anew} : std::vector<Tensor>{h};
    const auto [others, others_anew] = first_gradients_of_sequences<T>(a_.schedule, false, dstates_);
    std::vector<Tensor> found = each_state(h, others);
    if (!anew()) return found;
    for (Tensor& gradient : each_state(h_anew, others_anew)) found.push_back(std::move(gradient));
    return found;
  }

  std::vector<Tensor> each_state(const Tensor& h, const Tensor& others) const {
    std::vector<Tensor> found{h};
    if (a_.kernels.states)
      for (Tensor& state : a_.each_state(others)) found.push_back(std::move(state));
    return found;
  }

  // The gradients of a direction's states beside h after every step, as saved states are: (rows, states * H).
  Tensor gradients_of_every_state(int64_t d) const {
    const int64_t hidden = a_.size.hidden, features = a_.size.directions * hidden;
    const Tensor found = a_.stored({a_.schedule.rows(), a_.states()});
    const int64_t bytes = size_of(a_.type);
    Layout layout = a_.layout(features);
    layout.step *= bytes;
    layout.row *= bytes;
    for (int64_t i = 0; i < a_.kernels.states; ++i) {
      const Tensor gradient = given_.grad_hx[1 + a_.kernels.states + i].contiguous();
      const char* const first = static_cast<const char*>(gradient.const_data_ptr()) + d * hidden * bytes;
      const std::vector<const char*> from = a_.schedule.rows_of(first, layout);
      char* const to = static_cast<char*>(found.mutable_data_ptr()) + i * hidden * bytes;
      for (size_t row = 0; row < from.size(); ++row) std::copy_n(from[row], hidden * bytes, to + row * a_.states() * bytes);
    }
    return found;
  }

  // States' gradients as the kernels take them.
  static Tensor joined(Tensors states) {
    if (states.size() == 1) return prepare(states[0]);
    std::vector<Tensor> prepared;
    for (const Tensor& state : states) prepared.push_back(prepare(state));
    return side_by_side(prepared);
  }

  Buffers<T> buffers(int64_t d) const {
    const Weights& w = a_.weights[d];
    Buffers<T> b;
    b.dgates_x = Numbers<T>(most_ * a_.gates());
    if (!a_.kernels.same_gate_gradients) b.own_dgates_h = Numbers<T>(most_ * a_.gates());
    b.dparameters = Numbers<T>(most_ * a_.parameters());
    if (needs_x()) b.weight_ih = pack_plain(a_.products, input_panels(a_), w.ih);
    if (needs_first() || a_.size.steps > 1) b.weight_hh = pack_plain(a_.products, outputs_, w.hh);
    if (visits() > 1) {
      b.h_before = Numbers<T>(a_.schedule.states() * a_.size.output);
      b.states_before = Numbers<T>(a_.schedule.states() * a_.states());
    }
    if (!a_.projected()) return b;
    b.weight_hr = pack_plain(a_.products, units_, w.hr);
    b.dh_total = Numbers<T>(most_ * a_.size.output);
    b.dhidden = Numbers<T>(a_.schedule.batch() * a_.size.hidden);
    return b;
  }

  BackwardRows<T> rows_of(int64_t d) const {
    const Sizes& size = a_.size;
    const Layout of_output = a_.layout(a_.output_features());
    const Tensors saved = given_.saved.slice(d * a_.saved_per_direction(), a_.saved_per_direction());
    const auto of = [&](const Tensor& tensor, int64_t column, int64_t width, const Layout& layout) {
      return SpanRows<T>(a_, tensor, column, width, layout, most_);
    };
    const auto of_saved = [&](int64_t i) { return SpanRows<T>(a_, saved[i], most_); };
    BackwardRows<T> rows{of(output_, d * size.output, size.output, of_output), of_saved(0), of_saved(1), {}, {}, {}, {}};
    if (!grad_states_.empty()) rows.grad_states.emplace(SpanRows<T>(a_, grad_states_[d], most_));
    if (needs_weight(d, 0)) rows.x.emplace(of(a_.x, 0, size.input, a_.x_layout()));
    if (grad_output_.defined()) rows.grad_output.emplace(of(grad_output_, d * size.output, size.output, of_output));
    if (a_.projected()) rows.hidden.emplace(of_saved(2));
    return rows;
  }

  // What stays the same for all spans.
  Backward<T> call(int64_t d) const {
    const Buffers<T>& b = buffers_[d];
    const Sizes& size = a_.size;
    Backward<T> f{a_.recurrence(d, parameters_[d].data())};
    f.units = units_;
    f.outputs = outputs_;
    f.weight_hh = b.weight_hh.data();
    f.weight_hr = b.weight_hr.data();
    f.output_at = rows_[d].output.layout();
    f.grad_output_at = rows_[d].grad_output ? rows_[d].grad_output->layout() : Layout{};
    f.dgates_x = b.dgates_x.data();
    f.dgates_h = b.dgates_h();
    f.dparameters = b.dparameters.data();
    f.dh_total = b.dh_total.data();
    f.dhidden = b.dhidden.data();
    f.dh = write<T>(dh_) + d * a_.schedule.states() * size.output;
    f.dstates = a_.kernels.states ? write<T>(dstates_) + d * a_.schedule.states() * a_.states() : nullptr;
    return f;
  }

  // A direction's visit of a span.
  void begin(int64_t d, int64_t visit) {
    const Span& at = span(d, visit);
    const BackwardRows<T>& rows = rows_[d];
    const Buffers<T>& b = buffers_[d];
    Backward<T>& f = calls_[d];
    plan_.share_rows(d, at.schedule);
    f.schedule = at.schedule.view();
    f.needs_dh0 = needs_first() || visit + 1 < visits();
    f.output = rows.output.read(at);
    f.saved = rows.saved.read(at);
    f.states = rows.states.read(at);
    f.hidden = rows.hidden ? rows.hidden->read(at) : nullptr;
    f.grad_states = rows.grad_states ? rows.grad_states->read(at) : nullptr;
    f.grad_output = rows.grad_output ? rows.grad_output->read(at) : nullptr;
    f.h0 = a_.h0_of(d);
    f.states0 = a_.states0_of(d);
    if (visits() == 1) return;
    const Span* const last = visit == 0 ? nullptr : &span(d, visit - 1);
    rows.output.before(at, last, f.reverse, f.h0, b.h_before.data());
    f.h0 = b.h_before.data();
    if (a_.kernels.states == 0) return;
    rows.states.before(at, last, f.reverse, f.states0, b.states_before.data());
    f.states0 = b.states_before.data();
  }

  // To be written; with groups, for each.
  Tensor gradient_like(Ints shape) const {
    std::vector<int64_t> all = shape.vec();
    if (groups_) all.insert(all.begin(), static_cast<int64_t>(groups_->size()));
    return a_.schedule.rows() == 0 ? a_.zeros(all) : a_.plain(all);
  }

  WeightGradients gradients_of(int64_t d) const {
    const Weights& w = a_.weights[d];
    WeightGradients found;
    const auto wanted = [&](int64_t index, Ints shape) { return needs_weight(d, index) ? gradient_like(shape) : Tensor(); };
    found.ih = wanted(0, w.ih.sizes());
    found.hh = wanted(1, w.hh.sizes());
    if (a_.biased()) {
      found.bias_ih = wanted(2, w.bias_ih.sizes());
      found.bias_hh = wanted(3, w.bias_hh.sizes());
    }
    if (a_.projected()) found.hr = wanted(projection(), w.hr.sizes());
    if (a_.kernels.parameters) found.parameters = gradient_like({a_.parameters()});
    return found;
  }

  // What a direction's visit of a span adds to all gradients.
  void add_gradients(int64_t d, int64_t visit) {
    const Span& at = span(d, visit);
    const Buffers<T>& b = buffers_[d];
    const auto rows = [&at](const T* first, int64_t columns) { return RowsOf<T>{first, at.schedule.rows(), columns}; };
    const RowsOf<T> dgates_x = rows(b.dgates_x.data(), a_.gates()), dgates_h = rows(b.dgates_h(), a_.gates());
    if (needs_x()) add_to_x(d, visit);
    matrices(d, at, dgates_x, dgates_h, visit > 0);
    biases(d, dgates_x, dgates_h, visit > 0);
    if (a_.projected()) projection(d, at, rows(b.dh_total.data(), a_.size.output), visit > 0);
    if (a_.kernels.parameters) add_sums(gradients_[d].parameters, rows(b.dparameters.data(), a_.parameters()), visit > 0);
  }

  void add_to_x(int64_t d, int64_t visit) {
    const Span& at = span(d, visit);
    // The other direction comes to this span as number visits() - 1 - visit, and where that is now, the forward direction is first.
    const int64_t other = visits() - 1 - visit;
    const bool both = a_.size.directions == 2, second = both && (other < visit || (other == visit && d == 1));
    const std::vector<T*> to = at.schedule.rows_of(dx_rows_->write(at), dx_rows_->layout());
    input_gradient(a_, buffers_[d].dgates_x.data(), to, buffers_[d].weight_ih.data(), second);
    if (second || !both) dx_rows_->store(at);
  }

  void matrices(int64_t d, const Span& at, const RowsOf<T>& dgates_x, const RowsOf<T>& dgates_h, bool accumulate) {
    const Backward<T>& f = calls_[d];
    std::vector<WeightGradient<T>> of_x, of_h;
    std::vector<const T*> x, h_previous;
    if (gradients_[d].ih.defined()) {
      x = at.schedule.rows_of(rows_[d].x->read(at), rows_[d].x->layout());
      of_x.push_back({x.data(), a_.size.input, write<T>(gradients_[d].ih)});
    }
    if (gradients_[d].hh.defined()) {
      h_previous = at.schedule.previous_rows_of(f.output, f.output_at, f.h0, a_.size.output, f.reverse);
      (a_.kernels.same_gate_gradients ? of_x : of_h).push_back({h_previous.data(), a_.size.output, write<T>(gradients_[d].hh)});
    }
    weight_gradients(a_, dgates_x, of_x, groups_, accumulate);
    weight_gradients(a_, dgates_h, of_h, groups_, accumulate);
  }

  void biases(int64_t d, const RowsOf<T>& dgates_x, const RowsOf<T>& dgates_h, bool accumulate) {
    const WeightGradients& found = gradients_[d];
    const bool of_x = found.bias_ih.defined(), of_h = found.bias_hh.defined();
    if (of_x) add_sums(found.bias_ih, dgates_x, accumulate);
    if (of_h && of_x && a_.kernels.same_gate_gradients)
      std::copy_n(read<T>(found.bias_ih), found.bias_ih.numel(), write<T>(found.bias_hh));
    else if (of_h)
      add_sums(found.bias_hh, dgates_h, accumulate);
  }

  void projection(int64_t d, const Span& at, const RowsOf<T>& dh_total, bool accumulate) {
    if (!gradients_[d].hr.defined()) return;
    const std::vector<const T*> rows = at.schedule.rows_of(calls_[d].hidden, rows_[d].hidden->layout());
    weight_gradients(a_, dh_total, {{rows.data(), a_.size.hidden, write<T>(gradients_[d].hr)}}, groups_, accumulate);
  }

  // to = or += the sums over the rows.
  void add_sums(const Tensor& to, const RowsOf<T>& rows, bool accumulate) const { row_sums(rows, groups_, accumulate, write<T>(to)); }

  const Arguments<T>& a_;
  const BackwardArguments& given_;
  const std::optional<Groups>& groups_;
  Plan plan_;
  const Panels units_, outputs_;
  const std::vector<Span> spans_;
  const int64_t most_;  // rows of a span
  Tensor output_, grad_output_, dh_, dstates_, dx_;
  std::vector<Tensor> grad_states_;  // of each direction, where there are any
  std::optional<SpanRows<T>> dx_rows_;
  std::vector<std::vector<const T*>> parameters_;
  std::vector<Buffers<T>> buffers_;
  std::vector<BackwardRows<T>> rows_;
  std::vector<WeightGradients> gradients_;
  std::vector<Backward<T>> calls_;
};

template <class T>
void check_saved(const Arguments<T>& a, Tensors saved) {
  const int64_t each = a.saved_per_direction(), count = a.size.directions * each;
  SSTKERN_CHECK(static_cast<int64_t>(saved.size()) == count, "saved: expected ", count, " tensors, got ", saved.size(),
                "; was the forward called with saved_rows?");
  SSTKERN_CHECK(saved[0].dim() == 2 && saved[0].size(0) >= a.schedule.rows(), "saved: expected at least ", a.schedule.rows(),
                " rows, got shape ", saved[0].sizes());
  const int64_t rows = saved[0].size(0);
  const std::vector<int64_t> widths = a.saved_widths();
  constexpr const char* names[] = {"saved values of the cell", "saved states", "saved hidden states"};
  for (int64_t i = 0; i < count; ++i) check_size(names[i % each], saved[i], {rows, widths[i % each]}, a.x);
  for (const Tensor& tensor : saved) SSTKERN_CHECK(tensor.is_contiguous(), "saved: expected contiguous tensors");
}

}  // namespace

template <class T>
void check_backward(const Arguments<T>& a, const BackwardArguments& given) {
  const Sizes& size = a.size;
  const std::vector<int64_t> output_shape = a.shape(a.output_features());
  check_saved(a, given.saved);
  const auto check = [&](const char* name, const Tensor& tensor, Ints shape) {
    SSTKERN_CHECK(tensor.sizes() == shape && tensor.scalar_type() == a.type, name, ": expected shape ", shape, " and dtype ", a.type,
                  ", got ", tensor.sizes(), " and ", tensor.scalar_type());
  };
  SSTKERN_CHECK(given.output.sizes() == output_shape, "output: expected shape ", output_shape, ", got ", given.output.sizes());
  SSTKERN_CHECK(given.output.scalar_type() == a.type, "output: expected dtype ", a.type, ", got ", given.output.scalar_type());
  if (given.grad_output.has_value()) check("grad_output", *given.grad_output, output_shape);
  const int64_t states = 1 + a.kernels.states, weights = size.directions * a.per_direction();
  const int64_t count = static_cast<int64_t>(given.grad_hx.size());
  SSTKERN_CHECK(count == states || count == states + a.kernels.states, "grad_hx: expected ", states, " tensors, or ",
                states + a.kernels.states, " with every step's, got ", count);
  check("grad_hx", given.grad_hx[0], {size.directions, size.batch, size.output});
  for (int64_t i = 1; i < states; ++i) check("grad_hx", given.grad_hx[i], {size.directions, size.batch, size.hidden});
  for (int64_t i = states; i < count; ++i) check("grad_hx of every step", given.grad_hx[i], a.shape(size.directions * size.hidden));
  const int64_t flags = 1 + weights + a.given_states;
  SSTKERN_CHECK(static_cast<int64_t>(given.needs.size()) == flags, "needs: expected ", flags, " flags, got ", given.needs.size());
}

template <class T>
std::vector<Tensor> run_backward(const Arguments<T>& a, const BackwardArguments& given, const std::optional<Groups>& groups) {
  LayerBackward<T> backward(a, given, groups);
  backward.run();
  return backward.gradients();
}

#define SSTKERN_INSTANTIATE(T)                                                 \
  template void check_backward(const Arguments<T>&, const BackwardArguments&); \
  template std::vector<Tensor> run_backward(const Arguments<T>&, const BackwardArguments&, const std::optional<Groups>&);
SSTKERN_INSTANTIATE(float)
SSTKERN_INSTANTIATE(double)
#undef SSTKERN_INSTANTIATE

}  // namespace sstkern
