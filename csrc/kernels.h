// What the driver (layer.cpp) and the kernels (recurrence.h, compiled once for every instruction set) say to each other: plain
// structures and function pointers, no code.
#pragma once

#include <stdint.h>

namespace sstkern {

// Sequences are sorted by falling length: position p of the sorted batch is batch index order[p], and at time step t the positions
// 0..active[t]-1 are inside their sequence. Valid (time, position) pairs are numbered row by row: offset[t] + p.
struct Schedule {
  int64_t steps;
  const int64_t* offset;
  const int64_t* active;
  const int64_t* order;
  const int64_t* length;  // by position
};

// What the forward and the backward of one direction of a layer share. H = hidden_size, P = output_size (proj_size, or H).
template <class T>
struct Recurrence {
  Schedule schedule;
  bool reverse;
  int64_t hidden_size, output_size;
  const T* h0;                      // (B, P)
  const T* states0;                 // (B, states * H)
  int64_t output_step, output_row;  // strides of output and its gradient: element (t, b, p) is at t * step + b * row + p
};

template <class T>
struct Forward : Recurrence<T> {
  const T* weight_hh;  // packed by pack_recurrent
  const T* weight_hr;  // packed by pack_plain as (H, P), or null
  const T* bias_hh;    // gates * H, or null
  T* output;           // rows past a length are set to zero
  T* h_n;              // (B, P)
  T* states_n;         // (B, states * H)
  T* gates;            // (rows, gates * H): in, the input projection; out, the activated gates
  // With save_for_backward: by row, to keep; without: by position, overwritten every step.
  bool save_for_backward;
  T* extras;  // (., (states + extras) * H)
  T* hidden;  // (., H): what the projection reads, or null
};

template <class T>
struct Backward : Recurrence<T> {
  const T* weight_hh;    // packed by pack_plain as (gates * H, P)
  const T* weight_hr;    // packed by pack_plain as (P, H), or null
  const T* output;       // the forward's output
  const T* grad_output;  // null: zero
  const T* gates;
  const T* extras;
  T* dgates_x;  // (rows, gates * H)
  T* dgates_h;  // (rows, gates * H): the same memory where the cell's gradients are the same
  T* dh_total;  // (rows, P): gradient of the projection's result, or null
  T* dhidden;   // (B, H) by position: working memory of a projection, or null
  T* dh;        // (B, P): in, gradient of h_n; out, gradient of h0
  T* dstates;   // (B, states * H): likewise
};

// The addresses of one position at one time step.
template <class T>
struct ForwardRow {
  const T *h_previous, *states_previous;
  T *gates, *extras, *hidden, *h;
};

template <class T>
struct BackwardRow {
  const T *h_previous, *states_previous, *gates, *extras, *grad_output;
  T *dgates_x, *dgates_h, *dh_total, *dhidden, *dh, *dstates;
};

template <class T>
struct Kernels {
  int gates, states, extras;
  bool same_gate_gradients, projects;
  int64_t (*recurrent_packed_size)(int64_t hidden_size, int64_t output_size);
  void (*pack_recurrent)(const T* weight_hh, int64_t hidden_size, int64_t output_size, T* packed);
  int64_t (*plain_packed_size)(int64_t depth, int64_t columns);
  void (*pack_plain)(const T* from, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, T* packed);
  // Run positions first..first+count-1 through all time steps; `rows` is working memory for `count` rows.
  void (*forward)(const Forward<T>&, int64_t first, int64_t count, ForwardRow<T>* rows);
  void (*backward)(const Backward<T>&, int64_t first, int64_t count, BackwardRow<T>* rows);
};

enum class Cell { lstm, gru, rnn_tanh, rnn_relu };

// One set of kernels for every instruction set this build has.
#define SSTKERN_DECLARE_LEVEL(level)    \
  namespace level {                     \
  Kernels<float> float_kernels(Cell);   \
  Kernels<double> double_kernels(Cell); \
  }
SSTKERN_DECLARE_LEVEL(baseline)
#if defined(__x86_64__)
SSTKERN_DECLARE_LEVEL(avx2)
SSTKERN_DECLARE_LEVEL(avx512)
#endif
#undef SSTKERN_DECLARE_LEVEL

}  // namespace sstkern
