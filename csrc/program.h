// A program of sstkern/program/lower.py: what it does before, in and after the loop over time steps, and the functions of its loops.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace sstkern {

// Whose rows a slot holds: of the sequences' inputs and outputs, of their states before and after a step, of all time steps, or of those
// that one phase runs on at once: of one time step in the loop.
enum class SlotKind { input, before, after, output, rows, step };

struct Slot {
  SlotKind kind;
  int64_t place, width;
  bool boolean;
  bool rows_only;  // of an input or output: whether it has valid rows only where the call's tensors are padded
  int phase = -1;  // the one whose rows a step's slot holds, or -1 where none uses it
};

struct SlotStart {
  int64_t slot, start;
};

struct ProgramProduct {
  SlotStart operand;
  int64_t rows, depth, columns, weight;
  bool transposed;
};

struct PlainProduct {
  ProgramProduct product;
  SlotStart target;
  int64_t number;  // among all of the program
};

struct AttachedProduct {
  ProgramProduct product;
  int gates;
  bool ahead;
  int64_t number;  // of this product, among all attached ones of its phase
  int64_t bias;    // the vector that its sums begin with, or -1
};

struct UnitsLoop {
  int64_t function, units;  // the function is no other loop's
  std::vector<AttachedProduct> attached;
};

struct MovedRow {
  std::vector<SlotStart> sources;
  std::vector<int64_t> widths;
  SlotStart target;
  // places[begin[i]..begin[i + 1]-1]: what number i of the target is the sum of, in the sources' numbers, one after the other.
  std::vector<int64_t> begin, places;
  bool picked;  // whether each is one number of the only source, as where a row is transposed
};

struct ReducedRow {
  int64_t kind, runs, width, divisor;  // kind: of kReductions
  std::vector<SlotStart> sources;
  SlotStart target;
};

struct ProgramStage {
  std::vector<PlainProduct> plain;
  std::vector<MovedRow> moves;
  std::vector<ReducedRow> reductions;
  std::vector<UnitsLoop> loops;

  // Whether each row is computed by itself, without a product that reads its weight once for many.
  bool of_rows() const {
    for (const UnitsLoop& loop : loops)
      if (!loop.attached.empty()) return false;
    return plain.empty();
  }
};

struct RowSum {
  int64_t left, left_width;
  SlotStart right;  // slot -1: none
  int64_t right_width, rows;
};

struct Program {
  int64_t inputs, states, outputs, weights, vectors, numbers;
  std::vector<Slot> slots;
  std::vector<int64_t> starts, vector_sizes;  // how many numbers of each vector are read
  std::array<std::vector<ProgramStage>, 3> phases;
  std::array<int64_t, 3> attached;  // products of each phase
  int64_t plain;                    // products
  std::vector<RowSum> sums;
  std::shared_ptr<const ProgramLibrary> library;
  const struct LevelProducts* products;
};

// Loads a library that was compiled from a program's text and returns its number. Throws ValueError where it cannot be loaded, or is not
// for an instruction set of this process or has other headers.
int64_t load_program_library(const std::string& path);

// Makes a program of a library and what `sstkern/program/on_cpu.py` describes, and returns its number. Throws ValueError for a description
// that would have it read or write outside its rows.
int64_t make_program(int64_t library, Ints description);
void forget_program(int64_t program);

std::shared_ptr<const Program> find_program(int64_t program);

}  // namespace sstkern
