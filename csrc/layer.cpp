#include "layer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>

#include "capability.h"
#include "forked.h"
#include "schedule.h"
#include "team.h"

namespace sstkern {

namespace {

std::atomic<int64_t> forward_runs{0}, backward_runs{0}, latest_threads{0};

// Multiply-adds a thread should have at least: waking one costs about as long as this many take.
constexpr int64_t kThreadWork = 1 << 17;
// Multiply-adds a thread should have in a time step at least where others share it: they meet once a step.
constexpr int64_t kStepWork = 1 << 14;
// Rows of the batch a thread should have at least where it has them to itself: so many keep the multiply-add units busy.
constexpr int64_t kThreadRows = 4;
// Recurrent weights that every thread can read at every step without harm, in bytes: about a core's second cache, twice.
constexpr int64_t kSmallWeights = 1 << 21;
// With more, threads share hidden units unless each has this many rows for every weight it reads.
constexpr int64_t kManyRows = 48;
// Elements a thread should pack at least.
constexpr int64_t kPackGrain = 1 << 15;

Cell cell_by_name(std::string_view name) {
  if (name == "lstm") return Cell::lstm;
  if (name == "gru") return Cell::gru;
  if (name == "rnn_tanh") return Cell::rnn_tanh;
  if (name == "rnn_relu") return Cell::rnn_relu;
  TORCH_CHECK_VALUE(false, "cell '", std::string(name), "' has no CPU kernel; there is one for lstm, gru, rnn_tanh and rnn_relu");
}

// bfloat16 and float16 are storage only: a call computes in float32.
at::ScalarType compute_type(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf ? at::kFloat : type; }

at::Tensor features_contiguous(const at::Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

at::Tensor prepare(const at::Tensor& tensor) { return tensor.to(compute_type(tensor.scalar_type())).contiguous(); }

struct Weights {
  at::Tensor ih, hh, bias_ih, bias_hh, hr;  // as torch.nn names them; undefined where the layer has none
};

struct Sizes {
  int64_t steps, batch, input, hidden, output, directions;
};

void check_size(const char* name, const at::Tensor& tensor, at::IntArrayRef expected, const at::Tensor& x) {
  TORCH_CHECK(tensor.sizes() == expected, name, ": expected shape ", expected, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), name, ": expected dtype ", x.scalar_type(), " like x, got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == x.device(), name, ": expected device ", x.device(), " like x, got ", tensor.device());
}

// The operators' arguments, checked: whatever is read below lies inside its tensor.
template <class T>
struct Arguments {
  Kernels<T> kernels;
  Sizes size;
  at::ScalarType type;
  at::Tensor x;
  std::vector<Weights> weights;
  at::Tensor h0, states0;  // (directions, batch, .); states0 undefined where the cell carries h alone
  BatchSchedule schedule;

  Arguments(Cell cell, const at::Tensor& x, at::TensorList given, at::TensorList hx, const std::optional<at::Tensor>& lengths,
            bool has_bias, bool bidirectional)
      : kernels(kernels_for<T>(cell, x.scalar_type())),
        size(sizes(x, given, bidirectional, kernels.gates)),
        type(x.scalar_type()),
        x(features_contiguous(x.to(compute_type(type)))),
        schedule(lengths, size.steps, size.batch) {
    const int64_t per_direction = static_cast<int64_t>(given.size()) / size.directions, gates = kernels.gates * size.hidden;
    const bool projected = per_direction == 3 + 2 * has_bias;
    TORCH_CHECK(projected || per_direction == 2 + 2 * has_bias, "weights: expected ", 2 + 2 * has_bias,
                " (or one more with a projection) for each direction, got ", given.size(), " for ", size.directions, " direction(s)");
    TORCH_CHECK(!projected || kernels.projects, "weights: this cell has no projection (weight_hr)");
    for (int64_t d = 0; d < size.directions; ++d) {
      const at::TensorList mine = given.slice(d * per_direction, per_direction);
      check_size("weight_ih", mine[0], {gates, size.input}, x);
      check_size("weight_hh", mine[1], {gates, size.output}, x);
      Weights w{prepare(mine[0]), prepare(mine[1]), {}, {}, {}};
      if (has_bias) {
        check_size("bias_ih", mine[2], {gates}, x);
        check_size("bias_hh", mine[3], {gates}, x);
        w.bias_ih = prepare(mine[2]);
        w.bias_hh = prepare(mine[3]);
      }
      if (projected) {
        check_size("weight_hr", mine[per_direction - 1], {size.output, size.hidden}, x);
        w.hr = prepare(mine[per_direction - 1]);
      }
      TORCH_CHECK(projected || size.output == size.hidden, "weight_hh: expected ", size.hidden, " columns without a projection, got ",
                  size.output);
      weights.push_back(std::move(w));
    }
    TORCH_CHECK(static_cast<int64_t>(hx.size()) == 1 + kernels.states, "hx: expected ", 1 + kernels.states, " state(s), got ", hx.size());
    check_size("h_0", hx[0], {size.directions, size.batch, size.output}, x);
    h0 = prepare(hx[0]);
    if (kernels.states == 0) return;
    check_size("c_0", hx[1], {size.directions, size.batch, size.hidden}, x);
    states0 = prepare(hx[1]);
  }

  bool projected() const { return weights[0].hr.defined(); }
  int64_t gates() const { return kernels.gates * size.hidden; }
  int64_t states() const { return kernels.states * size.hidden; }
  int64_t extras() const { return (kernels.states + kernels.extras) * size.hidden; }
  int64_t all_rows() const { return size.steps * size.batch; }
  // gates and extras of a direction, and its hidden states where there is a projection.
  int64_t saved_per_direction() const { return projected() ? 3 : 2; }

  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, x.options()); }
  at::Tensor zeros(at::IntArrayRef shape) const { return at::zeros(shape, x.options()); }
  at::Tensor as_given(const at::Tensor& tensor) const { return tensor.to(type); }

 private:
  static Sizes sizes(const at::Tensor& x, at::TensorList given, bool bidirectional, int64_t gates) {
    TORCH_CHECK(x.dim() == 3, "x: expected 3 dimensions (time steps, batch, features), got shape ", x.sizes());
    const int64_t directions = bidirectional ? 2 : 1;
    TORCH_CHECK(given.size() >= 2 && given.size() % directions == 0, "weights: got ", given.size(), " tensors for ", directions,
                " direction(s)");
    TORCH_CHECK(given[0].dim() == 2 && given[1].dim() == 2, "weight_ih and weight_hh: expected 2 dimensions, got shapes ", given[0].sizes(),
                " and ", given[1].sizes());
    TORCH_CHECK(given[1].size(0) > 0, "weight_hh: expected at least one row, got shape ", given[1].sizes());
    return {x.size(0), x.size(1), x.size(2), given[1].size(0) / gates, given[1].size(1), directions};
  }
};

template <class T>
const T* read(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
T* write(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Packs run(begin, end, where panel `begin` starts) of `panels` panels in all threads.
template <class T, class Run>
at::Tensor pack(const Arguments<T>& a, int64_t panels, int64_t panel_size, const Run& run) {
  at::Tensor packed = a.empty({panels * panel_size});
  T* const to = write<T>(packed);
  at::parallel_for(0, panels, std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, panel_size)),
                   [&](int64_t begin, int64_t end) { run(begin, end, to + begin * panel_size); });
  return packed;
}

template <class T>
at::Tensor pack_plain(const Arguments<T>& a, const at::Tensor& matrix) {
  const int64_t depth = matrix.size(0), columns = matrix.size(1);
  return pack(a, a.kernels.plain_panels(columns), a.kernels.plain_panel(depth), [&](int64_t begin, int64_t end, T* to) {
    a.kernels.pack_plain(read<T>(matrix), depth, columns, matrix.stride(0), matrix.stride(1), begin, end, to);
  });
}

template <class T>
at::Tensor pack_units(const Arguments<T>& a, const at::Tensor& weight) {
  const int64_t depth = weight.size(1);
  return pack(a, a.kernels.unit_panels(a.size.hidden), a.kernels.packed_panel(depth),
              [&](int64_t begin, int64_t end, T* to) { a.kernels.pack_units(read<T>(weight), a.size.hidden, depth, begin, end, to); });
}

// How threads share the time loop. Rows of a batch are independent: a thread takes a range of positions through all time steps and waits
// for nobody. Where that leaves threads without rows, several take the same range, each a part of the hidden units.
class Plan {
 public:
  template <class T>
  Plan(const Arguments<T>& a, int64_t threads) : directions_(a.size.directions), together_(threads % directions_ == 0 ? directions_ : 1) {
    const int64_t each = threads / together_;
    const bool large = a.gates() * a.size.output * static_cast<int64_t>(sizeof(T)) > kSmallWeights;
    int64_t ranges = std::clamp<int64_t>(a.size.batch / (large ? kManyRows : kThreadRows), 1, each);
    while (each % ranges != 0) --ranges;
    parts_ = each / ranges;
    const int64_t step = a.schedule.rows() * a.gates() * a.size.output / (std::max<int64_t>(1, a.size.steps) * ranges);
    if (step < parts_ * kStepWork) {
      parts_ = 1;
      ranges = each;
    }
    bounds_ = a.schedule.split(ranges);
    for (int64_t i = 0; i < together_ * this->ranges(); ++i) barriers_.push_back(std::make_unique<Barrier>(parts_));
  }

  int64_t threads() const { return together_ * ranges() * parts_; }

  // Positions of the largest range.
  int64_t most_rows() const {
    int64_t most = 1;
    for (int64_t i = 0; i < ranges(); ++i) most = std::max(most, bounds_[i + 1] - bounds_[i]);
    return most;
  }

  Share share(int64_t thread) const {
    const int64_t group = thread / parts_, range = group % ranges();
    Barrier* const barrier = parts_ > 1 ? barriers_[group].get() : nullptr;
    return {bounds_[range], bounds_[range + 1] - bounds_[range], thread % parts_, parts_, barrier};
  }

  // Calls run(direction) for what falls to a thread.
  template <class Run>
  void each_direction(int64_t thread, const Run& run) const {
    for (int64_t direction = thread / parts_ / ranges(); direction < directions_; direction += together_) run(direction);
  }

 private:
  int64_t ranges() const { return static_cast<int64_t>(bounds_.size()) - 1; }

  int64_t directions_, together_, parts_;  // `together_` directions run at once
  std::vector<int64_t> bounds_;
  std::vector<std::unique_ptr<Barrier>> barriers_;
};

template <class T>
Plan make_plan(const Arguments<T>& a) {
  // Packing an element takes about as long as four multiply-adds.
  const int64_t work = a.size.directions * a.gates() * (a.schedule.rows() * a.size.output + 4 * (a.size.input + a.size.output));
  return Plan(a, std::clamp<int64_t>(work / kThreadWork, 1, at::in_parallel_region() ? 1 : at::get_num_threads()));
}

// Runs run(direction, share, memory) for all of the plan, or, where OpenMP has fewer threads to give, of a plan for one. The threads'
// memory(share) is made before: what it may throw could not leave a parallel region.
template <class T, class Memory, class Run>
void run_plan(const Arguments<T>& a, const Plan& plan, const Memory& memory_for, const Run& run) {
  std::vector<decltype(memory_for(Share{}))> memory;
  for (int64_t thread = 0; thread < plan.threads(); ++thread) memory.push_back(memory_for(plan.share(thread)));
  const auto run_thread = [&](const Plan& plan, int64_t thread) {
    plan.each_direction(thread, [&](int64_t direction) { run(direction, plan.share(thread), memory[thread]); });
  };
  bool complete = false;
  run_team(plan.threads(), [&](int64_t thread, int64_t threads) {
    if (threads != plan.threads()) return;
    if (thread == 0) complete = true;
    run_thread(plan, thread);
  });
  latest_threads = complete ? plan.threads() : 1;
  if (complete) return;
  const Plan alone(a, 1);
  memory[0] = memory_for(alone.share(0));
  run_thread(alone, 0);
}

template <class T>
Recurrence<T> recurrence(const Arguments<T>& a, int64_t direction) {
  Recurrence<T> r;
  r.schedule = a.schedule.view();
  r.reverse = direction == 1;
  r.hidden_size = a.size.hidden;
  r.output_size = a.size.output;
  r.h0 = read<T>(a.h0) + direction * a.size.batch * a.size.output;
  r.states0 = a.kernels.states ? read<T>(a.states0) + direction * a.size.batch * a.states() : nullptr;
  r.output_row = a.size.directions * a.size.output;
  r.output_step = a.size.batch * r.output_row;
  return r;
}

// A thread's own, in the forward.
template <class T>
class ForwardMemory {
 public:
  ForwardMemory(const Arguments<T>& a, const Share& share)
      : rows_(share.count),
        chunk_x_(std::max(share.count, kChunkRows)),
        chunk_sums_(a.empty({a.kernels.unit_sums(a.size.hidden, kChunkRows)})),
        panels_(a.empty({a.kernels.packed_panel(a.size.input) + a.kernels.packed_panel(a.size.output)})),
        x_room_(a.empty({a.kernels.factor_room(std::max(share.count, kChunkRows), a.size.input)})),
        h_room_(a.empty({a.kernels.factor_room(share.count, a.size.output)})),
        hidden_room_(a.empty({a.projected() ? a.kernels.factor_room(kBlockRows, a.size.hidden) : 0})) {}

  ForwardWork<T> work() {
    return {rows_.data(),      chunk_x_.data(),   write<T>(chunk_sums_), write<T>(panels_),
            write<T>(x_room_), write<T>(h_room_), write<T>(hidden_room_)};
  }

 private:
  std::vector<ForwardRow<T>> rows_;
  std::vector<const T*> chunk_x_;
  at::Tensor chunk_sums_, panels_, x_room_, h_room_, hidden_room_;
};

using LayerResult = std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>>;

template <class T>
LayerResult forward(const Arguments<T>& a, bool save_for_backward) {
  const Sizes& size = a.size;
  at::Tensor output = a.empty({size.steps, size.batch, size.directions * size.output});
  at::Tensor h_n = a.empty({size.directions, size.batch, size.output});
  at::Tensor states_n = a.empty({size.directions, size.batch, a.states()});
  // Rows for every time step, though only the valid ones are used: a shape that does not depend on the lengths' values.
  const int64_t kept = save_for_backward ? a.all_rows() : size.batch;
  const Plan plan = make_plan(a);
  std::vector<at::Tensor> saved, packed;
  std::vector<Forward<T>> calls;
  const auto pack_unless = [&](bool used_once, const at::Tensor& weight) {
    if (used_once) return static_cast<const T*>(nullptr);
    packed.push_back(pack_units(a, weight));
    return read<T>(packed.back());
  };
  for (int64_t d = 0; d < size.directions; ++d) {
    const Weights& w = a.weights[d];
    Forward<T> f{recurrence(a, d)};
    f.x = read<T>(a.x);
    f.input_size = size.input;
    f.x_step = a.x.stride(0);
    f.x_row = a.x.stride(1);
    f.weight_ih = read<T>(w.ih);
    f.weight_hh = read<T>(w.hh);
    f.packed_ih = pack_unless(size.steps <= 1 || size.steps * plan.most_rows() <= kChunkRows, w.ih);
    f.packed_hh = pack_unless(size.steps <= 1, w.hh);
    f.bias_ih = read<T>(w.bias_ih);
    f.bias_hh = read<T>(w.bias_hh);
    f.output = write<T>(output) + d * size.output;
    f.h_n = write<T>(h_n) + d * size.batch * size.output;
    f.states_n = write<T>(states_n) + d * size.batch * a.states();
    f.save_for_backward = save_for_backward;
    f.gates = nullptr;
    if (save_for_backward) {
      saved.push_back(a.empty({a.all_rows(), a.gates()}));
      f.gates = write<T>(saved.back());
    }
    saved.push_back(a.empty({kept, a.extras()}));
    f.extras = write<T>(saved.back());
    f.weight_hr = nullptr;
    f.hidden = nullptr;
    if (a.projected()) {
      packed.push_back(pack_plain(a, w.hr.t()));
      f.weight_hr = read<T>(packed.back());
      saved.push_back(a.empty({kept, size.hidden}));
      f.hidden = write<T>(saved.back());
    }
    calls.push_back(f);
  }
  const auto memory_for = [&](const Share& share) { return ForwardMemory<T>(a, share); };
  run_plan(a, plan, memory_for, [&](int64_t direction, const Share& share, ForwardMemory<T>& memory) {
    a.kernels.forward(calls[direction], share, memory.work());
  });
  ++forward_runs;
  if (!save_for_backward) saved.clear();
  // The rows nobody used: what an operator returns is the same bits for the same input.
  for (const at::Tensor& tensor : saved) tensor.narrow(0, a.schedule.rows(), a.all_rows() - a.schedule.rows()).zero_();
  // A rounded output would not be the h that the recurrence went on with.
  if (save_for_backward && a.type != output.scalar_type()) saved.push_back(output);
  std::vector<at::Tensor> hx_n{a.as_given(h_n)};
  if (a.kernels.states) hx_n.push_back(a.as_given(states_n));
  return {a.as_given(output), hx_n, saved};
}

// Which gradients a call wants, in the order of its flat inputs: x, every weight, every state.
struct Wanted {
  const c10::List<bool>& flags;
  int64_t per_direction, weights;

  bool x() const { return flags[0]; }
  bool weight(int64_t direction, int64_t index) const { return flags[1 + direction * per_direction + index]; }
  bool state(int64_t index) const { return flags[1 + weights + index]; }
};

// Gradients of weights whose products' gradients are `left` (rows, .).
template <class T>
void weight_gradients(const Arguments<T>& a, const at::Tensor& left, const std::vector<WeightGradient<T>>& weights) {
  const int64_t rows = left.size(0), gates = left.size(1), count = static_cast<int64_t>(weights.size());
  int64_t columns = 0;
  for (const WeightGradient<T>& weight : weights) columns += weight.columns;
  constexpr int64_t block = 24;  // gates: whole tiles, whatever their height
  const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, block * rows * columns));
  at::parallel_for(0, (gates + block - 1) / block, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> work(new T[a.kernels.gradient_work(weights.data(), count)]);
    a.kernels.weight_gradients(read<T>(left), gates, rows, weights.data(), count, begin * block, std::min(gates, end * block), work.get());
  });
}

// The gradient of x: the gates' gradients of all directions times their input weights, zero in the padding.
template <class T>
at::Tensor input_gradient(const Arguments<T>& a, const std::vector<at::Tensor>& dgates) {
  const Sizes& size = a.size;
  at::Tensor dx = a.schedule.full() ? a.empty({size.steps, size.batch, size.input}) : a.zeros({size.steps, size.batch, size.input});
  const std::vector<T*> to = a.schedule.rows_of(write<T>(dx), size.batch * size.input, size.input);
  for (int64_t d = 0; d < size.directions; ++d) {
    const at::Tensor packed = pack_plain(a, a.weights[d].ih);
    const T* const from = read<T>(dgates[d]);
    const int64_t grain = std::max(kThreadRows, kThreadWork / std::max<int64_t>(1, a.gates() * size.input));
    at::parallel_for(0, a.schedule.rows(), grain, [&](int64_t begin, int64_t end) {
      std::vector<const T*> rows(end - begin);
      for (int64_t r = begin; r < end; ++r) rows[r - begin] = from + r * a.gates();
      const std::unique_ptr<T[]> room(new T[a.kernels.factor_room(kBlockRows, a.gates())]);
      if (d == 0) {
        a.kernels.rows_product(rows.data(), to.data() + begin, end - begin, a.gates(), size.input, read<T>(packed), false, room.get());
        return;
      }
      // Summed up first and then added, so that dx is the sum of what each direction alone has, bit for bit.
      const std::unique_ptr<T[]> sums(new T[(end - begin) * size.input]);
      std::vector<T*> sum_rows(end - begin);
      for (int64_t r = 0; r < end - begin; ++r) sum_rows[r] = sums.get() + r * size.input;
      a.kernels.rows_product(rows.data(), sum_rows.data(), end - begin, a.gates(), size.input, read<T>(packed), false, room.get());
      for (int64_t r = 0; r < end - begin; ++r)
        for (int64_t i = 0; i < size.input; ++i) to[begin + r][i] += sum_rows[r][i];
    });
  }
  return dx;
}

// The rows of each share of the batch that has weight gradients of its own.
using Groups = std::vector<std::vector<int64_t>>;

// The same for every group: its rows are brought together, and its gradients follow those of the group before.
template <class T>
void grouped_weight_gradients(const Arguments<T>& a, const at::Tensor& left, const std::vector<WeightGradient<T>>& weights,
                              const Groups& groups) {
  const int64_t gates = left.size(1), count = static_cast<int64_t>(weights.size());
  at::parallel_for(0, static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> work(new T[a.kernels.gradient_work(weights.data(), count)]);
    for (int64_t group = begin; group < end; ++group) {
      const std::vector<int64_t>& rows = groups[group];
      std::vector<T> mine;
      mine.reserve(rows.size() * gates);
      for (const int64_t row : rows) mine.insert(mine.end(), read<T>(left) + row * gates, read<T>(left) + (row + 1) * gates);
      std::vector<std::vector<const T*>> right(count);
      std::vector<WeightGradient<T>> of_group;
      for (int64_t w = 0; w < count; ++w) {
        for (const int64_t row : rows) right[w].push_back(weights[w].right[row]);
        const int64_t size = gates * weights[w].columns;
        of_group.push_back({right[w].data(), weights[w].columns, weights[w].out + group * size});
        if (rows.empty()) std::fill_n(of_group.back().out, size, T(0));
      }
      a.kernels.weight_gradients(mine.data(), gates, static_cast<int64_t>(rows.size()), of_group.data(), count, 0, gates, work.get());
    }
  });
}

template <class T>
at::Tensor bias_gradient(const Arguments<T>& a, const at::Tensor& left, const std::optional<Groups>& groups) {
  if (!groups) return left.sum(0);
  const int64_t gates = left.size(1), count = static_cast<int64_t>(groups->size());
  at::Tensor sums = a.zeros({count, gates});
  T* const to = write<T>(sums);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group)
      for (const int64_t row : (*groups)[group]) {
        const T* const from = read<T>(left) + row * gates;
        for (int64_t g = 0; g < gates; ++g) to[group * gates + g] += from[g];
      }
  });
  return sums;
}

struct BackwardBuffers {
  at::Tensor dgates_x, dgates_h, dh_total, dhidden, weight_hh, weight_hr;
};

template <class T>
std::vector<at::Tensor> backward(const Arguments<T>& a, const at::Tensor& given_output, at::TensorList saved,
                                 const std::optional<at::Tensor>& given_grad_output, at::TensorList grad_hx, const c10::List<bool>& needs,
                                 const std::optional<Groups>& groups) {
  const Sizes& size = a.size;
  const int64_t rows = a.schedule.rows(), per_direction = a.saved_per_direction(),
                weights = (2 + 2 * a.weights[0].bias_ih.defined() + a.projected());
  const at::Tensor output = a.type == a.x.scalar_type() ? given_output.contiguous() : saved.back();
  at::Tensor grad_output;
  if (given_grad_output.has_value()) grad_output = prepare(*given_grad_output);
  at::Tensor dh = prepare(grad_hx[0]).clone(), dstates;
  if (a.kernels.states) dstates = prepare(grad_hx[1]).clone();

  const Wanted wanted{needs, weights, weights * size.directions};
  std::vector<BackwardBuffers> buffers;
  std::vector<Backward<T>> calls;
  for (int64_t d = 0; d < size.directions; ++d) {
    const Weights& w = a.weights[d];
    BackwardBuffers b;
    b.dgates_x = a.empty({rows, a.gates()});
    b.dgates_h = a.kernels.same_gate_gradients ? b.dgates_x : a.empty({rows, a.gates()});
    const bool needs_dh0 = wanted.state(0);
    if (needs_dh0 || size.steps > 1) b.weight_hh = pack_plain(a, w.hh);
    if (a.projected()) {
      b.weight_hr = pack_plain(a, w.hr);
      b.dh_total = a.empty({rows, size.output});
      b.dhidden = a.empty({size.batch, size.hidden});
    }
    Backward<T> f{recurrence(a, d)};
    f.needs_dh0 = needs_dh0;
    f.weight_hh = read<T>(b.weight_hh);
    f.weight_hr = read<T>(b.weight_hr);
    f.output = read<T>(output) + d * size.output;
    f.grad_output = grad_output.defined() ? read<T>(grad_output) + d * size.output : nullptr;
    f.gates = read<T>(saved[d * per_direction]);
    f.extras = read<T>(saved[d * per_direction + 1]);
    f.dgates_x = write<T>(b.dgates_x);
    f.dgates_h = write<T>(b.dgates_h);
    f.dh_total = write<T>(b.dh_total);
    f.dhidden = write<T>(b.dhidden);
    f.dh = write<T>(dh) + d * size.batch * size.output;
    f.dstates = a.kernels.states ? write<T>(dstates) + d * size.batch * a.states() : nullptr;
    buffers.push_back(b);
    calls.push_back(f);
  }
  struct Memory {
    std::vector<BackwardRow<T>> rows;
    std::vector<T> room;
  };
  const int64_t room = a.kernels.factor_room(kBlockRows, std::max(a.gates(), size.output));
  const auto memory_for = [&](const Share& share) { return Memory{std::vector<BackwardRow<T>>(share.count), std::vector<T>(room)}; };
  run_plan(a, make_plan(a), memory_for, [&](int64_t direction, const Share& share, Memory& memory) {
    a.kernels.backward(calls[direction], share, memory.rows.data(), memory.room.data());
  });
  ++backward_runs;

  // After the loop every gradient is one matrix product over all valid rows.
  std::vector<at::Tensor> gradients;
  if (wanted.x()) {
    std::vector<at::Tensor> dgates;
    for (const BackwardBuffers& b : buffers) dgates.push_back(b.dgates_x);
    gradients.push_back(input_gradient(a, dgates));
  }
  const auto gradient_like = [&](const at::Tensor& weight, const std::vector<const T*>& right) {
    std::vector<int64_t> shape = weight.sizes().vec();
    if (groups) shape.insert(shape.begin(), static_cast<int64_t>(groups->size()));
    gradients.push_back(rows == 0 ? a.zeros(shape) : a.empty(shape));
    return WeightGradient<T>{right.data(), weight.size(1), write<T>(gradients.back())};
  };
  const auto sum_up = [&](const at::Tensor& left, const std::vector<WeightGradient<T>>& weights) {
    if (groups)
      grouped_weight_gradients(a, left, weights, *groups);
    else
      weight_gradients(a, left, weights);
  };
  const std::vector<const T*> x = a.schedule.rows_of(read<T>(a.x), a.x.stride(0), a.x.stride(1));
  for (int64_t d = 0; d < size.directions; ++d) {
    const BackwardBuffers& b = buffers[d];
    const Backward<T>& f = calls[d];
    int64_t index = 0;
    const bool ih = wanted.weight(d, index++), hh = wanted.weight(d, index++);
    std::vector<WeightGradient<T>> of_x, of_h;
    std::vector<const T*> h_previous;
    if (ih) of_x.push_back(gradient_like(a.weights[d].ih, x));
    if (hh) {
      h_previous = a.schedule.previous_rows_of(f.output, f.output_step, f.output_row, f.h0, size.output, f.reverse);
      (a.kernels.same_gate_gradients ? of_x : of_h).push_back(gradient_like(a.weights[d].hh, h_previous));
    }
    if (!of_x.empty()) sum_up(b.dgates_x, of_x);
    if (!of_h.empty()) sum_up(b.dgates_h, of_h);
    if (a.weights[d].bias_ih.defined()) {
      const bool bias_ih = wanted.weight(d, index++), bias_hh = wanted.weight(d, index++);
      if (bias_ih) gradients.push_back(bias_gradient(a, b.dgates_x, groups));
      if (bias_hh)
        gradients.push_back(bias_ih && a.kernels.same_gate_gradients ? gradients.back().clone() : bias_gradient(a, b.dgates_h, groups));
    }
    if (a.projected() && wanted.weight(d, index++)) {
      const T* const hidden = read<T>(saved[d * per_direction + 2]);
      std::vector<const T*> hidden_rows(rows);
      for (int64_t r = 0; r < rows; ++r) hidden_rows[r] = hidden + r * size.hidden;
      sum_up(b.dh_total, {gradient_like(a.weights[d].hr, hidden_rows)});
    }
  }
  if (wanted.state(0)) gradients.push_back(dh);
  if (a.kernels.states && wanted.state(1)) gradients.push_back(dstates);
  for (at::Tensor& gradient : gradients) gradient = a.as_given(gradient);
  return gradients;
}

template <class T>
void check_backward(const Arguments<T>& a, const at::Tensor& output, at::TensorList saved, const std::optional<at::Tensor>& grad_output,
                    at::TensorList grad_hx, size_t weights, const c10::List<bool>& needs) {
  const Sizes& size = a.size;
  const bool rounded = a.type != a.x.scalar_type();
  TORCH_CHECK(static_cast<int64_t>(saved.size()) == size.directions * a.saved_per_direction() + rounded, "saved: expected ",
              size.directions * a.saved_per_direction() + rounded, " tensors, got ", saved.size(),
              "; was the forward called with save_for_backward?");
  const std::vector<int64_t> output_shape{size.steps, size.batch, size.directions * size.output};
  for (int64_t d = 0; d < size.directions; ++d) {
    const at::TensorList mine = saved.slice(d * a.saved_per_direction(), a.saved_per_direction());
    check_size("saved gates", mine[0], {a.all_rows(), a.gates()}, a.x);
    check_size("saved states", mine[1], {a.all_rows(), a.extras()}, a.x);
    if (a.projected()) check_size("saved hidden states", mine[2], {a.all_rows(), size.hidden}, a.x);
  }
  for (const at::Tensor& tensor : saved) TORCH_CHECK(tensor.is_contiguous(), "saved: expected contiguous tensors");
  if (rounded) check_size("saved output", saved.back(), output_shape, a.x);
  TORCH_CHECK(output.sizes() == output_shape, "output: expected shape ", output_shape, ", got ", output.sizes());
  TORCH_CHECK(output.scalar_type() == a.type, "output: expected dtype ", a.type, ", got ", output.scalar_type());
  if (grad_output.has_value())
    TORCH_CHECK(grad_output->sizes() == output_shape && grad_output->scalar_type() == a.type, "grad_output: expected shape ", output_shape,
                " and dtype ", a.type, ", got ", grad_output->sizes(), " and ", grad_output->scalar_type());
  TORCH_CHECK(static_cast<int64_t>(grad_hx.size()) == 1 + a.kernels.states, "grad_hx: expected ", 1 + a.kernels.states, " tensors, got ",
              grad_hx.size());
  for (size_t i = 0; i < grad_hx.size(); ++i) {
    const at::Tensor& state = i == 0 ? a.h0 : a.states0;
    TORCH_CHECK(grad_hx[i].sizes() == state.sizes() && grad_hx[i].scalar_type() == a.type, "grad_hx: expected shape ", state.sizes(),
                " and dtype ", a.type, ", got ", grad_hx[i].sizes(), " and ", grad_hx[i].scalar_type());
  }
  TORCH_CHECK(needs.size() == 1 + weights + grad_hx.size(), "needs: expected ", 1 + weights + grad_hx.size(), " flags, got ", needs.size());
}

// Calls run(T{}) with the type that a call with tensors like `x` computes in.
template <class Run>
auto in_compute_type(const at::Tensor& x, const Run& run) {
  const at::ScalarType type = compute_type(x.scalar_type());
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, "x: expected float32, float64, bfloat16 or float16, got ", x.scalar_type());
  return type == at::kFloat ? run(float{}) : run(double{});
}

}  // namespace

LayerResult layer(std::string_view cell, const at::Tensor& x, at::TensorList weights, at::TensorList hx,
                  const std::optional<at::Tensor>& lengths, bool has_bias, bool bidirectional, bool save_for_backward) {
  const OneThreadIfForked guard;
  return in_compute_type(x, [&](auto type) {
    const Arguments<decltype(type)> arguments(cell_by_name(cell), x, weights, hx, lengths, has_bias, bidirectional);
    return forward(arguments, save_for_backward);
  });
}

std::vector<at::Tensor> layer_backward(std::string_view cell, const at::Tensor& x, at::TensorList weights, at::TensorList hx,
                                       const std::optional<at::Tensor>& lengths, bool has_bias, bool bidirectional,
                                       const at::Tensor& output, at::TensorList saved, const std::optional<at::Tensor>& grad_output,
                                       at::TensorList grad_hx, const c10::List<bool>& needs, std::optional<int64_t> groups) {
  const OneThreadIfForked guard;
  return in_compute_type(x, [&](auto type) {
    const Arguments<decltype(type)> arguments(cell_by_name(cell), x, weights, hx, lengths, has_bias, bidirectional);
    check_backward(arguments, output, saved, grad_output, grad_hx, weights.size(), needs);
    std::optional<Groups> rows_of_groups;
    if (groups.has_value()) rows_of_groups = arguments.schedule.rows_of_groups(*groups);
    return backward(arguments, output, saved, grad_output, grad_hx, needs, rows_of_groups);
  });
}

std::vector<int64_t> cpu_runs() { return {forward_runs, backward_runs, latest_threads}; }

}  // namespace sstkern
