#include "program_call.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "arguments.h"
#include "callers.h"
#include "forked.h"
#include "gradients.h"
#include "layer.h"
#include "memory.h"
#include "packing.h"
#include "pieces.h"
#include "plan.h"
#include "program.h"
#include "spans.h"

namespace sstkern {

namespace {

// Rows that the phases before and after the loop take at once.
constexpr int64_t kPhaseRows = 96;
// Rows of a span of time steps at least. What only a span needs is then memory that the last call has left, where all time steps' would be
// new and the system would clear it page by page: in training a layer-normalised LSTM of (32, 100, 256) took 1.05 times as long with one
// span, one of (64, 64, 512) 1.12. Each span reads and writes all gradients of weights. Not by bytes: which rows there are rests on which
// gradients are wanted, and a gradient's bits may not.
constexpr int64_t kSpanRows = 1024;
// Rows that stages without a product take at once, one stage after the other: what one puts to memory the next finds in the first caches.
constexpr int64_t kStageRows = 8;
// Vectors of units that a loop's function is given at once.
constexpr int64_t kPlaces = 64;

// Where a slot's rows are.
struct Place {
  char* base;
  int64_t item;   // bytes of a number
  Layout layout;  // of inputs, outputs and rows
};

// A weight packed for a product: by units for attached ones, in plain panels for others.
template <class T>
struct Packed {
  Numbers<T> memory;
  Panels panels;
  int gates;           // of a vector of units
  Numbers<T> start;    // of an attached product: what the sums of each panel begin with, or none
  int64_t ahead = -1;  // where the sums that are made ahead begin in a chunk's
};

// A product attached to a loop.
template <class T>
struct AttachedWork {
  const Packed<T>* packed;
  SlotStart operand;
  int64_t depth, gates;  // gates: numbers of a vector of units in a row's sums
  int64_t ahead;         // where the sums that are made ahead begin in a chunk's, or -1
};

// A loop, and the panels of units that it goes over.
template <class T>
struct LoopPlan {
  Panels panels;
  std::vector<AttachedWork<T>> attached;
};

// The same for all products that are attached to loops of these units.
int common_blocks(const std::vector<int>& gates, bool sixteen_registers) {
  int blocks = 1;
  const auto whole = [&](int count) { return whole_tiles(count, blocks, sixteen_registers); };
  while (blocks < 12 && !std::all_of(gates.begin(), gates.end(), whole)) ++blocks;
  return blocks;
}

template <class T>
class ProgramCall {
 public:
  ProgramCall(const Program& program, const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights, Tensors vectors,
              Tensors states, const std::optional<Tensor>& lengths, const std::vector<double>& numbers, bool reverse, bool padded,
              std::optional<int64_t> saved_rows, std::optional<int64_t> groups, bool backward)
      : p_(program),
        products_(products(program)),
        inputs_(inputs),
        weights_(weights),
        reverse_(reverse),
        padded_(padded),
        backward_(backward),
        sequences_(batch(lengths)),
        steps_(steps(lengths)),
        schedule_(lengths, steps_, sequences_),
        batch_(schedule_.batch()),
        view_(schedule_.view()),
        plan_(make_plan(work())),
        numbers_(numbers.begin(), numbers.end()) {
    check(vectors, states);
    rows_ = schedule_.rows();
    saved_rows_ = saved_rows.value_or(rows_);
    if (saved_rows_ == -1) saved_rows_ = steps_ * sequences_;
    SSTKERN_CHECK_VALUE(saved_rows_ >= rows_, "saved_rows: expected at least ", rows_, ", the number of valid time steps, got ",
                        saved_rows_);
    for (const Tensor& vector : vectors) {
      vectors_.push_back(vector.to(type()).contiguous());
      vector_data_.push_back(read<T>(vectors_.back()));
    }
    set_states(states);
    given_ = {p_.starts.data(), numbers_.data(), vector_data_.data()};
    functions_ = functions(*p_.library);
    if (groups.has_value()) groups_ = schedule_.rows_of_groups(*groups);
    spans_ = cut_spans(schedule_, groups ? rows_ + 1 : kSpanRows);
    span_ = &spans_[0];
    make_places();
    pack_weights();
  }

  ProgramResult run() {
    const auto memory_for = [&](const Share& share) { return Memory(*this, p_.phases[1], std::max<int64_t>(1, share.count), chunk_); };
    auto memory = thread_memory(plan_, most_positions(plan_, spans_), memory_for);
    make_sums();
    for (int64_t visit = 0; visit < static_cast<int64_t>(spans_.size()); ++visit) {
      span_ = &visited(spans_, visit, reverse_);
      plan_.share_rows(0, span_->schedule);
      over_rows(0);
      run_plan(work(), plan_, memory, memory_for, [&](int64_t, const Share& share, Memory& memory) { Loop(*this, share, memory).run(); });
      over_rows(2);
      add_products(visit > 0);
    }
    add_vectors();
    for (Tensor& output : unused_) output.zero_();
    return {std::move(outputs_), schedule_.cut() ? of_sequences() : std::move(last_), std::move(sums_)};
  }

 private:
  static ScalarType type() { return std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Double; }
  static const Products<T>& products(const Program& program) {
    if constexpr (std::is_same_v<T, float>)
      return program.products->of_float;
    else
      return program.products->of_double;
  }
  static const UnitsFunction<T>* functions(const ProgramLibrary& library) {
    if constexpr (std::is_same_v<T, float>)
      return library.of_float;
    else
      return library.of_double;
  }

  static const Reduction<T>* reductions(const ProgramLibrary& library) {
    if constexpr (std::is_same_v<T, float>)
      return library.reductions_of_float;
    else
      return library.reductions_of_double;
  }

  int64_t batch(const std::optional<Tensor>& lengths) const {
    SSTKERN_CHECK(!inputs_.empty(), "inputs: expected one at least");
    const int64_t dimensions = padded_ ? 3 : 2;
    SSTKERN_CHECK(inputs_[0].dim() == dimensions, "inputs: expected ", dimensions, " dimensions, got shape ", inputs_[0].sizes());
    if (!padded_) check_packed_lengths(lengths, inputs_[0].size(0));
    return padded_ ? inputs_[0].size(1) : lengths->size(0);
  }

  int64_t steps(const std::optional<Tensor>& lengths) const { return padded_ ? inputs_[0].size(0) : longest(*lengths); }

  void check(Tensors vectors, Tensors states) {
    const auto count = [](const char* what, size_t given, int64_t expected) {
      SSTKERN_CHECK(static_cast<int64_t>(given) == expected, "program: expected ", expected, " ", what, ", got ", given);
    };
    count("inputs", inputs_.size(), p_.inputs);
    count("weights", weights_.size(), p_.weights);
    count("vectors", vectors.size(), p_.vectors);
    count("states", states.size(), begins_anew(states) ? 2 * p_.states : p_.states);
    count("numbers", numbers_.size(), p_.numbers);
    for (const Slot& slot : p_.slots) {
      if (slot.kind == SlotKind::input) check_input(slot);
      if (slot.kind == SlotKind::before || slot.kind == SlotKind::after)
        for (size_t place = slot.place; place < states.size(); place += p_.states)
          check_tensor("state", states[place], {sequences_, slot.width}, slot.boolean);
    }
    for (size_t place = 0; place < vectors.size(); ++place)
      SSTKERN_CHECK(vectors[place].numel() >= p_.vector_sizes[place] && vectors[place].is_cpu(), "program: a vector: expected ",
                    p_.vector_sizes[place], " numbers on the CPU, got ", vectors[place].numel(), " on ", vectors[place].device());
    for (const std::vector<ProgramStage>& phase : p_.phases)
      for (const ProgramStage& stage : phase) {
        for (const PlainProduct& plain : stage.plain) check_weight(plain.product);
        for (const UnitsLoop& loop : stage.loops)
          for (const AttachedProduct& attached : loop.attached) check_weight(attached.product);
      }
  }

  static void check_tensor(const char* what, const Tensor& tensor, Ints shape, bool boolean) {
    const ScalarType expected = boolean ? ScalarType::Bool : type();
    SSTKERN_CHECK(tensor.sizes() == shape && tensor.scalar_type() == expected && tensor.is_cpu(), "program: a ", what, ": expected shape ",
                  shape, " and dtype ", expected, " on the CPU, got ", tensor.sizes(), " and ", tensor.scalar_type(), " on ",
                  tensor.device());
  }

  void check_input(const Slot& slot) {
    Tensor& x = inputs_[slot.place];
    if (padded_ && !slot.rows_only)
      check_tensor("input", x, {steps_, sequences_, slot.width}, slot.boolean);
    else
      check_tensor("row input", x, {x.dim() > 0 ? x.size(0) : 0, slot.width}, slot.boolean);
    SSTKERN_CHECK((padded_ && !slot.rows_only) || x.size(0) >= schedule_.rows(), "program: an input has ", x.size(0), " rows of ",
                  schedule_.rows());
    if (x.stride(-1) != 1 && x.size(-1) > 1) x = x.contiguous();
  }

  void check_weight(const ProgramProduct& product) {
    const std::array<int64_t, 2> shape = product.transposed ? std::array<int64_t, 2>{product.depth, product.columns}
                                                            : std::array<int64_t, 2>{product.columns, product.depth};
    check_tensor("weight", weights_[product.weight], shape, false);
  }

  Tensor empty(Ints shape, bool boolean = false) const { return empty_tensor(shape, boolean ? ScalarType::Bool : type()); }
  // Of what whoever calls gets.
  Tensor plain(Ints shape, bool boolean = false) const { return plain_tensor(shape, boolean ? ScalarType::Bool : type()); }
  Tensor zeros(Ints shape, bool boolean = false) const { return plain(shape, boolean).zero_(); }

  // Whether the states that sequences begin anew with are given.
  bool begins_anew(Tensors states) const { return schedule_.cut() && !backward_ && static_cast<int64_t>(states.size()) > p_.states; }
  // The direction that the sequences' pieces have forward.
  bool of_forward() const { return reverse_ != backward_; }

  // States as pieces.h has them, and as a call has them.
  static Tensor with_direction(const Tensor& state) { return state.view({1, state.size(0), state.size(1)}); }
  static Tensor without_direction(const Tensor& state) { return state.view({state.size(1), state.size(2)}); }

  // What sequences, or their pieces, begin with.
  void set_states(Tensors states) {
    for (int64_t place = 0; place < p_.states; ++place) {
      Tensor state = states[place].contiguous();
      if (schedule_.cut()) {
        const Tensor anew = begins_anew(states) ? with_direction(states[p_.states + place].contiguous()) : Tensor();
        state = with_direction(state);
        state =
            backward_ ? last_gradients_of_pieces(schedule_, of_forward(), state) : first_of_pieces(schedule_, of_forward(), state, anew);
        state = without_direction(state);
      }
      states_.push_back(state);
    }
  }

  // What pieces end with, as sequences do; in a backward, the gradients of all that they began with.
  std::vector<Tensor> of_sequences() const {
    std::vector<Tensor> found, anew;
    for (const Tensor& last : last_) {
      const Tensor state = with_direction(last);
      if (!backward_) {
        found.push_back(without_direction(last_of_sequences(schedule_, of_forward(), state)));
        continue;
      }
      const auto [of_given, of_anew] = first_gradients_of_sequences<T>(schedule_, of_forward(), state);
      found.push_back(without_direction(of_given));
      anew.push_back(without_direction(of_anew));
    }
    found.insert(found.end(), anew.begin(), anew.end());
    return found;
  }

  // Memory for every slot, and the results.
  void make_places() {
    outputs_.resize(p_.outputs);
    last_.resize(p_.states);
    std::vector<Tensor> after(p_.states);
    for (const Slot& slot : p_.slots)
      if (slot.kind == SlotKind::after) {
        after[slot.place] = keep(empty({2, batch_, slot.width}, slot.boolean));
        last_[slot.place] =
            schedule_.cut() ? states_[slot.place] : plain({batch_, slot.width}, slot.boolean);  // of pieces: as in forward.cpp
      }
    for (const Slot& slot : p_.slots) {
      const int64_t item = slot.boolean ? 1 : static_cast<int64_t>(sizeof(T));
      Tensor memory;
      Layout layout{true, 0, slot.width};
      if (slot.kind == SlotKind::input) {
        memory = inputs_[slot.place];
        layout = padded_ && !slot.rows_only ? Layout{false, memory.stride(0), memory.stride(1), true}
                                            : Layout{true, 0, memory.stride(0), !slot.rows_only};
      } else if (slot.kind == SlotKind::output) {
        const bool padded = padded_ && !slot.rows_only;
        memory = outputs_[slot.place] = padded ? output(slot) : rows_output(slot);
        layout = padded ? Layout{false, sequences_ * slot.width, slot.width, true} : Layout{true, 0, slot.width, !slot.rows_only};
      } else if (of_all_steps(slot, static_cast<int64_t>(places_.size()))) {
        memory = keep(empty({most_rows(spans_), slot.width}, slot.boolean));
      } else if (slot.kind == SlotKind::step) {
        memory = keep(empty({slot.phase == 1 ? batch_ : 0, slot.width}, slot.boolean));  // of other phases: a thread's own
      } else {
        memory = after[slot.place];
      }
      places_.push_back({static_cast<char*>(memory.mutable_data_ptr()), item, layout});
    }
  }

  // Whether a slot has rows of all time steps: those of a phase have where they are summed for groups of sequences.
  bool of_all_steps(const Slot& slot, int64_t number) const {
    if (slot.kind == SlotKind::rows) return true;
    const auto summed = [&](const RowSum& sum) { return sum.left == number && sum.right.slot < 0; };
    return groups_ && slot.kind == SlotKind::step && std::any_of(p_.sums.begin(), p_.sums.end(), summed);
  }

  Tensor output(const Slot& slot) const {
    const std::array<int64_t, 3> shape{steps_, sequences_, slot.width};
    return schedule_.full() ? plain(shape, slot.boolean) : zeros(shape, slot.boolean);
  }

  Tensor rows_output(const Slot& slot) {
    const int64_t rows = slot.rows_only ? saved_rows_ : rows_;
    Tensor found = slot.rows_only ? empty({rows, slot.width}, slot.boolean) : plain({rows, slot.width}, slot.boolean);
    if (rows > rows_) unused_.push_back(found.narrow(0, rows_, rows - rows_));
    return found;
  }

  Tensor keep(Tensor tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }

  LoopWork work() const {
    int64_t multiply_adds = 0, packed = 0;
    for (const ProgramStage& stage : p_.phases[1]) {
      const auto add = [&](const ProgramProduct& product, bool ahead) {
        packed += product.depth * product.columns;
        if (!ahead) multiply_adds += product.rows * product.depth * product.columns;
      };
      for (const PlainProduct& plain : stage.plain) add(plain.product, false);
      for (const UnitsLoop& loop : stage.loops)
        for (const AttachedProduct& attached : loop.attached) add(attached.product, attached.ahead);
    }
    // A unit's own work is about that of 16 multiply-adds.
    for (const ProgramStage& stage : p_.phases[1])
      for (const UnitsLoop& loop : stage.loops) multiply_adds += 16 * loop.units;
    return {schedule_, 1, view_.steps, multiply_adds, multiply_adds * static_cast<int64_t>(sizeof(T)), packed};
  }

  // --- weights ---

  void pack_weights() {
    int64_t columns = 1;
    plain_.resize(p_.plain);
    loops_.resize(p_.library->count);
    for (size_t phase = 0; phase < p_.phases.size(); ++phase) {
      attached_[phase].resize(p_.attached[phase]);
      for (const ProgramStage& stage : p_.phases[phase]) {
        for (const PlainProduct& plain : stage.plain) plain_[plain.number] = pack(plain.product, threads_of(phase));
        for (const UnitsLoop& loop : stage.loops) {
          plan_loop(loop, phase, blocks_of(p_.phases[phase], loop.units));
          for (const AttachedWork<T>& work : loops_[loop.function].attached)
            columns = std::max(columns, work.packed->gates * work.packed->panels.widest());
        }
      }
    }
    zeros_.resize(columns * products_.width);
  }

  // Threads that share the rows of a phase.
  int64_t threads_of(size_t phase) const { return phase == 1 ? plan_.parts() : 1; }

  void plan_loop(const UnitsLoop& loop, size_t phase, int blocks) {
    const int64_t width = products_.width;
    LoopPlan<T>& plan = loops_[loop.function];
    plan = {products_.unit_panels({1, blocks}, loop.units, threads_of(phase)), {}};
    for (const AttachedProduct& attached : loop.attached) {
      Packed<T>& packed = attached_[phase][attached.number];
      if (!packed.memory.data()) {
        const Tensor& weight = weights_[attached.product.weight];
        packed = {
            pack_units(products_, attached.gates, plan.panels, weight, attached.product.transposed), plan.panels, attached.gates, {}, -1};
        if (attached.bias >= 0) packed.start = pack_bias(attached, plan.panels.vectors, loop.units);
        if (attached.ahead) {
          packed.ahead = chunk_;
          chunk_ += products_.chunk_sums(plan.panels, attached.gates, plan.panels.count);
          ahead_.push_back({&attached.product, &packed});
        }
      }
      plan.attached.push_back({&packed, attached.product.operand, attached.product.depth, attached.gates * width, packed.ahead});
    }
  }

  int blocks_of(const std::vector<ProgramStage>& stages, int64_t units) const {
    std::vector<int> gates;
    for (const ProgramStage& stage : stages)
      for (const UnitsLoop& loop : stage.loops)
        for (const AttachedProduct& attached : loop.attached)
          if (loop.units == units) gates.push_back(attached.gates);
    return gates.empty() ? 4 : common_blocks(gates, products_.tile == 2);
  }

  Packed<T> pack(const ProgramProduct& product, int64_t threads) {
    const Panels panels = products_.plain_panels(product.columns, threads);
    return {pack_plain(products_, panels, weights_[product.weight], !product.transposed), panels, 1, {}, -1};
  }

  // Column c is gate c % gates of vector of units c / gates, as the weights are.
  Numbers<T> pack_bias(const AttachedProduct& attached, int64_t vectors, int64_t units) const {
    const int64_t width = products_.width;
    const Tensor& bias = vectors_[attached.bias];
    SSTKERN_CHECK(bias.numel() == attached.product.columns, "program: a bias of ", bias.numel(), " numbers for ", attached.product.columns,
                  " columns");
    Numbers<T> found(vectors * attached.gates * width);
    T* to = found.data();
    std::fill_n(to, vectors * attached.gates * width, T(0));
    const T* const from = read<T>(bias);
    for (int64_t unit = 0; unit < units; unit += width)
      for (int gate = 0; gate < attached.gates; ++gate, to += width)
        std::copy_n(from + gate * units + unit, std::min(width, units - unit), to);
    return found;
  }

  // --- rows ---

  // The address of a slot's row of position p at time step t, which is visited as number s.
  void* address(size_t slot, int64_t s, int64_t t, int64_t p) const {
    const Place& place = places_[slot];
    const Slot& what = p_.slots[slot];
    switch (what.kind) {
      case SlotKind::input:
      case SlotKind::output:
      case SlotKind::rows:
        return row_address(slot, t, p);
      case SlotKind::step:
        return place.base + place.item * p * what.width;
      case SlotKind::before:
        if (view_.first(t, p, reverse_))
          return static_cast<char*>(states_[what.place].mutable_data_ptr()) + place.item * view_.states_at(t, p) * what.width;
        return place.base + place.item * ((((s + 1) & 1) * batch_ + p) * what.width);
      case SlotKind::after:
        return place.base + place.item * (((s & 1) * batch_ + p) * what.width);
    }
    return nullptr;
  }

  // A thread's own.
  struct Memory {
    Memory(const ProgramCall& call, const std::vector<ProgramStage>& stages, int64_t rows, int64_t chunk)
        : addresses(rows * call.p_.slots.size()), chunk_sums(std::max<int64_t>(1, chunk)), places(kPlaces) {
      int64_t most = std::max(rows, kChunkRows), sums_size = 1, depth = 1;
      for (const ProgramStage& stage : stages) {
        for (const PlainProduct& plain : stage.plain) {
          most = std::max(most, rows * plain.product.rows);
          depth = std::max(depth, plain.product.depth);
        }
        for (const UnitsLoop& loop : stage.loops) {
          int64_t gates = 0;
          for (const AttachedWork<T>& work : call.loops_[loop.function].attached) gates += work.gates;
          sums_size = std::max(sums_size, call.loops_[loop.function].panels.widest() * gates * kBlockRows);
        }
      }
      left.resize(most);
      right.resize(most);
      sums = Numbers<T>(sums_size);
      room = Numbers<T>(std::max<int64_t>(1, call.products_.factor_room(kBlockRows, depth)));
      if constexpr (kGapBytes > 0)
        if (chunk > 0) close_gaps(call);
    }
    // Of a phase before or after the loop over time steps, the rows that it alone has.
    void make_rows(const ProgramCall& call, int phase) {
      for (const Slot& slot : call.p_.slots) {
        rows.push_back(nullptr);
        if (slot.kind != SlotKind::step || slot.phase != phase || call.of_all_steps(slot, rows.size() - 1)) continue;
        kept.emplace_back(kPhaseRows * slot.width * (slot.boolean ? 1 : sizeof(T)));
        rows.back() = kept.back().data();
      }
    }
    void close_gaps(const ProgramCall& call) const {
      for (const auto& [product, packed] : call.ahead_)
        for (int64_t panel = 1; panel <= packed->panels.count; ++panel)
          close_gap(chunk_sums.data() + packed->ahead + call.products_.chunk_sums(packed->panels, packed->gates, panel) - kGap<T>);
    }
    std::vector<void*> addresses;
    std::vector<const T*> left;
    std::vector<T*> right;
    Numbers<T> sums, chunk_sums, room;
    std::vector<Numbers<char>> kept;
    std::vector<char*> rows;  // of each slot, or null
    std::vector<Units<T>> places;
  };

  // Runs stages on `count` rows, whose addresses are in a thread's memory.
  class Runner {
   public:
    Runner(const ProgramCall& call, Memory& memory) : call_(call), m_(memory) {}

    // Runs stage number `first` of these, and those after it that one thread can run on the same rows before it goes on to others. Returns
    // the next one. ahead: the number of the first of these rows in the chunk whose products are made, or -1.
    size_t run(const std::vector<ProgramStage>& stages, size_t first, int64_t count, const Share& share, int64_t ahead) {
      size_t end = first + 1;
      const bool alone = share.parts == 1 && stages[first].of_rows();
      while (alone && end < stages.size() && stages[end].of_rows()) ++end;
      const int64_t together = end == first + 1 ? count : kStageRows;
      for (int64_t row = 0; row < count; row += together)
        for (size_t k = first; k < end; ++k) stage(stages[k], row, std::min(together, count - row), share, ahead);
      return end;
    }

   private:
    void stage(const ProgramStage& stage, int64_t first, int64_t count, const Share& share, int64_t ahead) {
      rows_ = m_.addresses.data() + first * call_.p_.slots.size();
      count_ = count;
      for (const PlainProduct& plain : stage.plain) this->plain(plain, share);
      for (const MovedRow& move : stage.moves) this->move(move, share);
      for (const ReducedRow& reduction : stage.reductions) this->reduce(reduction, share);
      for (const UnitsLoop& loop : stage.loops) this->loop(loop, share, ahead);
    }

    T* at(const SlotStart& where, int64_t row) const {
      return static_cast<T*>(rows_[row * call_.p_.slots.size() + where.slot]) + where.start;
    }

    void plain(const PlainProduct& plain, const Share& share) {
      const ProgramProduct& product = plain.product;
      const Packed<T>& packed = call_.plain_[plain.number];
      const Range mine = my_part(share, packed.panels.count);
      int64_t count = 0;
      for (int64_t row = 0; row < count_; ++row)
        for (int64_t r = 0; r < product.rows; ++r, ++count) {
          m_.left[count] = at(product.operand, row) + r * product.depth;
          m_.right[count] = at(plain.target, row) + r * product.columns;
        }
      call_.products_.plain_product(packed.panels, m_.left.data(), m_.right.data(), count, product.depth, product.columns, mine.begin,
                                    mine.end, packed.memory.data(), false, m_.room.data());
    }

    void move(const MovedRow& move, const Share& share) {
      const bool boolean = call_.p_.slots[move.target.slot].boolean;
      const Range mine = my_part(share, count_);
      for (int64_t row = mine.begin; row < mine.end; ++row) boolean ? move_row<bool, bool>(move, row) : move_row<T, double>(move, row);
    }

    template <class Number>
    static void pick_row(const MovedRow& move, const Number* from, Number* to) {
      for (size_t i = 0; i < move.places.size(); ++i) to[i] = from[move.places[i]];
    }

    template <class Number, class Sum>
    void move_row(const MovedRow& move, int64_t row) {
      void* const* const rows = rows_ + row * call_.p_.slots.size();
      const auto number = [&](int64_t place) {
        size_t source = 0;
        for (; place >= move.widths[source]; ++source) place -= move.widths[source];
        return static_cast<const Number*>(rows[move.sources[source].slot])[move.sources[source].start + place];
      };
      Number* const to = static_cast<Number*>(rows[move.target.slot]) + move.target.start;
      if (move.picked) return pick_row(move, static_cast<const Number*>(rows[move.sources[0].slot]) + move.sources[0].start, to);
      for (size_t i = 0; i + 1 < move.begin.size(); ++i) {
        Sum sum{};
        for (int64_t k = move.begin[i]; k < move.begin[i + 1]; ++k) sum += number(move.places[k]);
        to[i] = static_cast<Number>(sum);
      }
    }

    void reduce(const ReducedRow& reduction, const Share& share) {
      const Reduction<T> function = reductions(*call_.p_.library)[reduction.kind];
      const std::vector<SlotStart>& sources = reduction.sources;
      const Range mine = my_part(share, count_);
      for (int64_t row = mine.begin; row < mine.end; ++row)
        function(at(sources[0], row), sources.size() > 1 ? at(sources[1], row) : nullptr, at(reduction.target, row), reduction.runs,
                 reduction.width, static_cast<double>(reduction.divisor));
    }

    void loop(const UnitsLoop& loop, const Share& share, int64_t ahead) {
      const LoopPlan<T>& plan = call_.loops_[loop.function];
      // The sums of panels of few rows are kept until there are enough vectors to compute side by side.
      const int64_t together = plan.attached.empty() ? plan.panels.count : std::max<int64_t>(1, kBlockRows / std::max<int64_t>(1, count_));
      const Range mine = my_part(share, plan.panels.count);
      for (int64_t panel = mine.begin; panel < mine.end; panel += together) {
        const int64_t last = std::min(mine.end, panel + together);
        for (int64_t first = 0; first < count_; first += kBlockRows)
          block(loop, plan, panel, last, first, std::min(kBlockRows, count_ - first), ahead);
      }
      flush(loop);
    }

    // Some panels of `count` rows from `first` on.
    void block(const UnitsLoop& loop, const LoopPlan<T>& plan, int64_t panel, int64_t end, int64_t first, int64_t count, int64_t ahead) {
      const int64_t width = call_.products_.width, attached = static_cast<int64_t>(plan.attached.size());
      struct Sums {
        const T* panel;       // the next one's,
        int64_t first, rows;  // of so many rows, these from `first` on
        int64_t gap;          // after a panel's
      };
      std::array<Sums, kMostProducts> of{};
      T* sums = m_.sums.data();
      for (int64_t k = 0; k < attached; ++k) {
        const AttachedWork<T>& work = plan.attached[k];
        if (work.ahead >= 0 && ahead >= 0) {
          const int64_t begin = work.ahead + call_.products_.chunk_sums(plan.panels, work.packed->gates, panel);
          of[k] = {m_.chunk_sums.data() + begin, ahead + first, kChunkRows, kGap<T>};
          continue;
        }
        for (int64_t r = 0; r < count; ++r) m_.left[r] = at(work.operand, first + r);
        of[k] = {sums, 0, count, 0};
        for (int64_t i = panel; i < end; ++i) {
          product(*work.packed, work.depth, i, count, sums);
          sums += count * plan.panels.width(i) * work.gates;
        }
      }
      for (; panel < end; ++panel) {
        const int64_t begin = plan.panels.begin(panel), blocks = plan.panels.width(panel);
        for (int64_t b = 0; b < blocks; ++b)
          for (int64_t r = 0; r < count; ++r) {
            Units<T>& place = m_.places[filled_++];
            place.slots = rows_ + (first + r) * call_.p_.slots.size();
            place.unit = (begin + b) * width;
            for (int64_t k = 0; k < attached; ++k) place.sums[k] = of[k].panel + ((of[k].first + r) * blocks + b) * plan.attached[k].gates;
            if (filled_ == kPlaces) flush(loop);
          }
        for (int64_t k = 0; k < attached; ++k) of[k].panel += of[k].rows * blocks * plan.attached[k].gates + of[k].gap;
      }
      if (attached > 0) flush(loop);  // the next sums take these sums' place
    }

    void flush(const UnitsLoop& loop) {
      if (filled_ > 0) call_.functions_[loop.function](call_.given_, m_.places.data(), filled_, loop.units);
      filled_ = 0;
    }

   public:
    // The sums of `count` rows, whose operands are in memory.left, with a panel.
    void product(const Packed<T>& packed, int64_t depth, int64_t panel, int64_t count, T* sums) const {
      const int64_t columns = packed.gates * packed.panels.width(panel), before = packed.gates * packed.panels.begin(panel);
      call_.products_.panel_product(static_cast<int>(columns), sums, count, m_.left.data(), depth,
                                    packed.memory.data() + call_.products_.packed(before, depth),
                                    packed.start.data() ? packed.start.data() + before * call_.products_.width : call_.zeros_.data());
    }

   private:
    const ProgramCall& call_;
    Memory& m_;
    void* const* rows_ = nullptr;  // the addresses of the first of `count_` rows
    int64_t count_ = 0, filled_ = 0;
  };

  // A phase that needs no loop over time steps: all rows, some at a time.
  void over_rows(int phase) {
    const std::vector<ProgramStage>& stages = p_.phases[phase];
    const int64_t rows = span_->schedule.rows(), block = blocks_;
    if (phase == 2) blocks_ += row_blocks(rows);
    if (rows == 0 || (stages.empty() && (phase != 2 || block_sums_.empty()))) return;
    parallel_for(row_blocks(rows), 1, [&](int64_t begin, int64_t end) {
      Memory memory(*this, stages, kPhaseRows, 0);
      memory.make_rows(*this, phase);
      Runner runner(*this, memory);
      for (int64_t first = begin * kPhaseRows; first < std::min(rows, end * kPhaseRows); first += kPhaseRows) {
        const int64_t count = std::min(kPhaseRows, rows - first);
        address_rows(memory, span_->first_row + first, count);
        for (size_t next = 0; next < stages.size();) next = runner.run(stages, next, count, Share{0, count, 0, 1, nullptr, nullptr}, -1);
        if (phase == 2) sum_block(memory, block + first / kPhaseRows, count);
      }
    });
  }

  static int64_t row_blocks(int64_t rows) { return (rows + kPhaseRows - 1) / kPhaseRows; }

  void sum_block(const Memory& memory, int64_t block, int64_t count) {
    std::vector<const T*> rows(count);
    for (auto& [slot, sums] : block_sums_) {
      for (int64_t r = 0; r < count; ++r) rows[r] = static_cast<const T*>(memory.addresses[r * places_.size() + slot]);
      sum_rows(rows, sums.size(1), write<T>(sums) + block * sums.size(1));
    }
  }

  void address_rows(Memory& memory, int64_t first, int64_t count) const {
    int64_t t = std::upper_bound(view_.offset, view_.offset + view_.steps, first) - view_.offset - 1;
    for (int64_t r = 0; r < count; ++r) {
      while (first + r >= view_.offset[t] + view_.active[t]) ++t;
      for (size_t slot = 0; slot < places_.size(); ++slot)
        memory.addresses[r * places_.size() + slot] = memory.rows[slot] ? memory.rows[slot] + r * p_.slots[slot].width * places_[slot].item
                                                                        : row_address(slot, t, first + r - view_.offset[t]);
    }
  }

  // Of what has rows of all time steps.
  void* row_address(size_t slot, int64_t t, int64_t p) const {
    const Slot& what = p_.slots[slot];
    const bool of_call = what.kind == SlotKind::input || what.kind == SlotKind::output;
    if (!of_call && !of_all_steps(what, slot)) return nullptr;
    const int64_t first = of_call ? 0 : span_->first_row * what.width;
    return places_[slot].base + places_[slot].item * (places_[slot].layout.at(view_, t, p) - first);
  }

  // A thread's share of the loop over time steps.
  class Loop {
   public:
    Loop(const ProgramCall& call, const Share& share, Memory& memory)
        : call_(call),
          share_(share),
          begin_(call.reverse_ ? call.view_.steps - call.span_->end : call.span_->begin),
          end_(begin_ + call.span_->end - call.span_->begin),
          m_(memory),
          runner_(call, memory) {}

    void run() {
      int64_t ahead = -1, chunk_end = begin_;
      for (int64_t s = begin_; s < end_; ++s) {
        const int64_t t = time_step(s), active = active_rows(t);
        if (s == chunk_end) {
          chunk_end = make_ahead(s);
          ahead = chunk_end > s + 1 ? 0 : -1;
        }
        address(s, t, active);
        const int64_t parts = share_.parts;
        for (size_t next = 0; next < call_.p_.phases[1].size();) {
          // Who goes on alone lacks what the others had made ahead.
          next = runner_.run(call_.p_.phases[1], next, active, share_, share_.parts == parts ? ahead : -1);
          if (!meet()) return;
        }
        if (ahead >= 0) ahead += active;
        if (share_.parts != parts) chunk_end = s + 1;
        if (call_.schedule_.cut()) end_pieces(s, t, active);
      }
      if (end_ == call_.view_.steps && !call_.schedule_.cut()) finish();
    }

   private:
    int64_t time_step(int64_t s) const { return call_.reverse_ ? call_.view_.steps - 1 - s : s; }
    int64_t active_rows(int64_t t) const { return std::clamp<int64_t>(call_.view_.active[t] - share_.first, 0, share_.count); }

    bool meet() {
      if (!share_.barrier) return true;
      const Meeting meeting = share_.wait(*share_.barrier, share_.part);
      if (meeting == Meeting::alone) share_ = {share_.first, share_.count, 0, 1, nullptr, nullptr};
      return meeting != Meeting::leave;
    }

    void address(int64_t s, int64_t t, int64_t active) {
      const size_t slots = call_.places_.size();
      for (int64_t i = 0; i < active; ++i)
        for (size_t slot = 0; slot < slots; ++slot) m_.addresses[i * slots + slot] = call_.address(slot, s, t, share_.first + i);
    }

    // Makes the products of as many time steps from number `begin` on as have kChunkRows rows, if these are several. Returns where they
    // end.
    int64_t make_ahead(int64_t begin) {
      int64_t end = begin, count = 0;
      do {
        const int64_t active = active_rows(time_step(end));
        if (end > begin && count + active > kChunkRows) break;
        count += active;
      } while (++end < end_);
      if (end == begin + 1) return end;
      for (const auto& [product, packed] : call_.ahead_) make_ahead(*product, *packed, begin, end, count);
      return end;
    }

    void make_ahead(const ProgramProduct& product, const Packed<T>& packed, int64_t begin, int64_t end, int64_t count) {
      int64_t row = 0;
      for (int64_t s = begin; s < end; ++s) {
        const int64_t t = time_step(s), active = active_rows(t);
        for (int64_t i = 0; i < active; ++i, ++row)
          m_.left[row] = static_cast<const T*>(call_.row_address(product.operand.slot, t, share_.first + i)) + product.operand.start;
      }
      T* const sums = m_.chunk_sums.data() + packed.ahead;
      const Range mine = my_part(share_, packed.panels.count);
      for (int64_t panel = mine.begin; panel < mine.end; ++panel)
        runner_.product(packed, product.depth, panel, count, sums + call_.products_.chunk_sums(packed.panels, packed.gates, panel));
    }

    // The last states of the pieces that end with a time step.
    void end_pieces(int64_t s, int64_t t, int64_t active) {
      const Range mine = my_part(share_, active);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        if (!call_.view_.last(t, share_.first + i, call_.reverse_)) continue;
        const int64_t piece = call_.view_.piece_at(t, share_.first + i);
        for (size_t slot = 0; slot < call_.places_.size(); ++slot) {
          const Slot& what = call_.p_.slots[slot];
          if (what.kind != SlotKind::after) continue;
          const int64_t size = call_.places_[slot].item * what.width;
          char* const to = static_cast<char*>(call_.last_[what.place].mutable_data_ptr());
          std::memcpy(to + piece * size, call_.address(slot, s, t, share_.first + i), size);
        }
      }
    }

    // The last states of this thread's positions.
    void finish() {
      const Schedule& schedule = call_.view_;
      const Range mine = my_part(share_, share_.count);
      for (size_t slot = 0; slot < call_.places_.size(); ++slot) {
        const Slot& what = call_.p_.slots[slot];
        if (what.kind != SlotKind::after) continue;
        const int64_t size = call_.places_[slot].item * what.width;
        char* const to = static_cast<char*>(call_.last_[what.place].mutable_data_ptr());
        const char* const from = static_cast<const char*>(call_.states_[what.place].mutable_data_ptr());
        for (int64_t p = share_.first + mine.begin; p < share_.first + mine.end; ++p) {
          const int64_t b = schedule.order[p], length = schedule.length[p];
          const int64_t last = call_.reverse_ ? schedule.steps - 1 : length - 1;
          std::memcpy(to + b * size, length == 0 ? from + b * size : call_.address(slot, last, 0, p), size);
        }
      }
    }

    const ProgramCall& call_;
    Share share_;
    const int64_t begin_, end_;  // the numbers of the span's time steps as they are visited
    Memory& m_;
    Runner runner_;
  };

  // --- sums over rows ---

  static bool is_product(const RowSum& sum) { return sum.right.slot >= 0; }

  // Those of products, to be written, and room for the sums of vectors' gradients over the rows that the phase after the loop takes at
  // once: those of groups are summed later.
  void make_sums() {
    int64_t blocks = 0;
    for (const Span& span : spans_) blocks += row_blocks(span.schedule.rows());
    for (const RowSum& sum : p_.sums) {
      sums_.push_back(is_product(sum) ? of_groups({sum.left_width, sum.right_width}) : Tensor());
      if (!is_product(sum) && !groups_) block_sums_.try_emplace(sum.left, empty({blocks, sum.left_width}));
    }
  }

  // What a span adds to the gradients of weights: all that have the same left rows at once.
  void add_products(bool accumulate) {
    std::vector<bool> done(sums_.size());
    std::vector<std::vector<const T*>> right(sums_.size());
    for (size_t i = 0; i < sums_.size(); ++i) {
      const RowSum& sum = p_.sums[i];
      std::vector<WeightGradient<T>> weights;
      for (size_t k = i; k < sums_.size(); ++k) {
        const RowSum& other = p_.sums[k];
        if (done[k] || !is_product(other) || other.left != sum.left || other.left_width != sum.left_width) continue;
        done[k] = true;
        right[k] = rows_of(other);
        weights.push_back({right[k].data(), other.right_width, write<T>(sums_[k])});
      }
      if (weights.empty()) continue;
      const T* const left = reinterpret_cast<const T*>(places_[sum.left].base);
      if (groups_)
        grouped_weight_gradients(products_, left, sum.left_width, weights, sum.rows == 1 ? *groups_ : parts_of_groups(sum.rows));
      else
        all_weight_gradients(products_, left, span_->schedule.rows() * sum.rows, sum.left_width, weights, accumulate);
    }
  }

  void add_vectors() {
    std::map<int64_t, Tensor> found;  // the biases of two products that are added have the same
    for (size_t i = 0; i < sums_.size(); ++i) {
      const RowSum& sum = p_.sums[i];
      if (is_product(sum)) continue;
      const auto [known, first] = found.try_emplace(sum.left);
      if (first) known->second = vector_sum(sum);
      sums_[i] = first ? known->second : known->second.clone();
    }
  }

  // A sum over rows, or that of each group. Without any row nothing is written to it.
  Tensor of_groups(std::vector<int64_t> shape) const {
    if (groups_) shape.insert(shape.begin(), static_cast<int64_t>(groups_->size()));
    return rows_ ? plain(shape) : zeros(shape);
  }

  // Of each group, what its rows are made of: `parts` rows each.
  Groups parts_of_groups(int64_t parts) const {
    Groups found(groups_->size());
    for (size_t group = 0; group < found.size(); ++group)
      for (const int64_t row : (*groups_)[group])
        for (int64_t part = 0; part < parts; ++part) found[group].push_back(row * parts + part);
    return found;
  }

  std::vector<const T*> rows_of(const RowSum& sum) const {
    std::vector<const T*> found;
    found.reserve(span_->schedule.rows() * sum.rows);
    for (int64_t t = span_->begin; t < span_->end; ++t)
      for (int64_t p = 0; p < view_.active[t]; ++p)
        for (int64_t r = 0; r < sum.rows; ++r)
          found.push_back(static_cast<const T*>(row_address(sum.right.slot, t, p)) + sum.right.start + r * sum.right_width);
    return found;
  }

  Tensor vector_sum(const RowSum& sum) const {
    const int64_t width = sum.left_width;
    Tensor found = of_groups({width}).zero_();
    T* const to = write<T>(found);
    if (groups_) {
      grouped_row_sums(reinterpret_cast<const T*>(places_[sum.left].base), width, *groups_, to);
    } else {
      const T* const from = read<T>(block_sums_.at(sum.left));
      std::vector<const T*> rows;
      for (int64_t block = 0; block < blocks_; ++block) rows.push_back(from + block * width);
      sum_rows(rows, width, to);
    }
    return found;
  }

  const Program& p_;
  const Products<T>& products_;
  std::vector<Tensor> inputs_, weights_;
  const bool reverse_, padded_, backward_;
  const int64_t sequences_, steps_;  // of the call's tensors
  const BatchSchedule schedule_;
  const int64_t batch_;  // sequences, or their pieces
  const Schedule view_;
  Plan plan_;
  std::vector<Span> spans_;
  const Span* span_ = nullptr;  // that is visited
  const std::vector<T> numbers_;
  int64_t rows_ = 0, saved_rows_ = 0;
  std::optional<Groups> groups_;          // rows with sums of their own
  std::map<int64_t, Tensor> block_sums_;  // by slot
  int64_t blocks_ = 0;                    // of these, that are there
  std::vector<Tensor> sums_;
  std::vector<Tensor> vectors_, states_, kept_, outputs_, last_, unused_;
  std::vector<T> zeros_;  // what sums start from
  std::vector<const T*> vector_data_;
  UnitsGiven<T> given_;
  const UnitsFunction<T>* functions_;
  std::vector<Place> places_;
  std::array<std::vector<Packed<T>>, 3> attached_;
  std::vector<Packed<T>> plain_;
  std::vector<LoopPlan<T>> loops_;                                         // by function
  std::vector<std::pair<const ProgramProduct*, const Packed<T>*>> ahead_;  // products made ahead
  int64_t chunk_ = 0;                                                      // numbers of a chunk's sums
};

}  // namespace

ProgramResult run_program(int64_t program, const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& vectors, const std::vector<Tensor>& states, const std::optional<Tensor>& lengths,
                          const std::vector<double>& numbers, bool reverse, bool padded, std::optional<int64_t> saved_rows,
                          std::optional<int64_t> groups, bool backward) {
  const OneThreadIfForked guard;
  const CallThreads threads;
  const std::shared_ptr<const Program> found = find_program(program);
  const auto run = [&](auto type) {
    return ProgramCall<decltype(type)>(*found, inputs, weights, vectors, states, lengths, numbers, reverse, padded, saved_rows, groups,
                                       backward)
        .run();
  };
  ProgramResult result = found->library->of_float ? run(float{}) : run(double{});
  count_run(backward);
  return result;
}

}  // namespace sstkern
