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

// Where threads that share a time step meet (team.h).
class Barrier;
void wait(Barrier&);

// What one thread runs: some positions of the batch through all time steps and, where `parts` threads share these positions, its part of
// the hidden units.
struct Share {
  int64_t first, count;  // positions
  int64_t part, parts;
  Barrier* barrier;  // of those threads, or null where there is one
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
  const T* x;  // element (t, b, i) is at t * x_step + b * x_row + i
  int64_t input_size, x_step, x_row;
  // (gates * H, I) and (gates * H, P), and both packed by pack_units, or null: a panel is then packed when it is needed.
  const T *weight_ih, *weight_hh, *packed_ih, *packed_hh;
  const T *bias_ih, *bias_hh;  // gates * H, or null
  const T* weight_hr;          // packed by pack_plain as (H, P), or null
  T* output;                   // rows past a length are set to zero
  T* h_n;                      // (B, P)
  T* states_n;                 // (B, states * H)
  bool save_for_backward;
  T* gates;   // to keep, by row: (rows, gates * H), activated; or null
  T* extras;  // (., (states + extras) * H): by row to keep, or by position and overwritten every step
  T* hidden;  // (., H), likewise: what the projection reads, or null
};

// Rows that a product takes at once: their sums, and what they are made from, stay in the first cache.
constexpr int64_t kBlockRows = 24;
// Rows whose input projection is made at once, so that its weights are read once for all of them.
constexpr int64_t kChunkRows = 96;

// A thread's own memory.
template <class T>
struct ForwardRow;
template <class T>
struct ForwardWork {
  ForwardRow<T>* rows;               // for each of its positions
  const T** chunk_x;                 // for each row of a chunk, as factors
  T* chunk_sums;                     // a chunk's input projection: kChunkRows rows of every panel; aligned to a vector
  T* panels;                         // room for a packed panel of both weights
  T *x_room, *h_room, *hidden_room;  // factor_room for a chunk's rows of x, for h of each position and for kBlockRows hidden states
};

template <class T>
struct Backward : Recurrence<T> {
  bool needs_dh0;        // without it dh is not meant for anybody in the end, and no product makes it
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

// A weight whose gradient is wanted.
template <class T>
struct WeightGradient {
  const T* const* right;  // for every row, the `columns` elements that the weight was multiplied with
  int64_t columns;
  T* out;  // (., columns)
};

// The addresses of one position at one time step.
template <class T>
struct ForwardRow {
  const T *h_previous, *h_factors, *states_previous;
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
  // A panel holds the weights of some neighbouring hidden units; packed_panel is its size for a weight of `depth` columns. What packs
  // writes panel `begin` first.
  int64_t (*unit_panels)(int64_t hidden_size);
  int64_t (*packed_panel)(int64_t depth);
  // Elements of the sums of `rows` rows.
  int64_t (*unit_sums)(int64_t hidden_size, int64_t rows);
  void (*pack_units)(const T* weight, int64_t hidden_size, int64_t depth, int64_t begin, int64_t end, T* packed);
  // A panel holds some neighbouring columns of a matrix, and has plain_panel elements.
  int64_t (*plain_panels)(int64_t columns);
  int64_t (*plain_panel)(int64_t depth);
  void (*pack_plain)(const T* from, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride, int64_t begin, int64_t end,
                     T* packed);
  // Elements of room that `rows` rows of a product of this depth need, where its factors are not the numbers themselves.
  int64_t (*factor_room)(int64_t rows, int64_t depth);
  void (*forward)(const Forward<T>&, const Share&, const ForwardWork<T>&);
  // `room` is factor_room for kBlockRows rows of any product in it.
  void (*backward)(const Backward<T>&, const Share&, BackwardRow<T>* rows, T* room);
  // out[i] = (accumulate ? out[i] : 0) + in[i] * matrix, for `count` rows and a matrix packed by pack_plain; `room` as above.
  void (*rows_product)(const T* const* in, T* const* out, int64_t count, int64_t depth, int64_t columns, const T* packed, bool accumulate,
                       T* room);
  // For each of `count` weights: out[g][c] = sum over rows r of left[r * left_size + g] * right[r][c], for g in begin..end-1. `work` has
  // gradient_work elements.
  int64_t (*gradient_work)(const WeightGradient<T>* weights, int64_t count);
  void (*weight_gradients)(const T* left, int64_t left_size, int64_t rows, const WeightGradient<T>* weights, int64_t count, int64_t begin,
                           int64_t end, T* work);
};

enum class Cell { lstm, gru, rnn_tanh, rnn_relu };

// One set of kernels for every instruction set this build has; and what measures a core (peak.h): multiply_adds makes 12 independent
// ones of a vector a round; both return how many numbers that were.
#define SSTKERN_DECLARE_LEVEL(level)                  \
  namespace level {                                   \
  Kernels<float> float_kernels(Cell);                 \
  Kernels<double> double_kernels(Cell);               \
  int64_t multiply_adds(int64_t rounds);              \
  int64_t read_all(const float* from, int64_t count); \
  }
SSTKERN_DECLARE_LEVEL(baseline)
#if defined(__x86_64__)
SSTKERN_DECLARE_LEVEL(avx2)
SSTKERN_DECLARE_LEVEL(avx512)
namespace avx512_bf16 {
Kernels<float> float_kernels(Cell);  // their products are of bfloat16 pairs
}
#endif
#undef SSTKERN_DECLARE_LEVEL

}  // namespace sstkern
