// In which order a call visits its (time step, sequence) pairs, and which of them there are.
#pragma once

#include <optional>
#include <vector>

#include "kernels.h"
#include "tensor.h"

namespace sstkern {

// lengths, here and below: int64 (batch,), or, where sequences begin anew, (batch, 1 + steps), of which the first column is the lengths,
// and the others say of every step whether a sequence begins anew with it; or bool (batch, steps), which says that of whole sequences.

// Of those the lengths alone.
std::vector<int64_t> lengths_alone(const Tensor& lengths);

// The longest of them, or 0 where there is none.
int64_t longest(const Tensor& lengths);

// Those of a packed x: raises ValueError unless each is from 0 to `rows`, before anything has their size, and they fall.
void check_packed_lengths(const std::optional<Tensor>& lengths, int64_t rows);

// Sorts the batch by falling length once per call: at every time step the valid rows are then a prefix, and padding costs nothing. A
// sequence that begins anew at some steps is cut into pieces there. A position is then a lane of pieces: as a rule those of one sequence,
// which are where they were without cuts; of few sequences, pieces are dealt out to more lanes.
class BatchSchedule {
 public:
  // lengths: on the CPU, or none where every sequence has `steps` time steps. Throws ValueError outside 0..steps.
  BatchSchedule(const std::optional<Tensor>& lengths, int64_t steps, int64_t batch);

  // What it has of the time steps begin..end-1: sequences as long as their parts of these, in the same order.
  BatchSchedule span(int64_t begin, int64_t end) const;

  Schedule view() const;
  int64_t rows() const { return rows_; }                                       // valid (time step, sequence) pairs
  int64_t active(int64_t t) const { return active_[t]; }                       // sequences at time step t
  int64_t batch() const { return static_cast<int64_t>(order_.size()); }        // positions: sequences, or lanes
  int64_t steps() const { return steps_; }                                     // of the longest one; without lengths of the call
  int64_t sequences() const { return sequences_; }                             // of the call
  bool cut() const { return !first_piece_.empty(); }                           // whether sequences are cut into pieces, if only one each
  int64_t states() const { return cut() ? first_piece_.back() : sequences_; }  // that differ: of sequences, or pieces

  bool dealt() const { return dealt_; }  // whether lanes are not sequences

  // The pieces of a sequence have the numbers first_piece(sequence)..first_piece(sequence + 1)-1.
  int64_t first_piece(int64_t sequence) const { return first_piece_[sequence]; }
  // Whether it begins anew with its first step, and not with what it was given.
  bool begins_anew(int64_t sequence) const { return begins_anew_[sequence]; }

  // Bounds of `parts` ranges of positions with about equal numbers of time steps.
  std::vector<int64_t> split(int64_t parts) const;

  bool full() const { return full_; }  // whether there is no padding in tensors of the call

  // Where the valid rows of a tensor are, in row order.
  template <class T>
  std::vector<T*> rows_of(T* tensor, const Layout& layout) const {
    const Schedule schedule = view();
    std::vector<T*> rows;
    rows.reserve(rows_);
    for (int64_t t = 0; t < steps_; ++t)
      for (int64_t p = 0; p < active_[t]; ++p) rows.push_back(tensor + layout.at(schedule, t, p));
    return rows;
  }

  // What came before them in their sequences: a row of the tensor, or of initial (states(), features) at a first step.
  template <class T>
  std::vector<T*> previous_rows_of(T* tensor, const Layout& layout, T* initial, int64_t features, bool reverse) const {
    const Schedule schedule = view();
    std::vector<T*> rows;
    rows.reserve(rows_);
    for (int64_t t = 0; t < steps_; ++t)
      for (int64_t p = 0; p < active_[t]; ++p) {
        const bool first = schedule.first(t, p, reverse);
        rows.push_back(first ? initial + schedule.states_at(t, p) * features : tensor + layout.at(schedule, reverse ? t + 1 : t - 1, p));
      }
    return rows;
  }

  // Of each of `groups` equal shares of the call's sequences, the rows, in row order.
  std::vector<std::vector<int64_t>> rows_of_groups(int64_t groups) const;

 private:
  BatchSchedule() = default;
  // Which pieces each lane has, one after the other: those of lane i are pieces[begin[i]..begin[i + 1]-1].
  struct Lanes {
    std::vector<int64_t> pieces, begin;
  };
  template <class Mark>
  void cut_sequences(const int64_t* lengths, const Mark* marks, int64_t stride, int64_t steps);
  void count_before(int64_t steps);
  // Those of a sequence each, or, of few sequences, more that are about as long as each other, with the longest pieces first.
  Lanes lanes();
  // Where in their lanes pieces are, and which piece each row is of.
  void place(const Lanes& lanes);
  void sort(const std::vector<int64_t>& lengths);
  void count_rows();

  int64_t steps_, rows_, sequences_;
  std::vector<int64_t> offset_, active_, order_, length_;
  bool full_;
  // Empty where no sequence is cut.
  std::vector<uint32_t> piece_;
  std::vector<int64_t> begin_, end_, sequence_, shift_, before_, first_piece_;  // begin_, end_: the steps of a piece in its sequence
  std::vector<bool> begins_anew_;
  bool dealt_ = false;
};

}  // namespace sstkern
