// The time loop, forward and backward, once for every cell.
//
// A thread runs its share of the batch, and where threads share rows its part of the hidden units, through all time steps. At a time step
// the rows share each panel of the weights while it is in the first cache, and the cell's step is taken on the sums while they are there.
#pragma once

#include "factor.h"
#include "kernels.h"
#include "step.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T>
inline int64_t previous(const Recurrence<T>& r, int64_t t) {
  return r.reverse ? t + 1 : t - 1;
}

// How many of the positions first..first+count-1 are inside their sequence at time step t.
template <class T>
inline int64_t active_rows(const Recurrence<T>& r, int64_t t, int64_t first, int64_t count) {
  const int64_t active = r.schedule.active[t] - first;
  return active < 0 ? 0 : active < count ? active : count;
}

// The time step that is visited as number s.
template <class T>
inline int64_t time_step(const Recurrence<T>& r, int64_t s) {
  return r.reverse ? r.schedule.steps - 1 - s : s;
}

template <class T>
inline void copy(T* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Vectors of units in a panel, at most, for panels of about equal width may have fewer.
constexpr int unit_blocks(int gates) {
  int blocks = 1;
  while (!whole_tiles(gates, blocks, SSTKERN_VECTOR_REGISTERS == 16)) ++blocks;
  return blocks;
}

template <class Cell>
constexpr PanelShape kShape{Cell::gates, unit_blocks(Cell::gates)};

// Columns of a panel, at most, and of one of them.
template <class Cell>
constexpr int kColumns = kShape<Cell>.columns();

template <class Cell>
inline int columns_of(const Panels& units, int64_t panel) {
  return Cell::gates * static_cast<int>(units.width(panel));
}

// sums[row][column] = bias + row's product with a panel, for `count` rows of factors.
template <class T, class Cell>
inline void panel_sums(const Forward<T>& f, Vec<T>* sums, int64_t count, const T* const* rows, int64_t depth, const T* packed,
                       const T* bias, int64_t panel) {
  const int columns = columns_of<Cell>(f.units, panel);
  Vec<T> start[kColumns<Cell>];
  for (int c = 0; c < columns; ++c) {
    const int64_t unit = (f.units.begin(panel) + c / Cell::gates) * Simd<T>::width;
    start[c] = bias ? load(bias + c % Cell::gates * f.hidden_size + unit, f.hidden_size - unit) : Vec<T>{};
  }
  f.products->panel_product(columns, reinterpret_cast<T*>(sums), count, rows, depth, packed, reinterpret_cast<const T*>(start));
}

// Returns whether this thread goes on; its share becomes all parts where it does so alone.
inline bool meet(Share& share) {
  if (!share.barrier) return true;
  const Meeting meeting = share.wait(*share.barrier, share.part);
  if (meeting == Meeting::alone) share = {share.first, share.count, 0, 1, nullptr, nullptr};
  return meeting != Meeting::leave;
}

// A weight's packed panel, made now where the call packs none.
template <class T, class Cell>
inline const T* panel_of(const Forward<T>& f, const T* packed, const T* weight, int64_t depth, int64_t panel, T* room) {
  if (packed) return packed + f.products->packed(Cell::gates * f.units.begin(panel), depth);
  f.products->pack_units(Cell::gates, f.units, weight, depth, 1, f.hidden_size, depth, panel, panel + 1, room);
  return room;
}

// Gathers the rows of x for the time steps from number `begin` on: as many steps as have kChunkRows rows, or one. Returns where they end.
template <class T>
inline int64_t gather_chunk(const Forward<T>& f, const Share& share, const ForwardWork<T>& work, int64_t begin, int64_t* count) {
  int64_t end = begin;
  *count = 0;
  do {
    const int64_t t = time_step(f, end), active = active_rows(f, t, share.first, share.count);
    if (end > begin && *count + active > kChunkRows) break;
    for (int64_t i = 0; i < active; ++i, ++*count) {
      const T* const x = f.x + f.x_at.at(f.schedule, t, share.first + i);
      work.chunk_x[*count] = as_factors(x, f.input_size, work.x_room + *count * factors(f.input_size));
    }
  } while (++end < f.schedule.steps);
  return end;
}

// A panel's sums in a chunk's input projection.
template <class T, class Cell>
inline Vec<T>* chunk_sums(const Forward<T>& f, const ForwardWork<T>& work, int64_t panel) {
  return reinterpret_cast<Vec<T>*>(work.chunk_sums + f.products->chunk_sums(f.units, Cell::gates, panel));
}

// The input projection of a chunk's `count` rows.
template <class T, class Cell>
inline void project(const Forward<T>& f, const Share& share, const ForwardWork<T>& work, int64_t count) {
  const Range mine = my_part(share, f.units.count);
  for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
    const T* const packed = panel_of<T, Cell>(f, f.packed_ih, f.weight_ih, f.input_size, panel, work.panels);
    panel_sums<T, Cell>(f, chunk_sums<T, Cell>(f, work, panel), count, work.chunk_x, f.input_size, packed, f.bias_ih, panel);
  }
}

// A vector of units of a row, whose step is taken side by side with others.
template <class T, class Row>
struct Place {
  const Row* row;
  int64_t unit;
  const Vec<T>*from_x, *from_h;  // sums of its gates
};

// Collects kVectors places and runs run(places); the last ones are filled up with the last place, whose results are the same however often
// they are stored.
template <class P, class Run>
class Places {
 public:
  explicit Places(const Run& run) : run_(run) {}
  void add(const P& place) {
    places_[filled_++] = place;
    if (filled_ == kVectors) flush();
  }
  void finish() {
    if (filled_ == 0) return;
    for (int i = filled_; i < kVectors; ++i) places_[i] = places_[filled_ - 1];
    flush();
  }

 private:
  void flush() {
    run_(places_);
    filled_ = 0;
  }
  const Run& run_;
  P places_[kVectors];
  int filled_ = 0;
};

// A vector of a row's units, cut off past the last one unless it is whole.
template <bool Whole, class T>
inline Vec<T> load_units(const T* row, int64_t unit, int64_t hidden_size) {
  return Whole ? load(row + unit) : load(row + unit, hidden_size - unit);
}

// What the member `from` of the places' rows holds from `offset` on, and back.
template <bool Whole, class T, class Row, class Member>
inline Vectors<T> load_vectors(const Place<T, Row>* at, Member Row::* from, int64_t offset, int64_t hidden_size) {
  return each<T>([&](int i) { return load_units<Whole, T>(at[i].row->*from + offset, at[i].unit, hidden_size); });
}

template <bool Whole, class T, class Row>
inline void store_vectors(const Place<T, Row>* at, T* Row::* to, int64_t offset, int64_t hidden_size, const Vectors<T>& values) {
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    T* const unit = at[i].row->*to + offset + at[i].unit;
    Whole ? store(unit, values.part[i]) : store(unit, values.part[i], hidden_size - at[i].unit);
  }
}

template <class T, class Row>
inline bool all_whole(const Place<T, Row>* at, int64_t hidden_size) {
  bool whole = true;
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) whole &= at[i].unit + Simd<T>::width <= hidden_size;
  return whole;
}

// `Size` vectors of H numbers that follow each other in a row, and back.
template <bool Whole, class T, int Size, class Row, class Member>
SSTKERN_INLINE void load_list(List<Vectors<T>, Size>& to, const Place<T, Row>* at, Member Row::* from, int64_t hidden_size) {
#pragma GCC unroll 32
  for (int i = 0; i < Size; ++i) to[i] = load_vectors<Whole, T>(at, from, i * hidden_size, hidden_size);
}

template <bool Whole, class T, int Size, class Row>
SSTKERN_INLINE void store_list(const Place<T, Row>* at, T* Row::* to, int64_t hidden_size, const List<Vectors<T>, Size>& values) {
#pragma GCC unroll 32
  for (int i = 0; i < Size; ++i) store_vectors<Whole, T>(at, to, i * hidden_size, hidden_size, values[i]);
}

template <bool Whole, class T, int Size, class Row>
SSTKERN_INLINE void load_parameters(List<Vectors<T>, Size>& to, const Place<T, Row>* at, const T* const* parameters, int64_t hidden_size) {
#pragma GCC unroll 32
  for (int p = 0; p < Size; ++p) to[p] = each<T>([&](int i) { return load_units<Whole, T>(parameters[p], at[i].unit, hidden_size); });
}

template <bool Whole, class T, class Cell>
inline void forward_step(const Forward<T>& f, const Place<T, ForwardRow<T>>* at) {
  using Row = ForwardRow<T>;
  const int64_t hidden_size = f.hidden_size;
  ForwardGiven<T, Cell> given;
#pragma GCC unroll 32
  for (int g = 0; g < Cell::gates; ++g) {
    given.from_x[g] = each<T>([&](int i) { return at[i].from_x[g]; });
    given.from_h[g] = each<T>([&](int i) { return at[i].from_h[g]; });
  }
  load_list<Whole, T>(given.states, at, &Row::states_previous, hidden_size);
  load_parameters<Whole, T>(given.parameters, at, f.parameters, hidden_size);
  if (Cell::uses_h) given.h = load_vectors<Whole, T>(at, &Row::h_previous, 0, hidden_size);
  ForwardResult<T, Cell> result;
  Cell::forward(given, result);
  store_vectors<Whole, T>(at, f.hidden ? &Row::hidden : &Row::h, 0, hidden_size, result.h);
  store_list<Whole, T>(at, &Row::states, hidden_size, result.states);
  if (f.save_for_backward) store_list<Whole, T>(at, &Row::saved, hidden_size, result.saved);
}

// One time step of `active` rows: the recurrent product, then the cell's step while the sums are in the first cache. `ahead` is the number
// of the first of these rows in the chunk whose input projection is there, or -1: it is then made here, a panel at a time.
template <class T, class Cell>
inline void recur(const Forward<T>& f, const Share& share, const ForwardWork<T>& work, int64_t active, int64_t ahead) {
  using At = Place<T, ForwardRow<T>>;
  const Range mine = my_part(share, f.units.count);
  const auto step = [&f](const At* at) {
    all_whole(at, f.hidden_size) ? forward_step<true, T, Cell>(f, at) : forward_step<false, T, Cell>(f, at);
  };
  Places<At, decltype(step)> places(step);
  Vec<T> x_sums[kBlockRows * kColumns<Cell>], h_sums[kBlockRows * kColumns<Cell>];
  T* const h_room = work.panels + f.products->packed(kColumns<Cell>, f.input_size) + kGap<T>;
  int64_t waiting = 0;  // sums of panels before
  for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
    const int64_t columns = columns_of<Cell>(f.units, panel), first_unit = f.units.begin(panel) * Simd<T>::width;
    const T* const packed_ih = ahead >= 0 ? nullptr : panel_of<T, Cell>(f, f.packed_ih, f.weight_ih, f.input_size, panel, work.panels);
    const T* const packed_hh = panel_of<T, Cell>(f, f.packed_hh, f.weight_hh, f.output_size, panel, h_room);
    for (int64_t first = 0; first < active; first += kBlockRows) {
      const int64_t count = active - first < kBlockRows ? active - first : kBlockRows;
      Vec<T>* const from_h = h_sums + waiting;
      const Vec<T>* from_x = x_sums + waiting;
      if (ahead >= 0)
        from_x = chunk_sums<T, Cell>(f, work, panel) + (ahead + first) * columns;
      else
        panel_sums<T, Cell>(f, x_sums + waiting, count, work.chunk_x + first, f.input_size, packed_ih, f.bias_ih, panel);
      panel_sums<T, Cell>(f, from_h, count, work.h_factors + first, f.output_size, packed_hh, f.bias_hh, panel);
      for (int64_t gate = 0, unit = first_unit; gate < columns; gate += Cell::gates, unit += Simd<T>::width)
        for (int64_t r = 0; r < count; ++r) {
          const int64_t at = r * columns + gate;
          places.add({work.rows + first + r, unit, from_x + at, from_h + at});
        }
      // The next sums take these sums' place, unless so few rows leave places to be filled by another panel's.
      waiting += count * columns;
      if (active < kVectors && waiting < kVectors * Cell::gates) continue;
      places.finish();
      waiting = 0;
    }
  }
  places.finish();
}

// The addresses of `active` rows at time step t.
template <class T, class Cell>
inline void address(const Forward<T>& f, const Share& share, const ForwardWork<T>& work, int64_t t, int64_t active) {
  const Schedule& schedule = f.schedule;
  const int64_t states = Cell::states * f.hidden_size;
  for (int64_t i = 0; i < active; ++i) {
    const int64_t p = share.first + i, b = schedule.states_at(t, p), kept = f.save_for_backward ? schedule.offset[t] + p : p;
    const bool first = schedule.first(t, p, f.reverse);
    const int64_t before = f.save_for_backward && !first ? schedule.offset[previous(f, t)] + p : p;
    ForwardRow<T>& row = work.rows[i];
    row.h_previous = first ? f.h0 + b * f.output_size : f.output + f.output_at.at(schedule, previous(f, t), p);
    row.states_previous = first ? f.states0 + b * states : f.states + before * states;
    row.saved = f.save_for_backward ? f.saved + kept * Cell::saves * f.hidden_size : nullptr;
    row.states = f.states + kept * states;
    row.hidden = f.hidden ? f.hidden + kept * f.hidden_size : nullptr;
    row.h = f.output + f.output_at.at(schedule, t, p);
    work.h_factors[i] = as_factors(row.h_previous, f.output_size, work.h_room + i * factors(f.output_size));
  }
}

// The part of `size` numbers in panels that falls to this thread.
template <class T>
inline Range my_numbers(const Share& share, const Panels& panels, int64_t size) {
  const Range mine = my_part(share, panels.count);
  const int64_t end = panels.begin(mine.end) * Simd<T>::width;
  return {panels.begin(mine.begin) * Simd<T>::width, end < size ? end : size};
}

// The last states of the pieces that end with time step t: of the units that this thread goes on with.
template <class T, class Cell>
inline void end_pieces(const Forward<T>& f, const Share& share, const ForwardWork<T>& work, int64_t t, int64_t active) {
  const Range outputs = my_numbers<T>(share, f.outputs, f.output_size), units = my_numbers<T>(share, f.units, f.hidden_size);
  for (int64_t i = 0; i < active; ++i) {
    const int64_t p = share.first + i;
    if (!f.schedule.last(t, p, f.reverse)) continue;
    const ForwardRow<T>& row = work.rows[i];
    const int64_t piece = f.schedule.piece_at(t, p);
    copy(f.h_n + piece * f.output_size + outputs.begin, row.h + outputs.begin, outputs.end - outputs.begin);
    for (int64_t state = 0; state < Cell::states; ++state) {
      T* const to = f.states_n + (piece * Cell::states + state) * f.hidden_size;
      copy(to + units.begin, row.states + state * f.hidden_size + units.begin, units.end - units.begin);
    }
  }
}

// The last states of this thread's positions, and zeros in their padding.
template <class T, class Cell>
inline void finish(const Forward<T>& f, const Share& share) {
  const Schedule& schedule = f.schedule;
  const int64_t states = Cell::states * f.hidden_size;
  const Range mine = my_part(share, share.count);
  for (int64_t p = share.first + mine.begin; p < share.first + mine.end; ++p) {
    const int64_t b = schedule.order[p], length = schedule.length[p], last = f.reverse ? 0 : length - 1;
    const bool empty = length == 0;
    copy(f.h_n + b * f.output_size, empty ? f.h0 + b * f.output_size : f.output + f.output_at.at(schedule, last, p), f.output_size);
    const int64_t kept = empty || !f.save_for_backward ? p : schedule.offset[last] + p;
    copy(f.states_n + b * states, empty ? f.states0 + b * states : f.states + kept * states, states);
    for (int64_t t = length; t < schedule.steps && !f.output_at.packed; ++t) {
      T* padding = f.output + f.output_at.at(schedule, t, p);
      for (int64_t i = 0; i < f.output_size; ++i) padding[i] = 0;
    }
  }
}

// The product of a member of `count` rows with a packed matrix, to another member.
template <class T, class Row, class From, class Work>
inline void multiply_rows(const Recurrence<T>& r, const Work& work, From Row::* from, T* Row::* to, int64_t count, int64_t depth,
                          int64_t columns, const Panels& panels, const Range& mine, const T* packed, bool accumulate, T* room) {
  for (int64_t i = 0; i < count; ++i) {
    work.left[i] = work.rows[i].*from;
    work.right[i] = work.rows[i].*to;
  }
  r.products->plain_product(panels, work.left, work.right, count, depth, columns, mine.begin, mine.end, packed, accumulate, room);
}

template <class T, class Cell>
void forward(const Forward<T>& f, const Share& given, const ForwardWork<T>& work) {
  using Row = ForwardRow<T>;
  Share share = given;
  int64_t ahead = -1;
  for (int64_t s = 0, chunk_end = 0; s < f.schedule.steps; ++s) {
    const int64_t t = time_step(f, s), active = active_rows(f, t, share.first, share.count);
    if (s == chunk_end) {
      int64_t rows;
      chunk_end = gather_chunk(f, share, work, s, &rows);
      ahead = chunk_end > s + 1 ? 0 : -1;
      if (ahead == 0) project<T, Cell>(f, share, work, rows);
    }
    address<T, Cell>(f, share, work, t, active);
    if (active > 0) recur<T, Cell>(f, share, work, active, ahead);
    if (ahead >= 0) ahead += active;
    const int64_t parts = share.parts;
    if (!meet(share)) return;
    if (f.hidden) {
      multiply_rows(f, work, &Row::hidden, &Row::h, active, f.hidden_size, f.output_size, f.outputs, my_part(share, f.outputs.count),
                    f.weight_hr, false, work.hidden_room);
      if (!meet(share)) return;
    }
    if (share.parts != parts) chunk_end = s + 1;  // the others' part of the input projection is theirs
    if (f.schedule.piece) end_pieces<T, Cell>(f, share, work, t, active);
  }
  if (!f.schedule.piece) finish<T, Cell>(f, share);
}

template <bool Whole, class T, class Cell>
inline void backward_step(const Backward<T>& f, const Place<T, BackwardRow<T>>* at) {
  using Row = BackwardRow<T>;
  const int64_t hidden_size = f.hidden_size;
  BackwardGiven<T, Cell> given;
  load_list<Whole, T>(given.saved, at, &Row::saved, hidden_size);
  load_list<Whole, T>(given.states_before, at, &Row::states_previous, hidden_size);
  load_list<Whole, T>(given.states, at, &Row::states, hidden_size);
  load_list<Whole, T>(given.dstates, at, &Row::dstates, hidden_size);
  if (Cell::states > 0 && f.grad_states) {
#pragma GCC unroll 32
    for (int i = 0; i < Cell::states; ++i)
      given.dstates[i] = given.dstates[i] + load_vectors<Whole, T>(at, &Row::grad_states, i * hidden_size, hidden_size);
  }
  load_parameters<Whole, T>(given.parameters, at, f.parameters, hidden_size);
  if (Cell::uses_new_h) given.h = load_vectors<Whole, T>(at, &Row::h, 0, hidden_size);
  if (Cell::uses_h) given.h_before = load_vectors<Whole, T>(at, &Row::h_previous, 0, hidden_size);
  given.dh = load_vectors<Whole, T>(at, f.dhidden ? &Row::dhidden : &Row::dh, 0, hidden_size);
  if (!f.dhidden && f.grad_output) given.dh = given.dh + load_vectors<Whole, T>(at, &Row::grad_output, 0, hidden_size);
  BackwardResult<T, Cell> result;
  Cell::backward(given, result);
  store_list<Whole, T>(at, &Row::dgates_x, hidden_size, result.dgates_x);
  if (!Cell::same_gate_gradients) store_list<Whole, T>(at, &Row::dgates_h, hidden_size, result.dgates_h);
  store_list<Whole, T>(at, &Row::dparameters, hidden_size, result.dparameters);
  store_list<Whole, T>(at, &Row::dstates, hidden_size, result.dstates);
  if (Cell::uses_h) store_vectors<Whole, T>(at, &Row::dh, 0, hidden_size, result.dh);
}

// The addresses of `active` rows at time step t.
template <class T, class Cell>
inline void address(const Backward<T>& f, const Share& share, const BackwardWork<T>& work, int64_t t, int64_t active) {
  const Schedule& schedule = f.schedule;
  const int64_t hidden_size = f.hidden_size, gates = Cell::gates * hidden_size, states = Cell::states * hidden_size;
  for (int64_t i = 0; i < active; ++i) {
    const int64_t p = share.first + i, b = schedule.states_at(t, p), at = schedule.offset[t] + p;
    BackwardRow<T>& row = work.rows[i];
    const bool first = schedule.first(t, p, f.reverse);
    row.h_previous = first ? f.h0 + b * f.output_size : f.output + f.output_at.at(schedule, previous(f, t), p);
    row.states_previous = first ? f.states0 + b * states : f.states + (schedule.offset[previous(f, t)] + p) * states;
    row.saved = f.saved + at * Cell::saves * hidden_size;
    row.states = f.states + at * states;
    row.h = f.hidden ? f.hidden + at * hidden_size : f.output + f.output_at.at(schedule, t, p);
    row.grad_output = f.grad_output ? f.grad_output + f.grad_output_at.at(schedule, t, p) : nullptr;
    row.grad_states = f.grad_states ? f.grad_states + at * states : nullptr;
    row.dgates_x = f.dgates_x + at * gates;
    row.dgates_h = f.dgates_h + at * gates;
    row.dparameters = f.dparameters + at * Cell::parameters * hidden_size;
    row.dh_total = f.dh_total ? f.dh_total + at * f.output_size : nullptr;
    row.dhidden = f.dhidden ? f.dhidden + p * hidden_size : nullptr;
    row.dh = f.dh + b * f.output_size;
    row.dstates = f.dstates + b * states;
  }
}

template <class T, class Cell>
void backward(const Backward<T>& f, const Share& given, const BackwardWork<T>& work) {
  using Row = BackwardRow<T>;
  using At = Place<T, Row>;
  const int64_t hidden_size = f.hidden_size, output_size = f.output_size;
  Share share = given;
  const auto step = [&f](const At* at) {
    all_whole(at, f.hidden_size) ? backward_step<true, T, Cell>(f, at) : backward_step<false, T, Cell>(f, at);
  };
  for (int64_t s = f.schedule.steps - 1; s >= 0; --s) {
    const int64_t t = time_step(f, s), active = active_rows(f, t, share.first, share.count);
    address<T, Cell>(f, share, work, t, active);
    if (f.dhidden) {
      const Range columns = my_numbers<T>(share, f.outputs, output_size);
      for (int64_t i = 0; i < active; ++i) {
        const Row& row = work.rows[i];
        for (int64_t k = columns.begin; k < columns.end; ++k) row.dh_total[k] = row.dh[k] + (row.grad_output ? row.grad_output[k] : T(0));
      }
      if (!meet(share)) return;
      multiply_rows(f, work, &Row::dh_total, &Row::dhidden, active, output_size, hidden_size, f.units, my_part(share, f.units.count),
                    f.weight_hr, false, work.room);
    }
    // A thread's units are the columns of dh that it makes: they need no meeting from one time step to the next.
    const Range units = my_numbers<T>(share, f.units, hidden_size);
    // Vectors that are cut off come last: a step takes its masks for all of its places.
    const int64_t cut = hidden_size / Simd<T>::width * Simd<T>::width, whole_end = units.end < cut ? units.end : cut;
    Places<At, decltype(step)> places(step);
    for (int64_t i = 0; i < active; ++i)
      for (int64_t unit = units.begin; unit < whole_end; unit += Simd<T>::width) places.add({work.rows + i, unit, nullptr, nullptr});
    for (int64_t i = 0; i < active && whole_end < units.end; ++i) places.add({work.rows + i, cut, nullptr, nullptr});
    places.finish();
    if (s == 0 && !f.needs_dh0) return;
    if (!meet(share)) return;
    multiply_rows(f, work, &Row::dgates_h, &Row::dh, active, Cell::gates * hidden_size, output_size, f.outputs,
                  my_part(share, f.outputs.count), f.weight_hh, Cell::uses_h, work.room);
  }
}

template <class T, class Cell>
constexpr Kernels<T> kernels_of() {
  return {kShape<Cell>,     Cell::states,     Cell::parameters, Cell::saves, Cell::same_gate_gradients,
          !Cell::uses_h,  // a projection: the step would read unit u of an h that has output_size units
          forward<T, Cell>, backward<T, Cell>};
}

// For SSTKERN_CELLS: the kernels of a cell, under the name that operators know it by.
template <template <class> class Cell>
constexpr CellKernels cell_kernels(const char* name) {
#ifdef SSTKERN_BFLOAT16
  return {name, SSTKERN_STRING(SSTKERN_LEVEL), kernels_of<float, Cell<float>>(), {}};
#else
  return {name, SSTKERN_STRING(SSTKERN_LEVEL), kernels_of<float, Cell<float>>(), kernels_of<double, Cell<double>>()};
#endif
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern

// What a cell's header ends with: levels/end.h registers them.
#define SSTKERN_CELLS(...) constexpr CellKernels cells[] = {__VA_ARGS__}
