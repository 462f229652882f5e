// The time loop, forward and backward, once for every cell.
//
// A thread runs its share of the batch, and where threads share rows its part of the hidden units, through all time steps. At a time step
// the rows share each panel of the weights while it is in the first cache, and the cell's step is taken on the sums while they are there.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "gemm.h"
#include "gradient.h"
#include "kernels.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T>
inline bool first_step(const Recurrence<T>& r, int64_t t, int64_t p) {
  return r.reverse ? t == r.schedule.length[p] - 1 : t == 0;
}

template <class T>
inline int64_t previous(const Recurrence<T>& r, int64_t t) {
  return r.reverse ? t + 1 : t - 1;
}

template <class T>
inline const T* previous_h(const Recurrence<T>& r, const T* output, int64_t t, int64_t p) {
  const int64_t b = r.schedule.order[p];
  return first_step(r, t, p) ? r.h0 + b * r.output_size : output + previous(r, t) * r.output_step + b * r.output_row;
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

template <class T, class Step>
struct Panels {
  static constexpr int columns = Step::gates * Step::unit_blocks;
  static constexpr int tile = tile_columns(columns);
  static constexpr int units = Step::unit_blocks * Simd<T>::width;
  static constexpr int size = columns * Simd<T>::width;  // of one k
  static_assert(columns % tile == 0, "a panel is whole tiles");
};

template <class T, class Step>
inline int64_t unit_panels(int64_t hidden_size) {
  return (hidden_size + Panels<T, Step>::units - 1) / Panels<T, Step>::units;
}

template <class T, class Step>
inline int64_t packed_panel(int64_t depth) {
  return Panels<T, Step>::size * factors(depth);
}

template <class T, class Step>
inline int64_t unit_sums(int64_t hidden_size, int64_t rows) {
  return unit_panels<T, Step>(hidden_size) * Panels<T, Step>::size * rows;
}

// Packs panels begin..end-1 of a weight (gates * H, depth), each [tile][factors of the depth][column of the tile][width]; units past H are
// zero. Column c of a panel is gate c % gates of its block of units c / gates.
template <class T, class Step>
inline void pack_units(const T* weight, int64_t hidden_size, int64_t depth, int64_t begin, int64_t end, T* packed) {
  using Panel = Panels<T, Step>;
  constexpr int width = Simd<T>::width;
  for (int64_t panel = begin; panel < end; ++panel)
    for (int c = 0; c < Panel::columns; ++c) {
      const int64_t unit = panel * Panel::units + c / Step::gates * width;
      T* const to = packed + (panel - begin) * packed_panel<T, Step>(depth) +
                    (c / Panel::tile * Panel::tile * factors(depth) + c % Panel::tile) * width;
      pack_column<T, Panel::tile>(weight + (c % Step::gates * hidden_size + unit) * depth, depth, hidden_size - unit, 1, depth, to);
    }
}

// sums[row][column] = bias + row's product with a panel, for `count` rows of factors.
template <class T, class Step, class Row>
inline void panel_sums(Vec<T>* sums, int64_t count, const Row& row, int64_t depth, const T* packed, const T* bias, int64_t hidden_size,
                       int64_t panel) {
  using Panel = Panels<T, Step>;
  constexpr int width = Simd<T>::width;
  Vec<T> start[Panel::columns];
  for (int c = 0; c < Panel::columns; ++c) {
    const int64_t unit = panel * Panel::units + c / Step::gates * width;
    start[c] = bias && unit < hidden_size ? load(bias + c % Step::gates * hidden_size + unit, hidden_size - unit) : Vec<T>{};
  }
  for (int c = 0; c < Panel::columns; c += Panel::tile)
    product<T, Panel::tile>(sums + c, Panel::columns, count, row, factors(depth), packed + c * width * factors(depth), start + c);
}

// The part of `count` panels that falls to this thread.
struct Range {
  int64_t begin, end;
};

inline Range my_part(const Share& share, int64_t count) {
  return {count * share.part / share.parts, count * (share.part + 1) / share.parts};
}

inline void meet(const Share& share) {
  if (share.barrier) wait(*share.barrier);
}

// A weight's packed panel, made now where the call packs none.
template <class T, class Step>
inline const T* panel_of(const T* packed, const T* weight, int64_t hidden_size, int64_t depth, int64_t panel, T* room) {
  if (packed) return packed + panel * packed_panel<T, Step>(depth);
  pack_units<T, Step>(weight, hidden_size, depth, panel, panel + 1, room);
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
      const T* const x = f.x + t * f.x_step + f.schedule.order[share.first + i] * f.x_row;
      work.chunk_x[*count] = as_factors(x, f.input_size, work.x_room + *count * factors(f.input_size));
    }
  } while (++end < f.schedule.steps);
  return end;
}

// The room that a chunk's input projection has for a panel, in vectors.
template <class T, class Step>
constexpr int64_t kChunkPanel = kChunkRows * Panels<T, Step>::columns;

// The input projection of a chunk's `count` rows.
template <class T, class Step>
inline void project(const Forward<T>& f, const Share& share, const ForwardWork<T>& work, int64_t count) {
  const Range mine = my_part(share, unit_panels<T, Step>(f.hidden_size));
  const auto row = [&work](int64_t r) { return work.chunk_x[r]; };
  for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
    const T* const packed = panel_of<T, Step>(f.packed_ih, f.weight_ih, f.hidden_size, f.input_size, panel, work.panels);
    Vec<T>* const sums = reinterpret_cast<Vec<T>*>(work.chunk_sums) + panel * kChunkPanel<T, Step>;
    panel_sums<T, Step>(sums, count, row, f.input_size, packed, f.bias_ih, f.hidden_size, panel);
  }
}

// A vector of units of a row, whose step is taken in a group with others.
template <class T, class Row>
struct Place {
  const Row* row;
  int64_t unit;
  const Vec<T>*from_x, *from_h;  // sums of its gates
};

// Gathers places to groups of kGroup and runs run(places) for each; the last one is filled up with its own last place, whose results are
// the same however often they are stored.
template <class P, class Run>
class Groups {
 public:
  explicit Groups(const Run& run) : run_(run) {}
  void add(const P& place) {
    places_[filled_++] = place;
    if (filled_ == kGroup) flush();
  }
  void finish() {
    if (filled_ == 0) return;
    for (int i = filled_; i < kGroup; ++i) places_[i] = places_[filled_ - 1];
    flush();
  }

 private:
  void flush() {
    run_(places_);
    filled_ = 0;
  }
  const Run& run_;
  P places_[kGroup];
  int filled_ = 0;
};

// What the member `from` of the places' rows holds from `offset` on, and back. A vector past the last unit is cut off, unless all are
// whole.
template <bool Whole, class T, class Row, class Member>
inline Group<T> load_group(const Place<T, Row>* at, Member Row::* from, int64_t offset, int64_t hidden_size) {
  return each<T>([&](int i) { return load<T>(at[i].row->*from + offset + at[i].unit, Whole ? Simd<T>::width : hidden_size - at[i].unit); });
}

template <bool Whole, class T, class Row>
inline void store_group(const Place<T, Row>* at, T* Row::* to, int64_t offset, int64_t hidden_size, const Group<T>& values) {
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i)
    store(at[i].row->*to + offset + at[i].unit, values.part[i], Whole ? Simd<T>::width : hidden_size - at[i].unit);
}

template <class T, class Row>
inline bool all_whole(const Place<T, Row>* at, int64_t hidden_size) {
  bool whole = true;
#pragma GCC unroll 8
  for (int i = 0; i < kGroup; ++i) whole &= at[i].unit + Simd<T>::width <= hidden_size;
  return whole;
}

template <bool Whole, class T, class Step>
inline void forward_step(const Forward<T>& f, const Place<T, ForwardRow<T>>* at) {
  const int64_t hidden_size = f.hidden_size;
  Group<T> gate[Step::gates], from_h[Step::gates], state[1]{}, extra[1]{}, h_previous{};
  static_assert(Step::states <= 1 && Step::extras <= 1, "the arrays above hold one of each");
  using Row = ForwardRow<T>;
  const auto get = [&](auto from, int64_t offset) { return load_group<Whole, T>(at, from, offset, hidden_size); };
  const auto put = [&](T* Row::* to, int64_t offset, const Group<T>& values) {
    store_group<Whole, T>(at, to, offset, hidden_size, values);
  };
#pragma GCC unroll 8
  for (int g = 0; g < Step::gates; ++g) {
    gate[g] = each<T>([&](int i) { return at[i].from_x[g]; });
    from_h[g] = each<T>([&](int i) { return at[i].from_h[g]; });
  }
  if (Step::states) state[0] = get(&Row::states_previous, 0);
  if (Step::uses_h) h_previous = get(&Row::h_previous, 0);
  const Group<T> h = Step::forward(gate, from_h, h_previous, state, extra);
  put(f.hidden ? &Row::hidden : &Row::h, 0, h);
  if (Step::states) put(&Row::extras, 0, state[0]);
  if (!f.save_for_backward) return;
#pragma GCC unroll 8
  for (int g = 0; g < Step::gates; ++g) put(&Row::gates, g * hidden_size, gate[g]);
  if (Step::extras) put(&Row::extras, Step::states * hidden_size, extra[0]);
}

// One time step of `active` rows: the recurrent product, then the cell's step while the sums are in the first cache. `ahead` is the input
// projection of these rows, or null: it is then made here, a panel at a time.
template <class T, class Step>
inline void recur(const Forward<T>& f, const Share& share, const ForwardWork<T>& work, int64_t active, const Vec<T>* ahead) {
  using Panel = Panels<T, Step>;
  using At = Place<T, ForwardRow<T>>;
  const Range mine = my_part(share, unit_panels<T, Step>(f.hidden_size));
  const auto step = [&f](const At* at) {
    all_whole(at, f.hidden_size) ? forward_step<true, T, Step>(f, at) : forward_step<false, T, Step>(f, at);
  };
  Groups<At, decltype(step)> groups(step);
  Vec<T> x_sums[kBlockRows * Panel::columns], h_sums[kBlockRows * Panel::columns];
  int64_t waiting = 0;  // rows whose sums are there, of panels before
  for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
    const T* const packed_ih =
        ahead ? nullptr : panel_of<T, Step>(f.packed_ih, f.weight_ih, f.hidden_size, f.input_size, panel, work.panels);
    const T* const packed_hh =
        panel_of<T, Step>(f.packed_hh, f.weight_hh, f.hidden_size, f.output_size, panel, work.panels + packed_panel<T, Step>(f.input_size));
    for (int64_t first = 0; first < active; first += kBlockRows) {
      const int64_t count = active - first < kBlockRows ? active - first : kBlockRows;
      Vec<T>* const from_h = h_sums + waiting * Panel::columns;
      const Vec<T>* from_x = x_sums + waiting * Panel::columns;
      if (ahead) {
        from_x = ahead + panel * kChunkPanel<T, Step> + first * Panel::columns;
      } else {
        const auto x_row = [&](int64_t r) { return work.chunk_x[first + r]; };
        panel_sums<T, Step>(x_sums + waiting * Panel::columns, count, x_row, f.input_size, packed_ih, f.bias_ih, f.hidden_size, panel);
      }
      const auto h_row = [&](int64_t r) { return work.rows[first + r].h_factors; };
      panel_sums<T, Step>(from_h, count, h_row, f.output_size, packed_hh, f.bias_hh, f.hidden_size, panel);
      for (int block = 0; block < Step::unit_blocks; ++block) {
        const int64_t unit = panel * Panel::units + block * Simd<T>::width;
        if (unit >= f.hidden_size) break;
        for (int64_t r = 0; r < count; ++r) {
          const int64_t at = r * Panel::columns + block * Step::gates;
          groups.add({work.rows + first + r, unit, from_x + at, from_h + at});
        }
      }
      // The next sums take these sums' place, unless so few rows leave a group waiting for another panel's.
      waiting += count;
      if (active < kGroup && waiting * Step::unit_blocks < kGroup) continue;
      groups.finish();
      waiting = 0;
    }
  }
  groups.finish();
}

template <class T, class Step>
inline void forward(const Forward<T>& f, const Share& share, const ForwardWork<T>& work) {
  const Schedule& schedule = f.schedule;
  const int64_t hidden_size = f.hidden_size, output_size = f.output_size, gates = Step::gates * hidden_size,
                states = Step::states * hidden_size, extras = (Step::states + Step::extras) * hidden_size, first = share.first;
  const Vec<T>* ahead = nullptr;
  for (int64_t s = 0, chunk_end = 0; s < schedule.steps; ++s) {
    const int64_t t = time_step(f, s), active = active_rows(f, t, first, share.count);
    if (s == chunk_end) {
      int64_t rows;
      chunk_end = gather_chunk(f, share, work, s, &rows);
      ahead = chunk_end > s + 1 ? reinterpret_cast<const Vec<T>*>(work.chunk_sums) : nullptr;
      if (ahead) project<T, Step>(f, share, work, rows);
    }
    for (int64_t i = 0; i < active; ++i) {
      const int64_t p = first + i, b = schedule.order[p], kept = f.save_for_backward ? schedule.offset[t] + p : p;
      const int64_t before = f.save_for_backward && !first_step(f, t, p) ? schedule.offset[previous(f, t)] + p : p;
      ForwardRow<T>& row = work.rows[i];
      row.h_previous = previous_h(f, f.output, t, p);
      row.h_factors = as_factors(row.h_previous, output_size, work.h_room + i * factors(output_size));
      row.states_previous = first_step(f, t, p) ? f.states0 + b * states : f.extras + before * extras;
      row.gates = f.gates ? f.gates + (schedule.offset[t] + p) * gates : nullptr;
      row.extras = f.extras + kept * extras;
      row.hidden = f.hidden ? f.hidden + kept * hidden_size : nullptr;
      row.h = f.output + t * f.output_step + b * f.output_row;
    }
    if (active > 0) recur<T, Step>(f, share, work, active, ahead);
    if (ahead) ahead += active * Panels<T, Step>::columns;
    meet(share);
    if (!f.hidden) continue;
    const Range columns = my_part(share, plain_panels<T>(output_size));
    plain_product<T>([&work](int64_t i) { return work.rows[i].hidden; }, [&work](int64_t i) { return work.rows[i].h; }, active, hidden_size,
                     output_size, columns.begin, columns.end, f.weight_hr, false, work.hidden_room);
    meet(share);
  }
  const Range mine = my_part(share, share.count);
  for (int64_t p = first + mine.begin; p < first + mine.end; ++p) {
    const int64_t b = schedule.order[p], length = schedule.length[p], last = f.reverse ? 0 : length - 1;
    const bool empty = length == 0;
    copy(f.h_n + b * output_size, empty ? f.h0 + b * output_size : f.output + last * f.output_step + b * f.output_row, output_size);
    const int64_t kept = empty || !f.save_for_backward ? p : schedule.offset[last] + p;
    copy(f.states_n + b * states, empty ? f.states0 + b * states : f.extras + kept * extras, states);
    for (int64_t t = length; t < schedule.steps; ++t) {
      T* padding = f.output + t * f.output_step + b * f.output_row;
      for (int64_t i = 0; i < output_size; ++i) padding[i] = 0;
    }
  }
}

template <bool Whole, class T, class Step>
inline void backward_step(const Backward<T>& f, const Place<T, BackwardRow<T>>* at) {
  const int64_t hidden_size = f.hidden_size;
  Group<T> gate[Step::gates], dgate_x[Step::gates], dgate_h[Step::gates];
  Group<T> extra[1]{}, before[1]{}, state[1]{}, dstate[1]{}, h_previous{};
  static_assert(Step::states <= 1 && Step::extras <= 1, "the arrays above hold one of each");
  using Row = BackwardRow<T>;
  const auto get = [&](auto from, int64_t offset) { return load_group<Whole, T>(at, from, offset, hidden_size); };
  const auto put = [&](T* Row::* to, int64_t offset, const Group<T>& values) {
    store_group<Whole, T>(at, to, offset, hidden_size, values);
  };
#pragma GCC unroll 8
  for (int g = 0; g < Step::gates; ++g) gate[g] = get(&Row::gates, g * hidden_size);
  if (Step::extras) extra[0] = get(&Row::extras, Step::states * hidden_size);
  if (Step::states) {
    before[0] = get(&Row::states_previous, 0);
    state[0] = get(&Row::extras, 0);
    dstate[0] = get(&Row::dstates, 0);
  }
  if (Step::uses_h) h_previous = get(&Row::h_previous, 0);
  Group<T> dh = get(f.dhidden ? &Row::dhidden : &Row::dh, 0);
  if (!f.dhidden && f.grad_output) dh = dh + get(&Row::grad_output, 0);
  const Group<T> direct = Step::backward(gate, extra, h_previous, before, state, dh, dstate, dgate_x, dgate_h);
#pragma GCC unroll 8
  for (int g = 0; g < Step::gates; ++g) {
    put(&Row::dgates_x, g * hidden_size, dgate_x[g]);
    if (!Step::same_gate_gradients) put(&Row::dgates_h, g * hidden_size, dgate_h[g]);
  }
  if (Step::states) put(&Row::dstates, 0, dstate[0]);
  if (Step::uses_h) put(&Row::dh, 0, direct);
}

template <class T, class Step>
inline void backward(const Backward<T>& f, const Share& share, BackwardRow<T>* rows, T* room) {
  using At = Place<T, BackwardRow<T>>;
  const Schedule& schedule = f.schedule;
  const int64_t hidden_size = f.hidden_size, output_size = f.output_size, gates = Step::gates * hidden_size,
                states = Step::states * hidden_size, extras = (Step::states + Step::extras) * hidden_size;
  // A thread's units are the columns of dh that it makes: they need no meeting from one time step to the next.
  const Range units = my_part(share, plain_panels<T>(hidden_size)), columns = my_part(share, plain_panels<T>(output_size));
  const auto end_of = [](const Range& range, int64_t size) {
    return range.end * kPlainPanel<T> < size ? range.end * kPlainPanel<T> : size;
  };
  const auto step = [&f](const At* at) {
    all_whole(at, f.hidden_size) ? backward_step<true, T, Step>(f, at) : backward_step<false, T, Step>(f, at);
  };
  for (int64_t s = schedule.steps - 1; s >= 0; --s) {
    const int64_t t = time_step(f, s), active = active_rows(f, t, share.first, share.count);
    for (int64_t i = 0; i < active; ++i) {
      const int64_t p = share.first + i, b = schedule.order[p], row = schedule.offset[t] + p;
      rows[i].h_previous = previous_h(f, f.output, t, p);
      rows[i].states_previous = first_step(f, t, p) ? f.states0 + b * states : f.extras + (schedule.offset[previous(f, t)] + p) * extras;
      rows[i].gates = f.gates + row * gates;
      rows[i].extras = f.extras + row * extras;
      rows[i].grad_output = f.grad_output ? f.grad_output + t * f.output_step + b * f.output_row : nullptr;
      rows[i].dgates_x = f.dgates_x + row * gates;
      rows[i].dgates_h = f.dgates_h + row * gates;
      rows[i].dh_total = f.dh_total ? f.dh_total + row * output_size : nullptr;
      rows[i].dhidden = f.dhidden ? f.dhidden + p * hidden_size : nullptr;
      rows[i].dh = f.dh + b * output_size;
      rows[i].dstates = f.dstates + b * states;
    }
    if (f.dhidden) {
      for (int64_t i = 0; i < active; ++i)
        for (int64_t k = columns.begin * kPlainPanel<T>; k < end_of(columns, output_size); ++k)
          rows[i].dh_total[k] = rows[i].dh[k] + (rows[i].grad_output ? rows[i].grad_output[k] : T(0));
      meet(share);
      plain_product<T>([rows](int64_t i) { return rows[i].dh_total; }, [rows](int64_t i) { return rows[i].dhidden; }, active, output_size,
                       hidden_size, units.begin, units.end, f.weight_hr, false, room);
    }
    Groups<At, decltype(step)> groups(step);
    for (int64_t i = 0; i < active; ++i)
      for (int64_t unit = units.begin * kPlainPanel<T>; unit < end_of(units, hidden_size); unit += Simd<T>::width)
        groups.add({rows + i, unit, nullptr, nullptr});
    groups.finish();
    if (s == 0 && !f.needs_dh0) return;
    meet(share);
    plain_product<T>([rows](int64_t i) { return rows[i].dgates_h; }, [rows](int64_t i) { return rows[i].dh; }, active, gates, output_size,
                     columns.begin, columns.end, f.weight_hh, Step::uses_h, room);
  }
}

template <class T>
inline void rows_product(const T* const* in, T* const* out, int64_t count, int64_t depth, int64_t columns, const T* packed, bool accumulate,
                         T* room) {
  plain_product<T>([in](int64_t r) { return in[r]; }, [out](int64_t r) { return out[r]; }, count, depth, columns, 0,
                   plain_panels<T>(columns), packed, accumulate, room);
}

template <class T, class Step>
inline Kernels<T> kernels_of() {
  return {Step::gates,          Step::states,          Step::extras,       Step::same_gate_gradients,
          !Step::uses_h,  // the step would read unit u of an h that has output_size units
          unit_panels<T, Step>, packed_panel<T, Step>, unit_sums<T, Step>, pack_units<T, Step>,       plain_panels<T>,
          plain_panel<T>,       pack_plain<T>,         factor_room,        forward<T, Step>,          backward<T, Step>,
          rows_product<T>,      gradient_work<T>,      weight_gradients<T>};
}

template <class T>
inline Kernels<T> find_kernels(Cell cell) {
  switch (cell) {
    case Cell::lstm:
      return kernels_of<T, Lstm<T>>();
    case Cell::gru:
      return kernels_of<T, Gru<T>>();
    case Cell::rnn_tanh:
      return kernels_of<T, Rnn<T, Tanh>>();
    case Cell::rnn_relu:
      return kernels_of<T, Rnn<T, Relu>>();
  }
  return {};
}

Kernels<float> float_kernels(Cell cell) { return find_kernels<float>(cell); }
#ifndef SSTKERN_BFLOAT16
Kernels<double> double_kernels(Cell cell) { return find_kernels<double>(cell); }
#endif

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
