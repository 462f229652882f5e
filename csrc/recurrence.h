// The time loop, forward and backward, once for every cell.
//
// Rows of a batch are independent, so a thread runs its positions through all time steps without waiting for anybody. At a time step
// the rows share each panel of the recurrent weights while it is in the first cache, and the cell's step is the epilogue of the
// product: the gates' sums never leave the registers.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "gemm.h"
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

template <class T>
inline void copy(T* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

template <class T, class Step>
struct Panels {
  static constexpr int columns = Step::gates * Step::unit_blocks;
  static constexpr int units = Step::unit_blocks * Simd<T>::width;
  static int64_t count(int64_t hidden_size) { return (hidden_size + units - 1) / units; }
};

// weight_hh (gates * H, P) as panels of [P][unit_blocks][gates][width]; units past H are zero.
template <class T, class Step>
inline void pack_recurrent(const T* weight_hh, int64_t hidden_size, int64_t output_size, T* packed) {
  using Panel = Panels<T, Step>;
  for (int64_t panel = 0; panel < Panel::count(hidden_size); ++panel)
    for (int64_t k = 0; k < output_size; ++k)
      for (int block = 0; block < Step::unit_blocks; ++block)
        for (int gate = 0; gate < Step::gates; ++gate)
          for (int lane = 0; lane < Simd<T>::width; ++lane) {
            const int64_t unit = panel * Panel::units + block * Simd<T>::width + lane;
            *packed++ = unit < hidden_size ? weight_hh[(gate * hidden_size + unit) * output_size + k] : T(0);
          }
}

template <class T, class Step>
inline int64_t recurrent_packed_size(int64_t hidden_size, int64_t output_size) {
  return Panels<T, Step>::count(hidden_size) * Panels<T, Step>::columns * Simd<T>::width * output_size;
}

// R rows x one panel of units: the recurrent product, then the cell's step on what the registers hold.
template <class T, class Step>
struct ForwardTile {
  const Forward<T>& f;
  const ForwardRow<T>* rows;
  int64_t panel;

  template <int R>
  void run() const {
    using Panel = Panels<T, Step>;
    constexpr int width = Simd<T>::width;
    const int64_t hidden_size = f.hidden_size;
    const int64_t begin = panel * Panel::units;
    Vec<T> sum[R][Panel::columns];
    for (int c = 0; c < Panel::columns; ++c) {
      const int64_t unit = begin + c / Step::gates * width;
      const Vec<T> bias =
          f.bias_hh && unit < hidden_size ? load(f.bias_hh + c % Step::gates * hidden_size + unit, hidden_size - unit) : Vec<T>{};
      for (int r = 0; r < R; ++r) sum[r][c] = bias;
    }
    multiply<T, R, Panel::columns>(
        sum, [this](int r) { return rows[r].h_previous; }, f.output_size, f.weight_hh + panel * Panel::columns * width * f.output_size);
    for (int r = 0; r < R; ++r)
      for (int block = 0; block < Step::unit_blocks; ++block) {
        const int64_t unit = begin + block * width;
        if (unit < hidden_size) step(rows[r], unit, hidden_size - unit, &sum[r][block * Step::gates]);
      }
  }

  void step(const ForwardRow<T>& row, int64_t unit, int64_t count, const Vec<T>* sum) const {
    const int64_t hidden_size = f.hidden_size;
    Vec<T> gate[Step::gates], from_h[Step::gates], state[1]{}, extra[1]{};
    static_assert(Step::states <= 1 && Step::extras <= 1, "the arrays above hold one of each");
    for (int g = 0; g < Step::gates; ++g) {
      gate[g] = load(row.gates + g * hidden_size + unit, count);
      from_h[g] = sum[g];
    }
    if (Step::states) state[0] = load(row.states_previous + unit, count);
    const Vec<T> h_previous = Step::uses_h ? load(row.h_previous + unit, count) : Vec<T>{};
    const Vec<T> h = Step::forward(gate, from_h, h_previous, state, extra);
    store((row.hidden ? row.hidden : row.h) + unit, h, count);
    if (Step::states) store(row.extras + unit, state[0], count);
    if (!f.save_for_backward) return;
    for (int g = 0; g < Step::gates; ++g) store(row.gates + g * hidden_size + unit, gate[g], count);
    if (Step::extras) store(row.extras + Step::states * hidden_size + unit, extra[0], count);
  }
};

template <class T, class Step>
inline void forward(const Forward<T>& f, int64_t first, int64_t count, ForwardRow<T>* rows) {
  constexpr int tile_rows = kTileRows<Panels<T, Step>::columns>;
  const Schedule& schedule = f.schedule;
  const int64_t hidden_size = f.hidden_size, output_size = f.output_size, states = Step::states * hidden_size,
                extras = (Step::states + Step::extras) * hidden_size;
  for (int64_t s = 0; s < schedule.steps; ++s) {
    const int64_t t = f.reverse ? schedule.steps - 1 - s : s;
    const int64_t active = active_rows(f, t, first, count);
    for (int64_t i = 0; i < active; ++i) {
      const int64_t p = first + i, b = schedule.order[p], row = schedule.offset[t] + p, kept = f.save_for_backward ? row : p;
      const int64_t before = f.save_for_backward && !first_step(f, t, p) ? schedule.offset[previous(f, t)] + p : p;
      rows[i].h_previous = previous_h(f, f.output, t, p);
      rows[i].states_previous = first_step(f, t, p) ? f.states0 + b * states : f.extras + before * extras;
      rows[i].gates = f.gates + row * Step::gates * hidden_size;
      rows[i].extras = f.extras + kept * extras;
      rows[i].hidden = f.hidden ? f.hidden + kept * hidden_size : nullptr;
      rows[i].h = f.output + t * f.output_step + b * f.output_row;
    }
    for (int64_t panel = 0; panel < Panels<T, Step>::count(hidden_size); ++panel)
      for (int64_t i = 0; i < active; i += tile_rows) {
        const int64_t left = active - i;
        with_rows<tile_rows>(left < tile_rows ? left : tile_rows, ForwardTile<T, Step>{f, rows + i, panel});
      }
    if (f.hidden)
      plain_product<T>([rows](int64_t i) { return rows[i].hidden; }, [rows](int64_t i) { return rows[i].h; }, active, hidden_size,
                       output_size, f.weight_hr, false);
  }
  for (int64_t p = first; p < first + count; ++p) {
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

template <class T, class Step>
inline void backward_step(const Backward<T>& f, const BackwardRow<T>& row, int64_t unit) {
  const int64_t hidden_size = f.hidden_size, count = hidden_size - unit;
  Vec<T> gate[Step::gates], dgate_x[Step::gates], dgate_h[Step::gates];
  Vec<T> extra[1]{}, before[1]{}, state[1]{}, dstate[1]{};
  static_assert(Step::states <= 1 && Step::extras <= 1, "the arrays above hold one of each");
  for (int g = 0; g < Step::gates; ++g) gate[g] = load(row.gates + g * hidden_size + unit, count);
  if (Step::extras) extra[0] = load(row.extras + Step::states * hidden_size + unit, count);
  if (Step::states) {
    before[0] = load(row.states_previous + unit, count);
    state[0] = load(row.extras + unit, count);
    dstate[0] = load(row.dstates + unit, count);
  }
  const Vec<T> h_previous = Step::uses_h ? load(row.h_previous + unit, count) : Vec<T>{};
  Vec<T> dh;
  if (row.dhidden) {
    dh = load(row.dhidden + unit, count);
  } else {
    dh = load(row.dh + unit, count);
    if (row.grad_output) dh += load(row.grad_output + unit, count);
  }
  const Vec<T> direct = Step::backward(gate, extra, h_previous, before, state, dh, dstate, dgate_x, dgate_h);
  for (int g = 0; g < Step::gates; ++g) {
    store(row.dgates_x + g * hidden_size + unit, dgate_x[g], count);
    if (!Step::same_gate_gradients) store(row.dgates_h + g * hidden_size + unit, dgate_h[g], count);
  }
  if (Step::states) store(row.dstates + unit, dstate[0], count);
  if (Step::uses_h) store(row.dh + unit, direct, count);
}

template <class T, class Step>
inline void backward(const Backward<T>& f, int64_t first, int64_t count, BackwardRow<T>* rows) {
  const Schedule& schedule = f.schedule;
  const int64_t hidden_size = f.hidden_size, output_size = f.output_size, gates = Step::gates * hidden_size,
                states = Step::states * hidden_size, extras = (Step::states + Step::extras) * hidden_size;
  for (int64_t s = schedule.steps - 1; s >= 0; --s) {
    const int64_t t = f.reverse ? schedule.steps - 1 - s : s;
    const int64_t active = active_rows(f, t, first, count);
    for (int64_t i = 0; i < active; ++i) {
      const int64_t p = first + i, b = schedule.order[p], row = schedule.offset[t] + p;
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
        for (int64_t k = 0; k < output_size; ++k)
          rows[i].dh_total[k] = rows[i].dh[k] + (rows[i].grad_output ? rows[i].grad_output[k] : T(0));
      plain_product<T>([rows](int64_t i) { return rows[i].dh_total; }, [rows](int64_t i) { return rows[i].dhidden; }, active, output_size,
                       hidden_size, f.weight_hr, false);
    }
    for (int64_t i = 0; i < active; ++i)
      for (int64_t unit = 0; unit < hidden_size; unit += Simd<T>::width) backward_step<T, Step>(f, rows[i], unit);
    plain_product<T>([rows](int64_t i) { return rows[i].dgates_h; }, [rows](int64_t i) { return rows[i].dh; }, active, gates, output_size,
                     f.weight_hh, Step::uses_h);
  }
}

template <class T, class Step>
inline Kernels<T> kernels_of() {
  return {Step::gates,
          Step::states,
          Step::extras,
          Step::same_gate_gradients,
          !Step::uses_h,  // the step would read unit u of an h that has output_size units
          recurrent_packed_size<T, Step>,
          pack_recurrent<T, Step>,
          plain_packed_size<T>,
          pack_plain<T>,
          forward<T, Step>,
          backward<T, Step>};
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
Kernels<double> double_kernels(Cell cell) { return find_kernels<double>(cell); }

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
