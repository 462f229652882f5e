// What the driver (layer.h) and the kernels (compiled once for every instruction set) say to each other: plain structures and function
// pointers, no code but sizes. A cell that is compiled apart from the library needs this, the headers it stands beside, and no other.
#pragma once

#include <stddef.h>
#include <stdint.h>

// For what the linker may not choose a copy of: one of them is compiled for AVX-512.
#define SSTKERN_INLINE inline __attribute__((always_inline))

namespace sstkern {

// Bytes between buffers of one allocation: none, unless the build is for AddressSanitizer (setup.py), which then reports who runs from one
// buffer into the next.
#ifdef SSTKERN_GAPS
constexpr int64_t kGapBytes = 64;
extern "C" void __asan_poison_memory_region(const volatile void*, size_t);
#else
constexpr int64_t kGapBytes = 0;
#endif

template <class T>
constexpr int64_t kGap = kGapBytes / static_cast<int64_t>(sizeof(T));

// Whoever touches the gap that begins here is reported from now on, until the allocation is freed.
SSTKERN_INLINE void close_gap([[maybe_unused]] const void* begin) {
#ifdef SSTKERN_GAPS
  __asan_poison_memory_region(begin, kGapBytes);
#endif
}

// Sequences are sorted by falling length: position p of the sorted batch is batch index order[p], and at time step t the positions
// 0..active[t]-1 are inside their sequence. Valid (time, position) pairs are numbered row by row: offset[t] + p.
//
// Sequences that begin anew at some steps are cut into pieces there. A position is then a lane: pieces one after the other, of one sequence
// or of several. Each piece has states of its own: those of positions, but for working memory, are the pieces'.
constexpr uint32_t kPieceBegins = uint32_t{1} << 31, kPieceEnds = uint32_t{1} << 30, kPiece = kPieceEnds - 1;
struct Schedule {
  int64_t steps;
  const int64_t* offset;
  const int64_t* active;
  const int64_t* order;
  const int64_t* length;  // by position
  // By row the piece that it is of, with kPieceBegins and kPieceEnds where it is the first or last step of that; null where no sequence is
  // cut.
  const uint32_t* piece;
  // Unless every lane is a sequence: by piece its sequence, and what the lane's step lacks to the sequence's; by step of a sequence, how
  // many rows of a packed tensor come before it.
  const int64_t *sequence, *shift, *before;

  SSTKERN_INLINE int64_t piece_at(int64_t t, int64_t position) const { return piece[offset[t] + position] & kPiece; }
  // The number of the states that a position has at a time step: of its sequence, or piece.
  SSTKERN_INLINE int64_t states_at(int64_t t, int64_t position) const { return piece ? piece_at(t, position) : order[position]; }
  // Whether these states come from outside, and whether they go there, as a direction visits the time steps.
  SSTKERN_INLINE bool first(int64_t t, int64_t position, bool reverse) const {
    if (reverse ? t == length[position] - 1 : t == 0) return true;
    return piece && (piece[offset[t] + position] & (reverse ? kPieceEnds : kPieceBegins));
  }
  SSTKERN_INLINE bool last(int64_t t, int64_t position, bool reverse) const { return first(t, position, !reverse); }
};

// Where the rows of a tensor are, in elements. A padded tensor has one for every time step and sequence, a packed one the valid ones alone,
// as they are numbered.
struct Layout {
  bool packed;
  int64_t step, row;     // strides; a packed tensor has no step
  bool of_call = false;  // whether it is the caller's, where lanes are not its sequences

  SSTKERN_INLINE int64_t at(const Schedule& schedule, int64_t t, int64_t position) const {
    if (of_call && schedule.shift) {
      const int64_t number = schedule.piece_at(t, position), sequence = schedule.sequence[number];
      t += schedule.shift[number];
      return packed ? (schedule.before[t] + sequence) * row : t * step + sequence * row;
    }
    return packed ? (schedule.offset[t] + position) * row : t * step + schedule.order[position] * row;
  }
};

// Where threads that share a time step meet (team.h), and what one of them does then: as before; all parts by itself, since another came
// too late; or nothing more, since another does.
class Barrier;
enum class Meeting { together, alone, leave };

// What one thread runs: some positions of the batch through all time steps and, where `parts` threads share these positions, its part of
// the hidden units.
struct Share {
  int64_t first, count;  // positions
  int64_t part, parts;
  Barrier* barrier;  // of those threads, or null where there is one
  Meeting (*wait)(Barrier&, int64_t part);
};

// The part of `count` panels, or rows, that falls to the thread.
struct Range {
  int64_t begin, end;
};

inline Range my_part(const Share& share, int64_t count) {
  return {count * share.part / share.parts, count * (share.part + 1) / share.parts};
}

// Whether the gates of so many vectors of units are columns of whole tiles (gemm.h), at least four unless one vector's are a tile.
constexpr bool whole_tiles(int gates, int blocks, bool sixteen_registers) {
  const int columns = gates * blocks;
  return (sixteen_registers ? columns % 2 == 0 : columns % 3 == 0 || columns % 4 == 0) && (blocks == 1 || columns >= 4);
}

// A weight whose gradient is wanted.
template <class T>
struct WeightGradient {
  const T* const* right;  // for every row, the `columns` elements that the weight was multiplied with
  int64_t columns;
  T* out;  // (., columns)
};

// A matrix's vectors of columns, or a cell's of units, in panels of about equal width.
struct Panels {
  int64_t vectors, count;
  // The first vector of a panel; of number `count`, where the last one ends.
  SSTKERN_INLINE int64_t begin(int64_t panel) const { return vectors * panel / count; }
  SSTKERN_INLINE int64_t width(int64_t panel) const { return begin(panel + 1) - begin(panel); }
  SSTKERN_INLINE int64_t widest() const { return (vectors + count - 1) / count; }
};

// At least `count` panels, and as many for each of the threads that share them; no more than there are vectors, so that none is empty.
SSTKERN_INLINE Panels share_panels(int64_t vectors, int64_t count, int64_t threads) {
  count = (count + threads - 1) / threads * threads;
  if (count > vectors) count = vectors;
  return {vectors, count < 1 ? 1 : count};
}

// Tiles of `columns` vectors: of `tile` each, the widest only where one more would be left alone.
SSTKERN_INLINE int64_t count_tiles(int64_t columns, int tile, int widest) {
  return columns <= widest ? 1 : (columns + 2 * tile - 1 - widest) / tile;
}

// The panels that a cell's weights are packed in: those of up to `blocks` neighbouring vectors of units, each with all its gates.
struct PanelShape {
  int gates, blocks;
  SSTKERN_INLINE constexpr int columns() const { return gates * blocks; }  // vectors of a panel's row
};

// How numbers are kept in memory that kernels do not compute with.
enum class Storage { bfloat16, float16 };

// Rows that a product takes at once: their sums, and what they are made from, stay in the first cache.
constexpr int64_t kBlockRows = 24;
// Rows whose input projection is made at once, so that its weights are read once for all of them.
constexpr int64_t kChunkRows = 96;

// The matrix products of one instruction set, which all cells share.
template <class T>
struct Products {
  int width;         // numbers of a vector
  int factor_parts;  // numbers that a product's factor is made of (factor.h)
  int tile, widest;  // vectors of a tile's row: as a rule, and at most (gemm.h)

  // Packs panels begin..end-1 of weight(unit, k) = weight[unit * unit_stride + k * depth_stride] of gates * H units: a panel holds its
  // vectors of units of each gate, zero past H.
  void (*pack_units)(int gates, const Panels& panels, const T* weight, int64_t unit_stride, int64_t depth_stride, int64_t hidden_size,
                     int64_t depth, int64_t begin, int64_t end, T* packed);
  // sums[row][column] = start[column] + the product of `count` rows of factors with a panel of `columns` vectors; aligned vectors.
  void (*panel_product)(int columns, T* sums, int64_t count, const T* const* rows, int64_t depth, const T* packed, const T* start);
  // Packs panels begin..end-1 of matrix(k, column) = from[k * depth_stride + column * column_stride].
  void (*pack_plain)(const Panels& panels, const T* from, int64_t depth, int64_t columns, int64_t depth_stride, int64_t column_stride,
                     int64_t begin, int64_t end, T* packed);
  // out[i] = (accumulate ? out[i] : 0) + in[i] * matrix, for `count` rows and panels begin..end-1 of a matrix packed by pack_plain; room
  // has factor_room for kBlockRows rows.
  void (*plain_product)(const Panels& panels, const T* const* in, T* const* out, int64_t count, int64_t depth, int64_t columns,
                        int64_t begin, int64_t end, const T* packed, bool accumulate, T* room);
  // For each of `count` weights: out[g][c] = (accumulate ? out[g][c] : 0) + sum over rows r of left[r * left_size + g] * right[r][c], for g
  // in begin..end-1. `work` has gradient_work elements.
  int64_t (*gradient_work)(const WeightGradient<T>* weights, int64_t count);
  void (*weight_gradients)(const T* left, int64_t left_size, int64_t rows, const WeightGradient<T>* weights, int64_t count, int64_t begin,
                           int64_t end, bool accumulate, T* work);
  // `count` numbers as float32, and back; null unless T is float.
  void (*widen)(Storage storage, const uint16_t* from, T* to, int64_t count);
  void (*narrow)(Storage storage, const T* from, uint16_t* to, int64_t count);

  // Factors of `depth` numbers.
  SSTKERN_INLINE int64_t factors(int64_t depth) const { return (depth + factor_parts - 1) / factor_parts; }
  // Elements that `rows` rows of factors need, where these are not the numbers themselves.
  SSTKERN_INLINE int64_t factor_room(int64_t rows, int64_t depth) const { return factor_parts == 1 ? 0 : rows * factors(depth); }
  // Vectors that hold `size` numbers.
  SSTKERN_INLINE int64_t vectors(int64_t size) const { return (size + width - 1) / width; }
  // The panels of hidden units, and of a plain product's columns, for threads that share them.
  SSTKERN_INLINE Panels unit_panels(PanelShape shape, int64_t hidden_size, int64_t threads) const {
    return share_panels(vectors(hidden_size), (vectors(hidden_size) + shape.blocks - 1) / shape.blocks, threads);
  }
  SSTKERN_INLINE Panels plain_panels(int64_t columns, int64_t threads) const {
    return share_panels(vectors(columns), count_tiles(vectors(columns), tile, widest), threads);
  }
  // Where a panel's sums of a chunk's rows begin: after those of the panel before it, and a gap; of number `count`, how many elements all
  // of them have.
  SSTKERN_INLINE int64_t chunk_sums(const Panels& panels, int64_t gates, int64_t panel) const {
    return kChunkRows * gates * width * panels.begin(panel) + kGap<T> * panel;
  }
  // Elements of `columns` packed vectors of columns.
  SSTKERN_INLINE int64_t packed(int64_t columns, int64_t depth) const { return columns * width * factors(depth); }
};

// What the forward and the backward of one direction of a layer share. H = hidden_size, P = output_size (proj_size, or H). States are those
// beside h; the numbers of states, parameters and saved values are the cell's.
template <class T>
struct Recurrence {
  Schedule schedule;
  const Products<T>* products;
  bool reverse;
  int64_t hidden_size, output_size;
  Panels units, outputs;       // of H, and of P
  const T* h0;                 // (B, P)
  const T* states0;            // (B, states * H)
  const T* const* parameters;  // the cell's own vectors, (H,) each
  Layout output_at;
};

// The addresses of one position at one time step.
template <class T>
struct ForwardRow {
  const T *h_previous, *states_previous;
  T *saved, *states, *hidden, *h;
};

template <class T>
struct Forward : Recurrence<T> {
  const T* x;
  Layout x_at;
  int64_t input_size;
  // (gates * H, I) and (gates * H, P), and both packed by pack_units, or null: a panel is then packed when it is needed.
  const T *weight_ih, *weight_hh, *packed_ih, *packed_hh;
  const T *bias_ih, *bias_hh;  // gates * H, or null
  const T* weight_hr;          // packed by pack_plain as (H, P), or null
  T* output;                   // where it is padded and no sequence is cut, rows past a length are set to zero
  T* h_n;                      // (B, P)
  T* states_n;                 // (B, states * H)
  bool save_for_backward;
  T* saved;   // what the backward needs, by row: (rows, saves * H); or null
  T* states;  // (., states * H): by row to keep, or by position and overwritten every step
  T* hidden;  // (., H), likewise: what the projection reads, or null
};

// A thread's own memory.
template <class T>
struct ForwardWork {
  ForwardRow<T>* rows;               // for each of its positions
  const T** h_factors;               // likewise
  const T** left;                    // likewise: the rows of a product that is a projection,
  T** right;                         // and of its result
  const T** chunk_x;                 // for each row of a chunk, as factors
  T* chunk_sums;                     // a chunk's input projection: kChunkRows rows of every panel; aligned to a vector
  T* panels;                         // room for a packed panel of weight_ih, a gap, and one of weight_hh
  T *x_room, *h_room, *hidden_room;  // factor_room for a chunk's rows of x, for h of each position and for kBlockRows hidden states
};

template <class T>
struct BackwardRow {
  const T *h_previous, *states_previous, *saved, *states, *h, *grad_output, *grad_states;
  T *dgates_x, *dgates_h, *dparameters, *dh_total, *dhidden, *dh, *dstates;
};

template <class T>
struct Backward : Recurrence<T> {
  bool needs_dh0;        // without it dh is not meant for anybody in the end, and no product makes it
  const T* weight_hh;    // packed by pack_plain as (gates * H, P)
  const T* weight_hr;    // packed by pack_plain as (P, H), or null
  const T* output;       // the forward's output
  const T* grad_output;  // null: zero
  const T* grad_states;  // (rows, states * H): gradients of the states after every step; null: zero
  Layout grad_output_at;
  const T *saved, *states;
  const T* hidden;  // the forward's, or null
  T* dgates_x;      // (rows, gates * H): gradients of the gates before their activation
  T* dgates_h;      // (rows, gates * H): the same memory where the cell's gradients are the same
  T* dparameters;   // (rows, parameters * H): what each row adds to their gradients
  T* dh_total;      // (rows, P): gradient of the projection's result, or null
  T* dhidden;       // (B, H) by position: working memory of a projection, or null
  T* dh;            // (B, P): in, gradient of h_n; out, gradient of h0
  T* dstates;       // (B, states * H): likewise
};

template <class T>
struct BackwardWork {
  BackwardRow<T>* rows;  // for each of a thread's positions
  const T** left;        // likewise: the rows of a product,
  T** right;             // and of its result
  T* room;               // factor_room for kBlockRows rows of any product
};

// The time loops of one cell.
template <class T>
struct Kernels {
  PanelShape shape;
  int states, parameters, saves;
  bool same_gate_gradients, projects;
  void (*forward)(const Forward<T>&, const Share&, const ForwardWork<T>&);  // null: the cell has no kernels of this type
  void (*backward)(const Backward<T>&, const Share&, const BackwardWork<T>&);
};

// Raised with every change of these structures: a cell compiled apart is refused unless it has the same.
constexpr int kKernelsVersion = 7 + (kGapBytes > 0 ? 1000 : 0);

// A cell's kernels for one instruction set.
struct CellKernels {
  const char *cell, *level;
  Kernels<float> of_float;
  Kernels<double> of_double;
};

// What an instruction set has for all cells; and what measures a core (peak.h): multiply_adds makes 12 independent ones of a vector a
// round; both return how many numbers that were.
struct LevelProducts {
  const char* level;
  Products<float> of_float;
  Products<double> of_double;
  int64_t (*multiply_adds)(int64_t rounds);
  int64_t (*read_all)(const float* from, int64_t count);
};

// What a library has that holds cells, by the name sstkern_cells (levels/end.h).
struct CellLibrary {
  int version;
  const CellKernels* cells;
  int64_t count;
};

// Products whose sums one loop of a program reads, at most (sstkern/program/lower.py).
constexpr int kMostProducts = 8;

// A vector of units of one row, as a program's loop computes them.
template <class T>
struct Units {
  void* const* slots;  // where each of the row's values is
  int64_t unit;
  const T* sums[kMostProducts];  // of this vector's gates, one after the other; aligned
};

// What is the same for all rows: where windows of values begin, the program's numbers, and its vectors without rows.
template <class T>
struct UnitsGiven {
  const int64_t* starts;
  const T* numbers;
  const T* const* vectors;
};

// Computes `count` vectors of a loop over `units` units.
template <class T>
using UnitsFunction = void (*)(const UnitsGiven<T>&, const Units<T>*, int64_t count, int64_t units);

// Reduces runs of `width` numbers, each of which follows the one before it in a row: to one number each, their sum over the divisor or the
// largest of them (twice: the two differ in their derivatives), or to as many, their sums up to each, from the first or from the last one
// on. Where there is a second row the sum is of the products of both.
constexpr int kReductions = 5, kCumulative = 3;  // the first reduction to as many numbers
template <class T>
using Reduction = void (*)(const T* from, const T* times, T* to, int64_t runs, int64_t width, double divisor);

// What a library has that is compiled from a program, by the name sstkern_program; one of the types is null. Of the reductions there are
// all or none.
struct ProgramLibrary {
  int version;
  const char* level;
  const UnitsFunction<float>* of_float;
  const UnitsFunction<double>* of_double;
  int64_t count;
  const Reduction<float>* reductions_of_float;
  const Reduction<double>* reductions_of_double;
};

// Both keep the addresses they are given (registry.cpp).
void register_products(const LevelProducts&);
void register_cells(const CellLibrary&);

}  // namespace sstkern
